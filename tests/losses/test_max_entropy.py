"""CSC's term against confident answers."""

import math

import pytest
import torch
from torch import Tensor

from lightning_cil.losses import negative_entropy
from tests.losses.reference import check_gradients, mean, random_matrix, sigmoid


def test_equals_the_reference_with_gradients() -> None:
    z = (2 * random_matrix(3, 4, 0)).requires_grad_()

    def reference(v: dict[str, Tensor]) -> float:
        return mean([sum(sigmoid(x) * math.log(sigmoid(x)) for x in row) for row in v["z"].tolist()])

    loss = negative_entropy(z)
    assert loss.item() == pytest.approx(reference({"z": z.detach()}), rel=1e-12)
    check_gradients(loss, {"z": z}, reference)


def test_smallest_at_one_over_e() -> None:
    z = torch.tensor([[1 / math.e]], dtype=torch.float64).logit().requires_grad_()
    loss = negative_entropy(z)
    loss.backward()
    assert loss.item() == pytest.approx(-1 / math.e)
    assert z.grad.item() == pytest.approx(0, abs=1e-12)


def test_finite_for_extreme_logits_and_empty_batches() -> None:
    z = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = negative_entropy(z)
    loss.backward()
    assert loss.item() == 0
    assert z.grad.isfinite().all()
    assert negative_entropy(torch.zeros(0, 2)).item() == 0
