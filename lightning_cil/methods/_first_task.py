"""`FirstTask`: settings of the first task, for methods whose authors train it otherwise than the later ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable
from lightning.pytorch.utilities import rank_zero_info

from lightning_cil.methods.base import IncrementalModule
from lightning_cil.types import SchedulerFactory, Stage


@dataclass(frozen=True)
class FirstTask:
    """What a method's `first_epochs`, `first_weight_decay` and `first_lr_scheduler` say; `None`: as in later tasks.

    Args:
        epochs: Passes over the first task's data, at least 1.
        weight_decay: Of all parameters in the first task, at least 0.
        lr_scheduler: Of the first task.

    Raises:
        ValueError: For a number out of range.
    """

    epochs: int | None
    weight_decay: float | None
    lr_scheduler: LRSchedulerCallable | None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"`first_epochs={self.epochs}`: expected at least 1, or `null` for as many as `epochs`.")
        if self.weight_decay is not None and self.weight_decay < 0:
            raise ValueError(
                f"`first_weight_decay={self.weight_decay}`: expected at least 0, or `null` for the optimizer's; PyCIL: "
                "0.0005."
            )

    def stage(self, module: IncrementalModule, train: Sequence[str] = ("*",)) -> Stage:
        """The only stage of the first task.

        Args:
            module: The method, whose other settings it has.
            train: See `Stage`.
        """

        def optimizer(params: Any) -> torch.optim.Optimizer:
            return self._decayed(module, module.optimizer(params))

        return Stage(
            "train",
            module.epochs if self.epochs is None else self.epochs,
            train=train,
            optimizer=None if self.weight_decay is None else optimizer,
            lr_scheduler=cast("SchedulerFactory | None", self.lr_scheduler),
        )

    def _decayed(self, module: IncrementalModule, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        for group in optimizer.param_groups:
            if "weight_decay" not in group:
                raise ValueError(
                    f"`first_weight_decay={self.weight_decay}`, which {type(optimizer).__name__} has not; give `null`"
                )
        given = optimizer.param_groups[0]["weight_decay"]
        if given != self.weight_decay:
            rank_zero_info(
                f"{type(module).__name__} trains the first task with `first_weight_decay={self.weight_decay}`, not "
                f"with the optimizer's {given}; `first_weight_decay=null` takes the optimizer's."
            )
        for group in optimizer.param_groups:
            group["weight_decay"] = self.weight_decay
        return optimizer
