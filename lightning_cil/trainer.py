"""`IncrementalTrainer` and `fit_stream`: one complete Lightning run for each stage of each task.

Inside a single launch, every stage gets its own device placement, process-group wrap, optimizers, schedules,
precision and data from Lightning, as if it were a fit of its own; evaluation after a task is a test run in the same
launch. What resets with a stage: optimizer, scheduler, early stopping, the epoch counter. What goes on:
`global_step`, loggers, callbacks, the buffer, the matrix.
"""

import os
import pickle
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch import callbacks as stock
from lightning.pytorch.callbacks import Checkpoint, OnExceptionCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_cil import _compat
from lightning_cil._random import fold_seed
from lightning_cil.callbacks.base import call_hook
from lightning_cil.callbacks.checkpoint import StreamCheckpoint, copy_checkpoint
from lightning_cil.callbacks.finite_loss import FiniteLoss
from lightning_cil.callbacks.freezing import StagedFreezing
from lightning_cil.callbacks.interruption import RUN_KEY, Interruption, requeue_checkpoints, saved_job, slurm_job
from lightning_cil.callbacks.progress import StreamProgressBar
from lightning_cil.callbacks.random_state import RandomState, seed_generators
from lightning_cil.callbacks.records import PredictionRecords
from lightning_cil.callbacks.replay import ReplayBuffer
from lightning_cil.callbacks.results import ResultsWriter
from lightning_cil.callbacks.stream_state import SCHEMA, StageTime, StreamState
from lightning_cil.callbacks.summary import StreamSummary, rank_zero_print, test_lines, validation_line
from lightning_cil.callbacks.teacher import Teacher
from lightning_cil.data.base import IncrementalDataModule
from lightning_cil.data.predict import FolderLoader, write_predictions
from lightning_cil.launch import check_checkpoint, check_strategy, launching
from lightning_cil.methods.base import IncrementalModule
from lightning_cil.run_logger import RunLogger
from lightning_cil.types import SCENARIOS, Stage, Task

STATE_KEY = "StreamState"


