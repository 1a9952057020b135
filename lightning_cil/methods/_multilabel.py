"""`MultiLabelModule`: what multi-label methods share — one forward for all images, sigmoid scores, mAP of every task.

Paper: Du et al., Rebalancing Multi-Label Class-Incremental Learning (RebLL), 2025, https://arxiv.org/abs/2408.12161;
the settings that it leaves open are those of the code that it compares with, KRT,
https://github.com/witdsl/KRT-MLCIL, and CSC, https://github.com/Kaile-Du/CSC.
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from lightning_cil.callbacks import ReplayBuffer, Teacher
from lightning_cil.losses import Reduction, asymmetric_focal_loss, binary_distillation, known_bce
from lightning_cil.methods.base import IncrementalModule
from lightning_cil.metrics import (
    MultiLabelScores,
    average_precision,
    score_histogram,
    summarise_scores,
    threshold_sweep,
)
from lightning_cil.networks import Backbone, ClassGCN, GraphNorm, MapBackbone, feature_width
from lightning_cil.types import Batch, LabelKind, Scenario, Stage, Task

CHECKPOINT_KEY = "lightning_cil.MultiLabelModule"
EXEMPLARS_PER_CLASS = 2
"""RebLL's on VOC; 5 on COCO."""
ONE_CYCLE_WARM_UP = 0.2
SUMMED_BATCH = 64
HEADLINES = ("CF1", "OF1", "FPR", "precision", "recall")
FORMULAS = {
    "mAP_last": "mean over the classes seen of AP_c, after the last task, on the test images that have one of them",
    "mAP_avg": "mean over the tasks of that mAP",
    "AF": "1/(T-1) sum_{j=0..T-2} (max_{i=j..T-2} A[i,j] - A[T-1,j])",
    "CF1": "mean over classes of 2 TP / (2 TP + FP + FN), at probability > 0.8",
    "OF1": "the same over all pairs of image and class",
    "FPR": "FP / (FP + TN) over all pairs of image and class, at probability > 0.8",
    "class_il": "A[i,j]: mean AP of the classes of task j after task i, on the test images with a class seen",
    "task_il": "the same on those of them that have a class of task j",
    "best": "the highest of the sweep: its threshold is chosen on test labels, a diagnostic only",
    "null": "classes of tasks to come are not scored: their outputs do not exist yet",
}

Sums = dict[Scenario, tuple[Tensor, Tensor]]


