"""`Joint`: train on the data of all tasks at once. The upper bound.

Source: the "Joint" row of Vahedifar and Zhang, No Forgetting Learning, https://arxiv.org/abs/2503.04638, table 3, and
its a* in Eq. 28; no equation of its own. Memory: all data.

Default: one training, after the last task has come; the matrix has only its last row, scores that need others are
undefined. With `cumulative`, every task trains a fresh network on all data so far: a Class-IL curve of upper bounds.
"""

import copy
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil.losses import cross_entropy_over, task_masked_cross_entropy
from lightning_cil.methods.base import HeadKind, IncrementalModule
from lightning_cil.networks import Backbone, feature_width, unsharded
from lightning_cil.types import Batch, Scenario, Stage, Task

CHECKPOINT_KEY = "lightning_cil.Joint"

JointMode = Literal["final", "cumulative"]


class Joint(IncrementalModule):
    """One training on all data, the upper bound (Joint row of NFL's table 3, https://arxiv.org/abs/2503.04638).

    Args:
        backbone: See `IncrementalModule`.
        head: See `IncrementalModule`.
        scenario: See `IncrementalModule`; Task-IL: every sample's softmax runs over its own task's classes.
        epochs: Passes over all data so far. Default: 70, as iCaRL trains CIFAR-100.
        optimizer: See `IncrementalModule`. Default: lr 0.1, momentum 0.9, weight decay 5e-4 (PyCIL).
        lr_scheduler: See `IncrementalModule`.
        joint_mode: `final`: train once, when all tasks are there; `cumulative`: for every task a fresh network on all
            data so far.
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
        joint_mode: JointMode = "final",
    ) -> None:
        super().__init__(
            backbone=backbone,
            head=head,
            scenario=scenario,
            epochs=epochs,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        if joint_mode not in ("final", "cumulative"):
            raise ValueError(f"`joint_mode={joint_mode!r}`: expected 'final' or 'cumulative'.")
        self.joint_mode = joint_mode
        # what every task of `cumulative` starts from; a plain dict, so that it is neither trained nor saved
        self._fresh = copy.deepcopy(self.backbone.state_dict()) if joint_mode == "cumulative" else {}

    def stages(self, task: Task) -> list[Stage]:
        """One stage on all data so far; `final` passes over every task but the last."""
        if self.joint_mode == "final" and not task.is_last:
            return []
        return [Stage("joint", self.epochs, data="seen")]

    def on_task_start(self, task: Task) -> None:
        """`cumulative`: forget what the last task's network learned."""
        if self._fresh:
            self.backbone = unsharded(self.backbone)
            self.backbone.load_state_dict(self._fresh)
            self.head = type(self.head)(feature_width(self.backbone), seed=self.head.seed)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the network that later tasks start from."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY] = self._fresh

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        super().on_load_checkpoint(checkpoint)
        self._fresh = dict(checkpoint.get(CHECKPOINT_KEY) or self._fresh) if self.joint_mode == "cumulative" else {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy over all classes so far, or over each sample's task."""
        assert self.task is not None
        logits = self(batch["image"])
        if self.scenario == "class_il":
            loss = cross_entropy_over(logits, batch["target"], 0, self.task.num_seen)
        else:
            sizes = [t.num_classes for t in self.tasks[: self.task.index + 1]]
            loss = task_masked_cross_entropy(logits, batch["target"], batch["task"], sizes)
        self.log_terms(loss=loss)
        return loss
