"""`StreamSummary`: a line after every task; at the end the matrix, the scores and where everything is."""

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from lightning_cil.callbacks.base import StreamCallback
from lightning_cil.callbacks.interruption import interruption
from lightning_cil.callbacks.results import scores_of
from lightning_cil.callbacks.stream_state import StreamState, stream_state
from lightning_cil.types import SCENARIOS, Scenario, Task

SCENARIO_NAMES: dict[Scenario, str] = {"class_il": "Class-IL", "task_il": "Task-IL"}
SHOWN = ("ACC", "AIA", "FWT", "BWT", "AF")
WIDEST_MATRIX = 20


class StreamSummary(StreamCallback):
    """Prints what a person wants to see, in percent; `results.json` has everything as fractions."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def on_task_start(self, trainer: Trainer, module: LightningModule, task: Task) -> None:
        """Start the task's clock."""
        self._started = time.perf_counter()

    def on_task_scored(self, trainer: Trainer, module: LightningModule, task: Task) -> None:
        """Print the task's line."""
        state = stream_state(trainer)
        assert state is not None
        if all(v is None for v in state.counts["class_il"].row(task.index)):
            return
        rank_zero_print(task_line(state, task, trainer.datamodule.class_names, time.perf_counter() - self._started))  # type: ignore[attr-defined]

    def on_stream_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Print matrices, scores and the next steps."""
        state = stream_state(trainer)
        assert state is not None
        log_dir = trainer.log_dir
        lines = [""]
        for scenario in SCENARIOS:
            lines += [
                *matrix_lines(state, scenario, getattr(module, "score_name", "accuracy")),
                scores_line(state, scenario, getattr(module, "no_forward_transfer", None)),
                "",
            ]
        further: Any = getattr(module, "summary_lines", None)
        if further is not None:
            lines += [*further(state.task + 1), ""]
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            lines += _next_steps(trainer, log_dir, state)
        rank_zero_print("\n".join(lines))


def task_line(state: StreamState, task: Task, class_names: list[str], seconds: float) -> str:
    """What a finished task gave: the score over the tasks so far in both scenarios."""
    names = [class_names[c] for c in task.classes]
    shown = " ".join(names[:6]) + (f" … ({len(names)} classes)" if len(names) > 6 else "")
    parts = []
    for scenario in SCENARIOS:
        row = [v for v in state.counts[scenario].row(task.index)[: task.index + 1] if v is not None]
        parts.append(f"{SCENARIO_NAMES[scenario]} {100 * sum(row) / len(row):5.1f} %")
    return f"task {task.index + 1}/{state.num_tasks} [{shown}]  {'  '.join(parts)}  {seconds:.1f} s"


def matrix_lines(state: StreamState, scenario: Scenario, score_name: str = "accuracy") -> list[str]:
    """The matrix of a score as text, in percent."""
    counts, size = state.counts[scenario], state.num_tasks
    head = f"{SCENARIO_NAMES[scenario]}: {score_name} in % on task (column) after learning task (row)"
    if size > WIDEST_MATRIX:
        return [f"{head}: {size} tasks, see matrix.csv"]
    rows = [("before", counts.before_training())]
    rows += [(str(i + 1), row) for i, row in enumerate(counts.matrix()) if any(v is not None for v in row)]
    lines = [head, "        " + "".join(f"{j + 1:7d}" for j in range(size))]
    lines += [f"{name:>8}" + "".join("      -" if v is None else f"{100 * v:7.1f}" for v in row) for name, row in rows]
    return lines


def scores_line(state: StreamState, scenario: Scenario, no_forward_transfer: str | None = None) -> str:
    """The scores as text, in percent."""
    scores, _ = scores_of(state.counts[scenario], state.task + 1, scenario, no_forward_transfer)
    parts = [f"{n} {'-' if scores[n] is None else format(100 * (scores[n] or 0), '.2f')}" for n in SHOWN]
    return f"{SCENARIO_NAMES[scenario]}: " + "   ".join(parts) + "   (%)"


def test_lines(found: Mapping[str, float]) -> list[str]:
    """What a test of a checkpoint gave: a line for each task learned and their mean, in percent."""
    keys = [f"test/{scenario}" for scenario in SCENARIOS]
    score = "mAP" if "test/mAP" in found else "accuracy"
    count = sum(name.startswith(f"{keys[0]}/task_") for name in found)
    lines = ["   task" + "".join(f"{SCENARIO_NAMES[s]:>10}" for s in SCENARIOS) + f"   ({score} in %)"]
    rows = [(str(j + 1), [found[f"{key}/task_{j}"] for key in keys]) for j in range(count)]
    rows += [("mean", [found[key] for key in keys])]
    lines += [f"{name:>7}" + "".join(f"{100 * v:10.2f}" for v in values) for name, values in rows]
    if score == "mAP":
        names = ("mAP", "CF1", "OF1", "FPR", "precision", "recall")
        lines.append("all classes: " + "   ".join(f"{n} {100 * found[f'test/{n}']:.2f}" for n in names) + "   (%)")
    return lines


def validation_line(found: Sequence[Mapping[str, float]], num_tasks: int) -> str:
    """What a validation of a checkpoint gave over the held-out data of all tasks learned."""
    values, tasks = found[0], f"task 1 to {num_tasks}" if num_tasks > 1 else "task 1"
    scores = "  ".join(f"{SCENARIO_NAMES[s]} {100 * values[f'val/{s}']:.2f} %" for s in SCENARIOS)
    return f"held-out data of {tasks}:  {scores}  loss {values['val/loss']:.4f}"


def _next_steps(trainer: Trainer, log_dir: str | None, state: StreamState) -> list[str]:
    folder = Path(log_dir or ".")
    there = [n for n in ("results.json", "matrix.csv", "config.yaml", "checkpoints/") if (folder / n).exists()]
    checkpoints = [c for c in (f"task_{state.task}.ckpt", "last.ckpt") if (folder / "checkpoints" / c).exists()]
    if state.task + 1 < state.num_tasks:
        stopped = f"Stopped after task {state.task} (of 0 to {state.num_tasks - 1})."
        lines = [f"{stopped} Run folder: {log_dir}" if folder.is_dir() and log_dir else stopped]
        listener = interruption(trainer)
        if checkpoints and listener is not None:
            newest = folder / "checkpoints" / checkpoints[-1]
            lines += [f"Go on:  {listener.way_on(trainer, newest, without=['--stop_after_task'])}"]
        return lines
    lines = [f"Run folder: {log_dir}   ({', '.join(there)})"] if there else []
    if "config.yaml" in there:  # started by the command line
        lines += [
            "Next:  lightning-cil methods            the methods there are, to put in `model.class_path`",
            "       lightning-cil data               the data sets there are, to put in `data.class_path`",
        ]
        if checkpoints:
            lines += [
                f"       lightning-cil predict --config {shlex.quote(f'{log_dir}/config.yaml')} --ckpt_path "
                f"{shlex.quote(f'{log_dir}/checkpoints/{checkpoints[-1]}')} --images FOLDER",
            ]
    return lines


@rank_zero_only
def rank_zero_print(text: str) -> None:
    """Print at once, on the first process only."""
    print(text, flush=True)
