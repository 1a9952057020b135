"""`ICaRL`: exemplars chosen by herding, distillation, and classification by the nearest mean of exemplars (NME).

Paper: Rebuffi, Kolesnikov, Sperl, Lampert, iCaRL: Incremental Classifier and Representation Learning, 2017,
https://arxiv.org/abs/1611.07725; no equation has a number. Memory: 2,000 exemplars in all, the paper's on CIFAR-100
and the Class-IL budget of NFL's tables.

| paper | function |
|---|---|
| Algorithm 3, `loss='binary'`: binary cross-entropy, the old model's sigmoids as targets | `icarl_binary_terms` |
| PyCIL's form (no equation), `loss='softmax'`: cross-entropy + distillation | `icarl_softmax_terms` |
| Algorithms 4 and 5: herding, exemplars cut to ⌊K/C⌋ a class | `ReplayBuffer(selection='herding')` |
| Algorithm 1: nearest mean of exemplars | `class_means`, `nearest_mean_scores` |

Departures. Every batch of new data is joined by exemplars (`ReplayBuffer(batch_size=…)`), while the paper shuffles
them into the task's data once. The budget's remainder goes to the first classes. A class that loses its exemplars,
with a budget below the number of classes, keeps the mean that it had when it was learned (results: `nme_fallback`).
The binary form takes all classes of the stream as outputs from the start, unseen ones as negatives, as the authors'
script does; `full_head=False` has outputs of the classes seen, as the paper. Their script averages the means with those
of mirrored images: `mirrored_means=True`. Their rule of herding is `ReplayBuffer(selection='herding_inner_product')`.

While a task is trained, the means are those of the task before, so that validation uses the linear head. Classes
without a mean, all future ones among them, are never predicted: NME has no forward transfer, and its accuracy on tasks
to come is 0 in both scenarios, which PS reads.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_cil.callbacks import OtherClassifier, ReplayBuffer, Teacher
from lightning_cil.callbacks.features import extract_features
from lightning_cil.losses import icarl_binary_terms, icarl_softmax_terms
from lightning_cil.methods.base import HeadKind, IncrementalModule
from lightning_cil.networks import Backbone
from lightning_cil.replay import ClassMeans, class_means, nearest_mean_scores
from lightning_cil.types import Batch, Scenario, Task

CHECKPOINT_KEY = "lightning_cil.ICaRL"
DEFAULT_MEMORY = 2000
NO_PROTOTYPES = "not defined for the nearest mean of exemplars: classes to come have no exemplars"

Loss = Literal["binary", "softmax"]
Classifier = Literal["nme", "linear"]


class ICaRL(IncrementalModule):
    """iCaRL (Rebuffi et al. 2017, no equation, Algorithms 1-5, https://arxiv.org/abs/1611.07725); needs `ReplayBuffer`.

    Args:
        backbone: See `IncrementalModule`.
        head: See `IncrementalModule`.
        scenario: See `IncrementalModule`; iCaRL trains both alike, Task-IL compares the task's means only.
        epochs: Passes over each task's data (the paper: 70 on CIFAR-100).
        optimizer: See `IncrementalModule`. Default: lr 2, momentum 0.9, weight decay 1e-5 for the binary loss (the
            authors' for CIFAR-100: a mean over 100 outputs; lower it for fewer); lr 0.1, weight decay 5e-4 for the
            softmax loss (PyCIL).
        lr_scheduler: See `IncrementalModule`. The authors divide by 5 after 49 and 63 of 70 epochs.
        loss: `binary`: the paper's; `softmax`: PyCIL's, who found it to score better.
        distillation_weight: Weight of the distillation of the softmax loss, at least 0 (PyCIL: 1).
        temperature: T > 0 of the distillation of the softmax loss (PyCIL: 2).
        classifier: What predicts: `nme`: the nearest mean of exemplars; `linear`: the head. The other one's scores are
            in `results.json` as `other_classifier`.
        mirrored_means: Average each class mean with that of the mirrored images (the authors' script).
        full_head: Outputs of all classes from the first task on, unseen ones being negatives of the binary loss.
            Default: for this loss (the authors' script), not for the other, which it does not suit.
    """

    def __init__(
        self,
        *,
        backbone: str | Backbone | nn.Module = "resnet32",
        head: HeadKind = "linear",
        scenario: Scenario = "class_il",
        epochs: int = 70,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        loss: Loss = "binary",
        distillation_weight: float = 1.0,
        temperature: float = 2.0,
        classifier: Classifier = "nme",
        mirrored_means: bool = False,
        full_head: bool | None = None,
    ) -> None:
        if loss not in ("binary", "softmax") or classifier not in ("nme", "linear"):
            raise ValueError(
                f"got `loss={loss!r}`, `classifier={classifier!r}`; expected 'binary' or 'softmax', and 'nme' or "
                "'linear'."
            )
        super().__init__(
            backbone=backbone,
            head=head,
            scenario=scenario,
            epochs=epochs,
            optimizer=optimizer or (_binary_sgd if loss == "binary" else _softmax_sgd),
            lr_scheduler=lr_scheduler,
        )
        if distillation_weight < 0:
            raise ValueError(f"`distillation_weight={distillation_weight}`: expected at least 0.")
        if temperature <= 0:
            raise ValueError(f"`temperature={temperature}`: expected a positive number; PyCIL uses 2.")
        if full_head and loss == "softmax":
            raise ValueError(
                "`full_head=True` with `loss='softmax'`: its softmax runs over the classes seen. Give `loss='binary'`, "
                "or leave `full_head` out."
            )
        self.loss: Loss = loss
        self.distillation_weight = distillation_weight
        self.temperature = temperature
        self.classifier: Classifier = classifier
        self.mirrored_means = mirrored_means
        self.full_head = loss == "binary" if full_head is None else full_head
        self.no_forward_transfer = NO_PROTOTYPES if classifier == "nme" else None
        self.means = self._no_means()
        """Of the classes seen when the last task ended; what `nme` compares with."""
        self._learned_means = self.means.means
        """Of each class when it was learned, `[classes, dim]`, if it may lose its exemplars."""
        self._other: dict[str, dict[str, Tensor]] = {}

    def required_callbacks(self) -> list[Callback]:
        """The memory, the old model, and the scores of the classifier that does not predict."""
        other = ("linear", None) if self.classifier == "nme" else ("nme", NO_PROTOTYPES)
        return [ReplayBuffer(total=DEFAULT_MEMORY, selection="herding"), Teacher(), OtherClassifier(*other)]

    # ------------------------------------------------------------------ training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Classification and distillation on new samples and exemplars together."""
        assert self.task is not None
        image, target = batch["image"], batch["target"]
        if "replay_image" in batch:
            image = torch.cat([image, batch["replay_image"]])
            target = torch.cat([target, batch["replay_target"]])
        logits = self(image)
        teacher = logits.new_zeros(len(logits), 0)
        if "teacher_logits" in batch:
            teacher = batch["teacher_logits"]
            if "replay_teacher_logits" in batch:
                teacher = torch.cat([teacher, batch["replay_teacher_logits"]])
            teacher = teacher[:, : self.task.num_old]
        if self.loss == "binary":
            terms = icarl_binary_terms(logits, teacher, target)
        else:
            terms = icarl_softmax_terms(
                logits,
                teacher,
                target,
                distillation_weight=self.distillation_weight,
                temperature=self.temperature,
            )
        self.log_terms(**terms)
        return torch.stack(list(terms.values())).sum()

    # ------------------------------------------------------------------ class means

    def begin_stream(self, tasks: Any, seed: int) -> None:
        """A new stream starts without means; a checkpoint brings its own."""
        super().begin_stream(tasks, seed)
        if not self.head.num_classes:
            self.means = self._no_means()
            self._learned_means = self.means.means

    def on_task_end(self, task: Task) -> None:
        """Means of all classes so far by the new body; the exemplars are chosen already."""
        trainer: Any = self.trainer
        memory = next(c for c in trainer.callbacks if isinstance(c, ReplayBuffer))
        index, labels = memory.store.column("index"), trainer.datamodule.labels("train")
        if self._may_lose_classes(memory, trainer.datamodule.num_classes):
            features, of = self._features(trainer.datamodule.train_indices([task.index]))
            new = class_means(features, labels[of] - task.first_class, task.num_classes).means
            self._learned_means = torch.cat([self._learned_means[: task.first_class], new])
        features, of = self._features(index)
        stored = self._learned_means if len(self._learned_means) else None
        self.means = class_means(features, labels[of], task.num_seen, stored)

    @staticmethod
    def _may_lose_classes(memory: ReplayBuffer, num_classes: int) -> bool:
        return memory.total is not None and (memory.total < num_classes or memory.selection == "reservoir")

    def _features(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Features of training images and which they are of, on the CPU and the same on all ranks."""
        trainer: Any = self.trainer
        loader = trainer.datamodule.eval_loader(index)
        features, of = extract_features(trainer, self, loader)
        if self.mirrored_means:
            mirrored, also_of = extract_features(trainer, self, _mirrored(loader))
            features, of = torch.cat([features, mirrored]), torch.cat([of, also_of])
        return features, of

    def _no_means(self) -> ClassMeans:
        none = torch.zeros(0, dtype=torch.bool)
        return ClassMeans(torch.zeros(0, self.head.in_features), none, none)

    # ------------------------------------------------------------------ evaluation

    def classify(self, features: Tensor, num_future: int | None = None) -> Tensor:
        """Scores of the classifier that predicts; inside a task the head's, as its classes have no means yet."""
        if self.classifier == "linear" or not self._has_means():
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
        self._other = {"linear" if self.classifier == "nme" else "nme": self.labels_of(other, batch)}
        return self.labels_of(self.classify(features), batch)

    def on_test_start(self) -> None:
        """Say it when NME cannot predict."""
        super().on_test_start()
        if self.classifier == "nme" and not self._has_means():
            rank_zero_warn(
                "The checkpoint was written inside a task, whose classes have no exemplars yet: the linear head "
                "predicts. Take the checkpoint of a finished task (checkpoints/task_<k>.ckpt) for the nearest mean."
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
        return {"prototype_bytes": self.means.means.nbytes + self._learned_means.nbytes}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the means."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY] = {
            **{name: part.cpu() for name, part in self.means._asdict().items()},
            "learned": self._learned_means,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back."""
        super().on_load_checkpoint(checkpoint)
        saved = dict(checkpoint.get(CHECKPOINT_KEY) or {})
        if saved:
            self._learned_means = saved.pop("learned")
            self.means = ClassMeans(**saved)


def _mirrored(loader: Iterable[Any]) -> Iterator[Any]:
    for batch in loader:
        yield {**batch, "image": batch["image"].flip(-1)}


def _binary_sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=2.0, momentum=0.9, weight_decay=1e-5)


def _softmax_sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=5e-4)
