"""`ResultsWriter`: `results.json` and `matrix.csv` in the run folder, replaced atomically after every task."""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_cil.callbacks.base import StreamCallback
from lightning_cil.callbacks.run_config import run_config
from lightning_cil.callbacks.stream_state import Counts, stream_state
from lightning_cil.metrics.footprint import count_parameters, footprint, module_bytes
from lightning_cil.metrics.scores import FORMULAS, summarise
from lightning_cil.types import SCENARIOS, Scenario, Task

SCHEMA = 1
PACKAGES = ("lightning-cil", "torch", "torchvision", "lightning", "torchmetrics", "timm", "numpy")
NO_CLASS_IL_BASELINE = "not defined in Class-IL: classes that no task brought yet cannot be predicted"


class ResultsWriter(StreamCallback):
    """Writes what a run found; `lightning-cil report` reads nothing else.

    | hook | effect |
    |---|---|
    | `on_task_scored` | `results.json`, `matrix.csv` on rank 0; the scores go to the loggers |
    """

    def on_task_scored(self, trainer: Trainer, module: LightningModule, task: Task) -> None:
        """Write the state of the run after a task."""
        results = collect_results(trainer, module)
        log_dir = trainer.log_dir
        log = {f"{s}/{name}": v for s in SCENARIOS for name, v in results["scores"][s].items() if v is not None}
        for logger in trainer.loggers:
            logger.log_metrics({**log, "task": float(task.index)}, step=trainer.global_step)
            logger.save()
        if trainer.is_global_zero and log_dir and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            folder = Path(log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "results.json", readable_json(results) + "\n")
            write_atomically(folder / "matrix.csv", _matrix_csv(results))


def collect_results(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Everything `results.json` holds, as plain JSON types.

    Returns:
        Fractions, bytes and seconds; undefined scores are `None` and have a reason.
    """
    state = stream_state(trainer)
    assert state is not None
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    done = state.task + 1
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "complete" if done == state.num_tasks else "partial",
        "tasks_done": done,
        "method": type(module).__name__,
        "data": type(datamodule).__name__,
        "scenario": getattr(module, "scenario", None),
        "seed": state.seed,
        "class_order": list(datamodule.class_order),
        "class_order_hash": datamodule.order_hash(),
        "class_names": list(datamodule.class_names),
        "task_sizes": list(datamodule.task_sizes),
        "data_fingerprint": datamodule.fingerprint(),
        "val_fraction": float(datamodule.val_fraction),
        "config": run_config(trainer, module),
        "matrix": {},
        "before_training": {},
        "scores": {},
        "undefined": {},
        "sample_weighted_accuracy": {},
        "formulas": dict(FORMULAS),
    }
    for scenario in SCENARIOS:
        counts = state.counts[scenario]
        results["matrix"][scenario] = counts.matrix()
        results["before_training"][scenario] = counts.before_training()
        no_transfer = getattr(module, "no_forward_transfer", None)
        results["scores"][scenario], results["undefined"][scenario] = scores_of(counts, done, scenario, no_transfer)
        results["sample_weighted_accuracy"][scenario] = _weighted(counts)
    results["seconds"] = [
        {"task": t.task, "stage": t.stage, "seconds": round(t.seconds, 4), "peak_memory_bytes": t.peak_memory_bytes}
        for t in state.times
    ]
    results["footprint"] = _footprint(trainer, module)
    for part in (*trainer.callbacks, module):  # type: ignore[attr-defined]
        if hasattr(part, "extra_results"):
            results.update(part.extra_results(done))
    results["weights_sha256"] = getattr(getattr(module, "backbone", None), "weights_sha256", None)
    results["world_size"] = trainer.world_size
    results["versions"] = {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}}
    on_gpu = trainer.strategy.root_device.type == "cuda"
    results["hardware"] = {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or "cpu",
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }
    return results


def scores_of(
    counts: Counts, done: int, scenario: Scenario, no_forward_transfer: str | None = None
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Scores of the first `done` tasks of a stream, and why the undefined ones are."""
    accuracy = counts.accuracy()[: done + 1, :done]
    baseline, matrix = accuracy[0], accuracy[1:]
    if scenario == "class_il":
        return summarise(matrix, no_baseline_reason=NO_CLASS_IL_BASELINE)
    if no_forward_transfer is not None:
        return summarise(matrix, no_baseline_reason=no_forward_transfer)
    if baseline.isnan().any():
        return summarise(matrix, no_baseline_reason="the untrained network was not evaluated")
    return summarise(matrix, baseline=baseline)


def _weighted(counts: Counts) -> list[float | None]:
    """Share of correct samples among all tasks up to i, after task i."""
    correct, total = counts.correct[1:].tril().sum(1).tolist(), counts.total[1:].tril().sum(1).tolist()
    return [c / t if t else None for c, t in zip(correct, total, strict=True)]


def _footprint(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    extra: dict[str, int] = {}
    for part in (*trainer.callbacks, module):  # type: ignore[attr-defined]
        for name, size in getattr(part, "footprint", dict)().items():
            extra[name] = extra.get(name, 0) + size
    head = getattr(module, "head", None)
    head_parameters = count_parameters(head) if head is not None else 0
    account = footprint(
        body_parameters=count_parameters(module) - head_parameters,
        head_parameters=head_parameters,
        buffer_bytes=module_bytes(module)[1],
        **extra,
    )
    return account.as_dict()


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def readable_json(value: Any, margin: str = "\n", name: str = "") -> str:
    """JSON with a line for each entry of an object and each row of a matrix.

    The rows are json's fast encoder's, which takes no indent: the file is written after every task, and grows.

    Raises:
        ValueError: For NaN or infinity, with the names that lead there.
    """
    inner = margin + " "
    if isinstance(value, dict) and value and all(isinstance(key, str) for key in value):
        entries = [
            f"{json.dumps(key)}: {readable_json(entry, inner, f'{name}.{key}' if name else key)}"
            for key, entry in value.items()
        ]
        return f"{{{inner}{f',{inner}'.join(entries)}{margin}}}"
    if isinstance(value, list) and any(isinstance(entry, dict | list) for entry in value):
        rows = f",{inner}".join(_encode(entry, name) for entry in value)
        return f"[{inner}{rows}{margin}]"
    return _encode(value, name)


def _encode(value: Any, name: str) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError as error:
        if "JSON compliant" not in str(error):
            raise
        raise ValueError(
            f"results.json: `{name}` holds NaN or infinity; expected finite numbers, and None where there is none. "
            "Look at the setting of that name, at what the network gives, or at the `extra_results` that made it."
        ) from error


def _matrix_csv(results: dict[str, Any]) -> str:
    lines = [",".join(["scenario", "after_task", *(f"task_{j}" for j in range(len(results["task_sizes"])))])]
    for scenario in SCENARIOS:
        for name, row in (("before", results["before_training"][scenario]), *enumerate(results["matrix"][scenario])):
            known = ",%.6f" * len(row) % tuple(row) if None not in row else None  # one call, as most cells are in such
            lines.append(f"{scenario},{name}{known or ''.join(',' if v is None else f',{v:.6f}' for v in row)}")
    return "\n".join(lines) + "\n"


@contextmanager
def replace_atomically(path: Path) -> Iterator[BinaryIO]:
    """Write a file beside the old one and put it in its place once it is complete."""
    draft = path.with_name(path.name + ".part")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OSError(
            error.errno, f"{error.strerror or error}; free some space, or correct the permissions", str(path)
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """The same for a text."""
    with replace_atomically(path) as file:
        file.write(text.encode())