class IncrementalTrainer(Trainer):
    """A `lightning.pytorch.Trainer` that also fits a stream of tasks.

    With an `IncrementalDataModule`, `fit` trains and evaluates the whole stream; without one, everything is as in
    the stock Trainer. The run folder is `trainer.log_dir`.

    Args:
        callbacks: As in the stock Trainer; what a stream needs and the list lacks is added (`StreamState`,
            `RandomState`, `Interruption`, `FiniteLoss`, `PredictionRecords`, `ResultsWriter`, `StreamSummary`,
            `StreamProgressBar`, `StreamCheckpoint`).
        logger: As in the stock Trainer; by default CSV files in `default_root_dir/version_<n>`.
        default_root_dir: Where run folders are made; `runs` by default.
        enable_checkpointing: Whether checkpoints are written.
        enable_progress_bar: Whether a progress bar is shown.
        enable_model_summary: Whether Lightning prints a table of layers before every stage.
        num_sanity_val_steps: Validation batches before every stage.
        stop_after_task: Index of the task after which the run ends, ready to be resumed from its checkpoint.
        evaluate_before_training: Whether the untrained network is scored (the row that forward transfer needs).
        check_finite: Whether a loss that is NaN or infinite ends the run (`FiniteLoss`).
        **kwargs: All other arguments of the stock Trainer.
    """

    def __init__(
        self,
        *,
        callbacks: list[Callback] | Callback | None = None,
        logger: Logger | Iterable[Logger] | bool | None = None,
        default_root_dir: str | Path | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = False,
        num_sanity_val_steps: int | None = 0,
        stop_after_task: int | None = None,
        evaluate_before_training: bool = True,
        check_finite: bool = True,
        **kwargs: Any,
    ) -> None:
        _check_task(stop_after_task)
        _check_settings(kwargs)
        given = list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks] if callbacks else []
        root = "runs" if default_root_dir is None else os.fspath(default_root_dir)
        if logger is None or logger is True:
            logger = RunLogger(root)
        bar = enable_progress_bar is not False and not kwargs.get("barebones")
        super().__init__(
            callbacks=_with_defaults(
                given, checkpoints=enable_checkpointing is not False, bar=bar, check_finite=check_finite
            ),
            logger=logger,
            default_root_dir=root,
            enable_checkpointing=enable_checkpointing,
            enable_progress_bar=enable_progress_bar,
            enable_model_summary=enable_model_summary,
            num_sanity_val_steps=num_sanity_val_steps,
            **kwargs,
        )
        self.stop_after_task = stop_after_task
        self.evaluate_before_training = evaluate_before_training
        self._max_epochs_given = kwargs.get("max_epochs")
        self._in_stream = False

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
        stop_after_task: int | None = None,
    ) -> None:
        """Train: a stream when the data are an `IncrementalDataModule`, else as the stock Trainer.

        Args:
            model: The method.
            train_dataloaders: Stock runs: training data. Or a datamodule.
            val_dataloaders: Stock runs: validation data.
            datamodule: The stream.
            ckpt_path: Go on from this checkpoint; `last`: from the newest one below the root, in its run folder.
            weights_only: As in the stock Trainer; streams always read checkpoints so.
            stop_after_task: Index of the task after which to stop; overrides the trainer's own.
        """
        if stop_after_task is not None:
            _check_task(stop_after_task)
            self.stop_after_task = stop_after_task
        stream = datamodule if datamodule is not None else train_dataloaders
        if isinstance(stream, IncrementalDataModule):
            check_strategy(self.strategy)
            if _compat.launcher_kind(self) == "multiprocessing":  # the run folder is chosen here, where it is asked for
                if ckpt_path == "last":
                    ckpt_path = self._last_checkpoint(go_on=type(model).__name__)
                if isinstance(self.logger, RunLogger):
                    self.logger.choose_folder()
        try:
            with launching(self):
                super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning says 1
                raise SystemExit(128 + signal.SIGINT) from None
            raise

    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
        images: str | None = None,
        output: str | None = None,
    ) -> Any:
        """Predict as the stock Trainer does, or classify a folder of images into a CSV file.

        Args:
            model: The method.
            dataloaders: What to predict.
            datamodule: What to predict, or, with `images`, how images are prepared.
            return_predictions: As in the stock Trainer.
            ckpt_path: The weights.
            weights_only: As in the stock Trainer.
            images: A folder of images, searched with its sub-folders.
            output: The CSV file; by default `predictions.csv` in the working directory.
        """
        if images is None or model is None or not isinstance(datamodule, IncrementalDataModule):
            if images is not None:
                raise ValueError("`images` needs a model and an `IncrementalDataModule`, which says how to read them.")
            if isinstance(datamodule, IncrementalDataModule) and dataloaders is None:
                raise ValueError("There is nothing to predict: expected `images`, a folder (`--images FOLDER`).")
            with launching(self), _compat.without_optimizers(self):
                return super().predict(model, dataloaders, datamodule, return_predictions, ckpt_path, weights_only)
        ckpt_path = self._resolve(ckpt_path, model, datamodule)
        loader = FolderLoader(datamodule, images)
        with launching(self), _compat.without_optimizers(self):
            batches: Any = super().predict(model, loader, None, True, ckpt_path, weights_only)
        if self.is_global_zero:
            names = getattr(model, "class_names", [])
            path = write_predictions(output or "predictions.csv", loader.paths, batches, names)
            print(f"{len(loader.paths)} images classified: {path}")
        return batches

    def _fit_impl(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: Any = None,
        *rest: Any,
        **kwargs: Any,
    ) -> None:
        if isinstance(train_dataloaders, IncrementalDataModule):
            train_dataloaders, datamodule = None, train_dataloaders
        if not isinstance(datamodule, IncrementalDataModule):
            super()._fit_impl(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, *rest, **kwargs)
            return
        _check_module(model)
        if self.is_global_zero:
            _check_root(Path(self.default_root_dir))
        if self._max_epochs_given is not None:
            rank_zero_warn("A stream ignores `max_epochs`: its stages say how many epochs they have (`epochs`).")
        _compat.attach(self, model, datamodule)
        _compat.connect(self, model)
        self.strategy.setup_environment()
        if ckpt_path == "last":
            path = self._last_checkpoint(go_on=type(model).__name__)
        elif ckpt_path is None:
            path = self._left_behind()
        else:
            path = _compat.select_checkpoint(self, ckpt_path)

        def fit(epochs: int, max_steps: int, ckpt: Any) -> None:
            _compat.run_fit(self, model, datamodule, epochs, max_steps, ckpt)

        def test() -> None:
            _compat.run_test(self, model, datamodule)

        assert isinstance(model, IncrementalModule)
        driver = _Driver(self, model, datamodule, fit, test)
        self._in_stream = True
        driver.run(path, self.stop_after_task, self.evaluate_before_training)
        self._in_stream = False

    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Test as the stock Trainer does; `ckpt_path='last'` is the newest `last.ckpt` below the root.

        Of a stream, one line for each task is printed.
        """
        ckpt_path = self._resolve(ckpt_path, model, datamodule)
        ours = isinstance(model or self.lightning_module, IncrementalModule)
        with launching(self), _compat.without_optimizers(self):
            found = super().test(model, dataloaders, ckpt_path, verbose and not ours, datamodule, weights_only)
        if verbose and ours and found:
            rank_zero_print("\n".join(test_lines(found[0])))
        return found

    def validate(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Validate as the stock Trainer does; `ckpt_path='last'` is the newest `last.ckpt` below the root."""
        ckpt_path = self._resolve(ckpt_path, model, datamodule)
        ours = isinstance(model or self.lightning_module, IncrementalModule)
        with launching(self), _compat.without_optimizers(self):
            found = super().validate(model, dataloaders, ckpt_path, verbose and not ours, datamodule, weights_only)
        if verbose and ours and found:
            rank_zero_print(validation_line(found))
        return found

    def _resolve(
        self, ckpt_path: str | Path | None, model: LightningModule | None, datamodule: Any
    ) -> str | Path | None:
        """The file behind "last"; a stream's checkpoint is looked at before Lightning reads it.

        Sharded strategies need the model's shapes before they read it.
        """
        if ckpt_path == "last":
            ckpt_path = newest_checkpoint(self.default_root_dir)
            if ckpt_path is None:
                raise FileNotFoundError(
                    f"`ckpt_path=last`: there is no checkpoints/last.ckpt below {self.default_root_dir}. Give the path "
                    "of a checkpoint, or the `default_root_dir` of the run."
                )
        if ckpt_path is not None and _is_file(ckpt_path) and isinstance(model, IncrementalModule):
            check_checkpoint(self.strategy, ckpt_path)
            saved = peek(ckpt_path)
            _check_checkpoint(saved, str(ckpt_path), datamodule, method=type(model).__name__)
            if isinstance(self.strategy, ModelParallelStrategy):
                for size in saved["lightning_cil"]["task_sizes"][len(model.head.sizes) :]:
                    model.head.grow(size)
        return ckpt_path

    def _last_checkpoint(self, go_on: str) -> str | None:
        """The newest `last.ckpt` below the root; the run goes on in its folder."""
        newest = self.strategy.broadcast(newest_checkpoint(self.default_root_dir))
        if newest is None:
            rank_zero_warn(f"There is no checkpoint below {self.default_root_dir}: the run starts from its beginning.")
            return None
        try:
            saved = peek(newest)
        except ValueError as error:
            others = sorted(newest.parent.glob("task_*.ckpt"), key=lambda p: p.stat().st_mtime, reverse=True)
            good = next((str(p) for p in others if _is_readable(p)), None)
            hint = (
                f"Go on from an older one, --ckpt_path {good}"
                if good
                else "No older one there is readable: start again"
            )
            raise ValueError(
                f"`ckpt_path=last` finds a damaged file. {error}. {hint}, or move the file away."
            ) from error
        method = saved.get("lightning_cil", {}).get("method", go_on)
        if method != go_on:
            raise ValueError(
                f"`ckpt_path=last` finds {newest}, which is a run of {method}, and the method given is {go_on}. Give "
                "each method its own `default_root_dir`, or name the checkpoint to branch from it into a new folder."
            )
        self._go_on_in_its_folder(saved, newest.parent.parent.name)
        return str(newest)

    def _left_behind(self) -> str | None:
        """What a requeued SLURM job, or a run with `OnExceptionCheckpoint`, goes on from without being told."""
        path = None
        if SLURMEnvironment.detect():
            others = []
            for found in requeue_checkpoints(Path(self.default_root_dir)):
                job = saved_job(found)
                if job == slurm_job():
                    path = path or found
                else:
                    others.append(f"{found} (job {job})")
            if others and path is None:
                rank_zero_warn(
                    f"The run starts from its beginning. It does not go on from {', '.join(others)}: that was left "
                    f"by another job than this one ({slurm_job()}). Give it as `ckpt_path` to go on from it, else "
                    "delete it."
                )
        on_exception = [Path(c.ckpt_path) for c in self.callbacks if isinstance(c, OnExceptionCheckpoint)]  # type: ignore[attr-defined]
        path = self.strategy.broadcast(path or next((p for p in on_exception if p.exists()), None))
        if path is None:
            return None
        rank_zero_info(f"Going on from {path}")
        self._go_on_in_its_folder(peek(path))
        return str(path)

    def _go_on_in_its_folder(self, saved: dict[str, Any], folder: str | None = None) -> None:
        run = saved.get(RUN_KEY, {})
        version = (folder or f"version_{run.get('version', '')}").removeprefix("version_")
        if isinstance(self.logger, RunLogger) and version.isdecimal():
            self.logger.resume(int(version), int(run.get("rows", 0)))

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any = None
    ) -> None:
        """Save as the stock Trainer does; after an exception in a stream, copy the newest state that goes on exactly.

        In the middle of a step, weights, generators and data position are of no single moment.
        """
        checkpoint = next((c for c in self.callbacks if isinstance(c, StreamCheckpoint)), None)  # type: ignore[attr-defined]
        if self.interrupted and self._in_stream and checkpoint is not None and not weights_only:
            last = checkpoint.directory(self) / "last.ckpt"
            if not last.exists():
                rank_zero_info(f"{filepath} is not written: there is no state yet to go on from.")
            elif self.is_global_zero:
                copy_checkpoint(last, Path(filepath))
            return
        super().save_checkpoint(filepath, weights_only, storage_options)


