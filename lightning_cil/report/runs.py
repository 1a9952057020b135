"""Runs from their `results.json`: finding, reading, checking. Nothing else is needed.

`config.yaml` and records beside it are used where they are.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning_cil.types import SCENARIOS, Scenario

SCHEMA = 1
FILE = "results.json"
JOINTS = ("Joint", "MLJoint")
"""Methods that train on all data: upper bounds."""
REFERENCES = "references"
"""Folder of a run in which `lightning-cil references` trains what the run is measured against."""
NO_GROUPING = ("data.class_order", "data.val_fraction", "data.split_seed", "data.root", "data.num_workers")
"""Settings that tell no groups apart: those that are compared on their own, and where and how data are read."""
WATCHERS = frozenset(
    {
        "ActivationMapRecords",
        "BasePredictionWriter",
        "ContinualEvaluation",
        "DeviceStatsMonitor",
        "FeatureRecords",
        "FiniteLoss",
        "Interruption",
        "LearningRateMonitor",
        "LiveFigures",
        "ModelCheckpoint",
        "ModelSummary",
        "OnExceptionCheckpoint",
        "PredictionRecords",
        "ProgressBar",
        "RandomState",
        "ResultsWriter",
        "RichModelSummary",
        "RichProgressBar",
        "SaveRunConfig",
        "StreamCheckpoint",
        "StreamProgressBar",
        "StreamState",
        "StreamSummary",
        "TQDMProgressBar",
        "ThroughputMonitor",
    }
)
"""Callbacks that change nothing in what is learned, so that they tell no groups apart."""
INDEPENDENT = "Independent"

Flat = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
        path: Its `results.json`, as the user wrote it.
        results: The content, checked by `read_run`.
    """

    path: Path
    results: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.path.parent

    @property
    def method(self) -> str:
        """The method's class."""
        return str(self.results["method"])

    @property
    def data(self) -> str:
        """The data set's class."""
        return str(self.results["data"])

    @property
    def seed(self) -> int | None:
        """The seed."""
        seed: int | None = self.results["seed"]
        return seed

    @property
    def is_joint(self) -> bool:
        """Trained on all data: an upper bound."""
        return self.method in JOINTS

    @property
    def multilabel(self) -> dict[str, Any]:
        """Scores of a multi-label run; empty for others."""
        found: dict[str, Any] = self.results.get("multilabel", {})
        return found

    @property
    def is_multilabel(self) -> bool:
        """Images have any number of labels: the matrix holds mAP."""
        return bool(self.multilabel)

    @property
    def score_name(self) -> str:
        """What the matrix holds."""
        return "mAP" if self.is_multilabel else "accuracy"

    @property
    def task_sizes(self) -> tuple[int, ...]:
        """Classes of each task."""
        return tuple(self.results["task_sizes"])

    @property
    def num_tasks(self) -> int:
        """Length of the stream."""
        return len(self.task_sizes)

    @cached_property
    def tasks_done(self) -> int:
        """How many tasks were learned and evaluated."""
        if "tasks_done" in self.results:
            return int(self.results["tasks_done"])
        rows = self.results["matrix"]["class_il"]
        return 1 + max((i for i, row in enumerate(rows) if any(v is not None for v in row)), default=0)

    @property
    def complete(self) -> bool:
        """All tasks were learned."""
        return self.tasks_done == self.num_tasks

    def matrix(self, scenario: Scenario) -> list[list[float | None]]:
        """Accuracy on task j after task i, `[done, done]` fractions."""
        rows: list[list[float | None]] = self.results["matrix"][scenario]
        return [row[: self.tasks_done] for row in rows[: self.tasks_done]]

    def before_training(self, scenario: Scenario) -> list[float | None]:
        """Accuracy of the untrained network on each task done, `[done]` fractions."""
        row: list[float | None] = self.results["before_training"][scenario]
        return row[: self.tasks_done]

    def curve(self, scenario: Scenario) -> list[float | None]:
        """Accuracy over all test samples of the classes seen, after each task, `[done]` fractions.

        From the file's sample-weighted accuracies; in a file without them the mean over the tasks seen.
        """
        stored: list[float | None] | None = self.results.get("sample_weighted_accuracy", {}).get(scenario)
        if stored is not None:
            return stored[: self.tasks_done]
        rows = [row[: i + 1] for i, row in enumerate(self.matrix(scenario))]
        return [None if None in row else fmean(v for v in row if v is not None) for row in rows]

    def scores(
        self, scenario: Scenario, joint_accuracy: float | None = None
    ) -> tuple[dict[str, float | None], dict[str, str]]:
        """All scores of the tasks done, from the matrix, and the reasons of undefined ones.

        Args:
            scenario: Which matrix.
            joint_accuracy: a* of intransigence, a fraction.
        """
        from lightning_cil.metrics.scores import summarise

        matrix, stored = self.matrix(scenario), self.results.get("undefined", {}).get(scenario, {})
        why = stored.get("FWT") or "not defined in Class-IL: classes that no task brought yet cannot be predicted"
        baseline = None if scenario == "class_il" or "FWT" in stored else self.before_training(scenario)
        if baseline is not None and None in baseline:
            baseline, why = None, "the untrained network was not evaluated"
        return summarise(matrix, baseline=baseline, joint_accuracy=joint_accuracy, no_baseline_reason=why)

    @cached_property
    def settings(self) -> Flat:
        """What the run was made with, flat: `method.temperature` → 2.0. Without the seed."""
        known = {"method": self.method, "data": self.data, "scenario": self.results.get("scenario")}
        flat = {name: value for name, value in known.items() if value is not None}
        flat["task_sizes"] = list(self.task_sizes)
        if self.results.get("world_size", 1) != 1:
            flat["world_size"] = self.results["world_size"]
        flat.update(_flatten(self.results.get("config", {})))
        if flat.get("callbacks") == {}:
            del flat["callbacks"]
        return flat

    @property
    def protocol(self) -> tuple[str, tuple[int, ...]]:
        """Data set and task sizes: numbers of runs with another protocol do not compare."""
        return self.data, self.task_sizes

    @property
    def split(self) -> dict[str, Any]:
        """What makes the tasks: order of classes, data, and the share that is held out."""
        return {
            "class order": self.results["class_order"],
            "training labels": self.results.get("data_fingerprint"),
            "held-out share": self.results.get("val_fraction"),
            "held-out images (split_seed)": self.settings.get("data.split_seed"),
        }

    @property
    def group_key(self) -> str:
        """Equal for runs that differ in their seed (and order of classes, and split) only."""
        kept = {k: v for k, v in self.settings.items() if tells_apart(k)}
        return json.dumps([self.method, self.data, None if self.complete else self.tasks_done, kept], sort_keys=True)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of the run: `training` (with what a method does when a task ends) and `evaluation`."""
        total = {"training": 0.0, "evaluation": 0.0}
        for phase in self.results["seconds"]:
            kind = "evaluation" if str(phase["stage"]).startswith("evaluation") else "training"
            total[kind] += phase["seconds"]
        return total

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes kept between tasks: `model`, `exemplars`, `other` (old models, prototypes), `total`, and `paper`.

        `images` are those of the exemplars' images, which `exemplars` and `paper` hold too.
        """
        full = self.results["footprint"]["full"]
        parts = {
            "model": ("body", "head", "buffers"),
            "exemplars": ("exemplars", "exemplar_labels", "stored_logits"),
        }
        found = {name: sum(int(full.get(k, 0)) for k in keys) for name, keys in parts.items()}
        found["other"] = int(full["total"]) - sum(found.values())
        paper = int(self.results["footprint"]["paper"])
        return {**found, "total": int(full["total"]), "paper": paper, "images": int(full.get("exemplars", 0))}


