"""The words that all parts share: `Task`, `Stage`, the keys of a batch, and the protocols that callbacks rely on.

The path of a batch, one file for each station:

1. dataset item           `data/<protocol>.py`, `data/images.py`   uint8 image, label, index
                          `data/audio.py`                          int16 sound, where there are sounds
2. order, shard, collate  `data/loader.py`                         global batch i of the epoch, this rank's slice
3. transfer and augment   `data/base.py::on_after_batch_transfer`  `image` becomes float, augmented, normalised
4. callbacks add keys     `callbacks/replay.py`, `callbacks/teacher.py`  `replay_*`, `teacher_logits`
5. training step          `methods/<name>.py`                      forward, one named line for each loss term
6. loss                   `losses/<idea>.py`                       pure functions
7. evaluation step        `methods/base.py::_evaluation_step`      logits of all seen classes
8. score                  `metrics/task_matrix.py::update`         correct and total sums
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

Scenario = Literal["class_il", "task_il"]
"""Class-IL: the task is unknown at test time. Task-IL: it is given, other tasks' logits are masked."""

LabelKind = Literal["single", "multi"]
"""Single: every image has one class, tasks divide the images. Multi: it can have any number, and is in every task of
which it has a class."""

TestRule = Literal["seen", "all"]
"""Multi-label test images: those with a class seen so far, as in the papers, or all of them."""

SCENARIOS: tuple[Scenario, ...] = ("class_il", "task_il")


class Batch(TypedDict, total=False):
    """One batch; `B` samples, `C` classes of the whole stream.

    Labels are *incremental* labels: position in the class order, so that task 0 holds 0..n-1.

    Multi-label training batches hold what the current task annotates: the ground truth of its classes. A 0 elsewhere in
    `target` means unknown, not absent; `known` tells the two apart. A stage on all data so far (`Stage(data='seen')`)
    has each image once, with all seen classes known. Test batches hold all labels, and all are known, validation
    batches those of the seen classes; there is one loader (`dataloader_idx` 0) for all tasks.
    """

    image: Tensor
    """uint8 or float `[B, channels, height, width]`; float and normalised from station 3 on."""
    audio: Tensor
    """int16 or float `[B, 1, samples]`: one channel; float in [-1, 1) from station 3 on."""
    clip: Tensor
    """long `[B]`: number of the sound, the same whenever and wherever it comes; samples can share one."""
    target: Tensor
    """long `[B]` (single label) or float `[B, C]` of 0 and 1 (multi-label; 0 where not `known`). Never overwritten."""
    index: Tensor
    """long `[B]`: position in the split's full training set, stable over the whole stream.

    Multi-label: an image has the same one in every task that it belongs to.
    """
    task: Tensor
    """long `[B]`: index of the task that the sample's class belongs to; multi-label: the latest task annotated."""
    key: Tensor
    """long `[B]`: counter for the sample's random augmentation, a function of (seed, epoch, index)."""
    known: Tensor
    """bool `[B, C]`: which labels are annotated (multi-label): exactly the current task's classes in training."""
    replay_image: Tensor
    """float `[R, channels, height, width]`: exemplars, augmented as `image` is (added by `ReplayBuffer`)."""
    replay_target: Tensor
    """long `[R]`; multi-label: float `[R, C]`."""
    replay_known: Tensor
    """bool `[R, C]`: the exemplars' labels that are annotated or were filled in since (multi-label)."""
    replay_annotated: Tensor
    """bool `[R, C]`: those of them that are ground truth (multi-label)."""
    replay_task: Tensor
    """long `[R]`."""
    replay_index: Tensor
    """long `[R]`."""
    replay_logits: Tensor
    """float `[R, columns]`: what they were when the exemplars were stored (`ReplayBuffer(columns=['logits'])`)."""
    replay2_image: Tensor
    """float `[R, channels, height, width]`: a second, independent draw (`ReplayBuffer(num_draws=2)`)."""
    replay2_target: Tensor
    """long `[R]`; multi-label: float `[R, C]`."""
    replay2_known: Tensor
    """bool `[R, C]`, as `replay_known`."""
    teacher_logits: Tensor
    """float `[B, old]`: the old model's logits for `image` (added by `Teacher`).

    `Teacher(outputs=True)` adds further `teacher_<name>`, and `replay_teacher_<name>` for exemplars.
    """
    teacher_features: Tensor
    """float `[B, dim]`: the old body's features of `image` (added by `Teacher(features=True)`)."""
    replay_teacher_logits: Tensor
    """float `[R, old]`: the old model's logits for `replay_image`."""


