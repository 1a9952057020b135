"""`LwF`: Learning without Forgetting. The old model's outputs on new data are kept by distillation.

Paper: Li and Hoiem, Learning without Forgetting, ECCV 2016, https://arxiv.org/abs/1606.09282. Memory: none beside the
old model during a task.

| equation | function |
|---|---|
| Eq. 1, new task: cross-entropy | `cross_entropy_over` |
| Eq. 2-4, old tasks: distillation, T = 2 | `soft_cross_entropy`, `per_head_soft_cross_entropy` |
| λ·L_old + L_new | `training_step` |

Departures, each an option: Class-IL uses PyCIL's form, one softmax over all old classes and λ = 3 (the paper has one
head for each task and λ = 1, which is the Task-IL default here). The teacher sees the same augmented image as the
student; the paper records its outputs once. The paper's head warm-up is off unless `warmup_epochs` is given.
"""

from typing import Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil.callbacks import Teacher
from lightning_cil.losses import cross_entropy_over, per_head_soft_cross_entropy, soft_cross_entropy
from lightning_cil.methods._first_task import FirstTask
from lightning_cil.methods.base import HeadKind, IncrementalModule
from lightning_cil.networks import Backbone
from lightning_cil.types import Batch, Scenario, Stage, Task

CeScope = Literal["seen", "new"]
KdScope = Literal["auto", "joint", "per_head"]


class LwF(IncrementalModule):
    """Learning without Forgetting (Li and Hoiem 2016, Eq. 1-4, https://arxiv.org/abs/1606.09282); no exemplars.

    Args:
        backbone: See `IncrementalModule`.
        head: See `IncrementalModule`.
        scenario: See `IncrementalModule`.
        epochs: Passes over each task's data. Default: 70, as iCaRL trains CIFAR-100.
        optimizer: See `IncrementalModule`. Default: lr 0.1, momentum 0.9, weight decay 5e-4 (PyCIL's first task).
        lr_scheduler: See `IncrementalModule`.
        distillation_weight: λ, at least 0. Default: 3 in Class-IL (PyCIL), 1 in Task-IL (the paper).
        temperature: T > 0 of the distillation (the paper: 2).
        ce_scope: Classes of the softmax of the new task's loss: `new`: the current task's (PyCIL); `seen`: all so far.
        kd_scope: `joint`: one softmax over all old classes; `per_head`: one for each old task, summed; `auto`: `joint`
            in Class-IL, `per_head` in Task-IL.
        first_epochs: Passes over the first task's data; `None`: as many as `epochs` (PyCIL: 200, then 250).
        first_weight_decay: Weight decay of the first task in place of the optimizer's, at least 0; `None`: the
            optimizer's (PyCIL: 5e-4, then 2e-4).
        first_lr_scheduler: Of the first task; `None`: `lr_scheduler`.
        warmup_epochs: Epochs that train the new task's outputs alone before each task but the first (the paper's
            warm-up); needs `head='multi'`, whose outputs can be frozen by task.
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
        distillation_weight: float | None = None,
        temperature: float = 2.0,
        ce_scope: CeScope = "new",
        kd_scope: KdScope = "auto",
        first_epochs: int | None = None,
        first_weight_decay: float | None = None,
        first_lr_scheduler: LRSchedulerCallable | None = None,
        warmup_epochs: int = 0,
    ) -> None:
        super().__init__(
            backbone=backbone,
            head=head,
            scenario=scenario,
            epochs=epochs,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        if distillation_weight is not None and distillation_weight < 0:
            raise ValueError(f"`distillation_weight={distillation_weight}`: expected at least 0.")
        if temperature <= 0:
            raise ValueError(f"`temperature={temperature}`: expected a positive number; the paper uses 2.")
        if ce_scope not in ("seen", "new") or kd_scope not in ("auto", "joint", "per_head"):
            raise ValueError(
                f"got `ce_scope={ce_scope!r}`, `kd_scope={kd_scope!r}`; expected 'seen' or 'new', and 'auto', 'joint' "
                "or 'per_head'."
            )
        if warmup_epochs < 0 or (warmup_epochs and head != "multi"):
            raise ValueError(
                f"`warmup_epochs={warmup_epochs}` with `head={head!r}`; expected 0, or a positive number with "
                "`head='multi'`, whose outputs can be frozen by task."
            )
        class_il = scenario == "class_il"
        self.distillation_weight = (3.0 if class_il else 1.0) if distillation_weight is None else distillation_weight
        self.temperature = temperature
        self.ce_scope = ce_scope
        self.kd_scope = kd_scope if kd_scope != "auto" else "joint" if class_il else "per_head"
        self.first_task = FirstTask(first_epochs, first_weight_decay, first_lr_scheduler)
        self.warmup_epochs = warmup_epochs

    def required_callbacks(self) -> list[Callback]:
        """The old model."""
        return [Teacher()]

    def stages(self, task: Task) -> list[Stage]:
        """The warm-up of the new head, if asked for, then everything."""
        if task.is_first:
            return [self.first_task.stage(self)]
        train = Stage("train", self.epochs)
        if not self.warmup_epochs:
            return [train]
        return [Stage("warm-up", self.warmup_epochs, train=[f"head.blocks.{task.index}.*"]), train]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """L_new + λ·L_old."""
        assert self.task is not None
        logits = self(batch["image"])
        first = 0 if self.ce_scope == "seen" else self.task.first_class
        new_loss = cross_entropy_over(logits, batch["target"], first, self.task.num_seen)  # Eq. 1
        if "teacher_logits" not in batch:
            self.log_terms(new_loss=new_loss)
            return new_loss
        old_loss = self._distillation(logits[:, : self.task.num_old], batch["teacher_logits"])  # Eq. 2-4
        self.log_terms(new_loss=new_loss, old_loss=old_loss)
        return self.distillation_weight * old_loss + new_loss

    def _distillation(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.kd_scope == "joint":
            return soft_cross_entropy(student, teacher, self.temperature)
        assert self.task is not None
        sizes = [t.num_classes for t in self.tasks[: self.task.index]]
        return per_head_soft_cross_entropy(student, teacher, sizes, self.temperature)
