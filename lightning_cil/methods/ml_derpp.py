"""`MLDERPlusPlus`: DER++ with multi-label exemplars.

Source: the "DER++" rows of Du et al., Rebalancing Multi-Label Class-Incremental Learning (RebLL),
https://arxiv.org/abs/2408.12161, tables 1 and 2, after Buzzega et al., https://arxiv.org/abs/2004.07211; RebLL has no
equation for it. Memory: a reservoir of 2 exemplars for each class of the stream by default, with their logits.

| term | function |
|---|---|
| L_bce(x) + α ‖z(x') - z'‖² + β L_bce(x''), x' and x'' drawn independently | `known_bce`, `logit_matching` |
| reservoir of every batch of every epoch, each image once | `ReplayBuffer(update='batch', num_draws=2, dedupe=True)` |

Each of the three batches is a forward of its own, as in the authors' code. L_bce runs over the labels that are known of
an image, the squares over the classes that existed when the logits were stored. α and β are those of `DERPlusPlus`.
"""

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil.callbacks import ReplayBuffer
from lightning_cil.losses import Reduction, known_bce, logit_matching
from lightning_cil.methods._multilabel import EXEMPLARS_PER_CLASS, MultiLabelModule
from lightning_cil.methods.derpp import LOGITS, check_memory, stored_rows
from lightning_cil.networks import Backbone
from lightning_cil.types import Batch


class MLDERPlusPlus(MultiLabelModule):
    """DER++ with the labels that are known (DER++ row of RebLL's table 1, no equation, https://arxiv.org/abs/2408.12161); needs `ReplayBuffer`.

    Args:
        backbone: See `MultiLabelModule`. Default: TResNet-M, as in the papers.
        epochs: See `MultiLabelModule`. Default: 20 (RebLL).
        optimizer: See `MultiLabelModule`. Default: Adam, lr 4e-5, weight decay 1e-4 (RebLL on VOC).
        lr_scheduler: See `MultiLabelModule`.
        increment_lr: See `MultiLabelModule`. RebLL on COCO: 3e-5 for the first task, then 5e-5.
        one_cycle: See `MultiLabelModule`.
        reduction: `mean`: over classes and batch; `sum`: over classes, then the mean over the batch.
        alpha: α, weight of the stored logits, at least 0.
        beta: β, weight of the exemplars' labels, at least 0.

    Raises:
        ValueError: For a negative weight.
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
        alpha: float = 0.1,
        beta: float = 0.5,
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
        if min(alpha, beta) < 0:
            raise ValueError(f"got `alpha={alpha}`, `beta={beta}`; expected weights of at least 0.")
        self.alpha = alpha
        self.beta = beta

    def required_callbacks(self) -> list[Callback]:
        """The memory."""
        return [
            ReplayBuffer(
                per_class=EXEMPLARS_PER_CLASS, update="batch", columns=[LOGITS], num_draws=2, repeat=False, dedupe=True
            )
        ]

    def on_train_start(self) -> None:
        """Refuse a memory without logits or with one draw a step."""
        check_memory(self)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The loss, and the logits to be stored with the batch."""
        logits = self.precise_logits(batch["image"])
        terms = self.terms(batch, logits, None)
        self.log_terms(**terms)
        loss = torch.stack(list(terms.values())).sum()
        return {"loss": loss, LOGITS: stored_rows(logits, self.tasks[-1].num_seen)}

    def terms(self, batch: Batch, logits: Tensor, replay_logits: Tensor | None) -> dict[str, Tensor]:
        """The labels' loss, that of stored logits, and that of stored labels."""
        terms = {"bce": self.known_bce(batch, logits)}
        if "replay_image" in batch:
            seen = logits.shape[1]
            first, second = (self.precise_logits(batch[key]) for key in ("replay_image", "replay2_image"))
            width = self._end_class[batch["replay_task"]]
            terms["logits"] = self.alpha * logit_matching(first, batch["replay_logits"][:, :seen], width)
            target, known = batch["replay2_target"][:, :seen], batch["replay2_known"][:, :seen]
            terms["replay_bce"] = self.beta * known_bce(second, target, known, reduction=self.reduction)
        return terms
