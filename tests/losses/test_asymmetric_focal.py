"""The asymmetric loss: golden values, a slow reference with gradients, extremes, unknown labels."""

import inspect
import math

import pytest
import torch
from torch import Tensor

from lightning_cil.losses import asymmetric_focal_loss, known_bce
from tests.losses.reference import check_gradients, mean, random_matrix, sigmoid


def slow(z: Tensor, y: Tensor, *, negative: float, positive: float, clip: float, known: Tensor | None = None) -> float:
    rows = []
    for i, (zs, ys) in enumerate(zip(z.tolist(), y.tolist(), strict=True)):
        total = 0.0
        for c, (v, t) in enumerate(zip(zs, ys, strict=True)):
            if known is not None and not known[i, c]:
                continue
            p = sigmoid(v)
            shifted = max(p - clip, 0.0)
            total += -math.log(p) * (1 - p) ** positive if t else -math.log(1 - shifted) * shifted**negative
        rows.append(total)
    return mean(rows)


def test_golden_values() -> None:
    # p = .9, .5, .04 and .6 by hand: a positive, a negative, a negative below the clip, an unknown label.
    logits = torch.tensor([[0.9, 0.5, 0.04, 0.6]], dtype=torch.float64).logit()
    target = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    known = torch.tensor([[True, True, True, False]])
    by_hand = 0.1053605 + 0.45**4 * 0.5978370
    assert asymmetric_focal_loss(logits, target, known=known).item() == pytest.approx(by_hand, abs=1e-7)
    mean_loss = asymmetric_focal_loss(logits, target, known=known, reduction="mean")
    assert mean_loss.item() == pytest.approx(by_hand / 3, abs=1e-7)


@pytest.mark.parametrize(("negative", "positive", "clip"), [(4, 0, 0.05), (2, 1, 0.0), (0.5, 0.5, 0.1)])
def test_equals_the_reference_with_gradients(negative: float, positive: float, clip: float) -> None:
    z = (2 * random_matrix(4, 3, 1)).requires_grad_()
    y = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0]], dtype=torch.float64)
    known = torch.tensor([[True, True, True], [False, True, True], [True, False, True], [False] * 3])
    options = {"gamma_negative": negative, "gamma_positive": positive, "clip": clip}
    loss = asymmetric_focal_loss(z, y, known=known, detach_focal=False, **options)

    def reference(v: dict[str, Tensor]) -> float:
        return slow(v["z"], y, negative=negative, positive=positive, clip=clip, known=known)

    assert loss.item() == pytest.approx(reference({"z": z.detach()}), rel=1e-9)
    check_gradients(loss, {"z": z}, reference)


def test_detached_weight_is_a_constant() -> None:
    z = torch.tensor([[0.7]], dtype=torch.float64).logit().requires_grad_()
    asymmetric_focal_loss(z, torch.zeros_like(z)).backward()
    p, shifted = 0.7, 0.65
    assert z.grad.item() == pytest.approx(shifted**4 / (1 - shifted) * p * (1 - p))


def test_without_weights_it_is_cross_entropy() -> None:
    z, known = random_matrix(3, 4, 2), torch.ones(3, 4, dtype=torch.bool)
    y = (random_matrix(3, 4, 3) > 0).double()
    plain = asymmetric_focal_loss(z, y, gamma_negative=0, gamma_positive=0, clip=0, reduction="mean")
    assert plain.item() == pytest.approx(known_bce(z, y, known).item(), rel=1e-12)


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 4.0])
def test_finite_and_not_negative_for_extreme_logits(clip: float, gamma: float) -> None:
    z = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    y = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    options = {"gamma_negative": gamma, "gamma_positive": gamma, "clip": clip, "detach_focal": False}
    loss = asymmetric_focal_loss(z, y, **options)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()
    assert asymmetric_focal_loss(z[:1], y[:1], **options).item() == 0
    assert loss.item() > 0
    assert asymmetric_focal_loss(z[:0], y[:0]).item() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 1.0}, "`clip=1.0`"),
        ({"gamma_negative": -1}, "`gamma_negative=-1`"),
        ({"reduction": "total"}, "`reduction='total'`"),
        ({"known": torch.ones(1, 3, dtype=torch.bool)}, r"`known` of \[1, 3\]"),
    ],
)
def test_bad_input_is_named(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(asymmetric_focal_loss)(torch.zeros(1, 2), torch.zeros(1, 2), **options)
