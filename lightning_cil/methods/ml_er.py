"""`MLER`: experience replay with multi-label exemplars.

Source: the "ER" rows of Du et al., Rebalancing Multi-Label Class-Incremental Learning (RebLL),
https://arxiv.org/abs/2408.12161, tables 1 and 2, after Chaudhry et al., https://arxiv.org/abs/1902.10486; its loss is
RebLL's Eq. 1. Memory: a reservoir of 2 exemplars for each class of the stream by default (RebLL on VOC; 5 on COCO).

| equation | function |
|---|---|
| Eq. 1 on current images and exemplars together, over the labels that each one's own task annotated | `known_bce` |

Departure from the online form: samples are offered to the reservoir once, at the end of their task.
"""

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil.callbacks import ReplayBuffer
from lightning_cil.losses import Reduction, known_bce
from lightning_cil.methods._multilabel import EXEMPLARS_PER_CLASS, MultiLabelModule
from lightning_cil.networks import Backbone
from lightning_cil.types import Batch


class MLER(MultiLabelModule):
    """Experience replay with the labels that are known (ER row of RebLL's table 1, Eq. 1, https://arxiv.org/abs/2408.12161); needs `ReplayBuffer`.

    Args:
        backbone: See `MultiLabelModule`. Default: TResNet-M, as in the papers.
        epochs: See `MultiLabelModule`. Default: 20 (RebLL).
        optimizer: See `MultiLabelModule`. Default: Adam, lr 4e-5, weight decay 1e-4 (RebLL on VOC).
        lr_scheduler: See `MultiLabelModule`.
        increment_lr: See `MultiLabelModule`. RebLL on COCO: 3e-5 for the first task, then 5e-5.
        one_cycle: See `MultiLabelModule`.
        reduction: `mean`: over classes and batch; `sum`: over classes, then the mean over the batch.
    """  # noqa: E501

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

    def required_callbacks(self) -> list[Callback]:
        """The memory."""
        return [ReplayBuffer(per_class=EXEMPLARS_PER_CLASS, repeat=False)]

    def terms(self, batch: Batch, logits: Tensor, replay_logits: Tensor | None) -> dict[str, Tensor]:
        """Binary cross-entropy on new images and exemplars together."""
        if replay_logits is None:
            return {"bce": self.known_bce(batch, logits)}
        seen = logits.shape[1]
        target = torch.cat([batch["target"], batch["replay_target"]])[:, :seen]
        known = torch.cat([batch["known"], batch["replay_known"]])[:, :seen]
        return {"bce": known_bce(torch.cat([logits, replay_logits]), target, known, reduction=self.reduction)}
