"""`AGCN`: classifiers out of a graph of labels that grows with the stream.

Paper: Du, Lyu, Hu, Li, Feng, Xu, Fu, AGCN: Augmented Graph Convolutional Network for Lifelong Multi-label Image
Recognition, ICME 2022, https://arxiv.org/abs/2203.05534, from the authors' code,
https://github.com/Kaile-Du/AGCN; no equation is cited. Memory: none beside the old model during a task.

| term | function |
|---|---|
| classifiers of a graph over word vectors of the classes | `LabelGraph` |
| its matrix: labels of new classes, soft labels of old ones, counted batch by batch | `augmented_matrix` |
| α BCE of the current task's classes; the first task: BCE alone | `known_bce` |
| β BCE of the old classes, the old model's sigmoids as targets | `binary_distillation` |
| γ mean square of the change of the old classes' classifiers | `terms` |

Departures: the protocol of the other multi-label methods (TResNet-M at 224 pixels, 20 epochs), one rule for the matrix
in all tasks, no halved or transposed block (`label_correlation` says which), one graph over all classes at test time.
The weights of the terms are not in the authors' code: α and β are those of the sibling methods, γ is ours.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_cil.callbacks import Teacher
from lightning_cil.losses import Reduction
from lightning_cil.methods._multilabel import MultiLabelModule, precise
from lightning_cil.networks import Backbone, CorrelationRule, LabelGraph, class_vectors, feature_width
from lightning_cil.types import Batch, Task

RANDOM = "random"


class AGCN(MultiLabelModule):
    """Classifiers out of a growing label graph (Du et al. 2022, no equation, https://arxiv.org/abs/2203.05534); no exemplars.

    Args:
        backbone: See `MultiLabelModule`. Default: TResNet-M.
        epochs: See `MultiLabelModule`. Default: 20.
        optimizer: See `MultiLabelModule`. Default: Adam, lr 4e-5, weight decay 1e-4.
        lr_scheduler: See `MultiLabelModule`.
        increment_lr: See `MultiLabelModule`.
        one_cycle: See `MultiLabelModule`.
        reduction: `mean`: over classes and batch; `sum`: over classes, then the mean over the batch.
        vectors: Word vectors of the classes: a file of GloVe's text format, or `random`: standard normal numbers that
            depend on seed and task. `None` is `random` with a warning.
        vector_size: Numbers of a word vector (GloVe: 300).
        graph_width: Width between the graph's two layers (AGCN: 1024).
        threshold: From which P(i | j) on new classes are joined, in (0, 1].
        cross_threshold: The same between old and new classes.
        scale: What the weights of a class's neighbours add up to, positive.
        alpha: α, weight of the new labels from the second task on, at least 0.
        distillation_weight: β, at least 0.
        graph_weight: γ, at least 0.

    Raises:
        ValueError: For a number out of range, or a file that does not fit.
        FileNotFoundError: If `vectors` is no file.
    """  # noqa: E501

    head: LabelGraph  # type: ignore[assignment]

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
        vectors: str | None = None,
        vector_size: int = 300,
        graph_width: int = 1024,
        threshold: float = 0.4,
        cross_threshold: float = 0.3,
        scale: float = 0.25,
        alpha: float = 0.15,
        distillation_weight: float = 0.85,
        graph_weight: float = 1e5,
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
        if min(alpha, distillation_weight, graph_weight) < 0:
            raise ValueError(
                f"got `alpha={alpha}`, `distillation_weight={distillation_weight}`, `graph_weight={graph_weight}`; "
                "expected weights of at least 0."
            )
        if vectors not in (None, RANDOM):
            class_vectors(Path(str(vectors)), [], vector_size)  # is there such a file?
        rule = CorrelationRule(threshold, cross_threshold, scale)
        self.head = LabelGraph(feature_width(self.backbone), vector_size, graph_width, rule)
        self.vectors = vectors
        self.alpha = alpha
        self.distillation_weight = distillation_weight
        self.graph_weight = graph_weight

    def required_callbacks(self) -> list[Callback]:
        """The old model."""
        return [Teacher()]

    def on_stream_start(self, resumed: bool) -> None:
        """See `MultiLabelModule`; say so when the word vectors mean nothing."""
        super().on_stream_start(resumed)
        if self.vectors is None:
            rank_zero_warn(
                "AGCN has no word vectors and draws random ones, so that its graph starts without the classes' "
                "meaning. Give `model.vectors=glove.6B.300d.txt` or another file of that format, or "
                "`model.vectors=random` if that is what you want."
            )

    def grow_to(self, task: Task) -> None:
        """Give the graph the classes up to `task`, with their word vectors."""
        known = len(self.head.sizes)
        super().grow_to(task)
        if self.vectors in (None, RANDOM):
            return
        names = self.trainer.datamodule.class_names  # type: ignore[attr-defined]
        for index, columns in list(enumerate(self.head.task_slices()))[known:]:
            vectors = class_vectors(str(self.vectors), names[columns], self.head.vector_size)
            self.head.set_vectors(index, vectors)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | dict[str, Tensor]:
        """Count the batch's labels, then the loss."""
        assert self.task is not None
        target = batch["target"][:, self.task.num_old : self.task.num_seen]
        counts = self.head.batch_counts(target, batch.get("teacher_logits"))
        self.head.count(self.trainer.strategy.reduce(counts, reduce_op="sum"))
        return super().training_step(batch, batch_idx)

    def terms(self, batch: Batch, logits: Tensor, replay_logits: Tensor | None) -> dict[str, Tensor]:
        """α BCE + β KD + γ MSE(H_old)."""
        new, old = self.known_bce(batch, logits), self.old_class_kd(batch, logits)
        if old is None:
            return {"bce": new}
        kept = self.head.previous
        with torch.autocast(kept.device.type, enabled=False):  # rounding would be most of so small a difference
            change = F.mse_loss(self.head.classifiers()[: len(kept)], kept)
        return {
            "bce": self.alpha * new,
            "kd": self.distillation_weight * old,
            "graph": self.graph_weight * precise(change),
        }

    def extra_results(self, done: int) -> dict[str, Any]:
        """See `MultiLabelModule`; `label_graph`: the matrix."""
        return {**super().extra_results(done), "label_graph": self.head.matrix.tolist()}