def _is_readable(path: Path) -> bool:
    try:
        peek(path)
    except ValueError:
        return False
    return True


def newest_checkpoint(root: str | Path) -> Path | None:
    """The `checkpoints/last.ckpt` below a folder, at any depth, that was written last."""
    found = [p for p in Path(root).rglob("checkpoints/last.ckpt") if p.exists()]
    return max(found, key=lambda p: p.stat().st_mtime, default=None)


def fit_stream(
    trainer: Trainer,
    module: IncrementalModule,
    datamodule: IncrementalDataModule,
    ckpt_path: str | None = None,
    stop_after_task: int | None = None,
    evaluate_before_training: bool = True,
    check_finite: bool = True,
) -> None:
    """Run a stream on a stock `Trainer`, one `trainer.fit` for each stage.

    `IncrementalTrainer` does more; this is for trainers that cannot be replaced. Missing stream callbacks are added.

    Args:
        trainer: A Lightning trainer with a single-process or subprocess launcher.
        module: The method.
        datamodule: The stream.
        ckpt_path: A checkpoint file of a stream, to go on from.
        stop_after_task: Index of the task after which to stop.
        evaluate_before_training: Whether the untrained network is scored.
        check_finite: Whether a loss that is NaN or infinite ends the run (`FiniteLoss`).

    Raises:
        ValueError: For trainers on which a second `fit` would go wrong silently.
    """
    _check_module(module)
    check_strategy(trainer.strategy)
    if _compat.launcher_kind(trainer) == "multiprocessing":
        raise ValueError(
            "`fit_stream` got a trainer with a spawn, fork or notebook launcher, which can fit once only; expected "
            "strategy='auto' or 'ddp'. Use `IncrementalTrainer(...).fit(module, datamodule)` with this strategy."
        )
    if any(isinstance(c, OnExceptionCheckpoint) for c in trainer.callbacks):  # type: ignore[attr-defined]
        raise ValueError(
            "`fit_stream` got a trainer with `OnExceptionCheckpoint`, from which every later stage would reload an "
            "old checkpoint. Remove the callback, or use `IncrementalTrainer`."
        )
    if trainer.world_size > 1 and "PL_GLOBAL_SEED" not in os.environ:
        raise ValueError(
            "`fit_stream` got a trainer with several processes and no seed, so that each would draw another stream. "
            "Call `lightning.pytorch.seed_everything` first."
        )
    leftover = sorted(Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"))
    if leftover and ckpt_path is None:
        raise ValueError(
            f"`fit_stream` found {leftover[-1]}, which Lightning would reload in every stage. Move it away and give "
            "it as `ckpt_path`, or use `IncrementalTrainer`, which resumes from it."
        )
    checkpoints = any(isinstance(c, Checkpoint) for c in trainer.callbacks)  # type: ignore[attr-defined]
    trainer.callbacks[:] = _with_defaults(  # type: ignore[attr-defined]
        trainer.callbacks,  # type: ignore[attr-defined]
        checkpoints=checkpoints,
        bar=False,
        check_finite=check_finite,
    )

    def fit(epochs: int, max_steps: int, ckpt: Any) -> None:
        if ckpt is None:
            _compat.start_afresh(trainer)
        _compat.limit_fit(trainer, epochs, max_steps)
        trainer.should_stop = False
        with _compat.quiet():
            trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt, weights_only=True if ckpt else None)

    def test() -> None:
        with _compat.quiet():
            trainer.test(module, datamodule=datamodule, verbose=False)

    _compat.connect(trainer, module)
    _compat.attach(trainer, module, datamodule)
    _Driver(trainer, module, datamodule, fit, test).run(ckpt_path, stop_after_task, evaluate_before_training)


