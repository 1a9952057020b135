"""Contract with Lightning: the private names that `_compat.py` uses are there and behave as it needs."""

from pathlib import Path

import lightning.pytorch
import pytest
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
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
    return {
        "Trainer": trainer,
        "fit_loop": trainer.fit_loop,
        "epoch_loop": trainer.fit_loop.epoch_loop,
        "checkpoint_connector": trainer._checkpoint_connector,
        "signal_connector": trainer._signal_connector,
        "strategy": trainer.strategy,
        "model_parallel_strategy": ModelParallelStrategy(),
        "subprocess_launcher": _SubprocessScriptLauncher(LightningEnvironment(), 1, 1),
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
