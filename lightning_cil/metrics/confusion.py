"""What one evaluation's predictions show: confusion, accuracy of each class, and how much is called the newest.

Plain NumPy on the arrays that `PredictionRecords` keeps; labels are incremental labels, -1 is no prediction.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

RECENCY_FORMULA = "share of the test samples of tasks 0 to T-2 that is called a class of task T-1"
"""What `recency_bias` after the last task is, as reports print it."""

CLASS_FORGETTING_FORMULA = (
    "mean over the classes c of tasks 0 to T-2 of max_{i=0..T-2} a[i,c] - a[T-1,c], a[i,c]: accuracy on c after task i"
)
"""The same for `class_forgetting`."""

Labels = npt.NDArray[np.integer]


def confusion_matrix(target: Labels, predicted: Labels, num_classes: int) -> npt.NDArray[np.int64]:
    """Count samples by target (row) and prediction (column).

    Args:
        target: `[N]`, in [0, num_classes).
        predicted: `[N]`, in [-1, num_classes); -1 is counted nowhere.
        num_classes: Rows and columns.

    Returns:
        `[num_classes, num_classes]`.

    Raises:
        ValueError: For labels out of range or arrays of different length.

    Example:
        >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    if target.shape != predicted.shape or target.ndim != 1:
        raise ValueError(f"got labels {target.shape} and predictions {predicted.shape}; expected two of length N.")
    if len(target) and (
        min(target.min(), predicted.min() + 1) < 0 or max(target.max(), predicted.max()) >= num_classes
    ):
        raise ValueError(
            f"got labels {target.min()} to {target.max()} and predictions {predicted.min()} to {predicted.max()}; "
            f"expected 0 (predictions: -1) to {num_classes - 1}. Give the number of classes of the whole stream."
        )
    made = predicted >= 0
    cell = target[made].astype(np.int64) * num_classes + predicted[made]
    return np.bincount(cell, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class_accuracy(target: Labels, predicted: Labels, num_classes: int) -> npt.NDArray[np.float64]:
    """Share of each class's samples that is called by its name.

    Args:
        target: `[N]`.
        predicted: `[N]`.
        num_classes: Classes of the stream.

    Returns:
        Fractions `[num_classes]`; NaN for a class without samples.

    Example:
        >>> per_class_accuracy(np.array([0, 0, 1]), np.array([0, 1, 1]), 3).tolist()
        [0.5, 1.0, nan]
    """
    correct = np.bincount(target[target == predicted], minlength=num_classes)
    total = np.bincount(target, minlength=num_classes)
    accuracy = np.full(num_classes, np.nan)
    np.divide(correct, total, out=accuracy, where=total > 0)
    return accuracy


def task_confusion(target: Labels, predicted: Labels, task_sizes: Sequence[int]) -> npt.NDArray[np.int64]:
    """Count samples by the task of their target (row) and the task of their prediction (column).

    Args:
        target: `[N]`.
        predicted: `[N]`.
        task_sizes: Classes of each task.

    Returns:
        `[tasks, tasks]`.

    Example:
        >>> task_confusion(np.array([0, 1, 2]), np.array([1, 2, 2]), [2, 1]).tolist()
        [[1, 1], [0, 1]]
    """
    task_of = np.repeat(np.arange(len(task_sizes)), task_sizes)
    grouped = np.where(predicted >= 0, task_of[predicted], -1)
    return confusion_matrix(task_of[target], grouped, len(task_sizes))


def recency_bias(target: Labels, predicted: Labels, task_sizes: Sequence[int], task: int) -> float | None:
    """Share of old tasks' samples that is called a class of the newest task. Lower is better.

    Args:
        target: `[N]`.
        predicted: `[N]`: Class-IL predictions after learning task `task`.
        task_sizes: Classes of each task.
        task: The newest task, from 0.

    Returns:
        A fraction; `None` after the first task, which has no older one, or without samples of old tasks.

    Example:
        >>> recency_bias(np.array([0, 1, 2]), np.array([0, 2, 2]), [2, 1], task=1)
        0.5
    """
    counts = task_confusion(target, predicted, task_sizes)
    old = target < sum(task_sizes[:task])
    return float(counts[:task, task].sum() / old.sum()) if old.any() else None


def class_forgetting(accuracy: npt.ArrayLike, task_sizes: Sequence[int]) -> float | None:
    """Average forgetting with classes in the place of tasks. Lower is better.

    AF = 1/C Σ_{c in tasks 0..T-2} (max_{i=0..T-2} a[i, c] - a[T-1, c]), NFL Eq. 26-27, read as its words on Class-IL
    have it; C is the number of these classes. With tasks and classes of equal size it is at least the AF of the tasks.

    Args:
        accuracy: a, `[T, classes]`: accuracy on each class after each task, fractions; see `per_class_accuracy`.
        task_sizes: Classes of each of the T tasks.

    Returns:
        A fraction in [-1, 1]; `None` with fewer than two tasks, or if an accuracy of such a class is NaN.

    Example:
        >>> class_forgetting([[1.0, 0.5, 0.0], [0.5, 0.5, 1.0]], [2, 1])
        0.25
    """
    table = np.asarray(accuracy, dtype=np.float64)[:, : sum(task_sizes[:-1])]
    if len(table) < 2:
        return None
    falls = table[:-1].max(axis=0) - table[-1]
    return None if np.isnan(falls).any() else float(falls.mean())