class _Driver:
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
            interruption.agree(trainer)

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
        self._add_required_callbacks()
        _compat.prepare_data(trainer)
        datamodule.setup("fit")
        state.begin(len(tasks), trainer.strategy.broadcast(_run_seed()))
        first, resumed, ckpt = 0, False, None
        if ckpt_path:
            check_checkpoint(trainer.strategy, ckpt_path)
            saved = peek(ckpt_path)
            _check_checkpoint(saved, str(ckpt_path), datamodule)
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
        elif evaluate_before:
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
        self._score(task, evaluate=bool(stages))

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
        self._equalise_buffers()
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
        for needed in self.module.required_callbacks():
            if not any(isinstance(c, type(needed)) for c in callbacks):
                position = next((i for i, c in enumerate(callbacks) if isinstance(c, Checkpoint)), len(callbacks))
                callbacks.insert(position, needed)
                _replay_before_teacher(callbacks)
                rank_zero_info(f"{type(self.module).__name__} needs a {type(needed).__name__}: added {needed}")

    def _equalise_buffers(self) -> None:
        """DDP sends rank 0's BatchNorm statistics before each step, so that ranks differ after the last one."""
        if self.trainer.world_size > 1:
            for buffer in self.module.buffers():
                torch.distributed.broadcast(buffer, src=0)

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