class MultiLabelModule(IncrementalModule):
    """Base of the multi-label methods: a backbone and a linear head with a sigmoid for each class.

    A method implements `terms`; everything of `IncrementalModule` can be overridden as there. The matrix of a run holds
    mean average precisions: in both scenarios of the classes of task j, in Task-IL on the test images of task j only.

    Args:
        backbone: See `IncrementalModule`. Default: TResNet-M, as in the papers.
        epochs: Passes over each task's data. Default: 20 (RebLL).
        optimizer: See `IncrementalModule`; called with two groups of parameters, of which the second, biases and
            vectors, has no weight decay (as in KRT's code). Default: Adam, lr 4e-5, weight decay 1e-4 (RebLL on VOC).
        lr_scheduler: See `IncrementalModule`.
        increment_lr: Learning rate from the second task on; `None`: the optimizer's. RebLL on COCO: 3e-5 for the first
            task, then 5e-5.
        one_cycle: Whether the learning rate follows one cycle over each task, stepped with every batch, up to the
            optimizer's after a fifth of it (KRT's code); instead of `lr_scheduler`.
        reduction: Of losses over classes: `mean`, or `sum` as the papers' equations print it; then the mean over the
            batch.

    Raises:
        ValueError: For numbers out of range, or two schedules.
    """

    label_kind: ClassVar[LabelKind] = "multi"
    score_name: ClassVar[str] = "mAP"
    uses_outputs: ClassVar[bool] = False
    """Whether the loss wants more of the old model than logits, see `Teacher(outputs=True)`."""
    no_forward_transfer = "classes of tasks to come are not scored: their outputs do not exist yet"

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
    ) -> None:
        super().__init__(
            backbone=backbone,
            head="linear",
            scenario="class_il",
            epochs=epochs,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        if increment_lr is not None and increment_lr <= 0:
            raise ValueError(f"`increment_lr={increment_lr}`: expected a positive number, or null for the optimizer's.")
        if one_cycle and lr_scheduler is not None:
            raise ValueError("got `one_cycle=True` and an `lr_scheduler`; expected one of them. Take the other out.")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"`reduction={reduction!r}`: expected 'mean' or 'sum'.")
        self.reduction: Reduction = reduction
        self.increment_lr = increment_lr
        self.one_cycle = one_cycle
        self._scores = {"test": MultiLabelScores(), "val": MultiLabelScores()}
        self._sums: Sums = {}
        self._evaluations: list[dict[str, Any] | None] = []
        self._latest: dict[str, Any] = {}

    def use_class_graph(self, width: int, norm: GraphNorm) -> None:
        """Put CSC's graph in the place of pooling and linear head; called at the end of `__init__`."""
        self.backbone = MapBackbone(self.backbone)
        self.head = ClassGCN(feature_width(self.backbone), width, norm)  # type: ignore[assignment]

    def on_stream_start(self, resumed: bool) -> None:
        """Refuse a memory or an old model that the method does not use as it is.

        Raises:
            ValueError: For such a callback.
        """
        name = type(self).__name__
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ReplayBuffer) and not self.uses_exemplars:
                raise ValueError(
                    f"{name} uses no exemplars and got the callback `ReplayBuffer`; expected none. Take it out, or "
                    "choose a method that replays, such as `MLER` or `RebLL`."
                )
            if isinstance(callback, Teacher) and self.uses_outputs and not (callback.outputs and callback.exemplars):
                raise ValueError(
                    f"{name} got a `Teacher` with `outputs={callback.outputs}`, `exemplars={callback.exemplars}`; "
                    "expected both true. Take the callback out: the method brings its own."
                )

    # ------------------------------------------------------------------ training

    @abstractmethod
    def terms(self, batch: Batch, logits: Tensor, replay_logits: Tensor | None) -> dict[str, Tensor]:
        """The weighted terms of the loss by name.

        Args:
            batch: Its labels and what callbacks added.
            logits: `[B, seen]`, of the current images, at least float32.
            replay_logits: `[R, seen]`, of exemplars; `None` without any.

        Returns:
            Scalars; the loss is their sum.
        """

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | dict[str, Tensor]:
        """The sum of `terms`, from one forward for current images and exemplars."""
        return self.loss_of(self.terms(batch, *self.logits_together(batch)))

    def loss_of(self, terms: dict[str, Tensor]) -> Tensor:
        """Log the terms; their sum."""
        self.log_terms(**terms)
        return torch.stack(list(terms.values())).sum()

    def logits_together(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Logits `[B, seen]` of the images and `[R, seen]` of the exemplars, if there are any, from one forward."""
        if "replay_image" not in batch:
            return self.precise_logits(batch["image"]), None
        logits = self.precise_logits(torch.cat([batch["image"], batch["replay_image"]]))
        return logits[: len(batch["image"])], logits[len(batch["image"]) :]

    def precise_logits(self, image: Tensor) -> Tensor:
        """Logits `[B, seen]`, at least float32: losses are computed in full precision."""
        return precise(self(image))

    def known_bce(self, batch: Batch, logits: Tensor) -> Tensor:
        """L_bce: binary cross-entropy over the labels of the batch that are known."""
        seen = logits.shape[1]
        return known_bce(logits, batch["target"][:, :seen], batch["known"][:, :seen], reduction=self.reduction)

    def old_class_kd(self, batch: Batch, logits: Tensor) -> Tensor | None:
        """L_kd: the old model's sigmoids as targets of the old classes; `None` in the first task."""
        if "teacher_logits" not in batch:
            return None
        teacher = batch["teacher_logits"].to(logits.dtype)
        return binary_distillation(logits[:, : teacher.shape[1]], teacher, self.reduction)

    def beside_sum(self, weight: float, num_classes: int) -> float:
        """A term's weight for our reduction, given the one beside a loss that is summed over classes and 64 images.

        KRT and PODNet are published in these units. Steps of Adam do not change with the scale of all terms together.

        Args:
            weight: The published one.
            num_classes: Over how many classes the loss is averaged if `reduction` is `mean`.
        """
        return weight / SUMMED_BATCH / (num_classes if self.reduction == "mean" else 1)

    def stages(self, task: Task) -> list[Stage]:
        """One stage on the task's data, with the learning rate of later tasks where there is one."""
        return [self.stage_of(task, "train")]

    def stage_of(self, task: Task, name: str, **options: Any) -> Stage:
        """A stage with the task's learning rate.

        Args:
            task: The task.
            name: See `Stage`.
            options: Further arguments of `Stage`.
        """
        if self.increment_lr is None or task.is_first:
            return Stage(name, self.epochs, **options)
        return Stage(name, self.epochs, optimizer=partial(_with_lr, self.optimizer, self.increment_lr), **options)

    def parameter_groups(self) -> list[Any]:
        """Trained parameters in two groups: tensors of two or more dimensions, and biases and vectors without decay."""
        trained = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        plain = [p for name, p in trained if p.ndim < 2 or name.endswith("bias")]
        decayed = [p for name, p in trained if not (p.ndim < 2 or name.endswith("bias"))]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def configure_optimizers(self) -> Any:
        """As `IncrementalModule`'s, or with one cycle a stage."""
        optimizer = super().configure_optimizers()
        if not self.one_cycle:
            return optimizer
        rates = [group["lr"] for group in optimizer.param_groups]
        steps = int(self.trainer.estimated_stepping_batches)
        rise = ONE_CYCLE_WARM_UP * (2 if ONE_CYCLE_WARM_UP * steps == 1 else 1)  # one step of rise: torch divides by 0
        schedule = OneCycleLR(optimizer, max_lr=rates, total_steps=steps, pct_start=rise)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ------------------------------------------------------------------ evaluation

    def begin_stream(self, tasks: Any, seed: int) -> None:
        """See `IncrementalModule`; no task has been evaluated."""
        super().begin_stream(tasks, seed)
        self._evaluations = [None] * len(self.tasks)
        self._latest = {}

    def predicted_labels(self, batch: Batch) -> dict[str, Tensor]:
        """Not defined: an image can have several labels, or none.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            f"{type(self).__name__} predicts a probability for each class and no single label; a callback asked for "
            "`predicted_labels`. Take it out (`ContinualEvaluation` is one), or use single-label data and methods."
        )

    def on_test_start(self) -> None:
        """Start collecting anew."""
        super().on_test_start()
        self._scores["test"].reset()

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:  # type: ignore[override]
        """Collect logits and labels of the classes seen."""
        self._collect("test", batch)

    def _collect(self, kind: str, batch: Batch) -> None:
        seen = self.num_classes_seen
        logits = self.predict_logits(batch["image"], num_future=0)[:, :seen]
        self._scores[kind].update(logits, batch["target"][:, :seen], batch["index"])

    def on_test_epoch_end(self) -> None:
        """Score all images together; outside a stream log mAP of every seen task and the scores at 0.8."""
        if not self.num_classes_seen:
            return
        _, logits, target = self._scores["test"].samples()
        self._scores["test"].reset()
        row = self.num_tasks_seen - 1 if self._row is None else self._row
        self._sums = self._tasks_summed(logits, target)
        filtered = target.any(dim=1)
        found = summarise_scores(logits[filtered], target[filtered])
        if self._row is None:
            if not found["images"]:
                rank_zero_warn(
                    "No test image has a class seen so far, so that no score is defined or logged; expected some. Test "
                    "on the data of the run."
                )
                return
            logged = {f"test/{name}": found["0.8"][name] for name in HEADLINES} | {"test/mAP": found["mAP"]}
            for scenario, (total, count) in self._sums.items():
                each = {j: v for j, v in enumerate((total / count).tolist()) if v == v}  # a task without positives
                logged |= {f"test/{scenario}/task_{j}": v for j, v in each.items()}
                logged[f"test/{scenario}"] = sum(each.values()) / len(each)
            self.log_dict(logged, sync_dist=True)  # the same on all ranks
            return
        if getattr(self.trainer.datamodule, "test_rule", "seen") == "all":  # type: ignore[attr-defined]
            found["unfiltered"] = summarise_scores(logits, target)
        probabilities = logits[filtered].double().sigmoid()
        self._evaluations[row] = found
        sweep = threshold_sweep(probabilities, target[filtered])
        self._latest = {
            "sweep": sweep,
            "best": {name: _best_threshold(sweep, name) for name in ("CF1", "OF1")},
            "histogram": score_histogram(probabilities, target[filtered]),
        }

    def evaluation_counts(self, scenario: Scenario) -> tuple[Tensor, Tensor]:
        """Sums of average precisions and number of classes, float64 `[tasks + 1, tasks]`, of the last test run."""
        zeros = torch.zeros(len(self.tasks) + 1, len(self.tasks), dtype=torch.float64)
        row = self.num_tasks_seen
        parts = []
        for part in self._sums.get(scenario, (zeros[0, :0], zeros[0, :0])):
            table = zeros.clone()
            table[row, : len(part)] = part
            parts.append(table)
        return parts[0], parts[1]

    def _tasks_summed(self, logits: Tensor, target: Tensor) -> Sums:
        """Sum of AP and number of classes with positives, `[tasks seen]`, by scenario."""
        seen = self.tasks[: self.num_tasks_seen]
        filtered = target.any(dim=1)
        everywhere = average_precision(logits[filtered], target[filtered], "skip")
        found: dict[Scenario, list[Tensor]] = {"class_il": [], "task_il": []}
        for task in seen:
            columns = slice(task.first_class, task.num_seen)
            own = target[:, columns].any(dim=1)
            found["class_il"].append(everywhere[columns])
            found["task_il"].append(average_precision(logits[own, columns], target[own, columns], "skip"))
        return {
            scenario: (
                torch.stack([each.nansum() for each in parts]),
                torch.stack([(~each.isnan()).sum() for each in parts]).double(),
            )
            for scenario, parts in found.items()
        }

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch's images."""
        self._scores["val"].reset()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect logits and labels of the held-out data of all tasks so far."""
        self._collect("val", batch)

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss` (binary cross-entropy of all classes seen) and mAP as `val/class_il` and `val/task_il`."""
        _, logits, target = self._scores["val"].samples()
        self._scores["val"].reset()
        loss = F.binary_cross_entropy_with_logits(logits.float(), target.float())
        sums = self._tasks_summed(logits, target)
        means = {f"val/{s}": (total.sum() / count.sum()).item() for s, (total, count) in sums.items() if count.any()}
        if not means:
            rank_zero_warn(
                "No held-out image has a class seen so far, so that `val/class_il` and `val/task_il` are undefined and "
                "not logged. Hold out more (`val_fraction`), or monitor `val/loss`."
            )
        self.log_dict({"val/loss": loss.item(), **means}, sync_dist=True)  # the same on all ranks

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Probability of each class, `[B, seen]`, float32; they do not add up to 1."""
        image = batch["image"] if isinstance(batch, dict) else batch
        return self.predict_logits(image, num_future=0)[:, : self.num_classes_seen].float().sigmoid()

    # ------------------------------------------------------------------ results

    def extra_results(self, done: int) -> dict[str, Any]:
        """`multilabel`: mAP, F1 and false positive rate of every task, a sweep over thresholds, a histogram."""
        found = self._evaluations[:done]
        last = found[-1] if found else None
        each = [e["mAP"] if e else None for e in found]
        known = [v for v in each if v is not None]
        results: dict[str, Any] = {
            "mAP_last": each[-1] if each else None,
            "mAP_avg": sum(known) / len(known) if len(known) == len(each) and known else None,
            "mAP": each,
            "AF": self._forgetting(found),
            "threshold": 0.8,
            **{name: last["0.8"][name] if last and last["images"] else None for name in HEADLINES},
            "after_task": found,
            **self._latest,
            "formulas": FORMULAS,
        }
        return {"multilabel": results}

    def _forgetting(self, found: list[dict[str, Any] | None]) -> float | None:
        """Mean over old tasks of the fall from their best mAP; `None` with fewer than two tasks, or a gap."""
        if len(found) < 2 or any(e is None or not e["images"] for e in found):
            return None
        each = [
            [_mean([e["AP"][c] for c in task.classes]) for task in self.tasks[: i + 1]]
            for i, e in enumerate(found)
            if e is not None
        ]
        falls = [max(row[j] for row in each[j:-1]) - each[-1][j] for j in range(len(found) - 1)]
        return sum(falls) / len(falls)

    def summary_lines(self, done: int) -> list[str]:
        """What a run's last lines say beside the matrices, in percent."""
        results = self.extra_results(done)["multilabel"]
        names = ("mAP_last", "mAP_avg", "CF1", "OF1", "FPR")
        parts = [f"{n} {'-' if results[n] is None else format(100 * results[n], '.2f')}" for n in names]
        return ["Multi-label: " + "   ".join(parts) + f"   (%, at probability > {results['threshold']})"]

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the evaluations so far."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY] = {"evaluations": self._evaluations, "latest": self._latest}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get(CHECKPOINT_KEY)
        if saved is not None:
            self._evaluations, self._latest = list(saved["evaluations"]), dict(saved["latest"])


def precise(tensor: Tensor) -> Tensor:
    """At least float32: losses are computed in full precision."""
    return tensor.float() if tensor.dtype.itemsize < torch.float32.itemsize else tensor


def asymmetric_loss(
    reduction: Reduction, gamma_negative: float, gamma_positive: float, clip: float
) -> Callable[..., Tensor]:
    """`asymmetric_focal_loss` with its settings.

    Raises:
        ValueError: For a setting out of range.
    """
    loss = partial(
        asymmetric_focal_loss,
        gamma_negative=gamma_negative,
        gamma_positive=gamma_positive,
        clip=clip,
        reduction=reduction,
    )
    loss(torch.zeros(1, 1), torch.zeros(1, 1))
    return loss


def _with_lr(make: OptimizerCallable, lr: float, params: Any) -> Optimizer:
    optimizer = make(params)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return optimizer


def _best_threshold(sweep: dict[str, list[float]], name: str) -> dict[str, float]:
    """The threshold of a sweep at which a score is highest; chosen on test labels, so a diagnostic and no result."""
    value, threshold = max(zip(sweep[name], sweep["threshold"], strict=True), key=lambda pair: pair[0])
    return {"threshold": threshold, "value": value}


def _mean(values: list[float | None]) -> float:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else 0.0
