"""`MLLwF`: Learning without Forgetting with sigmoids: L_bce + λ L_kd.

Source: the LwF row of Du et al., Rebalancing Multi-Label Class-Incremental Learning (RebLL),
https://arxiv.org/abs/2408.12161, table 1. Memory: none beside the old model during a task.

| equation | function |
|---|---|
| Eq. 1: L_bce over the current task's classes | `known_bce` |
| Eq. 2: L_kd, the old model's sigmoids as targets of the old classes | `binary_distillation` |

Departures from RebLL's table, which gives no settings: λ = 1 and no temperature. The paper that the row cites, Li and
Hoiem, https://arxiv.org/abs/1606.09282, is for one label an image.
"""

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil.callbacks import Teacher
from lightning_cil.losses import Reduction
from lightning_cil.methods._multilabel import MultiLabelModule
from lightning_cil.networks import Backbone
from lightning_cil.types import Batch


class MLLwF(MultiLabelModule):
    """Learning without Forgetting with sigmoids (LwF row of RebLL's table 1, Eq. 1-2, https://arxiv.org/abs/2408.12161); no exemplars.

    Args:
        backbone: See `MultiLabelModule`. Default: TResNet-M, as in the papers.
        epochs: See `MultiLabelModule`. Default: 20 (RebLL).
        optimizer: See `MultiLabelModule`. Default: Adam, lr 4e-5, weight decay 1e-4 (RebLL on VOC).
        lr_scheduler: See `MultiLabelModule`.
        increment_lr: See `MultiLabelModule`. RebLL on COCO: 3e-5 for the first task, then 5e-5.
        one_cycle: See `MultiLabelModule`.
        reduction: `mean`: over classes and batch; `sum`: over classes, then the mean over the batch.
        distillation_weight: λ, at least 0.

    Raises:
        ValueError: For a negative weight.
    """  # noqa: E501

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
        distillation_weight: float = 1.0,
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
        if distillation_weight < 0:
            raise ValueError(f"`distillation_weight={distillation_weight}`: expected at least 0.")
        self.distillation_weight = distillation_weight

    def required_callbacks(self) -> list[Callback]:
        """The old model."""
        return [Teacher()]

    def terms(self, batch: Batch, logits: Tensor, replay_logits: Tensor | None) -> dict[str, Tensor]:
        """L_bce + λ L_kd."""
        new, old = self.known_bce(batch, logits), self.old_class_kd(batch, logits)  # Eq. 1 and 2
        return {"bce": new} if old is None else {"bce": new, "kd": self.distillation_weight * old}