def peek(ckpt_path: str | Path) -> dict[str, Any]:
    """Read a stream checkpoint without its weights, which stay mapped on disk.

    Args:
        ckpt_path: A checkpoint file of a stream, or the folder of a sharded one.

    Returns:
        The checkpoint; of a sharded one what is not sharded: everything but weights and optimizers.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is damaged, holds code, or is no checkpoint of a stream.
    """
    if not os.path.exists(ckpt_path):
        raise FileNotFoundError(f"`ckpt_path={ckpt_path}`: no such file; expected a checkpoint or 'last'.")
    try:
        path = _compat.metadata_file(ckpt_path)
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError(_refusal(ckpt_path, _why_unreadable(Path(ckpt_path), error))) from error
    if not isinstance(saved, dict):
        raise ValueError(_refusal(ckpt_path, f"it holds a {type(saved).__name__}"))
    if STATE_KEY not in (saved.get("callbacks") or {}):
        other = "pytorch-lightning_version" in saved
        raise ValueError(_refusal(ckpt_path, "it is of another Lightning project" if other else "it has no stream"))
    absent = [k for k in ("state_dict", "loops", "global_step") if k not in saved]
    state = saved["callbacks"][STATE_KEY]
    absent += [f"callbacks.{STATE_KEY}.{k}" for k in StreamState().state_dict() if k not in state]
    if absent and state.get("schema", 0) <= SCHEMA:
        raise ValueError(_refusal(ckpt_path, f"it lacks {', '.join(f'`{k}`' for k in absent)}"))
    return dict(saved)


def _is_file(ckpt_path: str | Path | None) -> bool:
    """Whether it is a path of this machine, not one of Lightning's words or an address."""
    text = str(ckpt_path)
    return ckpt_path is not None and text not in ("best", "hpc") and "://" not in text and text[:8] != "registry"


def _refusal(ckpt_path: str | Path, why: str) -> str:
    return (
        f"`ckpt_path={ckpt_path}` is not a readable checkpoint of a stream: {why}; expected a file that lightning-cil "
        "wrote, such as checkpoints/last.ckpt or checkpoints/task_0.ckpt of a run folder. Give another one."
    )


def _why_unreadable(path: Path, error: Exception) -> str:
    if path.is_dir():
        return "it is a folder that holds no `meta.pt`"
    size = path.stat().st_size
    if not size:
        return "it is empty"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK":  # what torch.save writes is a zip archive
        return "it is no file of torch.save"
    if isinstance(error, pickle.UnpicklingError):
        return "it holds more than tensors and plain values, which could run code, so nothing of it was loaded"
    return f"it is damaged or cut off, at {size} bytes"


