"""`CSC`: a graph of classes that grows, and calibrated confidence.

Paper: Du, Zhou, Lyu, Li, Lu, Liu, Confidence Self-Calibration for Multi-Label Class-Incremental Learning, ECCV 2024,
https://arxiv.org/abs/2403.12559, from the code https://github.com/Kaile-Du/CSC; no equation. Memory: none beside
the old model during a task.

| term | function |
|---|---|
| logits of the class-incremental graph network | `ClassGCN` |
| α BCE of the current task's classes; the first task: BCE alone | `known_bce` |
| (1 - α) BCE of the old classes, the old model's sigmoids as targets | `binary_distillation` |
| β Σ p ln p over all classes seen, so that confidence costs | `negative_entropy` |

Departures: in the authors' code the layers of the graph that grow are not in the optimizer, lose old biases, and the
network trains in eval mode after its first evaluation; here they are trained, keep them, and it does not
(`freeze_bn_after_task1` keeps BatchNorm's statistics as theirs does). α = 0.15 is
what their help text says (their config: 0.5). The old model gets no gradient. What the entropy term sums is p ln p
alone, as in their code.
"""

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_cil.callbacks import Teacher
from lightning_cil.losses import Reduction, negative_entropy
from lightning_cil.methods._multilabel import MultiLabelModule
from lightning_cil.networks import Backbone, GraphNorm
from lightning_cil.types import Batch, Stage, Task


class CSC(MultiLabelModule):
    """A growing class graph with calibrated confidence (Du et al. 2024, no equation, https://arxiv.org/abs/2403.12559); no exemplars.

    Args:
        backbone: See `MultiLabelModule`; a convolutional network. Default: TResNet-M.
        epochs: See `MultiLabelModule`. Default: 20.
        optimizer: See `MultiLabelModule`. Default: Adam, lr 4e-5, weight decay 1e-4 (CSC: none).
        lr_scheduler: See `MultiLabelModule`.
        increment_lr: See `MultiLabelModule`.
        one_cycle: See `MultiLabelModule`.
        reduction: `mean`: over classes and batch (CSC); `sum`: over classes, then the mean over the batch.
        graph_width: Width of the graph's class vectors (CSC: 1024).
        graph_norm: `batch`: BatchNorm inside the graph (CSC), of each process's share of the batch unless the trainer
            has `sync_batchnorm=True` (GPUs); `layer`: does not depend on who shares the batch.
        alpha: α in [0, 1]: weight of the new labels from the second task on; 1 - α is that of the old ones.
        entropy_weight: β, at least 0 (CSC on VOC: 0.04).
        freeze_bn_after_task1: Whether every BatchNorm uses its statistics of the first task from then on (what the
            authors' code comes to); its weights are trained either way.

    Raises:
        ValueError: For a number out of range.
        TypeError: For a backbone without feature maps.
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
        graph_width: int = 1024,
        graph_norm: GraphNorm = "batch",
        alpha: float = 0.15,
        entropy_weight: float = 0.04,
        freeze_bn_after_task1: bool = False,
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
        if not 0 <= alpha <= 1 or entropy_weight < 0:
            raise ValueError(
                f"got `alpha={alpha}`, `entropy_weight={entropy_weight}`; expected a share in [0, 1] and a weight of "
                "at least 0."
            )
        self.use_class_graph(graph_width, graph_norm)
        self.alpha = alpha
        self.entropy_weight = entropy_weight
        self.freeze_bn_after_task1 = freeze_bn_after_task1

    def required_callbacks(self) -> list[Callback]:
        """The old model."""
        return [Teacher()]

    def begin_stage(self, task: Task, stage: Stage) -> None:
        """See `IncrementalModule`; keep BatchNorm's statistics where that is wanted."""
        super().begin_stage(task, stage)
        if self.freeze_bn_after_task1 and not task.is_first:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def terms(self, batch: Batch, logits: Tensor, replay_logits: Tensor | None) -> dict[str, Tensor]:
        """α BCE + (1 - α) KD + β Σ p ln p."""
        new, old = self.known_bce(batch, logits), self.old_class_kd(batch, logits)
        if old is None:
            return {"bce": new}
        return {
            "bce": self.alpha * new,
            "kd": (1 - self.alpha) * old,
            "entropy": self.entropy_weight * negative_entropy(logits),
        }
