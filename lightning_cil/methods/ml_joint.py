"""`MLJoint`: train on all images with all labels at once. The upper bound of multi-label streams.

Source: the "Joint" rows of Du et al., Rebalancing Multi-Label Class-Incremental Learning (RebLL),
https://arxiv.org/abs/2408.12161, tables 1 and 2; its loss is Eq. 1. Memory: all data.

One training, when the last task has come, on every image once with the labels of all classes; the matrix has only its
last row, averages over tasks are undefined.

| equation | function |
|---|---|
| Eq. 1: binary cross-entropy over all classes | `known_bce` |
| `loss='asl'`: the asymmetric loss of https://github.com/Alibaba-MIIL/ASL | `asymmetric_focal_loss` |
"""

from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil.losses import Reduction
from lightning_cil.methods._multilabel import MultiLabelModule, asymmetric_loss
from lightning_cil.networks import Backbone
from lightning_cil.types import Batch, Stage, Task


class MLJoint(MultiLabelModule):
    """One multi-label training on all data, the upper bound (Joint row of RebLL's table 1, Eq. 1, https://arxiv.org/abs/2408.12161).

    Args:
        backbone: See `MultiLabelModule`. Default: TResNet-M, as in the papers.
        epochs: See `MultiLabelModule`. Default: 20 (RebLL).
        optimizer: See `MultiLabelModule`. Default: Adam, lr 4e-5, weight decay 1e-4 (RebLL on VOC).
        lr_scheduler: See `MultiLabelModule`.
        increment_lr: See `MultiLabelModule`. RebLL on COCO: 3e-5 for the first task, then 5e-5.
        one_cycle: See `MultiLabelModule`.
        reduction: `mean`: over classes and batch; `sum`: over classes, then the mean over the batch.
        loss: `bce`: binary cross-entropy (Eq. 1); `asl`: `asymmetric_focal_loss`.
        gamma_negative: Of `asl`: exponent for negatives, at least 0.
        gamma_positive: Of `asl`: exponent for positives, at least 0.
        clip: Of `asl`: below this probability a negative costs nothing, in [0, 1).

    Raises:
        ValueError: For a number out of range, or an unknown loss.
    """

    uses_exemplars = False

    def __init__(
        self,
        *,
        backbone: str | Backbone | nn.Module = "tresnet_m",
        epochs: int = 20,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=4e-5, weight_decay=1e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
        increment_lr: float | None = None,
        one_cycle: bool = False,
        reduction: Reduction = "mean",
        loss: Literal["bce", "asl"] = "bce",
        gamma_negative: float = 4.0,
        gamma_positive: float = 0.0,
        clip: float = 0.05,
    ) -> None:
        super().__init__(
            backbone=backbone,
            epochs=epochs,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            increment_lr=increment_lr,
            one_cycle=one_cycle,
            reduction=reduction,
        )
        if loss not in ("bce", "asl"):
            raise ValueError(f"`loss={loss!r}`: expected 'bce' or 'asl'.")
        self.loss = loss
        self.asymmetric_loss = asymmetric_loss(reduction, gamma_negative, gamma_positive, clip)

    def stages(self, task: Task) -> list[Stage]:
        """One stage on all data, when the last task has come."""
        return [self.stage_of(task, "joint", data="seen")] if task.is_last else []

    def terms(self, batch: Batch, logits: Tensor, replay_logits: Tensor | None) -> dict[str, Tensor]:
        """Binary cross-entropy or asymmetric loss over all classes."""
        if self.loss == "asl":
            return {"asl": self.asymmetric_loss(logits, batch["target"].to(logits.dtype))}
        return {"bce": self.known_bce(batch, logits)}  # Eq. 1
