"""Which folder a run writes to, and what keeps another run out of it."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from lightning_cil.callbacks import ReplayBuffer, StreamCallback, StreamCheckpoint
from lightning_cil.callbacks.interruption import RUN_KEY, keep_for_requeue
from lightning_cil.launch import ProcessDiedError
from lightning_cil.methods import ER, FineTune
from lightning_cil.run_lock import locked
from lightning_cil.run_logger import RunLogger
from lightning_cil.stream_checkpoint import newest_checkpoint, peek
from lightning_cil.trainer import fit_stream
from tests.callbacks.conftest import TinyTasks
from tests.streams import fit, make


def run(root: Path, *callbacks: Any, method: Any = FineTune, **options: Any) -> Any:
    return fit(root, make(method), TinyTasks(), list(callbacks), evaluate_before_training=False, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["er/version_0", "best", "deep/er/best"])
def test_last_goes_on_in_the_folder_of_its_checkpoint(tmp_path: Path, name: str) -> None:
    run(tmp_path)
    run(tmp_path / "other", stop_after_task=0)
    folder = tmp_path / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "other" / "version_0").rename(folder)
    finished = contents(tmp_path / "version_0")
    run(tmp_path, ckpt_path="last")
    assert json.loads((folder / "results.json").read_text())["status"] == "complete"
    assert contents(tmp_path / "version_0") == finished
    assert not (tmp_path / "version_1").exists()


def test_the_root_may_be_the_run_folder_itself(tmp_path: Path) -> None:
    run(tmp_path, stop_after_task=0)
    trainer = run(tmp_path / "version_0", ckpt_path="last")
    assert Path(trainer.log_dir) == tmp_path / "version_0"
    assert json.loads((tmp_path / "version_0" / "results.json").read_text())["status"] == "complete"


def test_runs_that_start_together_get_folders_of_their_own(tmp_path: Path) -> None:
    loggers = [RunLogger(tmp_path) for _ in range(3)]
    assert [logger.version for logger in loggers] == [0, 0, 0]  # each has looked before another made its folder
    for logger in loggers:
        logger.choose_folder()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["version_0", "version_1", "version_2"]
    assert len({logger.log_dir for logger in loggers}) == 3


def test_last_leaves_out_runs_that_go_on_elsewhere(tmp_path: Path) -> None:
    run(tmp_path, stop_after_task=0)
    run(tmp_path, stop_after_task=0)
    with locked(tmp_path / "version_1"):
        trainer = run(tmp_path, ckpt_path="last")
        assert Path(trainer.log_dir).name == "version_0"
    with locked(tmp_path / "version_0"), locked(tmp_path / "version_1"):
        with pytest.raises(ValueError, match="goes on in another process"):
            run(tmp_path, ckpt_path="last")
        assert newest_checkpoint(tmp_path) is not None  # to look at it is no harm


def test_without_a_logger_a_second_run_does_not_overwrite_the_first(tmp_path: Path) -> None:
    run(tmp_path, logger=False, stop_after_task=0)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"`logger=False` makes .* the run folder, and a run is there"):
        run(tmp_path, logger=False)
    assert contents(tmp_path) == before
    run(tmp_path, logger=False, ckpt_path="last")
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "complete"


class Elsewhere(Logger):
    """Has one folder for all its runs, as that of Weights & Biases, or none, as that of MLflow with a data base."""

    name = version = "elsewhere"

    def __init__(self, folder: Path | None) -> None:
        super().__init__()
        self.folder = folder

    @property
    def save_dir(self) -> str | None:
        return None if self.folder is None else str(self.folder)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


@pytest.mark.parametrize("shared", [True, False])
def test_with_a_logger_without_run_folders_every_run_gets_one(tmp_path: Path, shared: bool) -> None:
    logger = Elsewhere(tmp_path if shared else None)
    run(tmp_path, logger=logger, stop_after_task=0)
    before = contents(tmp_path)
    trainer = run(tmp_path, logger=logger, stop_after_task=0)
    assert trainer.loggers == [logger]
    assert Path(trainer.log_dir) == tmp_path / "version_1"
    assert {p.name for p in tmp_path.iterdir()} == {"version_0", "version_1"}
    saved = peek(tmp_path / "version_1" / "checkpoints" / "last.ckpt")
    assert saved[RUN_KEY]["folder"] == "version_1"  # where a requeued job goes on
    trainer = run(tmp_path, logger=logger, ckpt_path="last")
    assert Path(trainer.log_dir) == tmp_path / "version_1"
    assert json.loads((tmp_path / "version_1" / "results.json").read_text())["status"] == "complete"
    assert (tmp_path / "version_1" / "records" / "task_0.npz").exists()
    assert {name: content for name, content in contents(tmp_path).items() if "version_0" in name} == before


class Writer:
    """As much of `tensorboardX` as a logger uses: an event file in its folder."""

    def __init__(self, log_dir: str) -> None:
        Path(log_dir).mkdir(parents=True, exist_ok=True)
        (Path(log_dir) / f"events_{len(list(Path(log_dir).glob('events_*')))}").touch()

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", True)


@pytest.mark.usefixtures("tensorboard")
@pytest.mark.parametrize("name", ["lightning_logs", ""])
def test_tensorboard_goes_on_in_the_folder_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (0, 1):
        trainer = run(tmp_path, logger=TensorBoardLogger(tmp_path, name), stop_after_task=0)
        assert Path(trainer.log_dir) == tmp_path / name / f"version_{number}"
    before = contents(tmp_path / name / "version_0")
    trainer = run(tmp_path, logger=TensorBoardLogger(".", name), ckpt_path="last")
    folder = Path(trainer.log_dir).resolve()
    assert folder == tmp_path / name / "version_1"
    assert {"task_0.npz", "task_1.npz"} <= {p.name for p in (folder / "records").iterdir()}
    assert json.loads((folder / "results.json").read_text())["status"] == "complete"
    assert contents(tmp_path / name / "version_0") == before
    with locked(folder), pytest.raises(ValueError, match="goes on in another process"):
        run(tmp_path, logger=TensorBoardLogger(tmp_path, name, version=1))
    trainer = run(tmp_path, logger=TensorBoardLogger(tmp_path, name, version=7), ckpt_path="last")  # as it is told
    assert Path(trainer.log_dir) == tmp_path / name / "version_7"


def test_a_requeued_job_goes_on_in_the_folder_of_tensorboard(
    tmp_path: Path, tensorboard: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "cil"}.items():
        monkeypatch.setenv(name, value)
    run(tmp_path, logger=TensorBoardLogger(tmp_path / "tb"), stop_after_task=0)
    (last,) = tmp_path.rglob("last.ckpt")
    keep_for_requeue(last, tmp_path)
    trainer = run(tmp_path, logger=TensorBoardLogger(tmp_path / "tb"))
    assert Path(trainer.log_dir) == tmp_path / "tb" / "lightning_logs" / "version_0"
    assert json.loads((Path(trainer.log_dir) / "results.json").read_text())["status"] == "complete"
    assert not list(tmp_path.glob("hpc_ckpt_*"))


def test_processes_share_the_folder_that_the_logger_lacks(tmp_path: Path) -> None:
    trainer = run(tmp_path, logger=Elsewhere(None), devices=2, strategy="ddp_fork")
    assert [p.parent.name for p in tmp_path.rglob("results.json")] == ["version_0"]
    assert Path(trainer.log_dir) == tmp_path / "version_0"


def test_a_stock_trainer_without_any_folder_is_said(tmp_path: Path) -> None:
    trainer = Trainer(logger=Elsewhere(None), default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    with pytest.warns(UserWarning, match="logger, Elsewhere, has no folder, so that no results.json"):
        fit_stream(trainer, make(FineTune), TinyTasks(), stop_after_task=0)


def test_the_only_checkpoint_is_not_cleared_away(tmp_path: Path) -> None:
    run(tmp_path, logger=False, stop_after_task=0)
    last = tmp_path / "checkpoints" / "last.ckpt"
    old = last.rename(last.with_name("last.ckpt.old"))
    run(tmp_path, logger=False, ckpt_path=old)
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "complete"


def test_a_node_that_has_met_no_other_looks_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `ddp_spawn` on several nodes, where each starts its processes; rank 0 is in another node."""
    run(tmp_path, stop_after_task=0)
    trainer = run(tmp_path, logger=False, fast_dev_run=1)
    monkeypatch.setattr(type(trainer), "is_global_zero", property(lambda self: False))
    assert trainer._last_checkpoint("FineTune") == str(tmp_path / "version_0" / "checkpoints" / "last.ckpt")


