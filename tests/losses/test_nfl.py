"""NFL's steps and NFL+'s final step against golden values and slow references."""

import inspect

import pytest
import torch
from torch import Tensor

from lightning_cil.losses import cross_entropy_over, nfl_final_terms, nfl_plus_final_terms, nfl_step_terms
from tests.losses import reference as slow

TARGET = torch.tensor([3, 5, 4])  # old classes 0 to 2, new ones 3 to 5
SCOPES = [(None, "new"), ([1, 2], "new"), (None, "seen"), ([1, 2], "seen")]


def tensors() -> dict[str, Tensor]:
    widths = {"logits": 6, "frozen": 3, "teacher": 3, "recomputed": 3, "code": 4, "old_code": 4, "gamma": 1}
    return {
        name: slow.random_matrix(3, width, seed).requires_grad_() for seed, (name, width) in enumerate(widths.items())
    }


def slow_ce(logits: Tensor, ce_scope: str, target: Tensor = TARGET) -> float:
    return slow.cross_entropy(logits.tolist(), target.tolist(), 3 if ce_scope == "new" else 0, 6)


def slow_kd(student: Tensor, teacher: Tensor, sizes, temperature: float = 2.0) -> float:
    return slow.distillation(student[:, :3].tolist(), teacher.tolist(), temperature, sizes)


def test_golden_values_in_all_steps() -> None:
    """KD = 1.028142 for H = [2, 0, -1], O = [1, 1, 0], p = 2; the new head says ln 2."""
    logits = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    teacher, target = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64), torch.tensor([3])
    step = nfl_step_terms(logits, teacher, target, ce_weight=3.0)
    assert step["distillation"].item() == pytest.approx(1.028142, abs=1e-6)
    assert step["cross_entropy"].item() == pytest.approx(3 * 0.693147, abs=1e-5)
    floor = nfl_final_terms(logits, teacher, teacher, logits[:, :3], target, alpha=1.0, beta=0.0)
    assert sum(floor.values()).item() == pytest.approx(0.905959, abs=1e-6)  # O = H: the teacher's entropy is left


