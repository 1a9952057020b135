"""`RecordedLogits`: what a frozen network says of each training image, computed once in place of in every step."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_cil.callbacks.features import run_over

TARGETS = ("online", "recorded")


def check_targets(targets: str) -> None:
    """Refuse an unknown way of making targets.

    Raises:
        ValueError: When it is neither `online` nor `recorded`.
    """
    if targets not in TARGETS:
        raise ValueError(
            f"`targets={targets!r}`: expected 'online' (of the same augmented batch) or 'recorded' (of the images "
            "without augmentation, computed once)."
        )


class RecordedLogits:
    """Logits of the un-augmented training images of a stage, found by index; all of them on every rank.

    A run that goes on from a checkpoint computes them again: they are a function of frozen weights.

    Args:
        index: Sorted long `[N]`, positions in the training split.
        logits: float32 `[N, classes]`.
    """

    def __init__(self, index: Tensor, logits: Tensor) -> None:
        self.index = index
        self.logits = logits

    def __call__(self, index: Tensor) -> Tensor:
        """The logits `[B, classes]` of images long `[B]` that were recorded."""
        return self.logits[torch.searchsorted(self.index, index)]

    @property
    def num_bytes(self) -> int:
        """Bytes of the logits, without the index."""
        return self.logits.numel() * self.logits.element_size()

    @classmethod
    def of_stage(
        cls, trainer: Trainer, module: LightningModule, network: nn.Module, function: Callable[..., Tensor]
    ) -> "RecordedLogits":
        """Record the current stage's training images. A collective.

        Args:
            trainer: Has the datamodule and the process group.
            module: The module in training, on the device that the logits are kept on.
            network: The frozen network, put in eval mode meanwhile.
            function: Maps images to logits by means of it.

        Raises:
            ValueError: When the data are not an `IncrementalDataModule`, which numbers its images.
        """
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(datamodule, "stage_indices"):
            raise ValueError(
                f"`targets='recorded'` got data of type {type(datamodule).__name__}, whose images have no numbers; "
                "expected an `IncrementalDataModule`. Use `targets='online'`."
            )
        loader = datamodule.eval_loader(datamodule.stage_indices())
        logits, index = run_over(trainer, network, function, loader, getattr(module, "inputs", None))
        return cls(index.to(module.device), logits.to(module.device))