@dataclass(frozen=True)
class Task:
    """One increment of classes.

    Args:
        index: Position in the stream, from 0.
        first_class: First incremental label of the task.
        num_classes: How many classes the task brings, at least 1.
        num_tasks: Length of the stream.
    """

    index: int
    first_class: int
    num_classes: int
    num_tasks: int

    @property
    def classes(self) -> range:
        """The task's incremental labels."""
        return range(self.first_class, self.first_class + self.num_classes)

    @property
    def num_old(self) -> int:
        """Classes of all earlier tasks."""
        return self.first_class

    @property
    def num_seen(self) -> int:
        """Classes of this and all earlier tasks."""
        return self.first_class + self.num_classes

    @property
    def is_first(self) -> bool:
        """Whether nothing was learned before."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether nothing follows."""
        return self.index == self.num_tasks - 1


@dataclass(frozen=True)
class Stage:
    """One phase inside a task, with its own trainable parameters, loss, optimizer, schedule and epochs.

    Args:
        name: What the progress bar, the logs and `results.json` call it; unique inside a task.
        epochs: Passes over the stage's data, at least 1.
        train: Patterns (`fnmatch`) of the parameter names that are trained; all others are frozen and
            their modules put in eval mode, so that BatchNorm statistics stay as they are.
        data: `task`: the current task's training data; `seen`: that of all tasks up to the current one;
            `held_out`: only the samples of the task that `holdout` takes away, without augmentation.
        optimizer: Makes the stage's optimizer from an iterable of parameters; `None`: the method's own.
        lr_scheduler: Makes the stage's scheduler from the optimizer; `None`: the method's own.
        options: Anything else the method's `training_step` wants to know in this stage.
        holdout: Share of every class's samples that the stage leaves out, in [0, 1); the same in all stages of a task.

    Raises:
        ValueError: With fewer than one epoch, no pattern, or nothing held out for a stage on held-out samples.
    """

    name: str
    epochs: int
    train: Sequence[str] = ("*",)
    data: Literal["task", "seen", "held_out"] = "task"
    optimizer: "OptimizerFactory | None" = None
    lr_scheduler: "SchedulerFactory | None" = None
    options: Mapping[str, Any] = field(default_factory=dict)
    holdout: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(
                f"Stage {self.name!r} got `epochs={self.epochs}`, expected at least 1. "
                "To switch a stage off, leave it out of the list that `stages()` returns."
            )
        if isinstance(self.train, str) or not self.train:
            raise ValueError(
                f"Stage {self.name!r} got `train={self.train!r}`, expected a non-empty list of parameter-name "
                "patterns such as ['head.*']; ['*'] trains everything."
            )
        if not 0 <= self.holdout < 1 or (self.data == "held_out" and not self.holdout):
            raise ValueError(
                f"Stage {self.name!r} got `holdout={self.holdout}` with `data={self.data!r}`; expected a share in "
                "[0, 1), above 0 for a stage on the held-out samples."
            )


class OptimizerFactory(Protocol):
    """Makes an optimizer."""

    def __call__(self, params: Any) -> Optimizer:
        """Return the optimizer of `params`."""


class SchedulerFactory(Protocol):
    """Makes a learning-rate scheduler."""

    def __call__(self, optimizer: Optimizer) -> Any:
        """Return the scheduler of `optimizer`."""


@runtime_checkable
class StageLength(Protocol):
    """A scheduler whose shape is given in fractions of the stage; told the stage's epochs once it is built."""

    def set_num_epochs(self, num_epochs: int) -> None:
        """Take the stage's number of epochs."""


@runtime_checkable
class FeatureExtractor(Protocol):
    """What herding needs of a module: features before the head."""

    def features(self, image: Tensor) -> Tensor:
        """Map `[B, channels, height, width]` to `[B, dim]`."""


@runtime_checkable
class ModalityFeatures(Protocol):
    """What records of multimodal runs need of a module: features of each modality, and what they are compared with."""

    def modality_features(self, batch: Batch) -> dict[str, Tensor]:
        """Float `[B, dim]` each: `features` (fused), `visual`, and `audio` where sounds matter."""

    def class_prototypes(self) -> Tensor:
        """Float `[C, dim]`, of all the stream's classes."""


@runtime_checkable
class GrowingHead(Protocol):
    """What a module needs of a head."""

    sizes: Tensor
    """long `[tasks]`: classes of each task so far (a buffer)."""

    def grow(self, num_new: int) -> None:
        """Add outputs for one more task."""

    def forward(self, features: Tensor) -> Tensor:
        """Map `[B, dim]` to logits `[B, seen]`."""

    def preview(self, features: Tensor, sizes: Sequence[int]) -> Tensor:
        """Logits `[B, sum(sizes)]` of the untrained outputs that the next `len(sizes)` tasks will start from."""


def name_of(module: nn.Module) -> str:
    """The class name, as tables and `results.json` print it."""
    return type(module).__name__
