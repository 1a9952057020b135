"""The one stateful metric of a stream, R[i, j] = accuracy on task j after training on task i, and its scores.

Row -1 is the accuracy before any training. The state is two tables of counts, `correct` and `total`, `[T+1, T]` for `T`
tasks; everything else is a function of them, by way of `lightning_cil.metrics.scores`, whose docstring has the notation
and the sources. The counts are integers and processes' counts are added, so results are exact under DDP, whatever share
of a task each process saw, as long as no sampler pads.

Each score is a `TaskMatrix` with another `compute`. In a `torchmetrics.MetricCollection` all of them form one compute
group: one state and, from the second batch on, one update for all.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_cil.metrics.plots import plot_task_matrix, require_matplotlib
from lightning_cil.metrics.scores import (
    average_accuracy,
    average_forgetting,
    average_incremental_accuracy,
    backward_transfer,
    forward_transfer,
    intransigence,
    plasticity_stability,
)


def task_counts(preds: Tensor, target: Tensor, task: Tensor, num_tasks: int) -> tuple[Tensor, Tensor]:
    """Count the samples of each task, and the correct ones among them. Never waits for the device.

    Args:
        preds: long `[B]`: predicted labels. B may be 0.
        target: long `[B]`: true labels.
        task: long `[B]`: task of each sample, 0 to num_tasks - 1.
        num_tasks: Length of the stream, T.

    Returns:
        correct and total, long `[T]` each.

    Example:
        >>> preds, target, task = torch.tensor([0, 1, 3]), torch.tensor([0, 0, 3]), torch.tensor([0, 0, 1])
        >>> task_counts(preds, target, task, num_tasks=3)
        (tensor([1, 1, 0]), tensor([2, 1, 0]))
    """
    zeros = torch.zeros(num_tasks, dtype=torch.long, device=task.device)
    correct = zeros.scatter_add(0, task, (preds == target).long())
    total = zeros.scatter_add(0, task, torch.ones_like(task))
    return correct, total


def accuracies(correct: Tensor, total: Tensor) -> Tensor:
    """Accuracy of each entry: correct / total, NaN where nothing was counted.

    In float64 (float32 on MPS, which has no float64), so that differences of equal accuracies cancel to within 1e-15.

    Args:
        correct: long, any shape: correct samples.
        total: long, same shape: samples.

    Returns:
        Fractions in [0, 1] or NaN, same shape.

    Example:
        >>> accuracies(torch.tensor([3, 0]), torch.tensor([4, 0]))
        tensor([0.7500,    nan], dtype=torch.float64)
    """
    return correct.to(_float_dtype(correct.device)) / total


def sample_weighted_accuracy(correct: Tensor, total: Tensor) -> Tensor:
    """Accuracy over all samples of the tasks seen so far: Σ_{j≤i} correct[i, j] / Σ_{j≤i} total[i, j] for each row i.

    The usual curve of Class-IL. For tasks of equal size it equals the mean over the tasks' accuracies; for uneven ones
    it differs, as each task weighs by its samples here and all weigh the same there.

    Args:
        correct: long `[T, T]`: correct samples of task j after training on task i, row -1 not included.
        total: long `[T, T]`: samples of task j seen in that evaluation.

    Returns:
        `[T]`, fractions in [0, 1]; NaN for a row in which a task seen so far was not evaluated.

    Example:
        After the second task 1 of 1 and 1 of 3: 2 of 4 samples, where the mean over tasks is 2/3.

        >>> sample_weighted_accuracy(torch.tensor([[1, 0], [1, 1]]), torch.tensor([[1, 3], [1, 3]]))
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    not_evaluated = (total == 0).tril().any(dim=1)
    return accuracies(correct.tril().sum(dim=1), total.tril().sum(dim=1)).masked_fill(not_evaluated, math.nan)