def tells_apart(setting: str) -> bool:
    """Whether runs that differ in a setting are different rows.

    Example:
        >>> tells_apart("method.epochs"), tells_apart("data.root"), tells_apart("callbacks.FeatureRecords 2.samples")
        (True, False, False)
        >>> tells_apart("callbacks.SaveRunConfig")  # of the command line
        False
    """
    section, _, rest = setting.partition(".")
    watcher = section == "callbacks" and rest.partition(".")[0].partition(" ")[0] in WATCHERS
    return setting not in NO_GROUPING and not watcher


def same_split(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two splits are the same as far as both are recorded."""
    return all(one[name] is None or other[name] is None or one[name] == other[name] for name in one)


# ---------------------------------------------------------------------- reading


def find_files(path: Path) -> list[Path]:
    """`results.json` files of a run folder and its references, of a folder with runs below, or the file itself.

    Raises:
        FileNotFoundError: If there is none.
    """
    if path.is_file():
        return [path]
    if (path / FILE).is_file():
        return [path / FILE, *sorted((path / REFERENCES).rglob(FILE))]
    found = sorted(path.rglob(FILE)) if path.is_dir() else []
    if not found:
        what = "has no" if path.is_dir() else "does not exist: no"
        raise FileNotFoundError(
            f"{path} {what} {FILE}, neither directly nor below; expected a run folder such as runs/version_0, a folder "
            f"with such folders, or a {FILE}. A run writes its {FILE} when its first task is learned."
        )
    return found


def without_results(path: Path) -> list[Path]:
    """Run folders below `path` in which not one task was finished."""
    if not path.is_dir():
        return []
    folders = {p.parent for p in path.rglob("config.yaml")} | {p.parent for p in path.rglob("checkpoints")}

    def has_runs(folder: Path) -> bool:
        return any(REFERENCES not in p.relative_to(folder).parts for p in folder.rglob(FILE))

    return sorted(folder for folder in folders if not has_runs(folder))


def read_run(path: Path) -> Run:
    """Read and check a `results.json`.

    Raises:
        ValueError: If it is half-written, foreign, or of another schema version; names the file.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is no complete JSON ({error}); expected the {FILE} of a run. It may be half-written or "
            "half-copied: copy it again, or resume the run, which writes it anew after its next task."
        ) from error
    if not isinstance(results, dict) or "schema" not in results or "task_sizes" not in results:
        raise ValueError(
            f"{path} was not written by lightning-cil: it has no `schema` or no `task_sizes`. Give the folder of a "
            "run, or move the file out of the folder that you gave."
        )
    if results["schema"] != SCHEMA:
        versions = results.get("versions")
        version = versions.get("lightning-cil") if isinstance(versions, dict) else None
        raise ValueError(
            f"{path} has `schema` {results['schema']!r}, this lightning-cil reads {SCHEMA}. Use the version that wrote "
            f"it ({version or 'not recorded'}), or a newer one."
        )
    problem = _problem(results)
    if problem:
        raise ValueError(
            f"{path}: {problem}. It was changed by hand or written by another program; copy the original again."
        )
    return Run(path, results)


