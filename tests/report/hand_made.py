"""Results files as runs write them, with numbers of a test's own."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

MATRIX = [[0.75, 0.0], [0.25, 1.0]]
BASE: dict[str, Any] = {
    "schema": 1,
    "status": "complete",
    "tasks_done": 2,
    "method": "ER",
    "data": "SplitDigits",
    "scenario": "class_il",
    "seed": 0,
    "class_order": [3, 1, 0, 2],
    "class_order_hash": "0123456789abcdef",
    "class_names": ["three", "one", "zero", "two"],
    "task_sizes": [2, 2],
    "data_fingerprint": "fedcba9876543210",
    "val_fraction": 0.0,
    "config": {
        "method": {"epochs": 1, "optimizer": {"class": "SGD", "lr": 0.1}},
        "data": {"batch_size": 32, "split_seed": 0},
        "callbacks": {"ReplayBuffer": {"total": 200}},
        "trainer": {"precision": "32-true"},
    },
    "matrix": {"class_il": MATRIX, "task_il": [[0.75, 0.5], [0.5, 1.0]]},
    "before_training": {"class_il": [0.0, 0.0], "task_il": [0.5, 0.25]},
    "scores": {"class_il": {}, "task_il": {}},
    "undefined": {"class_il": {"FWT": "not defined in Class-IL"}, "task_il": {}},
    "sample_weighted_accuracy": {"class_il": [0.75, 0.625], "task_il": [0.75, 0.75]},
    "formulas": {},
    "seconds": [
        {"task": 0, "stage": "evaluation before training", "seconds": 0.5, "peak_memory_bytes": 1},
        {"task": 0, "stage": "train", "seconds": 2.0, "peak_memory_bytes": 1},
        {"task": 0, "stage": "task end", "seconds": 0.25, "peak_memory_bytes": 1},
        {"task": 0, "stage": "evaluation", "seconds": 0.5, "peak_memory_bytes": 1},
        {"task": 1, "stage": "train", "seconds": 2.75, "peak_memory_bytes": 1},
    ],
    "footprint": {
        "unit": "bytes",
        "paper": 1_100_000,
        "full": {
            "body": 1_000_000,
            "head": 200_000,
            "buffers": 34_000,
            "exemplars": 100_000,
            "exemplar_labels": 10_000,
            "stored_logits": 1_000,
            "prototypes": 500,
            "teacher": 20_500,
            "total": 1_366_000,
        },
    },
    "world_size": 1,
    "versions": {"python": "3.11.7", "lightning-cil": "0.1.0", "torch": "2.11.0"},
    "hardware": {"device": "cpu", "machine": "x86_64", "cores": 2},
}
"""Two tasks of two classes."""


def results(**changes: Any) -> dict[str, Any]:
    """The base with other values; `a__b=1` changes `["a"]["b"]`."""
    found = copy.deepcopy(BASE)
    for name, value in changes.items():
        *path, last = name.split("__")
        place = found
        for part in path:
            place = place[part]
        place[last] = value
    return found


def write_run(folder: Path, **changes: Any) -> Path:
    """A run folder."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results(**changes)), encoding="utf-8")
    return folder


def with_matrix(class_il: Sequence[Sequence[float | None]], **changes: Any) -> dict[str, Any]:
    """Changes that give both scenarios a matrix, equal tasks of two classes, and the curve that belongs to it."""
    size = len(class_il)
    rows = [[v for v in row[: i + 1] if v is not None] for i, row in enumerate(class_il)]
    curve = [sum(row) / len(row) if len(row) == i + 1 else None for i, row in enumerate(rows)]
    return {
        "task_sizes": [2] * size,
        "tasks_done": size,
        "class_order": list(range(2 * size)),
        "matrix": {s: [list(row) for row in class_il] for s in ("class_il", "task_il")},
        "before_training": {s: [0.0] * size for s in ("class_il", "task_il")},
        "sample_weighted_accuracy": {s: curve for s in ("class_il", "task_il")},
        **changes,
    }


def random_matrix(size: int, seed: int) -> list[list[float]]:
    """Accuracies of a stream that forgets, zero above the diagonal."""
    return np.tril(np.random.default_rng(seed).uniform(0.2, 1.0, (size, size))).round(4).tolist()
