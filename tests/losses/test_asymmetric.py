"""The binary losses of RebLL: golden values, an independent float64 reference, signs, extremes, unknown labels."""

import inspect
import math

import pytest
import torch
from torch import Tensor

from lightning_cil.losses import (
    binary_distillation,
    decay_exponent,
    known_bce,
    negative_decay_bce,
    positive_decay_bce,
)
from tests.losses.reference import check_gradients, mean, sigmoid

G, H = decay_exponent(1.2, 6), decay_exponent(0.7, 6)
P = [[0.9, 0.2, 0.5, 0.05, 0.7, 0.3], [0.1, 0.6, 0.3, 0.4, 0.2, 0.9]]
Y_NEW = [[1.0, 0.0], [0.0, 1.0]]
Q_OLD = [[0.8, 0.1, 0.6, 0.02], [0.05, 0.9, 0.2, 0.5]]
MEMORY_P, MEMORY_Y = [[0.7, 0.4, 0.1, 0.05]], [[1.0, 0.0, 0.0, 1.0]]
GOLDEN = {
    "sum": {"bce": 0.520927, "kd": 1.858097, "cls": 0.303679, "akd": 1.194702, "er": 3.520144, "total": 2.117092},
    "mean": {"bce": 0.260463, "kd": 0.464524, "cls": 0.151839, "akd": 0.298675, "er": 0.880036, "total": 0.540661},
}
"""By hand from the equations: 6 classes, the last two new, α = 1.2, β = 0.7."""


