"""`FineTune`: train on the current task only. The papers' SGD row, the lower bound.

Source: the "SGD" rows of Vahedifar and Zhang, No Forgetting Learning, https://arxiv.org/abs/2503.04638, table 3; no
equation. Memory: none.

| term | function |
|---|---|
| cross-entropy | `cross_entropy_over` |

The paper does not say which classes the softmax runs over. Here: Task-IL over the task's own classes, Class-IL over
all classes seen; `ce_scope` changes it (PyCIL's fine-tuning uses the new classes only, Mammoth's all classes).
"""

from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil.losses import cross_entropy_over
from lightning_cil.methods.base import HeadKind, IncrementalModule
from lightning_cil.networks import Backbone
from lightning_cil.types import Batch, Scenario

CeScope = Literal["auto", "seen", "new"]


class FineTune(IncrementalModule):
    """Plain training on each task in turn; forgets (SGD rows of NFL's table 3, https://arxiv.org/abs/2503.04638).

    Args:
        backbone: See `IncrementalModule`.
        head: See `IncrementalModule`.
        scenario: See `IncrementalModule`.
        epochs: Passes over each task's data. Default: 70, as iCaRL trains CIFAR-100.
        optimizer: See `IncrementalModule`. Default: lr 0.1, momentum 0.9, weight decay 5e-4 (PyCIL).
        lr_scheduler: See `IncrementalModule`.
        ce_scope: Classes of the softmax: `seen`: all so far; `new`: the current task's; `auto`: `seen` in Class-IL,
            `new` in Task-IL.
    """

    uses_exemplars = False

    def __init__(
        self,
        *,
        backbone: str | Backbone | nn.Module = "resnet32",
        head: HeadKind = "linear",
        scenario: Scenario = "class_il",
        epochs: int = 70,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
        ce_scope: CeScope = "auto",
    ) -> None:
        super().__init__(
            backbone=backbone,
            head=head,
            scenario=scenario,
            epochs=epochs,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        if ce_scope not in ("auto", "seen", "new"):
            raise ValueError(f"`ce_scope={ce_scope!r}`: expected 'auto', 'seen' or 'new'.")
        self.ce_scope = ce_scope if ce_scope != "auto" else "seen" if scenario == "class_il" else "new"

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy on the current task."""
        assert self.task is not None
        first = 0 if self.ce_scope == "seen" else self.task.first_class
        loss = cross_entropy_over(self(batch["image"]), batch["target"], first, self.task.num_seen)
        self.log_terms(loss=loss)
        return loss
