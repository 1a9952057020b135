"""The transport plan and the rows it makes, against golden values, a slow solver and the definition of a plan."""

import math

import pytest
import torch
from torch import Tensor

from lightning_cil.losses import prospective_rows, retrospective_rows, sinkhorn, transport_cost
from tests.losses import reference as slow


def unit_vectors(*degrees: float) -> Tensor:
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def slow_sinkhorn(cost: list[list[float]], a: list[float], b: list[float], epsilon: float) -> list[list[float]]:
    """Algorithm 1 as printed: the kernel is exponentiated, rows and columns scaled in turn."""
    kernel = [[math.exp(-q / epsilon) for q in row] for row in cost]
    v = [1.0] * len(b)
    for _ in range(3000):
        u = [mass / sum(k * w for k, w in zip(row, v, strict=True)) for mass, row in zip(a, kernel, strict=True)]
        columns = zip(*kernel, strict=True)
        v = [mass / sum(k * w for k, w in zip(column, u, strict=True)) for mass, column in zip(b, columns, strict=True)]
    return [[x * k * y for k, y in zip(row, v, strict=True)] for x, row in zip(u, kernel, strict=True)]


def test_golden_cost_plan_and_rows() -> None:
    cost = transport_cost(unit_vectors(0, 90), unit_vectors(10, 70))
    expected = torch.tensor([[0.173687, 1.036838], [1.149626, 0.342644]], dtype=torch.float64)
    torch.testing.assert_close(cost, expected, atol=1e-6, rtol=0)
    plan = sinkhorn(cost)
    expected = torch.tensor([[0.429057, 0.070943], [0.070943, 0.429057]], dtype=torch.float64)
    torch.testing.assert_close(plan, expected, atol=1e-6, rtol=0)
    rows = prospective_rows(plan, torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64))
    expected = torch.tensor([[1.479906, 0.244697], [0.244697, 1.479906]], dtype=torch.float64)
    torch.testing.assert_close(rows, expected, atol=1e-6, rtol=0)
    gamma = rows[0, 0] / (2 * plan[0, 0])  # W̄ is the identity
    assert gamma.item() == pytest.approx(1.724604, abs=1e-6)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (1, 4), (4, 1), (1, 1), (6, 6)])
def test_plan_equals_the_slow_solver(shape: tuple[int, int]) -> None:
    cost = slow.random_matrix(*shape, seed=0, scale=0.7).abs()
    a, b = [1 / shape[0]] * shape[0], [1 / shape[1]] * shape[1]
    expected = torch.tensor(slow_sinkhorn(cost.tolist(), a, b, 0.464), dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(cost), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("regularisation", [0.02, 0.464, 10.0])
def test_plan_moves_all_mass_and_keeps_the_optimality_condition(regularisation: float) -> None:
    """-Q/ε - log P is a sum of a row's and a column's number: what the entropic problem demands."""
    cost = slow.random_matrix(4, 7, seed=1, scale=0.3).abs()
    plan = sinkhorn(cost, regularisation=regularisation)
    uniform = torch.full((7,), 1 / 7, dtype=torch.float64)
    torch.testing.assert_close(plan.sum(dim=0), uniform, atol=1e-12, rtol=0)
    torch.testing.assert_close(plan.sum(dim=1), uniform.new_full((4,), 0.25), atol=1e-8, rtol=0)
    potentials = plan.log() + cost / regularisation
    mixed = potentials - potentials[:1] - potentials[:, :1] + potentials[0, 0]
    assert mixed.abs().max() < 1e-9


def test_given_masses() -> None:
    cost = slow.random_matrix(2, 3, seed=2).abs()
    a, b = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0, 2.0])
    plan = sinkhorn(cost, a, b)
    expected = torch.tensor(slow_sinkhorn(cost.tolist(), a.tolist(), b.tolist(), 0.464), dtype=torch.float64)
    torch.testing.assert_close(plan, expected, atol=1e-8, rtol=0)


