"""Settings of the first task: its epochs, weight decay and schedule, or those of the later tasks."""

import logging
from typing import Any

import pytest
import torch

from lightning_cil.data.splits import make_tasks
from lightning_cil.methods import MEMO, ICaRL, IncrementalModule, LwF
from lightning_cil.schedulers import FractionCosineLR, FractionStepLR
from tests.streams import TINY, make

METHODS = pytest.mark.parametrize("method", [LwF, ICaRL, MEMO])
NONE: dict[str, Any] = {"first_epochs": None, "first_weight_decay": None, "first_lr_scheduler": None}


def decaying(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, weight_decay=1e-3)


def made(module: IncrementalModule, index: int) -> tuple[int, float, type]:
    """Epochs, weight decay and schedule of a task's last stage."""
    task = make_tasks([2, 2])[index]
    if not module.tasks:
        module.begin_stream(make_tasks([2, 2]), 0)
    module.grow_to(task)
    stage = module.stages(task)[-1]
    module.begin_stage(task, stage)
    found = module.configure_optimizers()
    (decay,) = {group["weight_decay"] for group in found["optimizer"].param_groups}
    return stage.epochs, decay, type(found["lr_scheduler"]["scheduler"])


@METHODS
def test_the_first_task_has_settings_of_its_own(method: type, caplog: pytest.LogCaptureFixture) -> None:
    first = {"first_epochs": 5, "first_weight_decay": 0.01, "first_lr_scheduler": FractionCosineLR}
    module = make(method, epochs=3, optimizer=decaying, lr_scheduler=FractionStepLR, **first)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        assert made(module, 0) == (5, 0.01, FractionCosineLR)
    assert (
        f"{method.__name__} trains the first task with `first_weight_decay=0.01`, not with the optimizer's 0.001"
        in (caplog.text)
    )
    assert made(module, 1) == (3, 1e-3, FractionStepLR)


@METHODS
def test_without_them_it_has_those_of_the_others(method: type, caplog: pytest.LogCaptureFixture) -> None:
    module = make(method, epochs=3, optimizer=decaying, lr_scheduler=FractionStepLR, **NONE)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        assert made(module, 0) == made(module, 1) == (3, 1e-3, FractionStepLR)
    assert "first_weight_decay" not in caplog.text


@METHODS
def test_an_optimizer_without_weight_decay_is_refused(method: type) -> None:
    module = method(backbone=TINY, optimizer=torch.optim.Rprop, first_weight_decay=5e-4)
    with pytest.raises(ValueError, match=r"`first_weight_decay=0.0005`, which Rprop has not; give `null`"):
        made(module, 0)


@METHODS
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"first_epochs": 0}, "`first_epochs=0`: expected at least 1"),
        ({"first_weight_decay": -1.0}, "`first_weight_decay=-1.0`: expected at least 0"),
    ],
)
def test_bad_options(method: type, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(method, **options)
