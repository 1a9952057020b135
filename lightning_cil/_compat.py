"""The only file that knows Lightning's private names; `tests/test_compat.py` is their contract test.

What a stream needs that the public API does not give: several complete runs inside one launch, each with fresh
epoch counters and the global step going on, and a restore that takes over everything but a finished optimizer.
Read against lightning 2.6.6.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.fabric.utilities.load import _METADATA_FILENAME
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus

PRIVATE_NAMES = {
    "Trainer": [
        "_fit_impl",
        "_run",
        "_data_connector",
        "_checkpoint_connector",
        "_signal_connector",
        "_accelerator_connector",
    ],
    "fit_loop": [
        "max_epochs",
        "epoch_progress",
        "epoch_loop",
        "load_state_dict",
        "_combined_loader_states_to_load",
        "on_advance_end",
        "_restarting",
        "_loaded_from_state_dict",
        "_resuming_from_checkpoint",
    ],
    "strategy": ["_optimizers", "lr_scheduler_configs"],
    "epoch_loop": [
        "max_steps",
        "automatic_optimization",
        "val_loop",
        "on_advance_end",
        "_should_check_val_fx",
        "_should_accumulate",
        "_is_training_done",
        "_broadcast_sigterm_tensor",
    ],
    "signal_connector": ["register_signal_handlers"],
    "checkpoint_connector": [
        "_select_ckpt_path",
        "resume_start",
        "resume_end",
        "restore_model",
        "restore_datamodule",
        "restore_callbacks",
        "restore_precision_plugin_state",
        "_ckpt_path",
        "_loaded_checkpoint",
    ],
    "model_parallel_strategy": ["_tensor_parallel_size"],
    "subprocess_launcher": ["procs"],
    "subprocess_script": ["_launch_process_observer"],
    "process_observer": ["_run"],
    "tensorboard_logger": ["_version"],
}
"""Checked by the contract test: owner -> attributes."""


def reopen(logger: TensorBoardLogger, folder: str) -> None:
    """Let a logger that has opened no folder yet write to one that is there, `version_<n>` or any other name."""
    if logger._version is None:
        logger._version = version_of(folder)


def version_of(folder: str) -> int | str:
    """What a logger calls the version whose folder has this name."""
    number = folder.removeprefix("version_")
    return int(number) if number.isdecimal() and folder != number else folder


@contextmanager
def process_observer(wanted: Callable[[], bool]) -> Iterator[None]:
    """Inside, Lightning's watch over the processes that `ddp` starts is one that looks only while it is wanted.

    It kills rank 0 within five seconds and leaves no time for a message.
    """

    class Observer(_ChildProcessObserver):
        def _run(self) -> bool:
            return super()._run() if wanted() else False

    def launch(child_processes: Any) -> None:
        Observer(os.getpid(), child_processes).start()

    own = vars(subprocess_script)
    previous = own["_launch_process_observer"]
    own["_launch_process_observer"] = launch
    try:
        yield
    finally:
        own["_launch_process_observer"] = previous


def select_checkpoint(trainer: Trainer, ckpt_path: Any) -> Any:
    """Resolve `ckpt_path` ("last", "hpc", a path) once for the whole stream, as Lightning would for a fit."""
    return trainer._checkpoint_connector._select_ckpt_path(
        TrainerFn.FITTING, ckpt_path, model_provided=True, model_connected=True
    )


def attach(trainer: Trainer, module: LightningModule, datamodule: LightningDataModule) -> None:
    """Link module and data to the trainer; drops loaders that the loops cached."""
    trainer._data_connector.attach_data(module, datamodule=datamodule)


def run_fit(
    trainer: Trainer,
    module: LightningModule,
    datamodule: LightningDataModule,
    epochs: int,
    max_steps: int,
    ckpt_path: Any,
) -> None:
    """One complete training run of `epochs` epochs with counters that start at 0 (unless `ckpt_path` says else).

    It ends early at global step `max_steps`; -1: not.
    """
    if ckpt_path is None:
        start_afresh(trainer)
    limit_fit(trainer, epochs, max_steps)
    trainer.state.fn, trainer.state.status = TrainerFn.FITTING, TrainerStatus.RUNNING
    trainer.training, trainer.should_stop = True, False
    attach(trainer, module, datamodule)
    with quiet():
        trainer._run(module, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    trainer.training = False


def start_afresh(trainer: Trainer) -> None:
    """The next fit is a stage from its beginning: epochs count from 0, and nothing of a checkpoint is taken up.

    A fit that was over when its checkpoint was written is skipped on resuming, and leaves loops that wait to go on.
    """
    loop = trainer.fit_loop
    loop.epoch_progress.reset_on_run()
    loop._combined_loader_states_to_load = []
    stack: list[Any] = [loop]
    while stack:
        current = stack.pop()
        current._restarting = current._loaded_from_state_dict = current._resuming_from_checkpoint = False
        stack += [child for child in vars(current).values() if hasattr(child, "_loaded_from_state_dict")]


def limit_fit(trainer: Trainer, epochs: int, max_steps: int) -> None:
    """Set how far the next fit goes: so many epochs, up to a global step (-1: no limit)."""
    trainer.fit_loop.max_epochs = epochs
    trainer.fit_loop.epoch_loop.max_steps = max_steps


def prepare_data(trainer: Trainer) -> None:
    """Download and decode once on each node, the other processes waiting."""
    trainer._data_connector.prepare_data()


def run_test(trainer: Trainer, module: LightningModule, datamodule: LightningDataModule) -> None:
    """One complete evaluation run over all test loaders."""
    verbose, trainer.test_loop.verbose = trainer.test_loop.verbose, False
    trainer.state.fn, trainer.state.status = TrainerFn.TESTING, TrainerStatus.RUNNING
    trainer.testing = True
    attach(trainer, module, datamodule)
    try:
        with quiet():
            trainer._run(module)
    finally:
        trainer.test_loop.verbose = verbose
    trainer.testing = False
    trainer.state.fn = TrainerFn.FITTING


def connect(trainer: Trainer, module: LightningModule) -> None:
    """Make `module` the strategy's model, before anything has run."""
    trainer.strategy.connect(module)


