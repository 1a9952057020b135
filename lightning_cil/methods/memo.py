"""`MEMO`: a shared body with one specialised last stage for each task, beside exemplars.

Paper: Zhou, Wang, Ye, Zhan, A Model or 603 Exemplars: Towards Memory-Efficient Class-Incremental Learning, 2023,
https://arxiv.org/abs/2205.13218, in the form of its code, https://github.com/wangkiw/ICLR23-MEMO and
https://github.com/LAMDA-CL/PyCIL, `models/memo.py`; no equation is cited by number. Memory: 2,000 exemplars in all by
default, and a specialised part of the body for each task.

| part | function |
|---|---|
| generalised and specialised blocks; a new one starts as a copy of the one before | `MemoBackbone` |
| cross-entropy, and that of an auxiliary head on the newest block | `memo_terms` |
| end of a task: new rows get the old ones' mean length | `align_weights` |
| herding on the features of all blocks | `ReplayBuffer(selection='herding')` |

Old rows of the head keep their values for old features; their columns for the new block, and all new rows, start at
random. Departures. Every batch of new data is joined by exemplars, while the code shuffles them into the task's data.
Outputs start as in all heads here (U(-1/√d, 1/√d)). Forward transfer is measured on untrained rows for the features
that there are; the rows that a task starts from are wider, and hence others.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil._random import fold_seed
from lightning_cil.callbacks import ReplayBuffer
from lightning_cil.losses import memo_terms
from lightning_cil.methods._exemplars import joined
from lightning_cil.methods._first_task import FirstTask
from lightning_cil.methods.base import IncrementalModule
from lightning_cil.networks import Backbone, LinearHead, MemoBackbone, align_weights, unsharded
from lightning_cil.schedulers import FractionStepLR
from lightning_cil.types import Batch, Scenario, Stage, Task

DEFAULT_MEMORY = 2000
_STREAM = int.from_bytes(b"auxiliary", "big")


def later_steps(optimizer: torch.optim.Optimizer) -> FractionStepLR:
    """PyCIL's schedule of each task but the first: a tenth after 80, 120 and 150 of 170 epochs, as fractions.

    Args:
        optimizer: Its groups' current learning rates are the initial ones.
    """
    return FractionStepLR(optimizer, at=(0.47, 0.705, 0.88))


def first_steps(optimizer: torch.optim.Optimizer) -> FractionStepLR:
    """PyCIL's schedule of the first task: a tenth after 60, 120 and 170 of 200 epochs, as fractions.

    Args:
        optimizer: Its groups' current learning rates are the initial ones.
    """
    return FractionStepLR(optimizer, at=(0.3, 0.6, 0.85))


class MEMO(IncrementalModule):
    """MEMO: one specialised block a task on a shared body (Zhou et al. 2023, no equation, https://arxiv.org/abs/2205.13218); needs `ReplayBuffer`.

    All defaults are those of PyCIL's settings for CIFAR-100.

    Args:
        backbone: See `IncrementalModule`; a timm ResNet, a CIFAR ResNet or `small_cnn`, which `split_backbone` cuts in
            front of its last stage.
        scenario: See `IncrementalModule`; MEMO trains both alike.
        epochs: Passes over the data of each task but the first.
        optimizer: See `IncrementalModule`. Default: lr 0.1, momentum 0.9, weight decay 2e-4.
        lr_scheduler: Of each task but the first; `None`: constant. Default: a tenth after 80, 120 and 150 of 170 epochs.
        first_epochs: Passes over the first task's data; `None`: as many as `epochs`.
        first_weight_decay: Weight decay of the first task in place of the optimizer's, at least 0; `None`: the
            optimizer's.
        first_lr_scheduler: Of the first task; `None`: `lr_scheduler`. Default: a tenth after 60, 120 and 170 of 200
            epochs.
        auxiliary_weight: Weight of the auxiliary cross-entropy, at least 0; 0: there is no auxiliary head.
        train_generalised: Whether the shared part is trained after the first task (the authors' README; the default of
            their script is not to).
        train_specialised: `newest`: blocks of earlier tasks are frozen; `all`: they are trained too.
        weight_alignment: Whether new rows of the head are aligned after each task but the first.
    """  # noqa: E501

    backbone: MemoBackbone
    head: LinearHead

    def __init__(
        self,
        *,
        backbone: str | Backbone | nn.Module = "resnet32",
        scenario: Scenario = "class_il",
        epochs: int = 170,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=2e-4),
        lr_scheduler: LRSchedulerCallable | None = later_steps,
        first_epochs: int | None = 200,
        first_weight_decay: float | None = 5e-4,
        first_lr_scheduler: LRSchedulerCallable | None = first_steps,
        auxiliary_weight: float = 1.0,
        train_generalised: bool = True,
        train_specialised: Literal["newest", "all"] = "newest",
        weight_alignment: bool = True,
    ) -> None:
        if (backbone.get("compile") if isinstance(backbone, dict) else getattr(backbone, "compile", None)) is True:
            raise ValueError(
                "MEMO got a backbone with `compile: true`, expected one without: the body grows with every task, and "
                "would be compiled anew until PyTorch gives up. Leave `compile` out."
            )
        super().__init__(
            backbone=backbone,
            head="linear",
            scenario=scenario,
            epochs=epochs,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        self.first_task = FirstTask(first_epochs, first_weight_decay, first_lr_scheduler)
        if auxiliary_weight < 0:
            raise ValueError(f"`auxiliary_weight={auxiliary_weight}`: expected at least 0; the authors use 1.")
        if train_specialised not in ("newest", "all"):
            raise ValueError(f"`train_specialised={train_specialised!r}`: expected 'newest' or 'all'.")
        self.backbone = MemoBackbone(self.backbone)
        self.auxiliary_weight = auxiliary_weight
        self.train_generalised = train_generalised
        self.train_specialised = train_specialised
        self.weight_alignment = weight_alignment
        self.auxiliary = LinearHead(self.backbone.block_features)
        """On the newest block: any old class, then the task's classes. Without outputs outside of training."""

    def required_callbacks(self) -> list[Callback]:
        """The memory."""
        return [ReplayBuffer(total=DEFAULT_MEMORY, selection="herding")]

    # ------------------------------------------------------------------ growth

    def add_task(self, num_classes: int) -> None:
        """A block for the task, columns of the head for its features, and the task's rows."""
        if len(self.head.sizes) == len(self.backbone.specialised):  # the first block is there from the start
            self.backbone = unsharded(self.backbone)
            self.backbone.grow()
            self.head = unsharded(self.head)
            self.head.widen(self.backbone.block_features)
        super().add_task(num_classes)

    def stages(self, task: Task) -> list[Stage]:
        """One stage; the first task has settings of its own."""
        if task.is_first:
            return [self.first_task.stage(self, train=["backbone.*", "head.*"])]
        block = "*" if self.train_specialised == "all" else f"{task.index}.*"
        trained = [f"backbone.specialised.{block}", "head.*"]
        trained += ["backbone.generalised.*"] if self.train_generalised else []
        trained += ["auxiliary.*"] if self.auxiliary_weight else []
        return [Stage("train", self.epochs, train=trained)]

    def begin_stage(self, task: Task, stage: Stage) -> None:
        """Give a later task its auxiliary head."""
        outputs = task.num_classes + 1
        if not task.is_first and self.auxiliary_weight and self.auxiliary.num_classes != outputs:
            seed = fold_seed(self.head.seed, _STREAM, task.index)
            self.auxiliary = LinearHead(self.backbone.block_features, seed=seed).to(self.device, self.head.weight.dtype)
            self.auxiliary.grow(outputs)
        super().begin_stage(task, stage)

    def on_task_end(self, task: Task) -> None:
        """Align the new rows and drop the auxiliary head."""
        if self.weight_alignment and not task.is_first:
            self.head = unsharded(self.head)
            align_weights(self.head)
        self.auxiliary = LinearHead(self.backbone.block_features).to(self.device)

    # ------------------------------------------------------------------ loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of both heads on new samples and exemplars together."""
        assert self.task is not None
        features = self.features(joined(batch, "image"))
        auxiliary = None
        if not self.task.is_first and self.auxiliary_weight:
            auxiliary = self.auxiliary(self.backbone.newest(features))
        terms = memo_terms(
            self.head(features),
            joined(batch, "target"),
            auxiliary,
            num_old=self.task.num_old,
            auxiliary_weight=self.auxiliary_weight,
        )
        self.log_terms(**terms)
        return torch.stack(list(terms.values())).sum()

    # ------------------------------------------------------------------ what a run keeps

    def footprint(self) -> dict[str, int]:
        """Transient: bytes of the auxiliary head while the last task was trained."""
        if self.task is None or self.task.is_first or not self.auxiliary_weight:
            return {}
        return {"transient_bytes": 4 * (self.task.num_classes + 1) * (self.backbone.block_features + 1)}

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Take the checkpoint's width of the head; body and heads take their other shapes themselves."""
        stored = state_dict.get(f"{prefix}head.weight")
        if isinstance(stored, Tensor) and stored.ndim == 2 and stored.shape[1] != self.head.in_features:
            like = self.head.weight
            self.head = LinearHead(stored.shape[1], seed=self.head.seed).to(like.device, like.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args)
