"""`MLPODNet`: pooled outputs distillation for multi-label streams, with exemplars.

Paper: Douillard, Cord, Ollion, Robert, Valle, PODNet: Pooled Outputs Distillation for Small-Tasks Incremental Learning,
ECCV 2020, https://arxiv.org/abs/2004.13513 (no equation is cited), in the multi-label form of KRT's code,
https://github.com/witdsl/KRT-MLCIL: linear head, asymmetric loss, no proxies, no balanced fine-tuning. Memory: a
reservoir of 2 exemplars for each class of the stream by default (the PODNet row of RebLL's table 1; 5 on COCO).

| term | function |
|---|---|
| asymmetric loss of the labels that each image's own task annotated (KRT's code) | `asymmetric_focal_loss` |
| λ_c √(N_t/|C_t|) · distance of the pooled maps of all stages | `pod_spatial` |
| λ_f √(N_t/|C_t|) · (1 - cos) of the features | `cosine_preservation` |

Departures from KRT's code: labels that are not annotated do not count, where it takes old classes of new images as
negatives and gives exemplars the true labels of later tasks (`replay_labels='leaky_krt'`, which no stream can know); a
reservoir in place of herding. Sums over the batch are means, the weights are given in the authors' units.
"""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil.callbacks import ReplayBuffer, Teacher
from lightning_cil.losses import Reduction, cosine_preservation, growth_factor, pod_spatial
from lightning_cil.methods._multilabel import EXEMPLARS_PER_CLASS, MultiLabelModule, asymmetric_loss, precise
from lightning_cil.networks import Backbone, MapBackbone
from lightning_cil.types import Batch

ReplayLabels = Literal["own", "leaky_krt"]

_KEPT = ("map", "features")


