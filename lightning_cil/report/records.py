"""What a run may keep beside `results.json`: predictions and features of the test data after the last task.

Both files are optional NumPy archives in the run folder; labels are incremental (positions in the class order).

| file | arrays |
|---|---|
| `predictions.npz` | `target`, `class_il`: integers `[samples]`, true and predicted labels |
| `features.npz` | `features`: float `[samples, dimensions]`; `target`: integers `[samples]` |
"""

import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_cil.report.groups import Group
from lightning_cil.report.runs import Run


def confusion_of(run: Run) -> NDArray[Any] | None:
    """Counts `[classes, classes]`, true class × predicted class; `None` without `predictions.npz`."""
    arrays = _read(run, "predictions.npz", ("target", "class_il"))
    if arrays is None:
        return None
    target, predicted = (array.astype(np.int64) for array in arrays)
    num_classes = sum(run.task_sizes)
    if target.shape != predicted.shape or target.size == 0 or _outside(target, num_classes):
        raise ValueError(
            f"{run.folder / 'predictions.npz'}: `target` and `class_il` are no labels of the same samples."
        )
    if _outside(predicted, num_classes):
        raise ValueError(f"{run.folder / 'predictions.npz'}: `class_il` has labels outside 0 to {num_classes - 1}.")
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(counts, (target, predicted), 1)
    return counts


def group_confusion(group: Group) -> NDArray[Any] | None:
    """Sum of `confusion_of` over the runs of a group that have one class order; `None` if one has no predictions."""
    counts = [confusion_of(run) for run in group.runs]
    if any(c is None for c in counts) or any(r.split != group.first.split for r in group.runs):
        return None
    total: NDArray[Any] = np.sum([c for c in counts if c is not None], axis=0)
    return total


def class_accuracy(counts: NDArray[Any]) -> NDArray[Any]:
    """Share of correct samples of each class, `[classes]`; NaN without samples."""
    totals = counts.sum(axis=1)
    return np.where(totals > 0, counts.diagonal() / np.maximum(totals, 1), np.nan)


def features_of(run: Run) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Features `[samples, dimensions]` and the task of each `[samples]`; `None` without `features.npz`."""
    arrays = _read(run, "features.npz", ("features", "target"))
    if arrays is None:
        return None
    features, target = arrays
    if features.ndim != 2 or target.shape != features.shape[:1] or _outside(target, sum(run.task_sizes)):
        raise ValueError(
            f"{run.folder / 'features.npz'}: `features` is no table with a row for each label in `target`."
        )
    task_of = np.repeat(np.arange(run.num_tasks), run.task_sizes)
    return features, task_of[target]


def _outside(labels: NDArray[Any], num_classes: int) -> bool:
    return bool(labels.size) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes


def _read(run: Run, name: str, arrays: Sequence[str]) -> list[NDArray[Any]] | None:
    path = run.folder / name
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            return [archive[key] for key in arrays]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}); expected the arrays {', '.join(arrays)}.") from error
