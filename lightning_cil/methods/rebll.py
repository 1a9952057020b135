"""`RebLL`: asymmetric knowledge distillation (AKD) and online relabelling (OR).

Paper: Du, Zhou, Lyu, Li, Xie, Shen, Hu, Liu, Rebalancing Multi-Label Class-Incremental Learning, AAAI 2025,
https://arxiv.org/abs/2408.12161. There is no official code. Memory: a reservoir of 2 exemplars for each class of the
stream by default (5 on COCO), with labels for every class seen; none with `memory='none'`.

| equation | function |
|---|---|
| Eq. 3-4, L_cls: labels of the current task's classes, positives decayed | `positive_decay_bce` |
| Eq. 5-6, L_akd: the old model's sigmoids for the old classes, positives decayed | `positive_decay_bce` |
| Eq. 7-8, L_er: relabelled exemplars, old classes, negatives decayed | `negative_decay_bce` |
| Eq. 9: 0.15 L_cls + 0.85 L_akd + 0.30 L_er; the first task: L_cls | `terms` |
| exponents α ln|C^{1:t}| and β ln|C^{1:t}| | `decay_exponent` |
| OR | `OnlineRelabel` |

What the paper leaves open, each an option where there is a choice: sums over classes are means (`reduction`), the decay
factor has a gradient (`detach_focal`), labels are cut at 0.5 (`relabel_threshold`, `relabel_quota`), the reservoir has
its full size from the first task on, an image that recurs in another task is another entry (`ReplayBuffer(grow,
dedupe)`), current images and exemplars go through the network together, and exemplars are augmented. The sentence after
Eq. 9 says that λ_akd weighs L_akd; the equation, which is followed, has it at L_cls.

The tables' rows: table 4: `classification`, `distillation`; table 5: `memory`; table 6: `fixed_exponent`; table
3: `network='gcn'`.
"""

from typing import Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil.callbacks import OnlineRelabel, ReplayBuffer, Teacher
from lightning_cil.losses import Reduction, decay_exponent, known_bce, negative_decay_bce, positive_decay_bce
from lightning_cil.methods._multilabel import EXEMPLARS_PER_CLASS, MultiLabelModule
from lightning_cil.networks import Backbone, GraphNorm
from lightning_cil.types import Batch, Stage, Task

Classification = Literal["bce", "cls"]
Distillation = Literal["none", "kd", "akd"]
Memory = Literal["none", "replay_bce", "or_bce", "or_er"]
Network = Literal["cnn", "gcn"]


