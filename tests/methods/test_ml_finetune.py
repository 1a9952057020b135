"""`MLFineTune`: the loss of the current task's labels alone; that it forgets, `test_multilabel.py` measures."""

from typing import Any

import pytest

from lightning_cil.methods import MLFineTune
from tests.losses.test_asymmetric import GOLDEN
from tests.methods.test_ml_kd import alone
from tests.methods.test_rebll import method
from tests.streams import make


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_is_the_golden_one(reduction: Any) -> None:
    found = method(MLFineTune, [4, 2], reduction=reduction).training_step(alone(), 0)
    assert found.item() == pytest.approx(GOLDEN[reduction]["bce"], abs=1e-6)


def test_it_needs_no_callback() -> None:
    assert make(MLFineTune).required_callbacks() == []
