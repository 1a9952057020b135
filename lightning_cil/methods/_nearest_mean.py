"""Class means of exemplars by the current body (`ExemplarMeans`), and methods with two classifiers (`NearestMean`).

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


class ExemplarMeans:
    """Means of all classes seen when the last task ended, by the body of that time.

    Args:
        dim: Width of the features.
        mirrored: Average each mean with that of the mirrored images.
    """

    current: ClassMeans
    """What the nearest mean compares with."""
    learned: Tensor
    """Mean of each class when it was learned, `[classes, dim]`, if it may lose its exemplars."""

    def __init__(self, dim: int, mirrored: bool = False) -> None:
        self.dim = dim
        self.mirrored = mirrored
        self.clear()

    def clear(self) -> None:
        """Forget all classes."""
        none = torch.zeros(0, dtype=torch.bool)
        self.current = ClassMeans(torch.zeros(0, self.dim), none, none)
        self.learned = self.current.means

    # ------------------------------------------------------------------ making them

    def update(self, module: IncrementalModule, task: Task) -> None:
        """Means of all classes so far by the new body; the exemplars are chosen already."""
        trainer: Any = module.trainer
        memory = memory_of(trainer)
        if _may_lose_classes(memory, trainer.datamodule.num_classes):
            features, labels = self.labelled_features(module, trainer.datamodule.train_indices([task.index]))
            new = class_means(features, labels - task.first_class, task.num_classes).means
            old = self.learned[: task.first_class]
            self.learned = torch.cat([F.pad(old, (0, 0, 0, task.first_class - len(old))), new])
        features, labels = self.labelled_features(module, memory.store.column("index"))
        self.current = class_means(features, labels, task.num_seen, self.fallback())

    def fallback(self) -> Tensor | None:
        """What classes without exemplars have; `None` while no class can lose them."""
        return self.learned if len(self.learned) else None

    def labelled_features(self, module: IncrementalModule, index: Tensor) -> tuple[Tensor, Tensor]:
        """Features of training images and their labels, on the CPU and the same on all ranks."""
        if not len(index):
            return torch.zeros(0, self.dim), torch.zeros(0, dtype=torch.int64)
        trainer: Any = module.trainer
        loader = trainer.datamodule.eval_loader(index)
        features, of = extract_features(trainer, module, loader)
        if self.mirrored:
            mirrored, also_of = extract_features(trainer, module, _mirrored(loader))
            features, of = torch.cat([features, mirrored]), torch.cat([of, also_of])
        return features, trainer.datamodule.labels("train")[of]

    # ------------------------------------------------------------------ comparing with them

    def cover(self, module: IncrementalModule) -> bool:
        """Whether all classes seen have their place; not so inside a task, whose classes have no means yet."""
        return len(self.current.means) == module.num_classes_seen

    def scores(self, module: IncrementalModule, features: Tensor, num_future: int | None = None) -> Tensor:
        """Scores `[B, classes]` by distance from the means, minus infinity for classes without."""
        if self.current.means.device != features.device:
            with torch.inference_mode(False):  # they outlive the evaluation
                self.current = ClassMeans(*(part.to(features.device) for part in self.current))
        with torch.autocast(features.device.type, enabled=False):
            scores = nearest_mean_scores(features.float(), self.current.means, self.current.known)
        future = sum(t.num_classes for t in module.tasks[module.num_tasks_seen :][:num_future])
        return F.pad(scores, (0, module.num_classes_seen + future - scores.shape[1]), value=-torch.inf)

    def warn_unless_covered(self, module: IncrementalModule, instead: str) -> None:
        """Say it when the nearest mean cannot predict."""
        if not self.cover(module):
            rank_zero_warn(
                f"The checkpoint was written inside a task, whose classes have no exemplars yet: the {instead} "
                "predicts. Take the checkpoint of a finished task (checkpoints/task_<k>.ckpt) for the nearest mean."
            )

    # ------------------------------------------------------------------ what a run keeps

    def results(self) -> dict[str, Any]:
        """Classes (incremental labels) that have no exemplars and fall back to the mean they were learned with."""
        return {"nme_fallback": self.current.stored.nonzero().flatten().tolist()}

    def footprint(self) -> dict[str, int]:
        """Bytes of the class means."""
        return {"prototype_bytes": self.current.means.nbytes + self.learned.nbytes}

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Put them into a checkpoint."""
        parts = {name: part.cpu() for name, part in self.current._asdict().items()}
        checkpoint[CHECKPOINT_KEY] = {**parts, "learned": self.learned}

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Take them back, if they are there."""
        saved = dict(checkpoint.get(CHECKPOINT_KEY) or {})
        if saved:
            self.learned = saved.pop("learned")
            self.current = ClassMeans(**saved)


def memory_of(trainer: Any) -> ReplayBuffer:
    """A run's memory."""
    return next(c for c in trainer.callbacks if isinstance(c, ReplayBuffer))


