"""`KRT`: knowledge restore and transfer — pseudo-labels for old classes, and attention with a token for each task.

Paper: Dong, Luo, He, Wei, Cheng, Gong, Knowledge Restore and Transfer for Multi-Label Class-Incremental Learning,
ICCV 2023, https://arxiv.org/abs/2302.13334, details from the authors' code,
https://github.com/witdsl/KRT-MLCIL; no equation is cited. Memory: none beside the old model during a task.

| term | function |
|---|---|
| incremental cross-attention, a token and a classifier for each task | `TaskAttention` |
| dynamic pseudo-labels: old classes that the old model is confident of | `PseudoLabelSearch`, `pseudo_labels` |
| asymmetric loss over all classes seen, labels and pseudo-labels together | `asymmetric_focal_loss` |
| λ √(N_t/|C_t|) · (1 - cos), old tasks' embeddings of the old and the new model | `cosine_preservation` |

Tokens and classifiers of old tasks are frozen; the rest is trained. What is no pseudo-label counts as a negative.

Departures: the threshold is searched on images without augmentation; a search that misses its band takes the closest
threshold, where the authors' code raises an error; how many old classes an image is expected to have follows from the
labels of the current task (`density=None`), not from statistics of the whole data set (`density`: 1.4 on VOC, 2.9 on
COCO), which a stream does not have. Sums over the batch are means, λ is given in the authors' units.
"""

from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil.callbacks import Teacher
from lightning_cil.losses import (
    PseudoLabelSearch,
    Reduction,
    cosine_preservation,
    growth_factor,
    pseudo_labels,
)
from lightning_cil.methods._multilabel import MultiLabelModule, asymmetric_loss, precise
from lightning_cil.networks import Backbone, MapBackbone, TaskAttention, evaluating, feature_width
from lightning_cil.types import Batch, Stage, Task

CHECKPOINT_KEY = "lightning_cil.KRT"