def double(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def terms(reduction) -> dict[str, Tensor]:
    z, old, new = double(P).logit(), slice(0, 4), slice(4, 6)
    everything = torch.ones(2, 2, dtype=torch.bool)
    found = {
        "bce": known_bce(z[:, new], double(Y_NEW), everything, reduction=reduction),
        "kd": binary_distillation(z[:, old], double(Q_OLD).logit(), reduction),
        "cls": positive_decay_bce(z[:, new], double(Y_NEW), G, reduction=reduction),
        "akd": positive_decay_bce(z[:, old], double(Q_OLD), G, reduction=reduction),
        "er": negative_decay_bce(double(MEMORY_P).logit(), double(MEMORY_Y), H, reduction=reduction),
    }
    return {**found, "total": 0.15 * found["cls"] + 0.85 * found["akd"] + 0.30 * found["er"]}


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_golden_values(reduction) -> None:
    assert (pytest.approx(2.150111, abs=1e-6), pytest.approx(1.254232, abs=1e-6)) == (G, H)
    for name, value in terms(reduction).items():
        assert value.item() == pytest.approx(GOLDEN[reduction][name], abs=1e-6), name


@pytest.mark.parametrize(("detach", "golden"), [(False, -0.062862), (True, -0.022536)])
def test_golden_gradients(detach: bool, golden: float) -> None:
    z = torch.tensor([[0.7]], dtype=torch.float64).logit().requires_grad_()
    positive_decay_bce(z, torch.ones_like(z), G, detach_focal=detach).backward()
    assert z.grad.item() == pytest.approx(golden, abs=1e-6)
    mirrored = (-z.detach()).requires_grad_()
    negative_decay_bce(mirrored, torch.zeros_like(z), G, detach_focal=detach).backward()
    assert mirrored.grad.item() == pytest.approx(-golden, abs=1e-6)


def slow_positive(z: Tensor, y: Tensor, g: float) -> float:
    rows = []
    for zs, ys in zip(z.tolist(), y.tolist(), strict=True):
        ps = [sigmoid(v) for v in zs]
        pairs = zip(ps, ys, strict=True)
        rows.append(mean([-t * (1 - p) ** g * math.log(p) - (1 - t) * math.log(1 - p) for p, t in pairs]))
    return mean(rows)


def slow_negative(z: Tensor, y: Tensor, h: float) -> float:
    rows = []
    for zs, ys in zip(z.tolist(), y.tolist(), strict=True):
        ps = [sigmoid(v) for v in zs]
        pairs = zip(ps, ys, strict=True)
        rows.append(mean([-t * math.log(p) - (1 - t) * p**h * math.log(1 - p) for p, t in pairs]))
    return mean(rows)


@pytest.mark.parametrize(("loss", "slow"), [(positive_decay_bce, slow_positive), (negative_decay_bce, slow_negative)])
@pytest.mark.parametrize("exponent", [0, 0.3, 1, 3.6])
def test_random_inputs_and_gradients_agree_with_the_reference(loss, slow, exponent: float) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        z = (3 * torch.randn(3, 4, dtype=torch.float64)).requires_grad_()
        y = torch.rand(3, 4, dtype=torch.float64) if seed % 2 else torch.randint(0, 2, (3, 4)).double()
        found = loss(z, y, exponent)
        assert found.item() == pytest.approx(slow(z, y, exponent), rel=1e-12)
        assert loss(z, y, exponent, reduction="sum").item() == pytest.approx(4 * found.item(), rel=1e-12)
        check_gradients(found, {"z": z}, lambda values, y=y: slow(values["z"], y, exponent))
        assert loss(z, y, exponent, detach_focal=True).item() == found.item()


LOSSES = {
    "known_bce": lambda z, y: known_bce(z, y, torch.ones_like(z, dtype=torch.bool)),
    "positive": lambda z, y: positive_decay_bce(z, y, G),
    "negative": lambda z, y: negative_decay_bce(z, y, H),
    "positive, detached": lambda z, y: positive_decay_bce(z, y, G, detach_focal=True),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_never_negative_zero_when_confident_and_right_finite_at_extremes(name: str, dtype: torch.dtype) -> None:
    loss = LOSSES[name]
    z = (6 * torch.randn(50, 5)).to(dtype)
    assert loss(z, torch.rand(50, 5, dtype=dtype)).item() >= 0
    right = torch.tensor([[1e4, -1e4]], dtype=dtype)
    assert loss(right, torch.tensor([[1.0, 0.0]], dtype=dtype)).item() == 0
    for target in ([0.0, 1.0], [1.0, 0.0], [0.5, 0.5]):
        z = right.clone().requires_grad_()
        value = loss(z, torch.tensor([target], dtype=dtype))
        value.backward()
        assert value.isfinite()
        assert z.grad.isfinite().all()
        assert value.item() >= 0
    wrong = loss(right, torch.tensor([[0.0, 1.0]], dtype=dtype))
    assert wrong.item() == pytest.approx(1e4, rel=1e-3)  # a confident error is paid in full by either side


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_learn_from_is_zero_with_a_graph(name: str, shape: tuple[int, int]) -> None:
    z = torch.zeros(shape, requires_grad=True)
    value = LOSSES[name](z, torch.zeros(shape))
    value.backward()
    assert value.item() == 0


def test_unknown_labels_are_not_read_and_get_no_gradient() -> None:
    torch.manual_seed(1)
    z = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    known = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    target = torch.randint(0, 2, (3, 5)).double()
    value = known_bce(z, target.masked_fill(~known, torch.nan), known)
    rows = [F(z[0, :2], target[0, :2]), F(z[1, 2:], target[1, 2:]), torch.tensor(0.0)]
    assert value.item() == pytest.approx(sum(r.item() for r in rows) / 3, rel=1e-12)  # each sample a mean of its own
    summed = known_bce(z, target, known, reduction="sum")
    assert summed.item() == pytest.approx((2 * rows[0] + 3 * rows[1]).item() / 3, rel=1e-12)
    value.backward()
    assert not z.grad[~known].any()
    assert z.grad[known].all()


F = torch.nn.functional.binary_cross_entropy_with_logits


def test_targets_get_no_gradient() -> None:
    z, y = torch.zeros(1, 2, requires_grad=True), torch.full((1, 2), 0.5, requires_grad=True)
    for loss in LOSSES.values():
        loss(z, y).backward()
    assert y.grad is None


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (decay_exponent, (-1, 5), "Got `scale=-1`"),
        (decay_exponent, (1, 0), "at least one class"),
        (positive_decay_bce, (torch.zeros(1, 2), torch.zeros(1, 3), 1), r"`target` of shape \[1, 3\]"),
        (positive_decay_bce, (torch.zeros(1, 2), torch.zeros(1, 2), -1), "Got `exponent=-1`"),
        (known_bce, (torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 1, dtype=torch.bool)), "Got `known`"),
    ],
)
def test_what_cannot_be_is_refused(function, arguments, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(function)(*arguments)
