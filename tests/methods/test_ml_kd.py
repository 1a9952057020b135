"""`MLKD`: RebLL's row "KD" of table 4."""

from typing import Any

import pytest

from lightning_cil.callbacks import Teacher
from lightning_cil.methods import MLKD, RebLL
from tests.losses.test_asymmetric import GOLDEN
from tests.methods.test_rebll import batch, method
from tests.streams import make


def alone() -> dict[str, Any]:
    return {name: value for name, value in batch().items() if not name.startswith("replay")}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_is_the_golden_one_and_that_of_rebll_without_its_decay(reduction: Any) -> None:
    golden = GOLDEN[reduction]
    found = method(MLKD, [4, 2], reduction=reduction).training_step(alone(), 0).item()
    assert found == pytest.approx(0.15 * golden["bce"] + 0.85 * golden["kd"], abs=1e-6)
    same = {"classification": "bce", "distillation": "kd", "memory": "none"}
    assert method(RebLL, [4, 2], reduction=reduction, **same).training_step(alone(), 0).item() == pytest.approx(found)


def test_the_first_task_has_no_teacher_and_weight_1() -> None:
    b = alone()
    del b["teacher_logits"]
    found = method(MLKD, [4, 2], new_weight=0.3).training_step(b, 0).item()
    assert found == pytest.approx(GOLDEN["mean"]["bce"], abs=1e-6)


def test_it_needs_the_old_model_and_weights_that_are_shares() -> None:
    assert [type(c) for c in make(MLKD).required_callbacks()] == [Teacher]
    with pytest.raises(ValueError, match="new_weight"):
        make(MLKD, new_weight=1.5)
