"""What a run's folder `records/` holds beside `results.json`, and the scores that come from it.

| file | written by | content |
|---|---|---|
| `task_<k>.npz` | `PredictionRecords` | `target`, `class_il`, `task_il`: labels `[samples]`, -1: no prediction |
| `features_task_<k>.npz` | `FeatureRecords` | `features` `[samples, dimensions]`, `target`; `Modalities` |
| `maps_task_<k>.npz` | `ActivationMapRecords` | fields of `ActivationMaps` |
| `continual.json` | `ContinualEvaluation` | counts on all tasks seen, every few steps |

All are optional; labels are incremental (positions in the class order). Runs that were made before a score was thought
of have it too, as long as their records are there.
"""

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_cil.metrics.confusion import (
    CLASS_FORGETTING_FORMULA,
    RECENCY_FORMULA,
    class_forgetting,
    per_class_accuracy,
    recency_bias,
)
from lightning_cil.metrics.continual import (
    CONTINUAL_FORMULAS,
    Measurement,
    minimum_accuracy,
    stability_gap,
    worst_case_accuracy,
)
from lightning_cil.report.groups import ANEW, APART, AT_ONCE, Group, Stat, mean_of
from lightning_cil.report.runs import Run
from lightning_cil.types import Scenario

FOLDER = "records"
NO_PREDICTIONS = "no records/task_<k>.npz (PredictionRecords)"
NO_CURVE = "no records/continual.json (ContinualEvaluation)"
PREDICTED = {"recency": RECENCY_FORMULA, "class AF": CLASS_FORGETTING_FORMULA}
RECORD_FORMULAS = {**PREDICTED, **CONTINUAL_FORMULAS}
"""One line for each score that records give."""


