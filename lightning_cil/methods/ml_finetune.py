"""`MLFineTune`: train on the current task's labels only. The lower bound of multi-label streams.

Source: the "Fine-Tuning" rows of Du et al., Rebalancing Multi-Label Class-Incremental Learning (RebLL),
https://arxiv.org/abs/2408.12161, tables 1, 2 and 4; its loss is Eq. 1. Memory: none.

| equation | function |
|---|---|
| Eq. 1: binary cross-entropy over the current task's classes | `known_bce` |
"""

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil.losses import Reduction
from lightning_cil.methods._multilabel import MultiLabelModule
from lightning_cil.networks import Backbone
from lightning_cil.types import Batch


class MLFineTune(MultiLabelModule):
    """Plain multi-label training on each task in turn; forgets (Fine-Tuning row of RebLL's table 1, Eq. 1, https://arxiv.org/abs/2408.12161).

    Args:
        backbone: See `MultiLabelModule`. Default: TResNet-M, as in the papers.
        epochs: See `MultiLabelModule`. Default: 20 (RebLL).
        optimizer: See `MultiLabelModule`. Default: Adam, lr 4e-5, weight decay 1e-4 (RebLL on VOC).
        lr_scheduler: See `MultiLabelModule`.
        increment_lr: See `MultiLabelModule`. RebLL on COCO: 3e-5 for the first task, then 5e-5.
        one_cycle: See `MultiLabelModule`.
        reduction: `mean`: over classes and batch; `sum`: over classes, then the mean over the batch.
    """

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

    def on_stream_start(self, resumed: bool) -> None:
        """Refuse a memory, which the method does not use."""
        self.check_callbacks(exemplars=False)

    def terms(self, batch: Batch, logits: Tensor, replay_logits: Tensor | None) -> dict[str, Tensor]:
        """Binary cross-entropy over the current task's classes."""
        return {"bce": self.known_bce(batch, logits)}  # Eq. 1