def restore_finished_task(trainer: Trainer, ckpt_path: Any) -> None:
    """Take over a checkpoint that was written between two stages: everything but optimizer and epoch position."""
    connector = trainer._checkpoint_connector
    connector.resume_start(ckpt_path, weights_only=True)
    connector.restore_model()
    connector.restore_datamodule()
    connector.restore_callbacks()
    connector.restore_precision_plugin_state()
    loop = trainer.fit_loop
    loop.load_state_dict(connector._loaded_checkpoint["loops"]["fit_loop"])
    connector.resume_end()
    connector._ckpt_path = None


def launcher_kind(trainer: Trainer) -> Literal["subprocess", "multiprocessing", "none"]:
    """How the trainer starts its other processes: by running the command again, by spawn or fork, or not at all."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _MultiProcessingLauncher):
        return "multiprocessing"
    return "subprocess" if isinstance(launcher, _SubprocessScriptLauncher) else "none"


def metadata_file(ckpt_path: str | Path) -> Path:
    """Where everything but the weights is: in the checkpoint, or, if it is sharded, in a file of its folder."""
    return Path(ckpt_path, _METADATA_FILENAME) if os.path.isdir(ckpt_path) else Path(ckpt_path)


def tensor_parallel_size(strategy: ModelParallelStrategy) -> int:
    """Over how many processes layers would be split."""
    size = strategy._tensor_parallel_size
    return strategy.num_processes if size == "auto" else size


@contextmanager
def safe_points(
    trainer: Trainer,
    before_batch: Callable[[], object],
    after_batch: Callable[[bool], None],
    after_epoch: Callable[[], None],
) -> Iterator[None]:
    """Tell when a batch or an epoch is over with everything that belongs to it, logging included.

    Hooks come too early for a checkpoint that goes on exactly: a row of the log, a schedule's step and a validation
    would be missing. Lightning's own handlers of SIGTERM and SIGUSR1 stay out: they act in the middle of a step.

    Args:
        trainer: The trainer.
        before_batch: Called with several processes only, before every batch, on all of them.
        after_batch: Gets whether a checkpoint of this moment would go on exactly: no validation after this batch, no
            half-summed gradients, not the end of the epoch.
        after_epoch: Called after every epoch.
    """
    fit_loop, epoch_loop, signals = trainer.fit_loop, trainer.fit_loop.epoch_loop, trainer._signal_connector
    end_batch, end_epoch = epoch_loop.on_advance_end, fit_loop.on_advance_end

    def on_batch(data_fetcher: Any) -> None:
        validated = epoch_loop._should_check_val_fx(data_fetcher)
        end_batch(data_fetcher)
        over = epoch_loop._is_training_done or trainer.should_stop
        after_batch(not (validated or over or epoch_loop._should_accumulate()))

    def on_epoch() -> None:
        end_epoch()
        after_epoch()

    changed = [
        (epoch_loop, "on_advance_end", on_batch),
        (fit_loop, "on_advance_end", on_epoch),
        (epoch_loop, "_broadcast_sigterm_tensor", before_batch),
        (signals, "register_signal_handlers", lambda: None),
    ]
    for owner, name, function in changed:
        setattr(owner, name, function)
    try:
        yield
    finally:
        for owner, name, _ in changed:
            delattr(owner, name)


def requeue_signal(trainer: Trainer) -> int | None:
    """The signal by which SLURM asks the job to requeue itself; `None` elsewhere."""
    environment = trainer._accelerator_connector.cluster_environment
    if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
        return None
    signum = environment.requeue_signal
    return None if signum is None else int(signum)


@contextmanager
def without_optimizers(trainer: Trainer) -> Iterator[None]:
    """Checkpoints written between stages hold no optimizer state, for the next stage makes its own; tests need none."""
    strategy = trainer.strategy
    optimizers, configs = strategy._optimizers, strategy.lr_scheduler_configs
    strategy._optimizers, strategy.lr_scheduler_configs = [], []
    try:
        yield
    finally:
        strategy._optimizers, strategy.lr_scheduler_configs = optimizers, configs


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back warnings that a stream causes on purpose."""
    with warnings.catch_warnings():
        # frozen parts are in eval mode on purpose, and a short stage is no mistake
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
        warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")  # a stream's own
        warnings.filterwarnings("ignore", message=r"Total length of `list` across ranks is zero")  # no held-out data
        warnings.filterwarnings(
            "ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated"
        )  # torch's, ours not
        warnings.filterwarnings("ignore", message=r"The number of training batches \(\d+\) is smaller than the logging")
        yield
