"""`ER`: experience replay. Every batch of new data is joined by as many exemplars of old classes.

Paper: Chaudhry et al., On Tiny Episodic Memories in Continual Learning, 2019, https://arxiv.org/abs/1902.10486,
algorithm 1; no equation: cross-entropy on the union of the batch and the exemplars, reservoir memory. Memory: 2,000
exemplars in all by default, the Class-IL budget of NFL's tables on CIFAR-100.

Departure: samples are offered to the reservoir once, at the end of their task, so that several epochs do not offer
them several times; `ReplayBuffer(update='batch')` is the paper's online form.
"""

from typing import Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil.callbacks import ReplayBuffer
from lightning_cil.losses import cross_entropy_over, task_masked_cross_entropy
from lightning_cil.methods._exemplars import joined
from lightning_cil.methods.base import HeadKind, IncrementalModule
from lightning_cil.networks import Backbone
from lightning_cil.types import Batch, Scenario

DEFAULT_MEMORY = 2000


class ER(IncrementalModule):
    """Experience replay (Chaudhry et al. 2019, no equation, https://arxiv.org/abs/1902.10486); needs `ReplayBuffer`.

    Args:
        backbone: See `IncrementalModule`.
        head: See `IncrementalModule`.
        scenario: See `IncrementalModule`.
        epochs: Passes over each task's data. Default: 70, as iCaRL trains CIFAR-100.
        optimizer: See `IncrementalModule`. Default: lr 0.1, momentum 0.9, weight decay 5e-4 (PyCIL).
        lr_scheduler: See `IncrementalModule`.
        ce_scope: Classes of each sample's softmax: `seen`: all so far, in both scenarios (Mammoth's convention);
            `task`: the sample's own task.
    """

    def __init__(
        self,
        *,
        backbone: str | Backbone | nn.Module = "resnet32",
        head: HeadKind = "linear",
        scenario: Scenario = "class_il",
        epochs: int = 70,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
        ce_scope: Literal["seen", "task"] = "seen",
    ) -> None:
        super().__init__(
            backbone=backbone,
            head=head,
            scenario=scenario,
            epochs=epochs,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        if ce_scope not in ("seen", "task"):
            raise ValueError(f"`ce_scope={ce_scope!r}`: expected 'seen' or 'task'.")
        self.ce_scope = ce_scope

    def required_callbacks(self) -> list[Callback]:
        """The memory."""
        return [ReplayBuffer(total=DEFAULT_MEMORY)]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy on new samples and exemplars together."""
        assert self.task is not None
        logits, target = self(joined(batch, "image")), joined(batch, "target")
        if self.ce_scope == "seen":
            loss = cross_entropy_over(logits, target, 0, self.task.num_seen)
        else:
            sizes = [t.num_classes for t in self.tasks[: self.task.index + 1]]
            loss = task_masked_cross_entropy(logits, target, joined(batch, "task"), sizes)
        self.log_terms(loss=loss)
        return loss