def test_no_cost_underflows() -> None:
    """exp(-1e4 / 0.464) is 0 in float64: the plain solver divides by it."""
    cost = torch.tensor([[0.0, 1e4], [1e4, 0.0], [1e4, 1e4]])
    plan = sinkhorn(cost[:2])
    torch.testing.assert_close(plan, torch.eye(2, dtype=torch.float64) / 2)
    far = sinkhorn(cost[:, :1])
    torch.testing.assert_close(far, torch.full((3, 1), 1 / 3, dtype=torch.float64))


def test_masses_of_the_authors_code_have_no_plan() -> None:
    """1/n_old for every new class: 2 old and 4 new classes would carry 1 and 2."""
    cost = torch.ones(2, 4)
    with pytest.raises(ValueError, match=r"sums 1 \(source\) and 2 \(target\), expected positive masses with one sum"):
        sinkhorn(cost, torch.full((2,), 0.5), torch.full((4,), 0.5))
    with pytest.raises(ValueError, match="expected positive masses"):
        sinkhorn(cost, torch.tensor([1.0, 0.0]), torch.full((4,), 0.25))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_without_classes_there_is_nothing_to_transport(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected at least one source and one target class"):
        sinkhorn(torch.zeros(shape))


def test_bad_cost_and_regularisation_are_refused() -> None:
    with pytest.raises(ValueError, match="a cost with 1 numbers that are not finite"):
        sinkhorn(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match=r"Got `regularisation=0\.0`"):
        sinkhorn(torch.ones(2, 2), regularisation=0.0)


def test_unfinished_plan_is_not_returned() -> None:
    cost = slow.random_matrix(4, 4, seed=3).abs()
    with pytest.raises(ValueError, match=r"did not reach `tolerance=1e-09` in 10 iterations"):
        sinkhorn(cost, regularisation=1e-3, max_iterations=10)


def test_cost_takes_directions_only() -> None:
    source, target = slow.random_matrix(3, 5, 0), slow.random_matrix(4, 5, 1)
    expected = [
        [
            sum(abs(x - y) ** 3 for x, y in zip(slow.unit(u), slow.unit(v), strict=True)) ** (1 / 3)
            for v in target.tolist()
        ]
        for u in source.tolist()
    ]
    torch.testing.assert_close(transport_cost(7 * source, target), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("make", [prospective_rows, retrospective_rows])
def test_rows_are_convex_mixes_of_unit_rows(make) -> None:
    weight = slow.random_matrix(3, 6, 0)
    plan = sinkhorn(slow.random_matrix(3, 5, 1).abs())
    units = [slow.unit(row) for row in weight.tolist()]
    shares = [[5 * float(plan[i, j]) for i in range(3)] for j in range(5)]
    assert all(sum(share) == pytest.approx(1) for share in shares)
    mixes = [[sum(s * u[d] for s, u in zip(share, units, strict=True)) for d in range(6)] for share in shares]
    expected = torch.tensor(mixes, dtype=torch.float64)
    if make is prospective_rows:
        expected *= weight.norm(dim=1).mean() / expected.norm(dim=1).mean()
    torch.testing.assert_close(make(plan, weight), expected)


def test_prospective_rows_have_the_old_mean_length() -> None:
    weight = slow.random_matrix(4, 6, 0)
    rows = prospective_rows(sinkhorn(slow.random_matrix(4, 3, 1).abs()), weight)
    assert rows.norm(dim=1).mean().item() == pytest.approx(weight.norm(dim=1).mean().item())


def test_zero_rows_stay_finite_and_types_are_kept() -> None:
    plan = sinkhorn(torch.ones(2, 3))
    for dtype in (torch.float32, torch.bfloat16):
        for make in (prospective_rows, retrospective_rows):
            rows = make(plan, torch.zeros(2, 4, dtype=dtype))
            assert rows.dtype == dtype
            assert torch.equal(rows, torch.zeros(3, 4, dtype=dtype))


def test_plan_has_no_gradient_and_retrospective_rows_have() -> None:
    cost, weight = torch.ones(2, 3, requires_grad=True), torch.ones(2, 4, requires_grad=True)
    plan = sinkhorn(cost)
    assert not plan.requires_grad
    assert retrospective_rows(plan, weight).requires_grad