class RebLL(MultiLabelModule):
    """Asymmetric distillation and relabelled exemplars (Du et al. 2025, Eq. 1-9, https://arxiv.org/abs/2408.12161); needs `Teacher`, `ReplayBuffer`, `OnlineRelabel`.

    Args:
        backbone: See `MultiLabelModule`. Default: TResNet-M, as in the papers.
        epochs: See `MultiLabelModule`. Default: 20 (RebLL).
        optimizer: See `MultiLabelModule`. Default: Adam, lr 4e-5, weight decay 1e-4 (RebLL on VOC).
        lr_scheduler: See `MultiLabelModule`.
        increment_lr: See `MultiLabelModule`. RebLL on COCO: 3e-5 for the first task, then 5e-5.
        one_cycle: See `MultiLabelModule`.
        reduction: `mean`: over classes and batch; `sum`: over classes, then the mean over the batch.
        classification: Loss of the new labels: `cls`: L_cls; `bce`: plain.
        distillation: `akd`: L_akd; `kd`: plain binary distillation; `none`: the new labels' loss then has weight 1.
        memory: `or_er`: L_er on relabelled exemplars; `or_bce`: plain binary cross-entropy on them; `replay_bce`: on
            the labels that the exemplars' own tasks annotated; `none`: no exemplars.
        alpha: α of the adaptive exponent of L_cls and L_akd, at least 0.
        beta: β of that of L_er, at least 0.
        fixed_exponent: In place of α ln|C^{1:t}|: a number, at least 0.
        lambda_akd: λ_akd in [0, 1]: weight of the new labels' loss from the second task on; 1 - λ_akd is that of the
            distillation.
        lambda_er: λ_er, weight of the exemplars' loss, at least 0.
        detach_focal: Whether the decay factors count as constants in the gradient.
        relabel_threshold: See `OnlineRelabel`. A callback of yours must have the same.
        relabel_quota: Likewise.
        network: `cnn`: pooled features and a linear head; `gcn`: the class graph of CSC over the backbone's maps, the
            row "GCN" of table 3.
        graph_width: Width of the graph's class vectors.
        graph_norm: `batch` or `layer`, see `CSC`.

    Raises:
        ValueError: For an unknown term or a number out of range.
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
        classification: Classification = "cls",
        distillation: Distillation = "akd",
        memory: Memory = "or_er",
        alpha: float = 1.2,
        beta: float = 0.7,
        fixed_exponent: float | None = None,
        lambda_akd: float = 0.15,
        lambda_er: float = 0.30,
        detach_focal: bool = False,
        relabel_threshold: float = 0.5,
        relabel_quota: float | None = None,
        network: Network = "cnn",
        graph_width: int = 1024,
        graph_norm: GraphNorm = "batch",
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
        if classification not in ("bce", "cls") or distillation not in ("none", "kd", "akd"):
            raise ValueError(
                f"got `classification={classification!r}`, `distillation={distillation!r}`; expected 'cls' or 'bce', "
                "and 'akd', 'kd' or 'none'."
            )
        if memory not in ("none", "replay_bce", "or_bce", "or_er"):
            raise ValueError(f"`memory={memory!r}`: expected 'or_er', 'or_bce', 'replay_bce' or 'none'.")
        if min(alpha, beta, lambda_er, fixed_exponent or 0.0) < 0 or not 0 <= lambda_akd <= 1:
            raise ValueError(
                f"got `alpha={alpha}`, `beta={beta}`, `fixed_exponent={fixed_exponent}`, `lambda_er={lambda_er}`, "
                f"`lambda_akd={lambda_akd}`; expected numbers of at least 0, and `lambda_akd` in [0, 1]."
            )
        if network not in ("cnn", "gcn"):
            raise ValueError(f"`network={network!r}`: expected 'cnn' or 'gcn'.")
        if network == "gcn":
            self.use_class_graph(graph_width, graph_norm)
        self.classification = classification
        self.distillation = distillation
        self.memory = memory
        self.alpha = alpha
        self.beta = beta
        self.fixed_exponent = fixed_exponent
        self.lambda_akd = lambda_akd
        self.lambda_er = lambda_er
        self.detach_focal = detach_focal
        self.relabel_threshold = relabel_threshold
        self.relabel_quota = relabel_quota

    def required_callbacks(self) -> list[Callback]:
        """What the chosen terms need: the memory, its relabelling, the old model."""
        needed: list[Callback] = []
        if self.memory != "none":
            needed.append(ReplayBuffer(per_class=EXEMPLARS_PER_CLASS, repeat=False))
        if self.relabels:
            needed.append(OnlineRelabel(self.relabel_threshold, self.relabel_quota))
        if self.relabels or self.distillation != "none":
            needed.append(Teacher(exemplars=False))
        return needed

    @property
    def relabels(self) -> bool:
        """Whether the exemplars' missing labels are filled in."""
        return self.memory in ("or_bce", "or_er")

    def on_stream_start(self, resumed: bool) -> None:
        """Refuse a memory or a relabelling that the chosen terms do not use, or that contradicts the settings.

        Raises:
            ValueError: For such a callback.
        """
        unused = [ReplayBuffer] * (self.memory == "none") + [OnlineRelabel] * (not self.relabels)
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, tuple(unused)):
                raise ValueError(
                    f"`memory={self.memory!r}` with the callback `{type(callback).__name__}`, which it does not use; "
                    "expected another `memory`, or no such callback. Take one of them out."
                )
            if isinstance(callback, OnlineRelabel) and (callback.threshold, callback.quota) != (
                self.relabel_threshold,
                self.relabel_quota,
            ):
                raise ValueError(
                    f"got `relabel_threshold={self.relabel_threshold}`, `relabel_quota={self.relabel_quota}` and a "
                    f"callback `OnlineRelabel(threshold={callback.threshold}, quota={callback.quota})`; expected the "
                    "same in both. Set them in the method, and take the callback out or give it the same numbers."
                )
            if isinstance(callback, ReplayBuffer) and callback.update != "task" and self.relabels:
                raise ValueError(
                    f"`memory={self.memory!r}` with `ReplayBuffer(update={callback.update!r})`: images stored during a "
                    "task have no labels of old classes yet, which the loss would take as absent; expected "
                    "`update='task'`, or `memory='replay_bce'`."
                )

    def stages(self, task: Task) -> list[Stage]:
        """One stage; without distillation the old model only relabels."""
        return [self.stage_of(task, "train", options={"teacher": self.distillation != "none"})]

    def terms(self, batch: Batch, logits: Tensor, replay_logits: Tensor | None) -> dict[str, Tensor]:
        """λ_akd L_cls + (1 - λ_akd) L_akd + λ_er L_er."""
        assert self.task is not None
        old, seen = self.task.num_old, self.task.num_seen
        exponent = self.positive_exponent() if self.classification == "cls" else 0.0
        new_loss = self._positive(logits[:, old:seen], batch["target"][:, old:seen], exponent)  # Eq. 3; Eq. 1
        terms: dict[str, Tensor] = {self.classification: new_loss}
        if self.distillation != "none" and not self.task.is_first:
            distilled = self._distillation(logits[:, :old], batch)
            terms = {
                self.classification: self.lambda_akd * new_loss,  # Eq. 9
                self.distillation: (1 - self.lambda_akd) * distilled,
            }
        if replay_logits is not None:
            terms["er"] = self.lambda_er * self._replay(replay_logits, batch)
        return terms

    def positive_exponent(self) -> float:
        """The exponent g of L_cls and L_akd."""
        assert self.task is not None
        return decay_exponent(self.alpha, self.task.num_seen) if self.fixed_exponent is None else self.fixed_exponent

    def _distillation(self, logits: Tensor, batch: Batch) -> Tensor:
        exponent = self.positive_exponent() if self.distillation == "akd" else 0.0
        return self._positive(logits, batch["teacher_logits"].to(logits.dtype).sigmoid(), exponent)  # Eq. 5; Eq. 2

    def _positive(self, logits: Tensor, target: Tensor, exponent: float) -> Tensor:
        return positive_decay_bce(logits, target, exponent, reduction=self.reduction, detach_focal=self.detach_focal)

    def _replay(self, logits: Tensor, batch: Batch) -> Tensor:
        assert self.task is not None
        old, seen = self.task.num_old, self.task.num_seen
        target = batch["replay_target"]
        if self.memory == "replay_bce":
            return known_bce(logits, target[:, :seen], batch["replay_known"][:, :seen], reduction=self.reduction)
        if self.memory == "or_bce":
            return self._positive(logits[:, :old], target[:, :old], 0.0)
        exponent = decay_exponent(self.beta, seen)
        return negative_decay_bce(  # Eq. 7
            logits[:, :old], target[:, :old], exponent, reduction=self.reduction, detach_focal=self.detach_focal
        )
