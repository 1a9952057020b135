"""The loop over tasks and stages; how a stage is fitted or tested is given.

The order of a task is in `callbacks/base.py`. A checkpoint says where in it a run goes on.
"""

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch import callbacks as stock
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_cil import _compat
from lightning_cil._random import fold_seed
from lightning_cil.callbacks.base import call_hook
from lightning_cil.callbacks.checkpoint import StreamCheckpoint
from lightning_cil.callbacks.freezing import StagedFreezing
from lightning_cil.callbacks.gather import equalise_buffers
from lightning_cil.callbacks.interruption import Interruption
from lightning_cil.callbacks.random_state import seed_generators
from lightning_cil.callbacks.relabel import OnlineRelabel
from lightning_cil.callbacks.replay import ReplayBuffer
from lightning_cil.callbacks.stream_state import StageTime, StreamState
from lightning_cil.callbacks.teacher import Teacher
from lightning_cil.data.base import IncrementalDataModule
from lightning_cil.launch import check_checkpoint
from lightning_cil.methods.base import IncrementalModule
from lightning_cil.stream_checkpoint import STATE_KEY, check_learned, peek
from lightning_cil.types import SCENARIOS, Stage, Task


class StreamDriver:
    """The loop over tasks and stages; how a stage is fitted or tested is given."""

    def __init__(
        self,
        trainer: Trainer,
        module: IncrementalModule,
        datamodule: IncrementalDataModule,
        fit: Callable[[int, int, Any], None],
        test: Callable[[], None],
    ) -> None:
        self.trainer = trainer
        self.module = module
        self.datamodule = datamodule
        self.fit = fit
        self.test = test
        self.steps_per_stage = trainer.max_steps
        """`max_steps`, and with `fast_dev_run` its steps, hold for each stage."""
        self.state: StreamState = next(c for c in trainer.callbacks if isinstance(c, StreamState))  # type: ignore[attr-defined]
        self.interruption: Interruption = next(c for c in trainer.callbacks if isinstance(c, Interruption))  # type: ignore[attr-defined]

    def run(self, ckpt_path: Any, stop_after_task: int | None, evaluate_before: bool) -> None:
        """Train and evaluate from the beginning or from a checkpoint, until the end or a signal."""
        trainer, interruption = self.trainer, self.interruption
        savers = [c for c in trainer.callbacks if isinstance(c, StreamCheckpoint)]  # type: ignore[attr-defined]

        def before_batch() -> None:
            interruption.before_batch(trainer)

        def after_batch(resumable: bool) -> None:
            for saver in savers:
                saver.after_batch(trainer, resumable)
            interruption.after_batch(trainer, resumable)

        def after_epoch() -> None:
            for saver in savers:
                saver.after_epoch(trainer)
            interruption.after_epoch(trainer)

        with (
            interruption.listening(trainer, _compat.requeue_signal(trainer)),
            _compat.safe_points(trainer, before_batch, after_batch, after_epoch),
        ):
            self._run(ckpt_path, stop_after_task, evaluate_before)

    def _run(self, ckpt_path: Any, stop_after_task: int | None, evaluate_before: bool) -> None:
        trainer, module, datamodule, state = self.trainer, self.module, self.datamodule, self.state
        tasks = datamodule.tasks
        if stop_after_task is not None and stop_after_task >= len(tasks):
            raise ValueError(
                f"`stop_after_task={stop_after_task}`, but the stream has the tasks 0 to {len(tasks) - 1}. "
                "Give one of them, or leave it out to train all."
            )
        if module.head.num_classes and not ckpt_path:
            raise ValueError(
                f"{type(module).__name__} has learned {module.head.num_classes} classes already, and no checkpoint is "
                "given to go on from. Make a new module for a new stream, or give `ckpt_path` to continue one."
            )
        module.check_labels(datamodule)
        self._add_required_callbacks()
        _compat.prepare_data(trainer)
        datamodule.setup("fit")
        state.begin(len(tasks), trainer.strategy.broadcast(_run_seed()))
        first, resumed, ckpt = 0, False, None
        if ckpt_path:
            check_checkpoint(trainer.strategy, ckpt_path)
            saved = peek(ckpt_path)
            check_learned(saved, str(ckpt_path), datamodule)
            datamodule.load_state_dict(saved.get(type(datamodule).__qualname__, {}))
            state.load_state_dict(saved["callbacks"][STATE_KEY])
            written_by = saved.get("lightning_cil", {}).get("method", type(module).__name__)
            if written_by != type(module).__name__:
                rank_zero_warn(
                    f"{ckpt_path} was written by {written_by} and goes on with {type(module).__name__}: the matrix "
                    "mixes both, and results.json names the second. Take another checkpoint if that is not wanted."
                )
            ckpt = ckpt_path
            given = os.environ.get("PL_GLOBAL_SEED")
            if given is not None and int(given) != state.seed:
                rank_zero_warn(
                    f"The run goes on with its own seed, {state.seed}; the seed given here, {given}, is not used."
                )
        module.begin_stream(tasks, state.seed)
        module.class_names = list(datamodule.class_names)
        call_hook(trainer, module, "on_stream_start", bool(ckpt))
        if ckpt and state.phase != "stage":
            module.grow_to(tasks[state.task])
            module.configure_model()  # sharded checkpoints are read into sharded parameters
            _compat.restore_finished_task(trainer, ckpt)
            first, ckpt = state.task + 1, None
            rank_zero_info(f"Going on after task {state.task} of {ckpt_path}")
            if state.phase == "evaluation":
                self._score(tasks[state.task])
        elif ckpt:
            first, resumed = state.task, True
            rank_zero_info(f"Going on inside task {state.task}, stage {state.stage} of {ckpt_path}")
        elif evaluate_before and module.label_kind == "single":  # without outputs there is nothing to rank
            self._evaluate(row=-1)
        end = len(tasks) if stop_after_task is None else stop_after_task + 1
        for task in tasks[first:end]:
            self.interruption.check(trainer)
            self._run_task(task, ckpt if resumed else None)
            resumed = False
        call_hook(trainer, module, "on_stream_end")
        state.current_task = state.current_stage = None

    def _run_task(self, task: Task, ckpt: Any) -> None:
        trainer, module, state = self.trainer, self.module, self.state
        start = state.stage if ckpt else 0
        if not ckpt:
            state.current_task = task
            seed_generators(fold_seed(state.seed, 3, task.index, trainer.global_rank))
            call_hook(trainer, module, "on_task_start", task)
        module.grow_to(task)
        stages = self._stages(task)
        for index, stage in enumerate(stages[start:], start):
            self._run_stage(task, index, stage, len(stages), ckpt)
            ckpt = None
        if stages:
            trainer.strategy.model_to_device()
            seed_generators(fold_seed(state.seed, 4, task.index, trainer.global_rank))
            with self._timed(task, "task end"):
                call_hook(trainer, module, "on_task_end", task)
            self.interruption.check(trainer)
            state.phase = "evaluation"
        self._score(task, evaluate=bool(stages) or module.always_evaluated)

    def _score(self, task: Task, evaluate: bool = True) -> None:
        """Fill the task's row of the matrix and close the task."""
        if evaluate:
            self._evaluate(row=task.index)
        self.state.finish(task)
        with _compat.without_optimizers(self.trainer):
            call_hook(self.trainer, self.module, "on_task_scored", task)

    def _run_stage(self, task: Task, index: int, stage: Stage, num_stages: int, ckpt: Any) -> None:
        trainer, module, state = self.trainer, self.module, self.state
        state.enter(task, index, stage, num_stages, bool(ckpt), trainer.global_step)
        self.datamodule.set_stage(task, stage, fold_seed(state.seed, 1, task.index, index))
        module.begin_stage(task, stage)
        call_hook(trainer, module, "setup_stage", task, stage)
        if not ckpt:
            call_hook(trainer, module, "on_stage_start", task, stage)
            seed_generators(fold_seed(state.seed, 2, task.index, index, trainer.global_rank))
        with self._timed(task, stage.name):
            steps = self.steps_per_stage
            epochs = 1 if trainer.fast_dev_run else stage.epochs  # type: ignore[attr-defined]
            self.fit(epochs, -1 if steps == -1 else state.first_step + steps, ckpt)
        trainer.strategy.model_to_device()
        equalise_buffers(trainer, module)
        self.interruption.check(trainer)
        call_hook(trainer, module, "on_stage_end", task, stage)

    def _stages(self, task: Task) -> list[Stage]:
        """The method's stages, or those that a `StagedFreezing` callback declares."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StagedFreezing):
                if type(self.module).stages is not IncrementalModule.stages:
                    raise ValueError(
                        f"`StagedFreezing` declares stages, and {type(self.module).__name__} has its own; expected one "
                        "of them. Take the callback out, or use a method with a single plain stage."
                    )
                return list(callback.stages)
        return list(self.module.stages(task))

    def _evaluate(self, row: int) -> None:
        """Score the network on every task's test data: row `row` of the matrix."""
        self.module.begin_evaluation(row)
        task = self.datamodule.tasks[max(row, 0)]
        try:
            with self._timed(task, "evaluation before training" if row < 0 else "evaluation"):
                self.test()
        finally:
            self.module.end_evaluation()
        for scenario in SCENARIOS:
            correct, total = self.module.evaluation_counts(scenario)
            self.state.record(scenario, row, correct[row + 1], total[row + 1])

    def _add_required_callbacks(self) -> None:
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            name = type(callback).__name__
            if type(callback) in (stock.EarlyStopping, stock.ModelCheckpoint) and callback.monitor is not None:
                rank_zero_warn(
                    f"The stock `{name}` keeps its best score from stage to stage, so that it stops, or stops saving, "
                    f"in later stages. Use `lightning_cil.callbacks.{name}`, which takes the same arguments."
                )
        parts = [type(c) for c in callbacks if getattr(c, "part_of_method", False)]
        for kind in parts:
            if parts.count(kind) > 1:
                raise ValueError(
                    f"got {parts.count(kind)} callbacks `{kind.__name__}`; expected one, for both would fill the same "
                    "keys of a batch. Take the others out."
                )
        for needed in self.module.required_callbacks():
            if not any(isinstance(c, type(needed)) for c in callbacks):
                position = next((i for i, c in enumerate(callbacks) if isinstance(c, Checkpoint)), len(callbacks))
                callbacks.insert(position, needed)
                replay_before_teacher(callbacks)
                rank_zero_info(f"{type(self.module).__name__} needs a {type(needed).__name__}: added {needed}")
        method = type(self.module)  # a user's subclass may replay without saying so
        known = method.__module__.startswith("lightning_cil.") or "uses_exemplars" in vars(method)
        if ReplayBuffer in parts and known and not method.uses_exemplars and method.label_kind == "single":
            rank_zero_warn(
                f"{type(self.module).__name__} uses no exemplars: those of the callback `ReplayBuffer` are stored and "
                "counted, and change nothing. Take it out (on the command line `--trainer.callbacks null`), or choose "
                "a method that replays, such as `ER`."
            )

    @contextmanager
    def _timed(self, task: Task, name: str) -> Iterator[None]:
        device = self.trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            torch.cuda.synchronize(device)
        begin = self.state.clock = time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            peak = torch.cuda.max_memory_allocated(device)
        else:
            unit = 1 if sys.platform == "darwin" else 1024
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        self.state.add_time(StageTime(task.index, name, time.perf_counter() - begin, peak))


def replay_before_teacher(callbacks: list[Callback]) -> None:
    """Exemplars must be in the batch when the teacher's turn comes, and stored before they are relabelled."""
    replay = next((i for i, c in enumerate(callbacks) if isinstance(c, ReplayBuffer)), None)
    user = next((i for i, c in enumerate(callbacks) if isinstance(c, Teacher | OnlineRelabel)), None)
    if replay is not None and user is not None and user < replay:
        callbacks.insert(user, callbacks.pop(replay))


def _run_seed() -> int:
    """The seed of `seed_everything`, or the one that torch started with."""
    given = os.environ.get("PL_GLOBAL_SEED")
    return int(given) if given is not None else torch.initial_seed() % 2**32
