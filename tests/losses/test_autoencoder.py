"""The autoencoder's objective and feature preservation against slow references."""

import inspect

import pytest
import torch
from torch import Tensor

from lightning_cil.losses import autoencoder_terms, code_preservation
from tests.losses import reference as slow

TARGET = torch.tensor([2, 3, 2, 4])


@pytest.mark.parametrize(("reduction", "divisor"), [("mean", 3), ("sum", 1)])
def test_objective_equals_the_reference(reduction: str, divisor: int) -> None:
    leaves = {
        name: slow.random_matrix(4, width, seed).requires_grad_()
        for seed, (name, width) in enumerate({"reconstruction": 3, "logits": 5, "features": 3}.items())
    }
    features = leaves["features"].detach().tolist()
    terms = autoencoder_terms(
        leaves["reconstruction"], leaves["features"], leaves["logits"], TARGET, 2, 5, omega=0.3, reduction=reduction
    )

    def reference(v: dict[str, Tensor]) -> float:
        distance = slow.squared_distance(v["reconstruction"].tolist(), features) / divisor
        return 0.3 * distance + slow.cross_entropy(v["logits"].tolist(), TARGET.tolist(), 2, 5)

    loss = sum(terms.values())
    assert loss.item() == pytest.approx(reference(leaves), rel=1e-12)
    slow.check_gradients(loss, leaves, reference)


def test_default_is_the_mean_over_dimensions() -> None:
    features, target = torch.tensor([[1.0, 2.0]]), torch.tensor([0])
    args = (torch.zeros(1, 2), features, torch.zeros(1, 1), target, 0, 1)
    assert autoencoder_terms(*args)["reconstruction"].item() == 2.5
    assert autoencoder_terms(*args, reduction="sum")["reconstruction"].item() == 5.0


@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("mean", 4)])
def test_preservation_equals_the_reference(reduction: str, divisor: int) -> None:
    leaves = {name: slow.random_matrix(3, 4, seed).requires_grad_() for seed, name in enumerate(("code", "teacher"))}
    teacher = leaves["teacher"].detach().tolist()
    loss = code_preservation(leaves["code"], leaves["teacher"], reduction=reduction)

    def reference(v: dict[str, Tensor]) -> float:
        return slow.squared_distance(v["code"].tolist(), teacher) / divisor

    assert loss.item() == pytest.approx(reference(leaves), rel=1e-12)
    slow.check_gradients(loss, leaves, reference)


def test_halved_sum_of_the_older_paper() -> None:
    """EBLL: 0.1 on half of the sum over units; with ours ρ = 0.05."""
    code, old = slow.random_matrix(3, 4, 0), slow.random_matrix(3, 4, 1)
    ebll = 0.1 * 0.5 * slow.squared_distance(code.tolist(), old.tolist())
    assert 0.05 * code_preservation(code, old).item() == pytest.approx(ebll)


def test_shapes_and_reduction_are_checked() -> None:
    raw = inspect.unwrap(code_preservation)
    with pytest.raises(ValueError, match=r"Got tensors of shapes \[2, 3\] and \[2, 4\], expected the same"):
        raw(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="Got `reduction='max'`, expected 'mean' or 'sum'"):
        raw(torch.zeros(2, 3), torch.zeros(2, 3), reduction="max")