def predictions_of(
    run: Run, scenario: Scenario = "class_il", after: int | None = None
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Labels and predictions `[samples]` after some tasks; `None` without a record.

    Args:
        run: The run.
        scenario: Whose predictions.
        after: How many tasks are learned; `None`: all that are done.

    Raises:
        ValueError: If the record cannot be read or is not of this run.
    """
    name = f"task_{(after or run.tasks_done) - 1}.npz"
    arrays = _read(run, name, ("target", scenario))
    if arrays is None:
        return None
    target, predicted = arrays
    num_classes = sum(run.task_sizes)
    if target.shape != predicted.shape or target.size == 0 or _outside(target, num_classes):
        raise ValueError(f"{run.folder / FOLDER / name}: `target` and `{scenario}` are no labels of the same samples.")
    if _outside(predicted + 1, num_classes + 1):
        raise ValueError(f"{run.folder / FOLDER / name}: `{scenario}` has labels outside -1 to {num_classes - 1}.")
    return target, predicted


def group_predictions(group: Group, after: int | None = None) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """`predictions_of` all runs of a group, one after the other; `None` if one has none or another class order."""
    found = [predictions_of(run, after=after) for run in group.runs if run.split == group.first.split]
    known = [pair for pair in found if pair is not None]
    if len(known) < len(group.runs):
        return None
    target, predicted = (np.concatenate(arrays) for arrays in zip(*known, strict=True))
    return target, predicted


def features_of(run: Run) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Features `[samples, dimensions]` and the task of each `[samples]`; `None` without a record."""
    name = f"features_task_{run.tasks_done - 1}.npz"
    arrays = _read(run, name, ("features", "target"))
    if arrays is None:
        return None
    features, target = arrays
    if features.ndim != 2 or target.shape != features.shape[:1] or _outside(target, sum(run.task_sizes)):
        raise ValueError(f"{run.folder / FOLDER / name}: `features` is no table with a row for each label in `target`.")
    task_of = np.repeat(np.arange(run.num_tasks), run.task_sizes)
    return features, task_of[target]


@dataclass(frozen=True)
class Modalities:
    """Features of some test samples of a multimodal run.

    Args:
        target: `[samples]`.
        fused: float `[samples, dimensions]`.
        visual: The same of images alone.
        audio: The same of sounds alone; `None`: of no matter to the method.
        prototypes: float `[classes, dimensions]`: what stands for each class.
    """

    target: NDArray[Any]
    fused: NDArray[Any]
    visual: NDArray[Any]
    audio: NDArray[Any] | None
    prototypes: NDArray[Any]


def modalities_of(run: Run, after: int | None = None) -> Modalities | None:
    """Features after some tasks; `None` without a record, or of a method with one modality.

    Args:
        run: The run.
        after: How many tasks are learned; 0: before training; `None`: all that are done.

    Raises:
        ValueError: If the record cannot be read or is not of this run.
    """
    name = "features_before.npz" if after == 0 else f"features_task_{(after or run.tasks_done) - 1}.npz"
    arrays = _read(run, name, ("target", "features"), ("visual", "audio", "prototypes"))
    if arrays is None or arrays[2].size == 0:
        return None
    target, fused, visual, audio, prototypes = arrays
    shape = (len(target), prototypes.shape[-1])
    tables = [fused, visual, *([audio] if audio.size else [])]
    if prototypes.shape[:1] != (sum(run.task_sizes),) or any(table.shape != shape for table in tables):
        raise ValueError(f"{run.folder / FOLDER / name}: expected features of as many samples, and of all classes.")
    if _outside(target, len(prototypes)):
        raise ValueError(f"{run.folder / FOLDER / name}: `target` has labels outside 0 to {len(prototypes) - 1}.")
    return Modalities(target, fused, visual, audio if audio.size else None, prototypes)


@dataclass(frozen=True)
class ActivationMaps:
    """Class activation maps of some test images.

    Args:
        image: uint8 `[images, channels, height, width]`.
        target: bool `[images, classes seen]`.
        scores: Probabilities, float `[images, classes seen]`.
        maps: float `[images, classes seen, h, w]`; what each place adds to the class's logit.
    """

    image: NDArray[Any]
    target: NDArray[Any]
    scores: NDArray[Any]
    maps: NDArray[Any]


def activation_maps_of(run: Run) -> ActivationMaps | None:
    """The maps after the last task done; `None` without a record.

    Raises:
        ValueError: If the record cannot be read or is not of this run.
    """
    name = f"maps_task_{run.tasks_done - 1}.npz"
    arrays = _read(run, name, ("image", "target", "scores", "maps"))
    if arrays is None:
        return None
    found = ActivationMaps(*arrays)
    shape = (len(found.image), sum(run.task_sizes[: run.tasks_done]))
    if found.image.ndim != 4 or any(a.shape[:2] != shape for a in (found.target, found.scores, found.maps)):
        raise ValueError(
            f"{run.folder / FOLDER / name}: expected images, labels, scores and maps of {shape[1]} classes."
        )
    return found


def curve_of(run: Run, scenario: Scenario) -> list[tuple[int, Measurement]] | None:
    """Step and accuracy of every measurement while training; `None` without a record.

    Raises:
        ValueError: If the record cannot be read.
    """
    path = run.folder / FOLDER / "continual.json"
    if not path.is_file():
        return None
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return [
            (
                int(row["step"]),
                Measurement(int(row["task"]), [c / n for c, n in zip(row[scenario], row["total"], strict=True)]),
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{path} cannot be read ({error}); expected what `ContinualEvaluation` wrote.") from error


def record_scores(group: Group, scenario: Scenario) -> dict[str, Stat]:
    """Mean of every score that comes from records, by the names of `RECORD_FORMULAS`, fractions."""
    found = [_scores_of(run, scenario) for run in group.runs]
    stats = {}
    for name in RECORD_FORMULAS:
        values = [scores[name] for scores in found]
        reason = NO_PREDICTIONS if name in PREDICTED else NO_CURVE
        if name == "recency" and scenario == "task_il":
            reason = "not defined in Task-IL: other tasks' classes cannot be predicted"
        elif group.first.tasks_done < 2:
            reason = "needs two tasks"
        elif name not in PREDICTED and None in values:
            curves = [curve_of(run, scenario) for run, value in zip(group.runs, values, strict=True) if value is None]
            if all(curve is not None for curve in curves):
                reason = _unmeasured(curves[0] or [], group.first.tasks_done)
        if group.is_independent:
            values, reason = [None] * len(values), APART
        elif group.is_joint and name != "recency":
            values, reason = [None] * len(values), AT_ONCE if group.trained_once else ANEW
        stats[name] = mean_of(values, [reason] * len(values))
    return stats


def _unmeasured(curve: Sequence[tuple[int, Measurement]], num_tasks: int) -> str:
    """What a curve lacks for the scores that come from it."""
    measured = {measurement.task for _, measurement in curve}
    missing = [str(task + 1) for task in range(num_tasks) if task not in measured]
    where = f"nothing was measured while task {', '.join(missing)} was learned" if missing else "too few measurements"
    return f"{where} (records/continual.json; a smaller `every_n_steps` measures more)"


def _scores_of(run: Run, scenario: Scenario) -> dict[str, float | None]:
    scores: dict[str, float | None] = dict.fromkeys(RECORD_FORMULAS)
    predictions = predictions_of(run) if scenario == "class_il" else None
    if predictions is not None:
        scores["recency"] = recency_bias(*predictions, run.task_sizes, run.tasks_done - 1)
    each = [predictions_of(run, scenario, task + 1) for task in range(run.tasks_done)]
    known = [per_class_accuracy(*found, sum(run.task_sizes)) for found in each if found is not None]
    if len(known) == run.tasks_done:
        scores["class AF"] = class_forgetting(known, run.task_sizes[: run.tasks_done])
    curve = curve_of(run, scenario)
    if curve is not None:
        measurements = [measurement for _, measurement in curve]
        scores["min-ACC"] = minimum_accuracy(measurements)
        scores["WC-ACC"] = worst_case_accuracy(measurements)
        scores["gap"] = stability_gap(measurements)
    return scores


def _outside(labels: NDArray[Any], num_classes: int) -> bool:
    return bool(labels.size) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes


def _read(run: Run, name: str, arrays: Sequence[str], optional: Sequence[str] = ()) -> list[NDArray[Any]] | None:
    """Arrays of a record, the optional ones empty where it has none; `None` without the file."""
    path = run.folder / FOLDER / name
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            none = np.empty(0)
            return [*(archive[key] for key in arrays), *(archive.get(k, none) for k in optional)]
    except KeyError as error:
        raise ValueError(f"{path} cannot be read: no array {error}; expected {', '.join(arrays)}.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:  # NumPy's words talk of pickles
        raise ValueError(
            f"{path} cannot be read: it is no complete npz archive; expected the arrays {', '.join(arrays)}. It may be "
            "half-copied: copy it again, or delete it to make the report without."
        ) from error
