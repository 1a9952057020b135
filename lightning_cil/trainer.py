"""`IncrementalTrainer` and `fit_stream`: one complete Lightning run for each stage of each task.

Inside a single launch, every stage gets its own device placement, process-group wrap, optimizers, schedules,
precision and data from Lightning, as if it were a fit of its own; evaluation after a task is a test run in the same
launch. What resets with a stage: optimizer, scheduler, early stopping, the epoch counter. What goes on:
`global_step`, loggers, callbacks, the buffer, the matrix.
"""

import os
import signal
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch import callbacks as stock
from lightning.pytorch.callbacks import Checkpoint, OnExceptionCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_cil import _compat
from lightning_cil.callbacks.checkpoint import StreamCheckpoint, copy_checkpoint
from lightning_cil.callbacks.finite_loss import FiniteLoss
from lightning_cil.callbacks.interruption import RUN_KEY, Interruption, requeue_checkpoints, saved_job, slurm_job
from lightning_cil.callbacks.progress import StreamProgressBar
from lightning_cil.callbacks.random_state import RandomState
from lightning_cil.callbacks.records import PredictionRecords
from lightning_cil.callbacks.results import ResultsWriter
from lightning_cil.callbacks.stream_state import StreamState
from lightning_cil.callbacks.summary import StreamSummary, rank_zero_print, test_lines, validation_line
from lightning_cil.data.base import IncrementalDataModule
from lightning_cil.data.predict import FolderLoader, write_predictions
from lightning_cil.driver import StreamDriver, replay_before_teacher
from lightning_cil.launch import check_checkpoint, check_strategy, launching
from lightning_cil.methods.base import IncrementalModule
from lightning_cil.run_lock import locked
from lightning_cil.run_logger import RunLogger, has_folder
from lightning_cil.stream_checkpoint import (
    check_learned,
    check_path,
    is_file,
    is_readable,
    newest_checkpoint,
    peek,
)