class TaskMatrix(Metric):
    """Accuracy on every task after every task: R[i, j], and the row before any training.

    `update` takes a batch of labels, of one task or of several, and says after which task it was evaluated. `compute`
    gives `[T, T]`, NaN where nothing was counted; `before_training` gives row -1, `seen_accuracy` the accuracy over
    samples. All three add up the processes' counts first, so under DDP every process must call them.

    Rows stay until `reset`: the metric is meant to live as long as the stream. Its state is in a checkpoint only after
    `metric.persistent(True)`.

    Args:
        num_tasks: Length of the stream, T, at least 1.
        kwargs: Keywords of every `torchmetrics.Metric`, such as `sync_on_compute`.

    Raises:
        ValueError: If `num_tasks` is no integer of at least 1.

    Example:
        >>> metric = TaskMatrix(num_tasks=2)
        >>> target, task = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 1, 1])
        >>> metric.update(torch.tensor([0, 3, 0, 3]), target, task, after=-1)
        >>> metric.update(torch.tensor([0, 1, 0, 1]), target, task, after=0)
        >>> metric.update(torch.tensor([2, 1, 2, 3]), target, task, after=1)
        >>> metric.compute()
        tensor([[1.0000, 0.0000],
                [0.5000, 1.0000]], dtype=torch.float64)
        >>> metric.before_training()
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    is_differentiable: bool = False
    higher_is_better: bool = True
    full_state_update: bool = False

    correct: Tensor
    """long `[T+1, T]`: correct samples, row 0 before training, row i + 1 after task i."""
    total: Tensor
    """long `[T+1, T]`: samples."""

    def __init__(self, num_tasks: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(num_tasks, bool) or not isinstance(num_tasks, int) or num_tasks < 1:
            raise ValueError(
                f"{type(self).__name__} got `num_tasks={num_tasks!r}`, expected an integer of at least 1. Give the "
                "length of the stream, such as `datamodule.num_tasks`."
            )
        self.num_tasks = num_tasks
        counts = torch.zeros(num_tasks + 1, num_tasks, dtype=torch.long)
        self.add_state("correct", counts, dist_reduce_fx="sum")
        self.add_state("total", counts.clone(), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor, task: Tensor | int, after: int) -> None:
        """Add a batch. Never waits for the device.

        Args:
            preds: long `[B]`: predicted labels. B may be 0.
            target: long `[B]`: true labels.
            task: long `[B]`: task of each sample, 0 to T-1; or one integer for the whole batch.
            after: The task that was learned last, 0 to T-1; -1 before any training.

        Raises:
            ValueError: If shapes or types differ from these, or a task is out of range. A `task` tensor on an
                accelerator is not read, as that would wait for the device: there the kernel's own check ends the
                program.
        """
        self._check(preds, target, task, after)
        if isinstance(task, int):
            task = torch.full_like(target, task, dtype=torch.long)
        correct, total = task_counts(preds, target, task, self.num_tasks)
        row = after + 1
        # Not in place: `reset` under inference mode leaves states that may not be edited outside it.
        self.correct = self.correct.select_scatter(self.correct[row] + correct, dim=0, index=row)
        self.total = self.total.select_scatter(self.total[row] + total, dim=0, index=row)

    def compute(self) -> Tensor:
        """The matrix without the row before training: float64 `[T, T]`, fractions, NaN where nothing was counted."""
        return self._rows()[1:]

    def before_training(self) -> Tensor:
        """Row -1, the baseline of forward transfer: float64 `[T]`, fractions, NaN where nothing was counted."""
        with self._synced():
            return self._rows()[0]

    def seen_accuracy(self) -> Tensor:
        """Accuracy over all samples of tasks 0..i after task i: float64 `[T]`. See `sample_weighted_accuracy`."""
        with self._synced():
            return sample_weighted_accuracy(self.correct[1:], self.total[1:])

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the matrix as a heat map; a score, which is one number or one for each step, as torchmetrics does.

        Needs matplotlib: `pip install lightning-cil[report]`.

        Args:
            val: What `compute` or `forward` returned, or for a score a list of that; by default what `compute` returns
                now.
            ax: Matplotlib axes to draw in; by default those of a new figure.

        Returns:
            Figure and axes.

        Raises:
            ModuleNotFoundError: Without matplotlib.
        """
        require_matplotlib()
        val = self.compute() if val is None else val
        if isinstance(val, Tensor) and val.ndim == 2:
            return plot_task_matrix(val.tolist(), ax)
        return self._plot(val, ax)

    def _rows(self) -> Tensor:
        """All rows, that before training first: `[T+1, T]`."""
        return accuracies(self.correct, self.total)

    def _scalar(self, score: float | None) -> Tensor:
        """A score as a tensor, NaN for `None`."""
        value = math.nan if score is None else score
        return torch.tensor(value, dtype=_float_dtype(self.device), device=self.device)

    @contextmanager
    def _synced(self) -> Iterator[None]:
        """Add up the processes' counts, as torchmetrics does around `compute`, unless a caller did already."""
        ours = not self._is_synced
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute and ours, should_unsync=ours
        ):
            yield

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Undo torchmetrics' squeezing of one-element results for the matrix: a stream of one task has a 1×1 matrix."""
        wrapped = super()._wrap_compute(compute)
        if getattr(compute, "__func__", None) is not TaskMatrix.compute:
            return wrapped

        @wraps(wrapped)
        def compute_matrix() -> Tensor:
            matrix: Tensor = wrapped()
            return matrix.view(self.num_tasks, self.num_tasks)

        return compute_matrix

    def _check(self, preds: Tensor, target: Tensor, task: Tensor | int, after: int) -> None:
        """Refuse what `update` cannot count, without reading from an accelerator."""
        last = self.num_tasks - 1
        if isinstance(after, bool) or not isinstance(after, int) or not -1 <= after <= last:
            raise ValueError(
                f"`after={after!r}` is not the index of a task, expected an integer from -1 (before training) to "
                f"{last}. For the row of the task just learned give its `index`."
            )
        if preds.ndim != 1 or preds.shape != target.shape or preds.is_floating_point():
            raise ValueError(
                f"`preds` has shape {tuple(preds.shape)} and type {preds.dtype}, `target` shape {tuple(target.shape)}; "
                "expected integer labels of shape (B,) for both. For logits give `logits.argmax(dim=1)`."
            )
        if isinstance(task, Tensor):
            if task.shape != target.shape or task.dtype != torch.long:
                raise ValueError(
                    f"`task` has shape {tuple(task.shape)} and type {task.dtype}, expected {tuple(target.shape)} and "
                    "torch.int64: one task for each sample. If all are of one task, give its index as an int."
                )
            in_range = task.device.type != "cpu" or bool(((task >= 0) & (task <= last)).all())
        else:
            in_range = not isinstance(task, bool) and isinstance(task, int) and 0 <= task <= last
        if not in_range:
            raise ValueError(
                f"`task={task!r}` is out of range, expected indices from 0 to {last}, as the stream has "
                f"{self.num_tasks} task(s). Give the task that the sample's class belongs to."
            )