def test_golden_gradient() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0, 0.5]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64)
    loss = sum(nfl_step_terms(logits, teacher, torch.tensor([3])).values())
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = torch.tensor([[-0.122440, 0.076214, 0.046226, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("sizes", "ce_scope"), SCOPES)
def test_step_equals_the_reference(sizes, ce_scope: str) -> None:
    t = tensors()
    leaves = {name: t[name] for name in ("logits", "teacher")}
    options = {"temperature": 3.0, "old_sizes": sizes, "ce_scope": ce_scope}
    loss = sum(nfl_step_terms(t["logits"], t["teacher"], TARGET, ce_weight=0.7, **options).values())

    def reference(v: dict[str, Tensor]) -> float:
        # the teacher is a constant: its gradient is 0, whatever the differences say
        return slow_kd(v["logits"], t["teacher"].detach(), sizes, 3.0) + 0.7 * slow_ce(v["logits"], ce_scope)

    assert loss.item() == pytest.approx(reference(leaves), rel=1e-12)
    slow.check_gradients(loss, leaves, reference)


@pytest.mark.parametrize(("sizes", "ce_scope"), SCOPES)
def test_final_equals_the_reference(sizes, ce_scope: str) -> None:
    t = tensors()
    leaves = {name: t[name] for name in ("logits", "frozen", "teacher", "recomputed")}
    terms = nfl_final_terms(
        *leaves.values(), TARGET, alpha=0.3, beta=0.7, temperature=1.5, old_sizes=sizes, ce_scope=ce_scope
    )

    def reference(v: dict[str, Tensor]) -> float:
        teacher, recomputed = t["teacher"].detach(), t["recomputed"].detach()
        total = 0.3 * slow_kd(v["frozen"], teacher, sizes, 1.5)
        total += 0.7 * slow_kd(v["logits"], recomputed, sizes, 1.5)
        return total + 0.7 * slow_ce(v["logits"], ce_scope)

    loss = sum(terms.values())
    assert loss.item() == pytest.approx(reference(leaves), rel=1e-12)
    slow.check_gradients(loss, leaves, reference)


@pytest.mark.parametrize("train_gamma", [False, True])
@pytest.mark.parametrize(("sizes", "ce_scope"), SCOPES[:2])
def test_plus_equals_the_reference(sizes, ce_scope: str, train_gamma: bool) -> None:
    t = tensors()
    weights = {"eta": 0.3, "phi": 0.7, "rho": 0.11, "tau": 0.13}
    terms = nfl_plus_final_terms(
        t["logits"],
        t["frozen"],
        t["gamma"] * t["teacher"].detach(),
        t["recomputed"],
        TARGET,
        code=t["code"],
        teacher_code=t["old_code"],
        gamma=t["gamma"],
        old_sizes=sizes,
        ce_scope=ce_scope,
        train_gamma=train_gamma,
        **weights,
    )
    leaves = {name: t[name] for name in ("logits", "frozen", "recomputed", "code", "old_code", "gamma")}

    def reference(v: dict[str, Tensor]) -> float:
        gamma = v["gamma"] if train_gamma else t["gamma"].detach()
        total = weights["eta"] * slow_kd(v["frozen"], gamma * t["teacher"].detach(), sizes)
        total += (1 - weights["eta"]) * slow_kd(v["logits"], t["recomputed"].detach(), sizes)
        total += weights["phi"] * slow_ce(v["logits"], ce_scope)
        total += weights["rho"] * slow.squared_distance(v["code"].tolist(), t["old_code"].tolist())
        return total + weights["tau"] * slow.squared_distance(gamma.tolist(), [[1.0]] * 3)

    loss = sum(terms.values())
    assert loss.item() == pytest.approx(reference(leaves), rel=1e-12)
    slow.check_gradients(loss, leaves, reference)


def test_plus_without_code_and_with_gamma_one_is_nfl() -> None:
    t = tensors()
    common = (t["logits"], t["frozen"], t["teacher"], t["recomputed"], TARGET)
    plus = nfl_plus_final_terms(
        *common, code=t["code"], teacher_code=t["old_code"], gamma=torch.ones(3, 1), rho=0.0, eta=0.4, phi=0.9
    )
    nfl = nfl_final_terms(*common, alpha=0.4, beta=0.9)
    assert list(plus) == [*nfl, "code", "identity"]
    assert torch.equal(sum(plus.values()), sum(nfl.values()))


@pytest.mark.parametrize("sizes", [None, [1, 2]])
def test_step_5_alone_with_alpha_0_is_lwf(sizes) -> None:
    """H~ = H if the body did not change in step 2: LwF's loss with λ = 1."""
    t = tensors()
    final = nfl_final_terms(t["logits"], t["frozen"], t["teacher"], t["teacher"], TARGET, alpha=0.0, old_sizes=sizes)
    lwf = nfl_step_terms(t["logits"], t["teacher"], TARGET, old_sizes=sizes)
    torch.testing.assert_close(sum(final.values()), sum(lwf.values()), rtol=0, atol=1e-12)


def test_codes_of_several_encoders_side_by_side_add_up() -> None:
    t = tensors()
    common = (t["logits"], t["frozen"], t["teacher"], t["recomputed"], TARGET)
    one, two = (
        nfl_plus_final_terms(*common, code=code, teacher_code=old, gamma=t["gamma"])["code"].item()
        for code, old in [
            (t["code"], t["old_code"]),
            (torch.cat([t["code"], 2 * t["code"]], dim=1), torch.cat([t["old_code"], 2 * t["old_code"]], dim=1)),
        ]
    )
    assert two == pytest.approx((1 + 4) * one)


def test_new_scope_leaves_old_columns_alone_and_seen_scope_does_not() -> None:
    logits = tensors()["logits"]
    teacher = logits.detach()[:, :3]  # distillation without gradient
    for scope, zero in (("new", True), ("seen", False)):
        loss = sum(nfl_step_terms(logits, teacher, TARGET, ce_scope=scope).values())
        (gradient,) = torch.autograd.grad(loss, logits)
        assert (gradient[:, :3].abs().max() < 1e-15) == zero
    assert torch.equal(
        nfl_step_terms(logits, teacher, TARGET)["cross_entropy"], cross_entropy_over(logits, TARGET, 3, 6)
    )


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_share_must_be_one(alpha: float) -> None:
    t = tensors()
    with pytest.raises(ValueError, match=r"Got `alpha=.*expected a share from 0 to 1"):
        nfl_final_terms(t["logits"], t["frozen"], t["teacher"], t["recomputed"], TARGET, alpha=alpha)


def test_unknown_scope_is_refused() -> None:
    with pytest.raises(ValueError, match="Got `ce_scope='old'`, expected 'new'"):
        inspect.unwrap(nfl_step_terms)(torch.zeros(1, 3), torch.zeros(1, 2), torch.tensor([2]), ce_scope="old")


def test_teacher_wider_than_the_student_is_refused() -> None:
    with pytest.raises(ValueError, match="Got `logits` with 2 columns and a teacher with 3"):
        nfl_step_terms(torch.zeros(1, 2), torch.zeros(1, 3), torch.tensor([0]))
