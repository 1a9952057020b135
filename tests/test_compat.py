"""Contract with Lightning: the private names that `_compat.py` uses are there and behave as it needs."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch
import pytest
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from lightning_cil import _compat
from lightning_cil.data import SplitDigits
from lightning_cil.methods import FineTune
from tests.streams import make


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0, log_every_n_steps=1,
    )  # fmt: skip


def owners(trainer: Trainer) -> dict[str, object]:
    version: Any = TensorBoardLogger.version.fget  # type: ignore[attr-defined]  # one cannot be made without TensorBoard
    return {
        "Trainer": trainer,
        "fit_loop": trainer.fit_loop,
        "epoch_loop": trainer.fit_loop.epoch_loop,
        "checkpoint_connector": trainer._checkpoint_connector,
        "signal_connector": trainer._signal_connector,
        "strategy": trainer.strategy,
        "model_parallel_strategy": ModelParallelStrategy(),
        "subprocess_launcher": _SubprocessScriptLauncher(LightningEnvironment(), 1, 1),
        "subprocess_script": subprocess_script,
        "process_observer": _ChildProcessObserver(0, []),
        "tensorboard_logger": SimpleNamespace(**dict.fromkeys(version.__code__.co_names)),
    }


def test_private_names_are_there(trainer: Trainer) -> None:
    missing = [
        f"{owner}.{name}"
        for owner, names in _compat.PRIVATE_NAMES.items()
        for name in names
        if not hasattr(owners(trainer)[owner], name)
    ]
    assert not missing, (
        f"Lightning {lightning.pytorch.__version__} has no {missing}: lightning_cil/_compat.py was written for 2.6 and "
        "must be adapted."
    )


def test_two_fits_in_one_launch_restart_epochs_and_keep_the_step(trainer: Trainer) -> None:
    data = SplitDigits(num_tasks=1, batch_size=128)
    module: LightningModule = make(FineTune)
    data.setup("fit")
    module.begin_stream(data.tasks, 0)
    module.grow_to(data.tasks[0])
    trainer.limit_train_batches = 2
    for fits, epochs in ((1, 1), (2, 3)):
        _compat.run_fit(trainer, module, data, epochs, -1, None)
        assert trainer.current_epoch == epochs
        assert trainer.global_step == {1: 2, 2: 8}[fits]


def test_a_test_run_leaves_the_trainer_ready_to_fit(trainer: Trainer) -> None:
    data = SplitDigits(num_tasks=1)
    module = make(FineTune)
    data.setup("fit")
    module.begin_stream(data.tasks, 0)
    module.grow_to(data.tasks[0])
    module.begin_evaluation(0)
    _compat.run_test(trainer, module, data)
    correct, total = module.evaluation_counts("class_il")
    assert int(total[1, 0]) == 359  # every test image once
    assert int(correct.sum()) <= 359
    _compat.run_fit(trainer, module, data, 1, -1, None)
    assert trainer.global_step == 1438 // 32


def test_optimizers_come_back_after_a_checkpoint_without_them(trainer: Trainer) -> None:
    data = SplitDigits(num_tasks=1)
    module = make(FineTune)
    data.setup("fit")
    module.begin_stream(data.tasks, 0)
    module.grow_to(data.tasks[0])
    trainer.limit_train_batches = 1
    _compat.run_fit(trainer, module, data, 1, -1, None)
    held = trainer.optimizers
    assert held
    with _compat.without_optimizers(trainer):
        assert trainer.optimizers == []
    assert trainer.optimizers == held


def test_lightnings_own_observer_kills_only_while_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[_ChildProcessObserver] = []
    killed: list[int] = []
    monkeypatch.setattr(_ChildProcessObserver, "start", lambda self: started.append(self))
    monkeypatch.setattr(_ChildProcessObserver, "_terminate_all", lambda self: killed.append(self._main_pid))
    dead, wanted = SimpleNamespace(poll=lambda: -9, returncode=-9, pid=1), [False]
    with _compat.process_observer(lambda: wanted[0]):
        subprocess_script._launch_process_observer([dead])
    (observer,) = started
    assert (observer._run(), killed) == (False, [])  # looks again
    wanted[0] = True
    assert (observer._run(), killed) == (True, [os.getpid()])
    subprocess_script._launch_process_observer([dead])
    assert type(started[1]) is _ChildProcessObserver