def _may_lose_classes(memory: ReplayBuffer, num_classes: int) -> bool:
    return memory.total is not None and (memory.total < num_classes or memory.selection == "reservoir")


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
        self.no_forward_transfer = NO_PROTOTYPES if classifier == "nme" else None
        self.exemplar_means = ExemplarMeans(self.head.in_features, mirrored_means)
        self._other: dict[str, dict[str, Tensor]] = {}

    def required_callbacks(self) -> list[Callback]:
        """The memory, the old model, and the scores of the classifier that does not predict."""
        other = OtherClassifier(self.other_classifier, NO_PROTOTYPES if self.other_classifier == "nme" else None)
        return [ReplayBuffer(total=DEFAULT_MEMORY, selection="herding"), Teacher(), other]

    # ------------------------------------------------------------------ class means

    @property
    def means(self) -> ClassMeans:
        """Of the classes seen when the last task ended; what `nme` compares with."""
        return self.exemplar_means.current

    def begin_stream(self, tasks: Any, seed: int) -> None:
        """A new stream starts without means; a checkpoint brings its own."""
        super().begin_stream(tasks, seed)
        if not self.head.num_classes:
            self.exemplar_means.clear()

    def on_task_end(self, task: Task) -> None:
        """Means of all classes so far by the new body; the exemplars are chosen already."""
        self.exemplar_means.update(self, task)

    # ------------------------------------------------------------------ evaluation

    def classify(self, features: Tensor, num_future: int | None = None) -> Tensor:
        """Scores of the classifier that predicts; inside a task the head's, as its classes have no means yet."""
        if self.classifier != "nme" or not self.exemplar_means.cover(self):
            return super().classify(features, num_future)
        return self.exemplar_means.scores(self, features, num_future)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Count correct predictions of a batch; those of the other classifier are returned under its name."""
        predicted: dict[str, Any] = super().test_step(batch, batch_idx, dataloader_idx)
        other, self._other = self._other, {}
        return {**predicted, **other}

    def predicted_labels(self, batch: Batch) -> dict[str, Tensor]:
        """See `IncrementalModule.predicted_labels`; both classifiers look at the same features."""
        features = self.features(batch["image"])
        nme = self.classifier == "nme"
        other = super().classify(features) if nme else self.exemplar_means.scores(self, features)
        self._other = {self.other_classifier: self.labels_of(other, batch)}
        return self.labels_of(self.classify(features), batch)

    def on_test_start(self) -> None:
        """Say it when NME cannot predict."""
        super().on_test_start()
        if self.classifier == "nme":
            self.exemplar_means.warn_unless_covered(self, f"{self.other_classifier} head")

    # ------------------------------------------------------------------ what a run keeps

    def extra_results(self, done: int) -> dict[str, Any]:
        """See `ExemplarMeans.results`."""
        return self.exemplar_means.results()

    def footprint(self) -> dict[str, int]:
        """Bytes of the class means."""
        return self.exemplar_means.footprint()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the means."""
        super().on_save_checkpoint(checkpoint)
        self.exemplar_means.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back."""
        super().on_load_checkpoint(checkpoint)
        self.exemplar_means.load(checkpoint)


def _mirrored(loader: Iterable[Any]) -> Iterator[Any]:
    for batch in loader:
        yield {**batch, "image": batch["image"].flip(-1)}