def _problem(results: dict[str, Any]) -> str:
    """What is wrong with the content of a results file, or nothing."""
    types = {
        "method": str,
        "data": str,
        "class_order": list,
        "task_sizes": list,
        "matrix": dict,
        "before_training": dict,
        "seconds": list,
        "footprint": dict,
    }
    for name, kind in types.items():
        if not isinstance(results.get(name), kind):
            return f"`{name}` is {short(results.get(name))}, expected a {_KINDS[kind]}"
    for name in ("config", "undefined", "sample_weighted_accuracy", "versions", "hardware", "multilabel"):
        if not isinstance(results.get(name, {}), dict):
            return f"`{name}` is {short(results[name])}, expected an object"
    if not isinstance(results.get("seed"), int | None):
        return f"`seed` is {short(results.get('seed'))}, expected an integer"
    sizes = results["task_sizes"]
    if not sizes or not all(type(s) is int and s > 0 for s in sizes):
        return f"`task_sizes` is {short(sizes)}, expected the number of classes of each task"
    if len(results["class_order"]) != sum(sizes):
        return f"`class_order` has {len(results['class_order'])} classes, `task_sizes` {sum(sizes)}"
    done = results.get("tasks_done", len(sizes))
    if type(done) is not int or not 1 <= done <= len(sizes):
        return f"`tasks_done` is {short(done)}, expected an integer from 1 to {len(sizes)}"
    for scenario in SCENARIOS:
        reasons = results.get("undefined", {}).get(scenario, {})
        if not isinstance(reasons, dict) or not all(isinstance(r, str) for r in reasons.values()):
            return f"`undefined.{scenario}` is {short(reasons)}, expected a reason for each score"
        rows = results["matrix"].get(scenario)
        if not isinstance(rows, list) or len(rows) != len(sizes) or not all(_is_row(r, len(sizes)) for r in rows):
            return f"`matrix.{scenario}` is no {len(sizes)}×{len(sizes)} table of fractions in [0, 1] or null"
        if not _is_row(results["before_training"].get(scenario), len(sizes)):
            return f"`before_training.{scenario}` is no list of {len(sizes)} fractions in [0, 1] or null"
        curve = results.get("sample_weighted_accuracy", {}).get(scenario)
        if curve is not None and not _is_row(curve, len(sizes)):
            return f"`sample_weighted_accuracy.{scenario}` is no list of {len(sizes)} fractions in [0, 1] or null"
    for phase in results["seconds"]:
        if not isinstance(phase, dict) or "stage" not in phase or not _is_number(phase.get("seconds")):
            return f"`seconds` holds {short(phase)}, expected entries with `stage` and `seconds`"
    full = results["footprint"].get("full")
    if not isinstance(full, dict) or not all(type(v) is int for v in (*full.values(), full.get("total"))):
        return f"`footprint.full` is {short(full)}, expected bytes of each kind and their `total`"
    if type(results["footprint"].get("paper")) is not int:
        return "`footprint.paper` is missing, expected bytes"
    return ""


_KINDS = {str: "string", list: "list", dict: "object"}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_row(row: Any, length: int) -> bool:
    return (
        isinstance(row, list)
        and len(row) == length
        and all(v is None or (_is_number(v) and -1e-6 <= v <= 1 + 1e-6) for v in row)
    )


def short(value: Any) -> str:
    """A value as JSON, at most 60 characters of it."""
    text = json.dumps(value) if value is not None else "missing"
    return text if len(text) <= 60 else text[:57] + "…"


def _flatten(config: dict[str, Any], prefix: str = "") -> Flat:
    flat: Flat = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def read_all(paths: str | Path | Iterable[str | Path]) -> list[Run]:
    """All runs of some paths; one that is named twice counts once."""
    if isinstance(paths, str | Path):
        paths = [paths]
    files = {file.resolve(): file for path in paths for file in find_files(Path(path))}
    return [read_run(file) for _, file in sorted(files.items())]
