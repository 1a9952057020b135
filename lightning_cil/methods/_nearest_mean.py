"""`NearestMean`: class means of exemplars by the current body, and the two classifiers that such methods have.

Rebuffi et al., iCaRL, 2017, Algorithm 1 (no equation number), https://arxiv.org/abs/1611.07725.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_cil.callbacks import OtherClassifier, ReplayBuffer, Teacher
from lightning_cil.callbacks.features import extract_features
from lightning_cil.methods.base import HeadKind, IncrementalModule
from lightning_cil.networks import Backbone
from lightning_cil.replay import ClassMeans, class_means, nearest_mean_scores
from lightning_cil.types import Batch, Scenario, Task

CHECKPOINT_KEY = "lightning_cil.NearestMean"
DEFAULT_MEMORY = 2000
NO_PROTOTYPES = "not defined for the nearest mean of exemplars: classes to come have no exemplars"


class NearestMean(IncrementalModule):
    """Base of methods whose predictions are the head's or those of the nearest mean of exemplars (NME).

    Args:
        backbone: See `IncrementalModule`.
        head: See `IncrementalModule`.
        scenario: See `IncrementalModule`.
        epochs: See `IncrementalModule`.
        optimizer: See `IncrementalModule`.
        lr_scheduler: See `IncrementalModule`.
        classifier: What predicts: `nme` or the head, by its name.
        head_classifier: The head's name.
        mirrored_means: Average each class mean with that of the mirrored images.

    Raises:
        ValueError: For an unknown classifier.
    """

    def __init__(
        self,
        *,
        backbone: str | Backbone | nn.Module,
        head: HeadKind,
        scenario: Scenario,
        epochs: int,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        classifier: str,
        head_classifier: str,
        mirrored_means: bool = False,
    ) -> None:
        if classifier not in ("nme", head_classifier):
            raise ValueError(f"`classifier={classifier!r}`: expected 'nme' or {head_classifier!r}.")
        super().__init__(
            backbone=backbone,
            head=head,
            scenario=scenario,
            epochs=epochs,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        self.classifier = classifier
        self.other_classifier = head_classifier if classifier == "nme" else "nme"
        self.mirrored_means = mirrored_means
        self.no_forward_transfer = NO_PROTOTYPES if classifier == "nme" else None
        self.means = self._no_means()
        """Of the classes seen when the last task ended; what `nme` compares with."""
        self.learned_means = self.means.means
        """Of each class when it was learned, `[classes, dim]`, if it may lose its exemplars."""
        self._other: dict[str, dict[str, Tensor]] = {}

    def required_callbacks(self) -> list[Callback]:
        """The memory, the old model, and the scores of the classifier that does not predict."""
        other = OtherClassifier(self.other_classifier, NO_PROTOTYPES if self.other_classifier == "nme" else None)
        return [ReplayBuffer(total=DEFAULT_MEMORY, selection="herding"), Teacher(), other]

    # ------------------------------------------------------------------ class means

    def begin_stream(self, tasks: Any, seed: int) -> None:
        """A new stream starts without means; a checkpoint brings its own."""
        super().begin_stream(tasks, seed)
        if not self.head.num_classes:
            self.means = self._no_means()
            self.learned_means = self.means.means

    def on_task_end(self, task: Task) -> None:
        """Means of all classes so far by the new body; the exemplars are chosen already."""
        trainer: Any = self.trainer
        memory = self.memory()
        if self._may_lose_classes(memory, trainer.datamodule.num_classes):
            features, labels = self.labelled_features(trainer.datamodule.train_indices([task.index]))
            new = class_means(features, labels - task.first_class, task.num_classes).means
            old = self.learned_means[: task.first_class]
            self.learned_means = torch.cat([F.pad(old, (0, 0, 0, task.first_class - len(old))), new])
        features, labels = self.labelled_features(memory.store.column("index"))
        self.means = class_means(features, labels, task.num_seen, self.stored_means())

    def memory(self) -> ReplayBuffer:
        """The run's memory."""
        trainer: Any = self.trainer
        return next(c for c in trainer.callbacks if isinstance(c, ReplayBuffer))

    def stored_means(self) -> Tensor | None:
        """What classes without exemplars fall back to; `None` while no class can lose them."""
        return self.learned_means if len(self.learned_means) else None

    @staticmethod
    def _may_lose_classes(memory: ReplayBuffer, num_classes: int) -> bool:
        return memory.total is not None and (memory.total < num_classes or memory.selection == "reservoir")

    def labelled_features(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Features of training images and their labels, on the CPU and the same on all ranks."""
        if not len(index):
            return torch.zeros(0, self.head.in_features), torch.zeros(0, dtype=torch.int64)
        trainer: Any = self.trainer
        loader = trainer.datamodule.eval_loader(index)
        features, of = extract_features(trainer, self, loader)
        if self.mirrored_means:
            mirrored, also_of = extract_features(trainer, self, _mirrored(loader))
            features, of = torch.cat([features, mirrored]), torch.cat([of, also_of])
        return features, trainer.datamodule.labels("train")[of]

    def _no_means(self) -> ClassMeans:
        none = torch.zeros(0, dtype=torch.bool)
        return ClassMeans(torch.zeros(0, self.head.in_features), none, none)

    # ------------------------------------------------------------------ evaluation

    def classify(self, features: Tensor, num_future: int | None = None) -> Tensor:
        """Scores of the classifier that predicts; inside a task the head's, as its classes have no means yet."""
        if self.classifier != "nme" or not self._has_means():
            return super().classify(features, num_future)
        return self._nme(features, num_future)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Count correct predictions of a batch; those of the other classifier are returned under its name."""
        predicted: dict[str, Any] = super().test_step(batch, batch_idx, dataloader_idx)
        other, self._other = self._other, {}
        return {**predicted, **other}

    def predicted_labels(self, batch: Batch) -> dict[str, Tensor]:
        """See `IncrementalModule.predicted_labels`; both classifiers look at the same features."""
        features = self.features(batch["image"])
        other = super().classify(features) if self.classifier == "nme" else self._nme(features)
        self._other = {self.other_classifier: self.labels_of(other, batch)}
        return self.labels_of(self.classify(features), batch)

    def on_test_start(self) -> None:
        """Say it when NME cannot predict."""
        super().on_test_start()
        if self.classifier == "nme" and not self._has_means():
            rank_zero_warn(
                f"The checkpoint was written inside a task, whose classes have no exemplars yet: the "
                f"{self.other_classifier} head predicts. Take the checkpoint of a finished task "
                "(checkpoints/task_<k>.ckpt) for the nearest mean."
            )

    def _has_means(self) -> bool:
        return len(self.means.means) == self.num_classes_seen

    def _nme(self, features: Tensor, num_future: int | None = None) -> Tensor:
        """Scores `[B, classes]` by distance from the means, minus infinity for classes without."""
        if self.means.means.device != features.device:
            with torch.inference_mode(False):  # they outlive the evaluation
                self.means = ClassMeans(*(part.to(features.device) for part in self.means))
        with torch.autocast(features.device.type, enabled=False):
            scores = nearest_mean_scores(features.float(), self.means.means, self.means.known)
        seen = self.num_tasks_seen
        future = sum(t.num_classes for t in self.tasks[seen:][:num_future])
        return F.pad(scores, (0, self.num_classes_seen + future - scores.shape[1]), value=-torch.inf)

    # ------------------------------------------------------------------ what a run keeps

    def extra_results(self, done: int) -> dict[str, Any]:
        """Classes (incremental labels) that have no exemplars and fall back to the mean they were learned with."""
        return {"nme_fallback": self.means.stored.nonzero().flatten().tolist()}

    def footprint(self) -> dict[str, int]:
        """Bytes of the class means."""
        return {"prototype_bytes": self.means.means.nbytes + self.learned_means.nbytes}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the means."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY] = {
            **{name: part.cpu() for name, part in self.means._asdict().items()},
            "learned": self.learned_means,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back."""
        super().on_load_checkpoint(checkpoint)
        saved = dict(checkpoint.get(CHECKPOINT_KEY) or {})
        if saved:
            self.learned_means = saved.pop("learned")
            self.means = ClassMeans(**saved)


def _mirrored(loader: Iterable[Any]) -> Iterator[Any]:
    for batch in loader:
        yield {**batch, "image": batch["image"].flip(-1)}