class MLPODNet(MultiLabelModule):
    """Pooled outputs distillation (Douillard et al. 2020, no equation, https://arxiv.org/abs/2004.13513); needs `ReplayBuffer`.

    Args:
        backbone: See `MultiLabelModule`; a convolutional network. Default: TResNet-M, with four stages.
        epochs: See `MultiLabelModule`. Default: 20.
        optimizer: See `MultiLabelModule`. Default: Adam, lr 4e-5, weight decay 1e-4 (KRT on VOC).
        lr_scheduler: See `MultiLabelModule`.
        increment_lr: See `MultiLabelModule`. KRT on COCO: 4e-5 for the first task, then 1e-4.
        one_cycle: See `MultiLabelModule`; KRT has it on.
        reduction: `sum`: over classes, then the mean over the batch (KRT); `mean`: over classes and batch.
        spatial_weight: λ_c, at least 0, beside a loss summed over 64 images (KRT: 5).
        flat_weight: λ_f, likewise (KRT: 180).
        gamma_negative: Exponent of the asymmetric loss for negatives, at least 0.
        gamma_positive: Exponent for positives, at least 0.
        clip: Below this probability a negative costs nothing, in [0, 1).
        replay_labels: `own`: of every image the labels that its own task annotated, no other counts; `leaky_krt`: as in
            KRT's code, where exemplars have the true labels of all classes from their own task's first on, those of
            later tasks included, and every other class seen counts as absent, in new images, too. It reads labels that
            are hidden from a method: for comparison only.

    Raises:
        ValueError: For a number out of range, or an unknown choice.
        TypeError: For a backbone without feature maps.
    """  # noqa: E501

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
        spatial_weight: float = 5.0,
        flat_weight: float = 180.0,
        gamma_negative: float = 4.0,
        gamma_positive: float = 0.0,
        clip: float = 0.05,
        replay_labels: ReplayLabels = "own",
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
        if min(spatial_weight, flat_weight) < 0:
            raise ValueError(
                f"got `spatial_weight={spatial_weight}`, `flat_weight={flat_weight}`; expected at least 0."
            )
        if replay_labels not in ("own", "leaky_krt"):
            raise ValueError(f"`replay_labels={replay_labels!r}`: expected 'own' or 'leaky_krt'.")
        self.backbone = MapBackbone(self.backbone, "pooled")
        self.spatial_weight = spatial_weight
        self.flat_weight = flat_weight
        self.replay_labels = replay_labels
        self.asymmetric_loss = asymmetric_loss(reduction, gamma_negative, gamma_positive, clip)
        self._truth: Tensor | None = None

    def required_callbacks(self) -> list[Callback]:
        """The memory, and the old model with its maps."""
        return [ReplayBuffer(per_class=EXEMPLARS_PER_CLASS, repeat=False), Teacher(outputs=True)]

    def on_train_start(self) -> None:
        """`leaky_krt`: look up the true labels."""
        if self.replay_labels == "leaky_krt":
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            self._truth = data.hidden_labels(torch.arange(len(data.split("train")))).to(self.device)

    def teacher_outputs(self, image: Tensor) -> dict[str, Tensor]:
        """Logits `[B, seen]` of images, their features `[B, dim]`, and the maps of all stages, `map0` first."""
        features, maps = self.through_backbone(image, stages=True)
        found = {"logits": precise(self.head(features)), "features": precise(features)}
        return found | {f"map{i}": precise(m) for i, m in enumerate(maps)}

    def logits_together(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Logits of images and exemplars from one forward; features and maps of both join the batch."""
        images = [batch["image"], *([batch["replay_image"]] if "replay_image" in batch else [])]
        found = self.teacher_outputs(torch.cat(images))
        extended: Any = batch
        extended.update({name: value for name, value in found.items() if name.startswith(_KEPT)})
        logits = torch.split(found["logits"], [len(i) for i in images])
        return logits[0], logits[1] if len(images) > 1 else None

    def terms(self, batch: Batch, logits: Tensor, replay_logits: Tensor | None) -> dict[str, Tensor]:
        """The asymmetric loss, and what keeps maps and features of the old model."""
        assert self.task is not None
        seen, target, known = logits.shape[1], batch["target"], batch["known"]
        if replay_logits is not None:
            logits = torch.cat([logits, replay_logits])
            target = torch.cat([target, self._replay_target(batch)])
            known = torch.cat([known, batch["replay_known"]])
        labels = target[:, :seen].to(logits.dtype)
        own = self.replay_labels == "own"
        terms = {"asl": self.asymmetric_loss(logits, labels, known=known[:, :seen] if own else None)}
        if "teacher_logits" not in batch:
            return terms
        entries: dict[str, Any] = batch  # type: ignore[assignment]  # with what `logits_together` and `Teacher` added
        new = {name: value for name, value in entries.items() if name.startswith(_KEPT)}
        old = {name: _with_replay(entries, f"teacher_{name}") for name in new}
        maps = sorted(name for name in new if name != "features")
        factor = growth_factor(self.task.num_seen, self.task.num_classes)
        spatial = pod_spatial([old[name] for name in maps], [new[name] for name in maps])
        flat = cosine_preservation(old["features"], new["features"])
        averaged = self.task.num_classes if own else seen
        terms["spatial"] = self.beside_sum(self.spatial_weight, averaged) * factor * spatial
        terms["flat"] = self.beside_sum(self.flat_weight, averaged) * factor * flat
        return terms

    def _replay_target(self, batch: Batch) -> Tensor:
        """Labels `[R, C]` of the exemplars; 0 where there is none."""
        if self._truth is None:
            return batch["replay_target"]
        truth = self._truth[batch["replay_index"]]
        columns = torch.arange(truth.shape[1], device=truth.device)
        return truth & (columns >= self._first_class[batch["replay_task"]].unsqueeze(1))


def _with_replay(entries: dict[str, Any], key: str) -> Tensor:
    """The old model's output for the images and, if there are any, the exemplars."""
    parts = [entries[name] for name in (key, f"replay_{key}") if name in entries]
    return torch.cat(parts)