class IncrementalTrainer(Trainer):
    """A `lightning.pytorch.Trainer` that also fits a stream of tasks.

    With an `IncrementalDataModule`, `fit` trains and evaluates the whole stream; without one, everything is as in
    the stock Trainer. The run folder is `trainer.log_dir`: that of the first logger where it is a CSV or TensorBoard
    logger, else `default_root_dir/version_<n>`, since other loggers have none, or one for all their runs.

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
        evaluate_before_training: Whether the untrained network is scored, with the very outputs that each task starts
            from: the row that forward transfer needs. Without it FWT is undefined and says why.
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
        self._folder_keeper: RunLogger | None = None
        self._in_stream = False

    @property
    def run_logger(self) -> RunLogger | None:
        """Which knows the run folder: the first logger, or one that logs nothing; `None` where another logger does."""
        return self.logger if isinstance(self.logger, RunLogger) else self._folder_keeper

    @property
    def log_dir(self) -> str | None:
        """The run folder; a collective."""
        if self._folder_keeper is None:
            return super().log_dir
        folder: str = self.strategy.broadcast(self._folder_keeper.log_dir)
        return folder

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
        self._folder_keeper = None
        if isinstance(stream, IncrementalDataModule):
            if self.loggers and not has_folder(self.logger) and not self.fast_dev_run:  # type: ignore[attr-defined]
                self._folder_keeper = RunLogger(self.default_root_dir)
            check_path(ckpt_path, fit=True)
            check_strategy(self.strategy)
            if _compat.launcher_kind(self) == "multiprocessing":  # the run folder is chosen here, where it is asked for
                if ckpt_path == "last":
                    ckpt_path = self._last_checkpoint(go_on=type(model).__name__)
                if self.run_logger is not None:
                    self.run_logger.choose_folder()
        try:
            with launching(self):
                super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning says 1
                raise SystemExit(128 + signal.SIGINT) from None
            raise
        finally:
            self._in_stream = False  # after `on_exception`, which may save a checkpoint

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
            multi = getattr(model, "label_kind", "single") == "multi"
            path = write_predictions(output or "predictions.csv", loader.paths, batches, names, multi)
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
        _check_limits(self)
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
        driver = StreamDriver(self, model, datamodule, fit, test)
        with self._own_folder(path):
            self._in_stream = True
            driver.run(path, self.stop_after_task, self.evaluate_before_training)
            for callback in self.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, OnExceptionCheckpoint):
                    callback.teardown(self)  # removes its file, also when no stage was left to run

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
        module = model or self.lightning_module
        ours = isinstance(module, IncrementalModule)
        with launching(self), _compat.without_optimizers(self):
            found = super().validate(model, dataloaders, ckpt_path, verbose and not ours, datamodule, weights_only)
        if verbose and isinstance(module, IncrementalModule) and found:
            rank_zero_print(validation_line(found, module.num_tasks_seen))
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
        if ckpt_path is not None and is_file(ckpt_path) and isinstance(model, IncrementalModule):
            check_checkpoint(self.strategy, ckpt_path)
            saved = peek(ckpt_path)
            check_learned(saved, str(ckpt_path), datamodule, method=type(model).__name__)
            if isinstance(self.strategy, ModelParallelStrategy):
                ours = saved["lightning_cil"]
                for size in ours.get("head_sizes", ours["task_sizes"])[len(model.head.sizes) :]:
                    model.add_task(size)
        return ckpt_path

    def _last_checkpoint(self, go_on: str) -> str | None:
        """The newest `last.ckpt` below the root; the run goes on in its folder."""
        newest: Path | None = None
        problem: Exception | None = None
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        if alone or self.is_global_zero:  # a rank that looked later would find the run locked by rank 0
            try:
                newest = newest_checkpoint(self.default_root_dir, idle=True)
            except (ValueError, OSError) as error:
                problem = error
        newest, problem = self.strategy.broadcast((newest, problem))
        if problem is not None:
            raise problem
        if newest is None:
            rank_zero_warn(f"There is no checkpoint below {self.default_root_dir}: the run starts from its beginning.")
            return None
        try:
            saved = peek(newest)
        except ValueError as error:
            others = sorted(newest.parent.glob("task_*.ckpt"), key=lambda p: p.stat().st_mtime, reverse=True)
            good = next((str(p) for p in others if is_readable(p)), None)
            hint = (
                f"Go on from an older one, --ckpt_path {good}"
                if good
                else "No older one there is readable: start again"
            )
            raise ValueError(
                f"`ckpt_path=last` finds a damaged file. {error} {hint}, or move the file away."
            ) from error
        method = saved.get("lightning_cil", {}).get("method", go_on)
        if method != go_on:
            raise ValueError(
                f"`ckpt_path=last` finds {newest}, which is a run of {method}, and the method given is {go_on}. Give "
                "each method its own `default_root_dir`, or name the checkpoint to branch from it into a new folder."
            )
        self._go_on_in_its_folder(saved, newest.parent.parent)
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
        saved = peek(path)
        folder = saved.get(RUN_KEY, {}).get("folder")
        if folder is not None:
            root = self.logger.root_dir if isinstance(self.logger, TensorBoardLogger) else self.default_root_dir
            self._go_on_in_its_folder(saved, Path(root) / folder)
        return str(path)

    def _go_on_in_its_folder(self, saved: dict[str, Any], folder: Path) -> None:
        if self.run_logger is not None and folder.is_dir():
            self.run_logger.resume(folder, int(saved.get(RUN_KEY, {}).get("rows", 0)))
        elif (
            isinstance(self.logger, TensorBoardLogger)
            and folder.parent.resolve() == Path(self.logger.root_dir).resolve()
        ):
            _compat.reopen(self.logger, folder.name)

    @contextmanager
    def _own_folder(self, path: str | None) -> Iterator[None]:
        """Make the run folder and keep other runs out of it; rank 0 does, the others learn what came of it."""
        problem: Exception | None = None
        with ExitStack() as stack:
            if self.is_global_zero and not self.fast_dev_run:  # type: ignore[attr-defined]
                try:
                    if self.run_logger is not None:
                        self.run_logger.choose_folder()
                    keeper: Any = self.run_logger or self.logger
                    folder = str(keeper.log_dir if has_folder(keeper) else self.default_root_dir)
                    if not self.loggers:
                        _check_vacant(Path(folder), path)
                    if "://" not in folder:
                        Path(folder).mkdir(parents=True, exist_ok=True)
                        stack.enter_context(locked(Path(folder)))
                except (ValueError, OSError) as error:
                    problem = error
            problem = self.strategy.broadcast(problem)
            if problem is not None:
                raise problem
            yield

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
    check_path(ckpt_path, fit=True)
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
    folderless = trainer.loggers and not has_folder(trainer.logger) and trainer.loggers[0].save_dir is None
    if folderless and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        rank_zero_warn(
            f"`fit_stream` got a trainer whose logger, {type(trainer.logger).__name__}, has no folder, so that no "
            "results.json is written. Put `CSVLogger` first, or use `IncrementalTrainer`, which makes a run folder."
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
    StreamDriver(trainer, module, datamodule, fit, test).run(ckpt_path, stop_after_task, evaluate_before_training)


def _check_task(stop_after_task: int | None) -> None:
    if stop_after_task is not None and stop_after_task < 0:
        raise ValueError(f"`stop_after_task={stop_after_task}`: expected the index of a task, 0 or more.")


def _check_settings(given: dict[str, Any]) -> None:
    """What the stock Trainer takes and then goes wrong with."""
    for name, least in (("accumulate_grad_batches", 1), ("log_every_n_steps", 0), ("gradient_clip_val", 0)):
        value = given.get(name)
        if value is not None and not value >= least:
            raise ValueError(f"`{name}={value}`: expected {least} or more. Leave it out for Lightning's default.")
    if given.get("val_check_interval") == 0:
        raise ValueError(
            "`val_check_interval=0`: expected a number of batches from 1, or a share of an epoch above 0. To leave "
            "validation out, give `limit_val_batches=0`."
        )
    accelerator = given.get("accelerator")
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available() and not torch.backends.mps.is_available():
        raise ValueError(
            f"`accelerator={accelerator}`: PyTorch {torch.__version__} finds no GPU on this machine; expected one. Use "
            "accelerator=cpu, or install a driver and a PyTorch with CUDA."
        )


def _check_limits(trainer: Trainer) -> None:
    """Refuse limits that end a stage and not the run, or leave nothing to train on or to score.

    Raises:
        ValueError: For `max_time`, a `Timer`, and limits of 0.
    """
    if any(isinstance(c, stock.Timer) for c in trainer.callbacks):  # type: ignore[attr-defined]
        raise ValueError(
            "`max_time` (or a `Timer`) would end the stage that it runs out in, and train the later ones hardly at all;"
            " expected none. To end a run in time send it SIGTERM, which leaves a checkpoint and says how to go on: "
            "`timeout 2h lightning-cil fit …`."
        )
    for name in ("limit_train_batches", "limit_test_batches"):
        if getattr(trainer, name) == 0:
            raise ValueError(f"`{name}=0` leaves nothing to {name.split('_')[1]} on; expected more, or leave it out.")


def _check_vacant(folder: Path, path: str | None) -> None:
    """Without a logger the run folder is the root itself, where another run may be.

    Raises:
        ValueError: When a run is there that this one does not go on from.
    """
    own = path is not None and folder.resolve() in Path(path).resolve().parents
    if not own and ((folder / "results.json").exists() or (folder / "checkpoints" / "last.ckpt").exists()):
        raise ValueError(
            f"`logger=False` makes `default_root_dir={folder}` the run folder, and a run is there already. Give "
            "another `default_root_dir`, or leave `logger` out, so that every run gets a folder of its own."
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


def _check_module(module: LightningModule) -> None:
    if not isinstance(module, IncrementalModule):
        raise TypeError(
            f"A stream needs an `IncrementalModule`, got {type(module).__name__}. Derive it from "
            "`lightning_cil.methods.IncrementalModule`, or train it on each task's loaders with a stock `fit`."
        )


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
    replay_before_teacher(added)
    return sorted(added, key=lambda c: (not isinstance(c, StreamState), isinstance(c, Checkpoint)))