def _check_checkpoint(saved: dict[str, Any], path: str, datamodule: Any, method: str | None = None) -> None:
    """Refuse what a newer version wrote, what was learned from other classes, or by another method than `method`."""
    StreamState().load_state_dict(saved["callbacks"][STATE_KEY])
    written_by = saved.get("lightning_cil", {}).get("method", method)
    if method is not None and written_by != method:
        raise ValueError(
            f"`ckpt_path={path}` was written by {written_by}, and the method given is {method}, which may predict in "
            f"another way. Give `--model {written_by}`, or the config.yaml of its run."
        )
    if not isinstance(datamodule, IncrementalDataModule) or type(datamodule).__qualname__ in saved:
        return  # the datamodule compares the rest
    theirs = list(saved.get("lightning_cil", {}).get("class_names", []))
    if theirs != datamodule.class_names:
        raise ValueError(
            f"`ckpt_path={path}` was written with other data than {type(datamodule).__name__}: its classes are "
            f"{_few(theirs)} there and {_few(datamodule.class_names)} here. Use the data settings of the run that "
            "wrote it (its config.yaml), or start a new run without `--ckpt_path`."
        )


def _few(names: list[str]) -> str:
    return f"{', '.join(map(str, names[:4]))}{' …' if len(names) > 4 else ''} ({len(names)})"


def _check_task(stop_after_task: int | None) -> None:
    if stop_after_task is not None and stop_after_task < 0:
        raise ValueError(f"`stop_after_task={stop_after_task}`: expected the index of a task, 0 or more.")


def _check_settings(given: dict[str, Any]) -> None:
    """What the stock Trainer takes and then goes wrong with."""
    for name, least in (("accumulate_grad_batches", 1), ("log_every_n_steps", 0), ("gradient_clip_val", 0)):
        value = given.get(name)
        if value is not None and not value >= least:
            raise ValueError(f"`{name}={value}`: expected {least} or more. Leave it out for Lightning's default.")
    accelerator = given.get("accelerator")
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available() and not torch.backends.mps.is_available():
        raise ValueError(
            f"`accelerator={accelerator}`: PyTorch {torch.__version__} finds no GPU on this machine; expected one. Use "
            "accelerator=cpu, or install a driver and a PyTorch with CUDA."
        )


def _check_root(root: Path) -> None:
    """Refuse, before hours of training, a folder that nothing can be written to."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise ValueError(
            f"`default_root_dir={root}`: run folders cannot be made there ({error.strerror}); expected a folder that "
            "can be written to. Give another `default_root_dir`, or correct its permissions."
        ) from error


def _run_seed() -> int:
    """The seed of `seed_everything`, or the one that torch started with."""
    given = os.environ.get("PL_GLOBAL_SEED")
    return int(given) if given is not None else torch.initial_seed() % 2**32


def _check_module(module: LightningModule) -> None:
    if not isinstance(module, IncrementalModule):
        raise TypeError(
            f"A stream needs an `IncrementalModule`, got {type(module).__name__}. Derive it from "
            "`lightning_cil.methods.IncrementalModule`, or train it on each task's loaders with a stock `fit`."
        )


def _replay_before_teacher(callbacks: list[Callback]) -> None:
    """The teacher looks at the exemplars too, so they must be in the batch when its turn comes."""
    replay = next((i for i, c in enumerate(callbacks) if isinstance(c, ReplayBuffer)), None)
    teacher = next((i for i, c in enumerate(callbacks) if isinstance(c, Teacher)), None)
    if replay is not None and teacher is not None and teacher < replay:
        callbacks.insert(teacher, callbacks.pop(replay))


def _with_defaults(given: list[Callback], *, checkpoints: bool, bar: bool, check_finite: bool) -> list[Callback]:
    def lacks(kind: type) -> bool:
        return not any(isinstance(c, kind) for c in given)

    added: list[Callback] = [StreamState()] if lacks(StreamState) else []
    added += [RandomState()] if lacks(RandomState) else []
    added += [Interruption()] if lacks(Interruption) else []
    added += [FiniteLoss()] if check_finite and lacks(FiniteLoss) else []
    added += given
    added += [PredictionRecords()] if lacks(PredictionRecords) else []
    added += [ResultsWriter()] if lacks(ResultsWriter) else []
    added += [StreamSummary()] if lacks(StreamSummary) else []
    added += [StreamProgressBar()] if bar and lacks(ProgressBar) else []
    added += [StreamCheckpoint()] if checkpoints and lacks(StreamCheckpoint) else []
    _replay_before_teacher(added)
    return sorted(added, key=lambda c: (not isinstance(c, StreamState), isinstance(c, Checkpoint)))
