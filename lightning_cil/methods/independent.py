"""`Independent`: a fresh network for every task, trained on that task alone. What each task is worth without others.

Source: the "independent" predictors that Lopez-Paz and Ranzato, Gradient Episodic Memory for Continual Learning, 2017,
section 5, https://arxiv.org/abs/1706.08840, compare with; no equation. Memory: none.

Departures: theirs have T times fewer hidden units, ours the whole network, since what a task reaches without others is
wanted, not what the same memory gives; ours always start at random (theirs, if that is better, from the last one).

Only the matrix's diagonal means something: row k is a network that saw task k alone.
"""

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil.losses import cross_entropy_over
from lightning_cil.methods.base import HeadKind
from lightning_cil.methods.joint import Joint
from lightning_cil.networks import Backbone
from lightning_cil.types import Batch, Scenario, Stage, Task


class Independent(Joint):
    """One fresh network a task: no transfer, no forgetting (Lopez-Paz and Ranzato 2017, section 5, https://arxiv.org/abs/1706.08840).

    Args:
        backbone: See `IncrementalModule`.
        head: See `IncrementalModule`.
        scenario: See `IncrementalModule`; the loss is the same in both: over the task's own classes.
        epochs: Passes over each task's data. Default: 70, as iCaRL trains CIFAR-100.
        optimizer: See `IncrementalModule`. Default: lr 0.1, momentum 0.9, weight decay 5e-4 (PyCIL).
        lr_scheduler: See `IncrementalModule`.
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
    ) -> None:
        super().__init__(
            backbone=backbone,
            head=head,
            scenario=scenario,
            epochs=epochs,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            joint_mode="cumulative",  # every task starts from the fresh network
        )

    def stages(self, task: Task) -> list[Stage]:
        """One stage on the task's own data."""
        return [Stage("independent", self.epochs)]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy over the task's own classes."""
        assert self.task is not None
        loss = cross_entropy_over(self(batch["image"]), batch["target"], self.task.first_class, self.task.num_seen)
        self.log_terms(loss=loss)
        return loss