class KRT(MultiLabelModule):
    """Task tokens and dynamic pseudo-labels (Dong et al. 2023, no equation, https://arxiv.org/abs/2302.13334); no exemplars.

    Args:
        backbone: See `MultiLabelModule`; a convolutional network. Default: TResNet-M.
        epochs: See `MultiLabelModule`. Default: 20.
        optimizer: See `MultiLabelModule`. Default: Adam, lr 4e-5, weight decay 1e-4 (KRT on VOC).
        lr_scheduler: See `MultiLabelModule`.
        increment_lr: See `MultiLabelModule`. KRT on COCO: 4e-5 for the first task, then 1e-4.
        one_cycle: See `MultiLabelModule`; KRT has it on.
        reduction: `sum`: over classes, then the mean over the batch (KRT); `mean`: over classes and batch.
        positions: Positions of the backbone's last map: 49 for TResNet-M and images of 224 pixels.
        width: E, the tokens' width (KRT: 384 on COCO, 768 on VOC).
        num_heads: Of the attention, a divisor of the width.
        mlp_ratio: Width of the attention's MLP as a multiple of E.
        weight_std: Standard deviation of the attention's and the classifiers' first weights, positive (KRT: 0.01).
        distillation_weight: λ, at least 0, beside a loss summed over 64 images (KRT: 100 on COCO, 80 on VOC, 300 after
            a first task of 40 classes).
        density: Labels of an image, over all classes of the stream; `None`: as many as the current task's images have
            of its own classes. The data set's own are 1.4 (VOC) and 2.9 (COCO).
        threshold_start: First threshold of the pseudo-labels, in (0, 1).
        threshold_step: By how much it moves, positive.
        threshold_tolerance: How near the positives per image must come to what is expected.
        threshold_moves: After how many moves the closest threshold is taken.
        gamma_negative: Exponent of the asymmetric loss for negatives, at least 0.
        gamma_positive: Exponent for positives, at least 0.
        clip: Below this probability a negative costs nothing, in [0, 1).

    Raises:
        ValueError: For a number out of range.
        TypeError: For a backbone without feature maps.
    """  # noqa: E501

    head: TaskAttention  # type: ignore[assignment]

    uses_exemplars = False
    uses_outputs = True

    def __init__(
        self,
        *,
        backbone: str | Backbone | nn.Module = "tresnet_m",
        epochs: int = 20,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=4e-5, weight_decay=1e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
        increment_lr: float | None = None,
        one_cycle: bool = False,
        reduction: Reduction = "sum",
        positions: int = 49,
        width: int = 384,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        weight_std: float = 0.01,
        distillation_weight: float = 100.0,
        density: float | None = None,
        threshold_start: float = 0.8,
        threshold_step: float = 0.005,
        threshold_tolerance: float = 0.1,
        threshold_moves: int = 100,
        gamma_negative: float = 4.0,
        gamma_positive: float = 0.0,
        clip: float = 0.05,
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
        if distillation_weight < 0 or (density is not None and density <= 0):
            raise ValueError(
                f"got `distillation_weight={distillation_weight}`, `density={density}`; expected a weight of at least "
                "0, and a positive number of labels for each image or null."
            )
        self.backbone = MapBackbone(self.backbone)
        self.head = TaskAttention(feature_width(self.backbone), positions, width, num_heads, mlp_ratio, weight_std)
        self.search = PseudoLabelSearch(threshold_start, threshold_step, threshold_tolerance, threshold_moves)
        self.distillation_weight = distillation_weight
        self.density = density
        self.asymmetric_loss = asymmetric_loss(reduction, gamma_negative, gamma_positive, clip)
        self._found: list[dict[str, float]] = []

    def required_callbacks(self) -> list[Callback]:
        """The old model, with its tasks' embeddings."""
        return [Teacher(outputs=True)]

    def stages(self, task: Task) -> list[Stage]:
        """One stage on everything but the tokens and classifiers of old tasks."""
        shared = [name for name, _ in self.head.named_children() if name != "tasks"]
        train = ["backbone.*", "head.position", "head.transfer", *(f"head.{name}.*" for name in shared)]
        return [self.stage_of(task, "train", train=[*train, f"head.tasks.{task.index}.*"])]

    # ------------------------------------------------------------------ training

    def logits_together(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Logits of the images; their embeddings join the batch."""
        found = self.teacher_outputs(batch["image"])
        extended: Any = batch
        extended["embeddings"] = found["embeddings"]
        return found["logits"], None

    def teacher_outputs(self, image: Tensor) -> dict[str, Tensor]:
        """Logits `[B, seen]` of images, and the tasks' embeddings side by side, `[B, tasks · E]`."""
        logits, embeddings = self.head(self.features(image), with_embeddings=True)
        return {"logits": precise(logits), "embeddings": precise(embeddings.flatten(1))}

    def terms(self, batch: Batch, logits: Tensor, replay_logits: Tensor | None) -> dict[str, Tensor]:
        """The asymmetric loss on labels and pseudo-labels, and what keeps the old embeddings."""
        assert self.task is not None
        target = batch["target"][:, self.task.num_old : self.task.num_seen]
        if "teacher_logits" not in batch:
            return {"asl": self._asymmetric(logits, target)}
        extended: Any = batch
        restored = pseudo_labels(batch["teacher_logits"], self._found[-1]["threshold"])
        kept = extended["teacher_embeddings"]
        seen, new = self.task.num_seen, self.task.num_classes
        weight = self.beside_sum(self.distillation_weight, seen) * growth_factor(seen, new)
        return {
            "asl": self._asymmetric(logits, torch.cat([restored.to(target.dtype), target], dim=1)),
            "embeddings": weight * cosine_preservation(kept, extended["embeddings"][:, : kept.shape[1]]),
        }

    def _asymmetric(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.asymmetric_loss(logits, target.to(logits.dtype))

    # ------------------------------------------------------------------ pseudo-labels

    def on_stream_start(self, resumed: bool) -> None:
        """A new stream starts without thresholds; see `MultiLabelModule`."""
        super().on_stream_start(resumed)
        if not resumed:
            self._found = []

    def on_train_start(self) -> None:
        """From the second task on find the threshold of its pseudo-labels; a checkpoint may have brought it."""
        assert self.task is not None
        if len(self._found) < self.task.index:
            self._found.append(self._find_threshold(self.task))

    def _find_threshold(self, task: Task) -> dict[str, float]:
        """The threshold, the positives per image that it gives and those that were expected. A collective."""
        trainer: Any = self.trainer
        network: Any = next(c.network for c in trainer.callbacks if isinstance(c, Teacher))
        data = trainer.datamodule
        counts = torch.zeros(len(self.search.candidates()) + 2, dtype=torch.long, device=self.device)
        with evaluating(network), trainer.precision_plugin.forward_context():
            for batch in data.eval_loader(data.stage_indices()):
                batch = trainer.strategy.batch_to_device(batch)
                labels = batch["target"][:, task.num_old : task.num_seen]
                sizes = torch.tensor([len(labels)], device=self.device)
                found = self.search.counts(network(batch["image"]))
                counts += torch.cat([found, labels.sum().long().view(1), sizes])
        counts = trainer.strategy.reduce(counts, reduce_op="sum").cpu()
        images = int(counts[-1])
        density = counts[-2].item() / images if self.density is None else self.density
        expected = density * task.num_old / self.tasks[-1].num_seen
        threshold, positives = self.search.find(counts[:-2], images, expected)
        return {"threshold": threshold, "positives_per_image": positives, "expected": expected}

    def extra_results(self, done: int) -> dict[str, Any]:
        """See `MultiLabelModule`; `pseudo_labels`: the threshold of each task after the first."""
        return {**super().extra_results(done), "pseudo_labels": self._found[: max(done - 1, 0)]}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the thresholds so far."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY] = self._found

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back."""
        super().on_load_checkpoint(checkpoint)
        self._found = list(checkpoint.get(CHECKPOINT_KEY, []))
