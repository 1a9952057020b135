"""`MLLwF`: plain losses of new and old classes."""

from typing import Any

import pytest

from lightning_cil.callbacks import Teacher
from lightning_cil.methods import MLLwF
from tests.losses.test_asymmetric import GOLDEN
from tests.methods.test_ml_kd import alone
from tests.methods.test_rebll import method
from tests.streams import make


@pytest.mark.parametrize("weight", [1.0, 2.5])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_is_the_golden_one(weight: float, reduction: Any) -> None:
    module = method(MLLwF, [4, 2], distillation_weight=weight, reduction=reduction)
    expected = GOLDEN[reduction]["bce"] + weight * GOLDEN[reduction]["kd"]
    assert module.training_step(alone(), 0).item() == pytest.approx(expected, abs=5e-6)


def test_it_needs_the_old_model_and_a_weight() -> None:
    assert [type(c) for c in make(MLLwF).required_callbacks()] == [Teacher]
    with pytest.raises(ValueError, match="distillation_weight"):
        make(MLLwF, distillation_weight=-1.0)