def test_a_folder_checkpoint_that_was_being_replaced_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "version_0" / "checkpoints" / "last.ckpt.old"
    folder.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no such file.*killed left .*last\.ckpt\.old in its place"):
        peek(folder.with_suffix(""))
    with locked(tmp_path / "version_0"):  # it is just being replaced
        assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path) == folder.with_suffix("")


def test_ranks_that_find_it_at_once_do_not_hinder_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "version_0" / "checkpoints" / "last.ckpt.old"
    folder.mkdir(parents=True)
    rename = Path.rename

    def too_late(self: Path, target: Path) -> Path:
        rename(self, target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", too_late)
    assert newest_checkpoint(tmp_path) == folder.with_suffix("")


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    run(tmp_path, stop_after_task=0)
    path = tmp_path / "version_0" / "checkpoints" / "task_0.ckpt"
    content = bytearray(path.read_bytes())
    at = bytes(content).index(b"archive/data/0") + 200
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="does not fit its own checksums"):
        peek(path)


class WithState(StreamCallback):
    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.value}


@pytest.mark.parametrize("value", [np.float64(0.5), Path("x")])
def test_state_that_no_run_could_go_on_from_is_named_at_once(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match=r"the state of WithState holds .* Convert it in `state_dict`"):
        run(tmp_path, WithState(value))
    assert not list(tmp_path.rglob("*.ckpt*"))
    run(tmp_path, WithState(0.5))


@pytest.mark.parametrize(
    ("callbacks", "options", "message"),
    [
        ((), {"max_time": "00:00:00:01"}, "`max_time`"),
        ((Timer("00:00:00:01"),), {}, "`max_time`"),
        ((), {"limit_train_batches": 0}, "`limit_train_batches=0` leaves nothing to train on"),
        ((), {"limit_test_batches": 0}, "`limit_test_batches=0` leaves nothing to test on"),
        ((ReplayBuffer(10), ReplayBuffer(20)), {"method": ER}, "got 2 callbacks `ReplayBuffer`"),
    ],
)
def test_what_would_give_wrong_results_is_refused(
    tmp_path: Path, callbacks: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, *callbacks, **options)


class FullDisk(StreamCheckpoint):
    """The disk of rank 0 is full."""

    def after_epoch(self, trainer: Any) -> None:
        save = trainer.save_checkpoint

        def fail(*args: Any, **kwargs: Any) -> None:
            if trainer.is_global_zero:
                raise OSError(28, "No space left on device")
            save(*args, **kwargs)

        trainer.save_checkpoint = fail
        super().after_epoch(trainer)


def test_a_full_disk_ends_all_processes(tmp_path: Path) -> None:
    with pytest.raises(ProcessDiedError, match="could not be written: No space left on device"):
        run(tmp_path, FullDisk(), devices=2, strategy="ddp_fork")
