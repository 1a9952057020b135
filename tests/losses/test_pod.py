"""Pooled outputs distillation: a slow reference with gradients, equal maps, factors."""

import inspect
import math

import pytest
import torch
from torch import Tensor

from lightning_cil.losses import cosine_preservation, growth_factor, pod_spatial
from tests.losses.reference import check_gradients, cosines, mean, random_matrix, unit


def maps(seed: int, *shape: int) -> Tensor:
    return random_matrix(1, math.prod(shape), seed).view(shape)


def profile(sample: Tensor) -> list[float]:
    channels = sample.tolist()
    rows = [sum(x * x for x in row) for channel in channels for row in channel]
    columns = [sum(row[w] ** 2 for row in channel) for channel in channels for w in range(len(channel[0]))]
    return unit(rows + columns)


def distance(old: Tensor, new: Tensor) -> float:
    pairs = [(profile(a), profile(b)) for a, b in zip(old, new, strict=True)]
    return mean([math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True))) for a, b in pairs])


def test_spatial_term_equals_the_reference_with_gradients() -> None:
    shapes = [(2, 2, 3, 2), (2, 4, 2, 2)]
    old = [maps(i, *shape) for i, shape in enumerate(shapes)]
    new = {f"new{i}": maps(10 + i, *shape).requires_grad_() for i, shape in enumerate(shapes)}

    def reference(v: dict[str, Tensor]) -> float:
        return mean([distance(o, v[f"new{i}"]) for i, o in enumerate(old)])

    loss = pod_spatial(old, list(new.values()))
    assert loss.item() == pytest.approx(reference({k: v.detach() for k, v in new.items()}), rel=1e-12)
    check_gradients(loss, new, reference)


def test_equal_maps_cost_nothing_and_have_no_gradient() -> None:
    new = maps(0, 2, 3, 2, 2).requires_grad_()
    loss = pod_spatial([new.detach().clone()], [new])
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(new.grad, torch.zeros_like(new))


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
def test_finite_for_any_scale(scale: float) -> None:
    new = (scale * maps(0, 2, 3, 2, 2)).float().requires_grad_()
    loss = pod_spatial([maps(1, 2, 3, 2, 2).float()], [new])
    loss.backward()
    assert loss.isfinite()
    assert new.grad.isfinite().all()


def test_flat_term_equals_the_reference_with_gradients() -> None:
    old, new = random_matrix(3, 4, 5), random_matrix(3, 4, 6).requires_grad_()

    def reference(v: dict[str, Tensor]) -> float:
        rows = zip(old.tolist(), v["new"].tolist(), strict=True)
        return mean([1 - cosines([a], [b])[0][0] for a, b in rows])

    loss = cosine_preservation(old, new)
    assert loss.item() == pytest.approx(reference({"new": new.detach()}), rel=1e-12)
    check_gradients(loss, {"new": new}, reference)


def test_old_outputs_are_constants() -> None:
    old = maps(0, 1, 2, 2, 2).requires_grad_()
    new = maps(1, 1, 2, 2, 2).requires_grad_()
    (pod_spatial([old], [new]) + cosine_preservation(old.flatten(1), new.flatten(1))).backward()
    assert old.grad is None
    assert new.grad.abs().sum() > 0


def test_growth_factor_of_the_voc_protocol() -> None:
    assert [round(growth_factor(seen, 2), 4) for seen in (6, 8, 20)] == [1.7321, 2.0, 3.1623]


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"`old_maps` of shapes \[\]"):
        pod_spatial([], [])
    with pytest.raises(ValueError, match=r"`old_features` of shape \[1, 2\]"):
        inspect.unwrap(cosine_preservation)(torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"`num_seen=2`, `num_new=3`"):
        growth_factor(2, 3)
