"""Learning-rate schedules given in fractions of a stage, so that one setting fits stages of any length.

torch's own schedulers want numbers of epochs, which differ from stage to stage. These are told the number by
`set_num_epochs` (the protocol `StageLength` in `types.py`) once the stage's optimizer is built. The learning rate of an
epoch is a function of the epoch alone, so a resumed stage goes on with exactly the numbers it would have had.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler

__all__ = ["FractionCosineLR", "FractionStepLR", "constant_rate"]

_ROUNDING = 1e-9
"""Slack for products such as 0.07 · 100, which is a little more than 7 in floating point."""


class _FractionLR(LRScheduler, ABC):
    """Base: the learning rate is the initial one times `multiplier(epoch)`; stepped once after every epoch."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.num_epochs: int | None = None
        super().__init__(optimizer)

    @abstractmethod
    def multiplier(self, epoch: int, num_epochs: int) -> float:
        """Return the factor of the initial learning rate.

        Args:
            epoch: Epoch of the stage, from 0.
            num_epochs: Length of the stage.
        """

    def set_num_epochs(self, num_epochs: int) -> None:
        """Take the stage's length and set the learning rate of the current epoch.

        Args:
            num_epochs: Epochs of the stage, at least 1.

        Raises:
            ValueError: With fewer than one epoch.
        """
        if num_epochs < 1:
            raise ValueError(
                f"Got `num_epochs={num_epochs}`, expected at least 1. Pass the stage's length, `stage.epochs`."
            )
        self.num_epochs = int(num_epochs)
        rates = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._last_lr = rates

    def step(self, epoch: int | None = None) -> None:
        """Go on to the next epoch.

        Args:
            epoch: Go to this epoch instead; deprecated in torch.

        Raises:
            RuntimeError: If the stage's length is not known.
        """
        if self.num_epochs is None and self.last_epoch >= 0:  # torch's constructor makes the step from -1 to 0
            raise RuntimeError(
                f"Got a step of {type(self).__name__} without the stage's length, expected a call of "
                "`set_num_epochs` before. `IncrementalTrainer` makes it; in your own loop, make it before training."
            )
        super().step(epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of the current epoch for each parameter group."""
        factor = 1.0 if self.num_epochs is None else self.multiplier(self.last_epoch, self.num_epochs)
        return [base * factor for base in self.base_lrs]


class FractionStepLR(_FractionLR):
    """Multiplies the learning rate by a factor after each of some fractions of the stage.

    ```text
    lr(e) = lr(0) · factor^#{a : e ≥ a · E}         epoch e of E, from 0
    ```

    No equation; the step schedule of the papers' training recipes, `torch.optim.lr_scheduler.MultiStepLR` with the
    milestones ⌈a · E⌉. A fraction that no epoch reaches has no effect, so the single epoch of a short stage runs at the
    full rate.

    Args:
        optimizer: Its groups' current learning rates are the initial ones.
        at: Fractions of the stage, each above 0 and below 1; a fraction given twice counts twice.
        factor: Above 0; below 1 to decay.

    Raises:
        ValueError: If a fraction or the factor is out of range.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> scheduler = FractionStepLR(optimizer, at=(0.5, 0.75), factor=0.1)
        >>> scheduler.set_num_epochs(4)
        >>> for epoch in range(4):
        ...     print(epoch, round(optimizer.param_groups[0]["lr"], 4))
        ...     optimizer.step()
        ...     scheduler.step()
        0 1.0
        1 1.0
        2 0.1
        3 0.01
    """

    def __init__(self, optimizer: Optimizer, at: Sequence[float] = (0.5, 0.75), factor: float = 0.1) -> None:
        if not all(0 < fraction < 1 for fraction in at):
            raise ValueError(
                f"Got `at={list(at)}`, expected fractions of the stage above 0 and below 1. Divide epochs by the "
                "stage's length: 85 of 170 is 0.5."
            )
        if not 0 < factor < math.inf:
            raise ValueError(f"Got `factor={factor}`, expected a positive number. Use 0.1 to divide by ten.")
        self.at = [float(fraction) for fraction in at]
        self.factor = float(factor)
        super().__init__(optimizer)

    def multiplier(self, epoch: int, num_epochs: int) -> float:
        """Return factor^(number of fractions reached)."""
        return self.factor ** sum(epoch >= fraction * num_epochs - _ROUNDING for fraction in self.at)


class FractionCosineLR(_FractionLR):
    """Raises the learning rate linearly over the first fraction of the stage, then lowers it along half a cosine.

    ```text
    lr(e) = lr(0) · (e + 1) / (W + 1)                                             e < W = ⌊warmup · E⌋
    lr(e) = lr(0) · (floor + (1 - floor) · (1 + cos(π (e - W) / (E - W))) / 2)    W ≤ e ≤ E
    ```

    Source: Loshchilov and Hutter, SGDR, 2017, Eq. 5, https://arxiv.org/abs/1608.03983, for a single cycle; the warm-up
    has no equation. Without warm-up this is `torch.optim.lr_scheduler.CosineAnnealingLR` with `T_max` = E and
    `eta_min` = floor · lr(0).

    Args:
        optimizer: Its groups' current learning rates are the initial ones, reached at epoch W.
        warmup: Fraction of the stage, at least 0 and below 1.
        floor: The rate that the cosine tends to, as a fraction of the initial one, in [0, 1].

    Raises:
        ValueError: If a fraction is out of range.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> scheduler = FractionCosineLR(optimizer, warmup=0.25)
        >>> scheduler.set_num_epochs(4)
        >>> for epoch in range(4):
        ...     print(epoch, round(optimizer.param_groups[0]["lr"], 4))
        ...     optimizer.step()
        ...     scheduler.step()
        0 0.5
        1 1.0
        2 0.75
        3 0.25
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.0, floor: float = 0.0) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(
                f"Got `warmup={warmup}`, expected a fraction of the stage, at least 0 and below 1. Divide epochs by "
                "the stage's length: 5 of 50 is 0.1."
            )
        if not 0 <= floor <= 1:
            raise ValueError(
                f"Got `floor={floor}`, expected a fraction of the initial learning rate, from 0 to 1. Divide the last "
                "learning rate by the first."
            )
        self.warmup = float(warmup)
        self.floor = float(floor)
        super().__init__(optimizer)

    def multiplier(self, epoch: int, num_epochs: int) -> float:
        """Return the warm-up's or the cosine's factor."""
        warm = min(math.floor(self.warmup * num_epochs + _ROUNDING), num_epochs - 1)
        if epoch < warm:
            return (epoch + 1) / (warm + 1)
        progress = min((epoch - warm) / (num_epochs - warm), 1.0)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2  # Eq. 5


def constant_rate(optimizer: Optimizer) -> LRScheduler:
    """A schedule that changes nothing, for a stage that must not have the method's own.

    Args:
        optimizer: Keeps its rates.
    """
    return ConstantLR(optimizer, factor=1.0)
