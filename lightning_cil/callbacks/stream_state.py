"""`StreamState`: where a run is in its stream, and the accuracies so far. Saved in every checkpoint."""

import time
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_cil.types import SCENARIOS, Scenario, Stage, Task

SCHEMA = 1

Phase = Literal["stage", "evaluation", "boundary"]
"""In a stage; after `on_task_end`, not scored yet; after a task."""


@dataclass
class StageTime:
    """Wall seconds of one phase of one task, the device synchronised.

    `peak_memory_bytes` is the phase's own on a GPU, and the process's so far on a CPU.
    """

    task: int
    stage: str
    seconds: float
    peak_memory_bytes: int


@dataclass
class Counts:
    """Correct and counted test samples; row 0 is before training, row i + 1 after task i.

    Multi-label: sums of the classes' average precisions, float64, and how many classes there are.
    """

    correct: Tensor
    total: Tensor

    def accuracy(self) -> Tensor:
        """float64 `[T + 1, T]`: after task i in row i + 1, on task j in column j; NaN where nothing was evaluated."""
        return self.correct.double() / self.total.double()

    def matrix(self) -> list[list[float | None]]:
        """Accuracy on task j (column) after task i (row), `None` where nothing was evaluated; T rows."""
        return [_none_for_nan(row) for row in self.accuracy()[1:].tolist()]

    def row(self, task: int) -> list[float | None]:
        """The row of `matrix` after a task."""
        return _none_for_nan((self.correct[task + 1].double() / self.total[task + 1].double()).tolist())

    def before_training(self) -> list[float | None]:
        """Accuracy of the untrained network on every task."""
        return self.row(-1)


def _none_for_nan(row: list[float]) -> list[float | None]:
    return [value if value == value else None for value in row]


@dataclass
class StreamState(Callback):
    """First of the callbacks: everything about the stream that a resumed run must know.

    State saved: schema version, phase, task and stage, seed, counts of both scenarios, seconds, `should_stop`.
    Attributes are read by other callbacks; only the driver writes them.
    """

    num_tasks: int = 0
    phase: Phase = "stage"
    task: int = -1
    """Current task; with phase `boundary` the last finished one."""
    stage: int = 0
    """Current stage inside the task."""
    seed: int = 0
    first_step: int = 0
    """Global step at the start of the current stage."""
    counts: dict[Scenario, Counts] = field(default_factory=dict)
    times: list[StageTime] = field(default_factory=list)
    elapsed: float = 0.0
    """Seconds of the current stage before the checkpoint that it was resumed from."""
    clock: float | None = None
    """When the running phase started, `time.perf_counter`."""
    should_stop: bool = False
    current_task: Task | None = None
    current_stage: Stage | None = None
    num_stages: int = 0

    __hash__ = Callback.__hash__

    @property
    def state_key(self) -> str:
        """Fixed, so that a checkpoint can be peeked at."""
        return "StreamState"

    def begin(self, num_tasks: int, seed: int) -> None:
        """Start an empty stream."""
        self.num_tasks, self.seed = num_tasks, seed
        self.phase, self.task, self.stage, self.elapsed, self.should_stop = "stage", -1, 0, 0.0, False
        self.times = []
        self.counts = {
            s: Counts(torch.zeros(num_tasks + 1, num_tasks).long(), torch.zeros(num_tasks + 1, num_tasks).long())
            for s in SCENARIOS
        }

    def enter(self, task: Task, index: int, stage: Stage, num_stages: int, resumed: bool, global_step: int) -> None:
        """A stage is about to run."""
        self.phase, self.task, self.stage, self.num_stages = "stage", task.index, index, num_stages
        self.current_task, self.current_stage = task, stage
        if not resumed:
            self.elapsed, self.should_stop, self.first_step = 0.0, False, global_step

    def finish(self, task: Task) -> None:
        """A task is trained and evaluated."""
        self.phase, self.task, self.stage, self.elapsed, self.should_stop = "boundary", task.index, 0, 0.0, False

    def add_time(self, phase: StageTime) -> None:
        """A phase is over; a resumed stage counts what it took before the checkpoint."""
        phase.seconds += self.elapsed
        self.times.append(phase)
        self.elapsed, self.clock = 0.0, None

    def record(self, scenario: Scenario, row: int, correct: Tensor, total: Tensor) -> None:
        """Keep a row of counts, already summed over ranks; row -1 is before training.

        Scores other than accuracy come as sums of fractions (float64) and the number of their terms.
        """
        counts = self.counts[scenario]
        counts.correct, counts.total = counts.correct.to(correct.dtype), counts.total.to(total.dtype)
        counts.correct[row + 1] = correct.cpu()
        counts.total[row + 1] = total.cpu()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A stage that was about to stop early when the checkpoint was written stays decided."""
        if self.should_stop:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors only."""
        return {
            "schema": SCHEMA,
            "num_tasks": self.num_tasks,
            "phase": self.phase,
            "task": self.task,
            "stage": self.stage,
            "seed": self.seed,
            "first_step": self.first_step,
            "should_stop": self.should_stop,
            "elapsed": self.elapsed + (time.perf_counter() - self.clock if self.clock is not None else 0.0),
            "counts": {s: {"correct": c.correct.clone(), "total": c.total.clone()} for s, c in self.counts.items()},
            "times": [vars(t).copy() for t in self.times],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state.

        Raises:
            ValueError: When it was written by a newer version of this package.
        """
        if state_dict.get("schema", 0) > SCHEMA:
            raise ValueError(
                f"The checkpoint has stream schema {state_dict['schema']}, this version of lightning-cil knows up to "
                f"{SCHEMA}. Update lightning-cil to read it."
            )
        for name in ("num_tasks", "phase", "task", "stage", "seed", "first_step", "should_stop", "elapsed"):
            setattr(self, name, state_dict[name])
        self.counts = {s: Counts(c["correct"].clone(), c["total"].clone()) for s, c in state_dict["counts"].items()}
        self.times = [StageTime(**t) for t in state_dict["times"]]


def stream_state(trainer: Trainer) -> StreamState | None:
    """The trainer's stream state, `None` in a stock run."""
    return next((c for c in trainer.callbacks if isinstance(c, StreamState)), None)  # type: ignore[attr-defined]


def in_stream(trainer: Trainer) -> bool:
    """Whether the trainer's current fit is a stage of a stream; else it is a stock fit."""
    state = stream_state(trainer)
    return state is not None and state.current_stage is not None