class AverageAccuracy(TaskMatrix):
    """Average accuracy (ACC), NFL Eq. 23: `scores.average_accuracy` of the matrix, NaN until the last row is complete.

    Example:
        >>> metric = AverageAccuracy(num_tasks=1)
        >>> metric.update(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 1, 1]), task=0, after=0)
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """A fraction in [0, 1] or NaN: float64 scalar."""
        return self._scalar(average_accuracy(self._rows()[1:]))


class AverageIncrementalAccuracy(TaskMatrix):
    """Average incremental accuracy (AIA), iCaRL: `scores.average_incremental_accuracy` of the matrix."""

    def compute(self) -> Tensor:
        """A fraction in [0, 1] or NaN: float64 scalar."""
        return self._scalar(average_incremental_accuracy(self._rows()[1:]))


class ForwardTransfer(TaskMatrix):
    """Forward transfer (FWT), NFL Eq. 24: `scores.forward_transfer` of the matrix and of its own row before training.

    For Task-IL: says nothing in Class-IL, where classes not yet learned cannot be predicted.
    """

    def compute(self) -> Tensor:
        """A fraction in [-1, 1] or NaN: float64 scalar."""
        rows = self._rows()
        return self._scalar(forward_transfer(rows[1:], baseline=rows[0]))


class BackwardTransfer(TaskMatrix):
    """Backward transfer (BWT), NFL Eq. 25: `scores.backward_transfer` of the matrix."""

    def compute(self) -> Tensor:
        """A fraction in [-1, 1] or NaN: float64 scalar."""
        return self._scalar(backward_transfer(self._rows()[1:]))


class AverageForgetting(TaskMatrix):
    """Average forgetting (AF), NFL Eq. 26-27: `scores.average_forgetting` of the matrix. Lower is better.

    NaN unless every row holds all tasks, those not yet learned included: Eq. 27's maximum reads them.
    """

    higher_is_better: bool = False

    def compute(self) -> Tensor:
        """A fraction in [-1, 1] or NaN: float64 scalar."""
        return self._scalar(average_forgetting(self._rows()[1:]))


class Intransigence(TaskMatrix):
    """Intransigence (I), NFL Eq. 28: `scores.intransigence` of the matrix. Lower is better.

    Args:
        num_tasks: Length of the stream, T, at least 1.
        joint_accuracy: a*, a fraction in [0, 1]: accuracy on the last task of a model trained on all tasks at once.
        kwargs: Keywords of every `torchmetrics.Metric`.

    Raises:
        ValueError: If `num_tasks` is no integer of at least 1 or `joint_accuracy` is outside [0, 1].
    """

    higher_is_better: bool = False

    def __init__(self, num_tasks: int, joint_accuracy: float, **kwargs: Any) -> None:
        super().__init__(num_tasks, **kwargs)
        intransigence([[0.0]], joint_accuracy)  # refuses a percentage now, not at the end of the stream
        self.joint_accuracy = joint_accuracy

    def compute(self) -> Tensor:
        """A fraction in [-1, 1] or NaN: float64 scalar."""
        return self._scalar(intransigence(self._rows()[1:], self.joint_accuracy))


class PlasticityStability(TaskMatrix):
    """Plasticity-stability ratio (PS), NFL Eq. 29: `scores.plasticity_stability` of the matrix."""

    def compute(self) -> Tensor:
        """A number or NaN: float64 scalar."""
        return self._scalar(plasticity_stability(self._rows()[1:]))


def _float_dtype(device: torch.device) -> torch.dtype:
    """The widest float type of the device."""
    return torch.float32 if device.type == "mps" else torch.float64
