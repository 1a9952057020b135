"""`IncrementalModule`: what every method shares — network, growth, stages, optimizer, evaluation."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil.metrics import TaskMatrix
from lightning_cil.networks import (
    Backbone,
    CosineHead,
    LinearHead,
    MultiHead,
    PrototypeHead,
    feature_width,
    set_trainable,
    shard_children,
    unsharded,
)
from lightning_cil.types import SCENARIOS, Batch, LabelKind, Scenario, Stage, StageLength, Task

HeadKind = Literal["linear", "multi", "cosine"]
HEADS: dict[HeadKind, type[LinearHead] | type[MultiHead] | type[CosineHead]] = {
    "linear": LinearHead,
    "multi": MultiHead,
    "cosine": CosineHead,
}


class IncrementalModule(LightningModule, ABC):
    """Base of all methods: a backbone and a head that grows with the tasks.

    A method implements `training_step`; it may override `stages`, `required_callbacks`, `grow_to` and `add_task` (call
    super), `begin_stage` (call super), the task hooks of `StreamCallback` without trainer and module, `classify` (what
    predicts from features), and `footprint` and `extra_results` (what it adds to `results.json`).

    Args:
        backbone: A name (`resnet32`, `small_cnn`, any timm model), a `Backbone` with more options, or a module with
            `num_features` that maps images to `[B, num_features]`.
        head: `linear`: one growing layer; `multi`: one layer for each task; `cosine`: normalised, with a scale.
        scenario: Which scenario the training is meant for; both are always scored.
        epochs: Passes over the data of a task's only stage; methods with several stages say more.
        optimizer: Makes the optimizer of each stage from the parameters that are trained in it.
        lr_scheduler: Makes the schedule of each stage from its optimizer, stepped once an epoch.

    Raises:
        ValueError: For an unknown head or scenario, or fewer than one epoch.
    """

    label_kind: ClassVar[LabelKind] = "single"
    """What kind of labels the method is for."""
    score_name: ClassVar[str] = "accuracy"
    """What the matrix holds."""
    full_head: bool = False
    """Whether the head has the outputs of all the stream's classes from the first task on."""
    always_evaluated: bool = False
    """Whether a task without a stage is evaluated, too: methods that train nothing."""
    uses_exemplars: ClassVar[bool] = True
    """Whether the loss looks at what `ReplayBuffer` adds to a batch; where not, a run with one says so."""
    no_forward_transfer: str | None = None
    """Why forward transfer is undefined, where a method's untrained outputs cannot predict."""

    def __init__(
        self,
        *,
        backbone: str | Backbone | nn.Module,
        head: HeadKind | PrototypeHead,
        scenario: Scenario,
        epochs: int,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
    ) -> None:
        super().__init__()
        modules = {"backbone": backbone, "head": head}
        ignored = [name for name, value in modules.items() if isinstance(value, nn.Module)]
        self.save_hyperparameters(ignore=ignored, logger=False)
        _keep_plain(self.hparams, inspect.signature(type(self)).parameters)
        if not isinstance(head, PrototypeHead) and head not in HEADS:
            raise ValueError(f"`head={head!r}` is unknown; expected one of {sorted(HEADS)}.")
        if scenario not in SCENARIOS:
            raise ValueError(f"`scenario={scenario!r}` is unknown; expected 'class_il' or 'task_il'.")
        if epochs < 1:
            raise ValueError(f"`epochs={epochs}`: expected at least 1 pass over the data of a task.")
        if isinstance(backbone, str):
            backbone = Backbone(backbone)
        elif isinstance(backbone, dict):  # from a checkpoint's hyper-parameters
            backbone = Backbone(**backbone)
        self.backbone = backbone.build() if isinstance(backbone, Backbone) else backbone
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster convolutions
        self.head = head if isinstance(head, PrototypeHead) else HEADS[head](feature_width(self.backbone))
        self.scenario: Scenario = scenario
        self.epochs = epochs
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.tasks: list[Task] = []
        self.task: Task | None = None
        self.stage: Stage | None = None
        self.class_names: list[str] = []
        self._matrices: dict[Scenario, TaskMatrix] = {}
        self._row: int | None = None
        self._full_head_tasks = 0
        self._val_sums = torch.zeros(4, dtype=torch.float64)
        self.register_buffer("_first_class", torch.empty(0, dtype=torch.int64), persistent=False)
        self.register_buffer("_end_class", torch.empty(0, dtype=torch.int64), persistent=False)

    # ------------------------------------------------------------------ network

    def inputs(self, batch: Batch, prefix: str = "") -> tuple[Tensor, ...]:
        """What `features` and `forward` take of a batch; prefix `replay_`: of its exemplars."""
        return (cast(dict[str, Tensor], batch)[f"{prefix}image"],)

    def features(self, image: Tensor) -> Tensor:
        """Map images to `[B, num_features]`."""
        out: Tensor = self.through_backbone(image)
        return out

    def through_backbone(self, image: Tensor, **options: bool) -> Any:
        """What the backbone makes of images `[B, channels, height, width]`.

        Args:
            image: float.
            options: The backbone's own, such as `stages` of `MapBackbone`.

        Raises:
            ValueError: For images with another number of channels.
        """
        try:
            return self.backbone(image, **options)
        except RuntimeError as error:
            if image.ndim != 4 or "channels" not in str(error):
                raise
            raise ValueError(
                f"The images have {image.shape[1]} channel(s), and the backbone expects another number ({error}). Give "
                f"`model.backbone.in_channels={image.shape[1]}`."
            ) from error

    def forward(self, image: Tensor) -> Tensor:
        """Map float images `[B, channels, height, width]` to the logits `[B, seen]` of all classes seen."""
        logits: Tensor = self.head(self.features(image))
        return logits

    def grow_to(self, task: Task) -> None:
        """Give the head outputs for every class up to `task` (`full_head`: of all tasks), if it has them not yet."""
        while self.head.num_classes < (self.tasks[-1] if self.full_head and self.tasks else task).num_seen:
            size = self.tasks[len(self.head.sizes)].num_classes if self.tasks else task.num_classes
            self.add_task(size)
        self.task, self._full_head_tasks = task, task.index + 1

    def add_task(self, num_classes: int) -> None:
        """Give the head the outputs of one more task; a body that grows with the tasks overrides it (call super)."""
        self.head = unsharded(self.head)
        self.head.grow(num_classes)

    @property
    def num_tasks_seen(self) -> int:
        """Tasks that were learned, the current one included."""
        return self._full_head_tasks if self.full_head else len(self.head.sizes)

    @property
    def num_classes_seen(self) -> int:
        """Classes of these tasks: the first columns of the logits."""
        return self.head.task_slices()[self.num_tasks_seen - 1].stop if self.num_tasks_seen else 0

    def configure_model(self) -> None:
        """Under `ModelParallelStrategy` shard backbone and head (FSDP2); Lightning calls it in every run."""
        if self.device_mesh is not None:
            shard_children(self, self.device_mesh["data_parallel"])

    # ------------------------------------------------------------------ stream

    def begin_stream(self, tasks: Sequence[Task], seed: int) -> None:
        """Learn the stream's tasks and the seed that new outputs are drawn from."""
        self.tasks = list(tasks)
        self.head.seed = seed
        self._first_class = torch.tensor([t.first_class for t in tasks], device=self.device)
        self._end_class = torch.tensor([t.num_seen for t in tasks], device=self.device)
        self._matrices = {s: TaskMatrix(len(self.tasks)) for s in SCENARIOS}

    def check_labels(self, datamodule: Any) -> None:
        """Refuse data whose labels are of the other kind.

        Raises:
            ValueError: For single-label data and a multi-label method, and the other way round.
        """
        given = getattr(datamodule, "label_kind", self.label_kind)
        if given != self.label_kind:
            words = {"single": "one label for each image", "multi": "any number of labels for each image"}
            raise ValueError(
                f"{type(self).__name__} is for data with {words[self.label_kind]} (`label_kind='{self.label_kind}'`), "
                f"and {type(datamodule).__name__} has {words[given]} ('{given}'). Choose another method "
                "(`lightning-cil methods`) or other data (`lightning-cil data`)."
            )

    def stages(self, task: Task) -> list[Stage]:
        """The stages of a task; no stage: the task is passed over."""
        return [Stage("train", self.epochs)]

    def begin_stage(self, task: Task, stage: Stage) -> None:
        """Train the parameters that the stage names, freeze the others and put their modules in eval mode."""
        self.task, self.stage = task, stage
        set_trainable(self, stage.train)

    def required_callbacks(self) -> list[Callback]:
        """Callbacks that the method cannot do without, with its own defaults."""
        return []

    def footprint(self) -> dict[str, int]:
        """Bytes held beside parameters and buffers, by line of `metrics.footprint`, asked for after a task."""
        return {}

    def extra_results(self, done: int) -> dict[str, Any]:
        """Further entries of `results.json` after `done` tasks, plain JSON types."""
        return {}

    def parameter_groups(self) -> list[Any]:
        """What the optimizer is made of: the parameters that require grad, or groups of them."""
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self) -> Any:
        """The stage's optimizer over the parameters that require grad, and its schedule."""
        make = self.stage.optimizer if self.stage and self.stage.optimizer else self.optimizer
        optimizer = _made("optimizer", make, self.parameter_groups())
        schedule = self.stage.lr_scheduler if self.stage and self.stage.lr_scheduler else self.lr_scheduler
        if schedule is None:
            return optimizer
        scheduler = _made("lr_scheduler", schedule, optimizer)
        if isinstance(scheduler, StageLength):
            scheduler.set_num_epochs(self.stage.epochs if self.stage else self.epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    @abstractmethod
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | dict[str, Tensor]:
        """Return the loss of a batch, or a dict with it under `loss` and what callbacks ask for."""

    def log_terms(self, **terms: Tensor) -> None:
        """Log loss terms as `train/<name>`, on the trainer's logging steps only: logging costs more than it seems."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step + 1) % every == 0:
            self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})

    # ------------------------------------------------------------------ evaluation

    def predict_logits(self, image: Tensor, num_future: int | None = None) -> Tensor:
        """Scores of every class of the stream, `[B, classes]`: seen ones, then untrained outputs of future tasks.

        The untrained outputs are what the next tasks start from; forward transfer is measured on them.

        Args:
            image: float `[B, channels, height, width]`.
            num_future: How many future tasks; by default all. A full head has them all anyway.
        """
        return self.classify(self.features(image), num_future)

    def batch_logits(self, batch: Batch, num_future: int | None = None) -> Tensor:
        """`predict_logits` of a batch."""
        return self.predict_logits(batch["image"], num_future)

    def classify(self, features: Tensor, num_future: int | None = None) -> Tensor:
        """What `predict_logits` makes of the features `[B, num_features]`."""
        future = [t.num_classes for t in self.tasks[len(self.head.sizes) :]][:num_future]
        device = features.device.type
        if torch.is_autocast_enabled(device):  # eight bits of a bfloat16 logit make ties, which the first class wins
            features = features.float()
        with torch.autocast(device, enabled=False):
            logits = self.head(features)
            return torch.cat([logits, self.head.preview(features, future)], dim=1) if future else logits

    @property
    def evaluation_row(self) -> int | None:
        """The row of the matrix that the running test fills, -1 before training; `None` outside a stream."""
        return self._row

    def predicted_labels(self, batch: Batch) -> dict[str, Tensor]:
        """Predictions of a batch in both scenarios from one pass.

        Returns:
            long `[B]` each; -1 where no class can be predicted: in Class-IL while none has been learned, and where all
            scores are minus infinity.
        """
        return self.labels_of(self.batch_logits(batch), batch)

    def labels_of(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What `predicted_labels` makes of scores `[B, classes]` of the whole stream."""
        seen = self.num_classes_seen
        return {
            "class_il": _best(logits[:, :seen]) if seen else torch.full_like(batch["target"], -1),
            "task_il": _best(self._mask_other_tasks(logits, batch["task"])),
        }

    def begin_evaluation(self, row: int) -> None:
        """The next test run fills row `row` of the matrices."""
        self._row = row

    def end_evaluation(self) -> None:
        """Later tests are the user's own and log what they find."""
        self._row = None

    def evaluation_counts(self, scenario: Scenario) -> tuple[Tensor, Tensor]:
        """Correct and counted samples `[tasks + 1, tasks]` of the last test run, summed over ranks."""
        matrix = self._matrices[scenario].to(self.trainer.strategy.root_device)
        with matrix.sync_context():
            return matrix.correct.clone(), matrix.total.clone()

    def setup(self, stage: str) -> None:
        """Outside a stream (`trainer.test`, `trainer.validate`) learn the tasks from the datamodule."""
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        self.check_labels(datamodule)
        if not self.tasks and datamodule is not None and hasattr(datamodule, "tasks"):
            self.begin_stream(datamodule.tasks, self.head.seed)
            self.class_names = self.class_names or list(datamodule.class_names)

    def _check_learned(self) -> None:
        if not self.head.num_classes and self._row is None:
            raise ValueError(
                f"{type(self).__name__} has learned no class yet, so there is nothing to evaluate. Give the "
                "checkpoint of a run as `ckpt_path` (on the command line `--ckpt_path`)."
            )

    def on_validation_start(self) -> None:
        """Refuse a network without outputs."""
        self._check_learned()

    def on_predict_start(self) -> None:
        """Refuse a network without outputs."""
        self._check_learned()

    def on_test_start(self) -> None:
        """Start counting anew."""
        self._check_learned()
        if not self.tasks:
            raise RuntimeError(
                f"{type(self).__name__} does not know the stream's tasks. Test it with an `IncrementalDataModule`."
            )
        for matrix in self._matrices.values():
            matrix.to(self.device).reset()

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Count correct predictions of a batch in both scenarios.

        Returns:
            The predicted labels, long `[B]`, by scenario; -1 where no class has been learned.
        """
        predicted = self.predicted_labels(batch)
        row = self.num_tasks_seen - 1 if self._row is None else self._row
        for scenario in SCENARIOS:
            self._matrices[scenario].update(predicted[scenario], batch["target"], batch["task"], row)
        return predicted

    def on_test_epoch_end(self) -> None:
        """Outside a stream, log the accuracy on every seen task and their mean."""
        if self._row is not None:
            return
        seen = self.num_tasks_seen
        for scenario in SCENARIOS:
            correct, total = self.evaluation_counts(scenario)
            accuracy = (correct[seen] / total[seen])[:seen]
            tasks = {f"test/{scenario}/task_{j}": a for j, a in enumerate(accuracy)}
            self.log_dict({**tasks, f"test/{scenario}": accuracy.mean()}, sync_dist=True)  # the same on all ranks

    def _mask_other_tasks(self, logits: Tensor, task: Tensor) -> Tensor:
        """Set the logits of every class outside a sample's own task to -inf."""
        column = torch.arange(logits.shape[1], device=logits.device)
        outside = (column < self._first_class[task].unsqueeze(1)) | (column >= self._end_class[task].unsqueeze(1))
        return logits.masked_fill(outside, -torch.inf)

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch's counts."""
        self._val_sums = torch.zeros(4, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Sum cross-entropy and correct predictions over the held-out data of all tasks so far."""
        target = batch["target"]
        logits = self.batch_logits(batch, num_future=0)[:, : self.num_classes_seen]
        masked = self._mask_other_tasks(logits, batch["task"])
        loss = nn.functional.cross_entropy(logits.float(), target, reduction="sum")
        class_il = (logits.argmax(1) == target).sum()
        task_il = (masked.argmax(1) == target).sum()
        count = torch.full_like(class_il, len(target))
        self._val_sums += torch.stack([loss.double(), class_il.double(), task_il.double(), count.double()])

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss`, `val/class_il`, `val/task_il` over all ranks."""
        loss, class_il, task_il, count = self.trainer.strategy.reduce(self._val_sums, reduce_op="sum").float()
        means = {"val/loss": loss / count, "val/class_il": class_il / count, "val/task_il": task_il / count}
        self.log_dict(means, sync_dist=True)  # the same on all ranks

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Class probabilities `[B, seen]`, float32."""
        found: Batch = cast(Batch, batch) if isinstance(batch, dict) else {"image": batch}
        return self.batch_logits(found, num_future=0)[:, : self.num_classes_seen].float().softmax(1)

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what prediction needs beside the weights: class names and the order they were learned in."""
        datamodule = self.trainer.datamodule if self._trainer is not None else None  # type: ignore[attr-defined]
        checkpoint["lightning_cil"] = {
            "method": type(self).__name__,
            "task_sizes": self.head.sizes[: self.num_tasks_seen].tolist(),
            "head_sizes": self.head.sizes.tolist(),
            "head_seed": int(self.head.seed),
            "class_names": list(getattr(datamodule, "class_names", [])),
            "class_order": list(getattr(datamodule, "class_order", [])),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the class names and the seed of untrained outputs."""
        saved = checkpoint.get("lightning_cil", {})
        self.class_names = list(saved.get("class_names", []))
        self.head.seed = int(saved.get("head_seed", self.head.seed))
        self._full_head_tasks = len(saved.get("task_sizes", []))


def _best(scores: Tensor) -> Tensor:
    """The class of the highest score, long `[B]`; -1 where all are minus infinity."""
    return scores.argmax(1).masked_fill(scores.isneginf().all(1), -1)


def _made(key: str, make: Callable[[Any], Any], argument: Any) -> Any:
    """Make an optimizer or schedule; what its class has against its settings is said with their key."""
    try:
        return make(argument)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(
            f"`{key}` cannot be made from its settings ({type(error).__name__}: {error}). Correct `model.{key}`."
        ) from error


def _keep_plain(hparams: MutableMapping[str, Any], accepted: Mapping[str, inspect.Parameter]) -> None:
    """Drop what a checkpoint could only keep as code (optimizer factories); it must load with weights_only.

    Arguments of base classes that the method itself does not take are dropped too.
    """
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
    for name, value in list(hparams.items()):
        if not takes_all and name not in accepted:
            del hparams[name]
        elif is_dataclass(value) and not isinstance(value, type) and _is_plain(asdict(value)):
            hparams[name] = asdict(value)
        elif not _is_plain(value):
            del hparams[name]


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or type(value) in (bool, int, float, str)
