"""`FiniteLoss`: where it stops, what it says, and that no bad checkpoint is ever written."""

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_cil.__main__ import main
from lightning_cil.callbacks import FiniteLoss, NonFiniteError, StreamCheckpoint
from lightning_cil.callbacks.finite_loss import takes_argument
from lightning_cil.methods import FineTune
from tests.conftest import RunCli
from tests.ranks import run_ranks
from tests.streams import fit, make

ROOT = Path(__file__).parents[2]


class Poisoned(FineTune):
    """Its loss (or, after the step, its weights) go bad at batch 3 of epoch 2 of task 1."""

    value = float("nan")
    weights = False

    @property
    def is_time(self) -> bool:
        return self.task is not None and self.task.index == 1 and self.current_epoch == 1

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss + self.value if self.is_time and batch_idx == 2 and not self.weights else loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.is_time and batch_idx == self.trainer.num_training_batches - 1 and self.weights:
            with torch.no_grad():
                next(self.backbone.parameters())[0] = torch.inf


def step_of(error: NonFiniteError) -> int:
    return int(str(error).split("global step ")[1].split(",")[0])


def saved(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(("value", "every"), [("nan", 1), ("inf", 5), ("-inf", 1000)])
def test_a_bad_loss_ends_the_run_with_its_place_and_the_way_on(tmp_path: Path, value: str, every: int) -> None:
    module = make(Poisoned, epochs=3)
    module.value = float(value)
    with pytest.raises(NonFiniteError) as caught:
        fit(tmp_path, module, log_every_n_steps=every)
    text = str(caught.value)
    folder = tmp_path / "version_0" / "checkpoints"
    for part in (
        f"became {value} at batch 3 of epoch 2/3", "task 2/5", "stage 'train'", "learning rate 0.05",
        f"{folder / 'last.ckpt'}", "gradient_clip_val=1.0", f"{folder / 'task_0.ckpt'}", "lr=0.005",
    ):  # fmt: skip
        assert part in text
    last = saved(folder / "last.ckpt")
    assert last["global_step"] == step_of(caught.value) - 3  # the end of the epoch before
    assert all(v.isfinite().all() for v in last["state_dict"].values())
    module = make(Poisoned, epochs=3)
    module.value = 0.0
    trainer = fit(tmp_path, module, ckpt_path=str(folder / "last.ckpt"))
    assert trainer.state.finished


def test_bad_weights_are_not_written_over_good_ones(tmp_path: Path) -> None:
    module = make(Poisoned, epochs=3)
    module.weights = True
    with pytest.raises(NonFiniteError, match=r"weights are not finite any more \(first `backbone.conv1.weight`\)"):
        fit(tmp_path, module)
    folder = tmp_path / "version_0" / "checkpoints"
    assert all(v.isfinite().all() for v in saved(folder / "last.ckpt")["state_dict"].values())
    assert sorted(p.name for p in folder.iterdir()) == ["last.ckpt", "task_0.ckpt"]


def test_a_checkpoint_between_two_looks_is_refused(tmp_path: Path) -> None:
    every_step = StreamCheckpoint(every_n_train_steps=1)
    with pytest.raises(NonFiniteError, match="at batch 3 of") as caught:
        fit(tmp_path, make(Poisoned, epochs=2), callbacks=[every_step], log_every_n_steps=1000)
    last = saved(tmp_path / "version_0" / "checkpoints" / "last.ckpt")
    assert all(v.isfinite().all() for v in last["state_dict"].values())
    assert last["global_step"] == step_of(caught.value) - 1


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    trainer = fit(tmp_path, make(Poisoned, epochs=2), check_finite=False)
    assert not any(isinstance(c, FiniteLoss) for c in trainer.callbacks)
    assert trainer.state.finished


def test_gradients_that_the_scaler_leaves_out_are_no_error(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    trainer = fit(tmp_path, make(FineTune), plugins=[plugin], limit_train_batches=3)
    assert scaler.get_scale() < 2.0**126  # it did overflow
    assert trainer.state.finished


class EndlessOverflow(FineTune):
    """Its loss is finite, its gradients are not."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        loss.register_hook(lambda gradient: gradient * torch.inf)
        return loss


def test_a_scaler_that_leaves_out_all_steps_ends_the_run(tmp_path: Path) -> None:
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**-10))
    message = r"one step after the other are not finite.*scale to 6.1\S*e-05\), in epoch 1/1, task 1/5.*global step 4,"
    with pytest.raises(NonFiniteError, match=message):
        fit(tmp_path, make(EndlessOverflow), plugins=[plugin], log_every_n_steps=1)


def test_a_loss_that_is_bad_is_an_error_with_a_scaler_too(tmp_path: Path) -> None:
    plugin = MixedPrecision("16-mixed", "cpu")
    with pytest.raises(NonFiniteError, match=r"became nan at batch 3 of epoch 2/2, task 2/5(?s:.*)'bf16-mixed'"):
        fit(tmp_path, make(Poisoned, epochs=2), plugins=[plugin])
    last = saved(tmp_path / "version_0" / "checkpoints" / "last.ckpt")
    assert all(v.isfinite().all() for v in last["state_dict"].values())
    assert 0 < last["MixedPrecision"]["scale"] < 2**17


def test_a_step_without_logging_reads_nothing_from_the_device() -> None:
    callback = FiniteLoss()
    trainer: Any = SimpleNamespace(global_step=1, log_every_n_steps=50, world_size=1)
    module: Any = None
    callback.on_train_start(trainer, module)
    loss = torch.zeros((), device="meta")  # a tensor whose value nobody can read
    for step in range(1, 50):
        trainer.global_step = step
        callback.on_train_batch_end(trainer, module, {"loss": loss}, None, step - 1)
    trainer.global_step = 50
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        callback.on_train_batch_end(trainer, module, {"loss": loss}, None, 49)


def test_under_accumulation_a_step_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    callback = FiniteLoss()
    monkeypatch.setattr(callback, "_look", lambda trainer: looks.append(trainer.batch))
    trainer: Any = SimpleNamespace(global_step=0, log_every_n_steps=2, batch=0)
    module: Any = None
    callback.on_train_start(trainer, module)
    for batch in range(1, 33):
        trainer.batch, trainer.global_step = batch, batch // 4
        callback.on_train_batch_end(trainer, module, torch.zeros(()), None, batch - 1)
    assert looks == [8, 16, 24, 32]


def test_clipped_gradients_are_not_advised_again(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="clipped at a smaller value") as caught:
        fit(tmp_path, make(Poisoned, epochs=2), gradient_clip_val=1.0)
    assert "gradient_clip_val=0.1" in str(caught.value)


class NoOptimizer(FineTune):
    """Its rate of learning cannot be given."""

    def __init__(self, *, epochs: int = 2) -> None:
        super().__init__(epochs=epochs)


class PassesOn(FineTune):
    """Its arguments are those of the base, too."""

    def __init__(self, *, scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)


def test_a_rate_is_advised_only_where_it_can_be_given() -> None:
    assert takes_argument(FineTune, "optimizer")
    assert takes_argument(PassesOn, "optimizer")
    assert takes_argument(Poisoned, "optimizer")
    assert not takes_argument(NoOptimizer, "optimizer")
    assert not takes_argument(Plain, "optimizer")


class Plain(LightningModule):
    """Somebody's own module."""

    def __init__(self, bad: Callable[[int], bool]) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.bad = bad

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        if batch_idx == 1:
            return None  # a step that is left out
        loss = self.layer(batch[0]).mean()
        return loss / 0 if self.bad(batch_idx) else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_it_works_in_a_stock_trainer(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": tmp_path,
    }  # fmt: skip
    loader = DataLoader(TensorDataset(torch.ones(6, 2)))
    Trainer(callbacks=[FiniteLoss()], **options).fit(Plain(lambda i: False), loader)
    with pytest.raises(NonFiniteError, match=r"at batch 5 of epoch 1/1, global step 5, learning rate 0.1; expected"):
        Trainer(callbacks=[FiniteLoss()], **options).fit(Plain(lambda i: i == 4), loader)


RANK_1_GOES_BAD = """
from lightning_cil.methods import FineTune


class OneRank(FineTune):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.bad = self.global_rank == 1 and self.task.index == 1 and batch_idx == 1
        return loss + float("nan") if self.bad else loss
"""


def test_all_ranks_stop_for_a_loss_that_is_bad_on_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one_rank.py").write_text(RANK_1_GOES_BAD)
    monkeypatch.chdir(tmp_path)
    command = [
        "fit", "--config", str(ROOT / "examples" / "quickstart.yaml"),
        "--model", "one_rank.OneRank", "--model.epochs", "1", "--trainer.devices", "2", "--trainer.strategy", "ddp",
        "--trainer.default_root_dir", str(tmp_path / "runs"), "--trainer.callbacks", "null",
    ]  # fmt: skip

    def run() -> None:
        with Path(f"said_{os.environ['RANK']}").open("w") as file, contextlib.redirect_stderr(file):
            code = main(command)
        sys.exit(code)

    assert [code for code, _ in run_ranks(run, tmp_path)] == [1, 1]
    first, second = ((tmp_path / f"said_{rank}").read_text() for rank in (0, 1))
    assert "The loss became nan at batch 2 of epoch 1/1, task 2/5" in first
    assert "The loss became" not in second  # one message
    assert "Traceback" not in first + second
    last = saved(tmp_path / "runs" / "version_0" / "checkpoints" / "last.ckpt")
    assert all(v.isfinite().all() for v in last["state_dict"].values())


BAD_AT_ONCE = """
from lightning_cil.methods import ICaRL


class Bad(ICaRL):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + (float("inf") if self.global_step == 1 else 0)
"""


def test_the_learning_rate_of_a_methods_own_optimizer_can_be_lowered(run_cli: RunCli, tmp_path: Path) -> None:
    """`optimizer: null` in the config: a rate alone would be refused."""
    (tmp_path / "bad_at_once.py").write_text(BAD_AT_ONCE)
    config = {
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "default_root_dir": str(tmp_path / "runs")},
        "model": {"class_path": "bad_at_once.Bad", "init_args": {"backbone": {"name": "small_cnn", "in_channels": 1}}},
        "data": {"class_path": "SplitDigits"},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    done = run_cli("fit", "--config", tmp_path / "run.yaml", "--trainer.log_every_n_steps", 1)
    assert done.code == 1
    (printed,) = [line for line in done.stderr.splitlines() if "model.optimizer.lr" in line]
    name, *arguments = shlex.split(printed)
    again = run_cli(*arguments, "--print_config")
    assert (name, again.code) == ("lightning-cil", 0), again.stderr
    optimizer = yaml.safe_load(again.stdout)["model"]["init_args"]["optimizer"]
    assert optimizer["class_path"].endswith("SGD")
    found = {key: optimizer["init_args"][key] for key in ("lr", "momentum", "weight_decay")}
    assert found == {"lr": 0.2, "momentum": 0.9, "weight_decay": 1e-5}
