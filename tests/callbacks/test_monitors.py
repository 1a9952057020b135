"""`EarlyStopping` and `ModelCheckpoint` per stage, beside Lightning's own in the same stream."""

import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch.callbacks as stock
import pytest
import torch
from lightning.pytorch import Callback

from lightning_cil.callbacks import EarlyStopping, ModelCheckpoint
from lightning_cil.callbacks.stream_state import stream_state
from tests.callbacks.conftest import Net, Recorder, Scripted, TinyTasks, stock_fit, vectors
from tests.streams import fit, make

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]

EPOCHS = 4
OPTIONS: dict[str, Any] = {"limit_train_batches": 1, "evaluate_before_training": False}


def easy_first(task: int, epoch: int) -> float:
    """Every task gets better with every epoch, the later ones from a worse start than the first one's end."""
    return (10 if task else 4) - epoch


def stuck(task: int, epoch: int) -> float:
    """The second task gets worse from its second epoch on."""
    return epoch if task == 1 else -epoch


def epochs_of(root: Path, values: Any, callbacks: list[Callback], **options: Any) -> list[int]:
    """Epochs that each task was trained for."""
    counts = [0, 0, 0]

    def look(hook: str, trainer: Any, module: Any, *args: Any) -> None:
        if hook == "on_train_epoch_end":
            counts[module.task.index] += 1

    module = make(Scripted, values=values, epochs=EPOCHS)
    fit(root, module, TinyTasks(), [*callbacks, Recorder(look)], **OPTIONS, **options)
    return counts


def stopping(kind: type[stock.EarlyStopping], **options: Any) -> stock.EarlyStopping:
    return kind("score", patience=1, check_on_train_epoch_end=True, **options)


# ---------------------------------------------------------------------- EarlyStopping


def test_stages_that_improve_run_to_their_end(tmp_path: Path) -> None:
    assert epochs_of(tmp_path, easy_first, [stopping(EarlyStopping)]) == [4, 4, 4]


@pytest.mark.filterwarnings("ignore:The stock")
def test_lightnings_own_ends_all_later_stages_after_one_epoch(tmp_path: Path) -> None:
    """Why there is one of ours; when this fails, Lightning has changed and ours may go."""
    assert epochs_of(tmp_path, easy_first, [stopping(stock.EarlyStopping)]) == [4, 1, 1]


def test_it_ends_its_stage_only(tmp_path: Path) -> None:
    assert epochs_of(tmp_path, stuck, [stopping(EarlyStopping)]) == [4, 2, 4]


def test_modes_max_and_min_forget_alike(tmp_path: Path) -> None:
    def values(task: int, epoch: int) -> float:
        return -easy_first(task, epoch)

    assert epochs_of(tmp_path, values, [stopping(EarlyStopping, mode="max")]) == [4, 4, 4]


def test_a_decided_stop_is_kept_in_the_checkpoint(tmp_path: Path) -> None:
    """A checkpoint of the epoch in which the stop was decided: the resumed stage trains no further epoch."""

    class Keep(stock.Checkpoint):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if pl_module.task.index == 1 and stream_state(trainer).should_stop:
                trainer.save_checkpoint(tmp_path / "stopped.ckpt")

    assert epochs_of(tmp_path / "a", stuck, [stopping(EarlyStopping), Keep()]) == [4, 2, 4]
    saved = torch.load(tmp_path / "stopped.ckpt", weights_only=True)
    assert saved["callbacks"]["StreamState"]["should_stop"]
    resumed = epochs_of(tmp_path / "b", stuck, [stopping(EarlyStopping)], ckpt_path=str(tmp_path / "stopped.ckpt"))
    assert resumed == [0, 0, 4]


def test_patience_goes_on_in_a_resumed_stage(tmp_path: Path) -> None:
    """Stopped after the first epoch of task 1: the resumed run knows that epoch's score."""

    class Keep(stock.Checkpoint):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if pl_module.task.index == 1 and trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "first.ckpt")

    epochs_of(tmp_path / "a", stuck, [stopping(EarlyStopping), Keep()])
    resumed = epochs_of(tmp_path / "b", stuck, [stopping(EarlyStopping)], ckpt_path=str(tmp_path / "first.ckpt"))
    assert resumed == [0, 1, 4]


class Scored(Net):
    """Logs a score that gets worse."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("score", float(self.current_epoch), on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("kind", [EarlyStopping, stock.EarlyStopping])
def test_in_a_stock_fit_it_is_the_stock_one(kind: Any) -> None:
    trainer = stock_fit(Scored(), vectors([0, 1]), [stopping(kind)], epochs=5)
    assert trainer.current_epoch == 2


# ---------------------------------------------------------------------- ModelCheckpoint


def best_of(root: Path, kind: type[stock.ModelCheckpoint], **options: Any) -> list[tuple[str, float]]:
    """File and score of the best model at the end of each stage."""
    keep = kind(dirpath=root / "best", monitor="score", filename="{step}", **options)
    found: list[Any] = []

    def look(hook: str, trainer: Any, module: Any, *args: Any) -> None:
        if hook == "on_stage_end":
            found.append((Path(keep.best_model_path).name, float(keep.best_model_score)))

    module = make(Scripted, values=easy_first, epochs=EPOCHS)
    fit(root, module, TinyTasks(), [keep, Recorder(look)], **OPTIONS)
    return found


def test_every_stage_has_its_own_best_model(tmp_path: Path) -> None:
    assert best_of(tmp_path, ModelCheckpoint) == [("step=4.ckpt", 1.0), ("step=8.ckpt", 7.0), ("step=12.ckpt", 7.0)]
    assert {p.name for p in (tmp_path / "best").iterdir()} == {"step=4.ckpt", "step=8.ckpt", "step=12.ckpt"}


@pytest.mark.filterwarnings("ignore:The stock")
def test_lightnings_own_keeps_the_first_tasks_model(tmp_path: Path) -> None:
    assert best_of(tmp_path, stock.ModelCheckpoint) == [("step=4.ckpt", 1.0)] * 3


def test_a_stages_top_k_are_its_own(tmp_path: Path) -> None:
    best_of(tmp_path, ModelCheckpoint, save_top_k=2)
    steps = sorted(int(p.stem.partition("=")[2]) for p in (tmp_path / "best").iterdir())
    assert steps == [3, 4, 7, 8, 11, 12]
    for path in (tmp_path / "best").iterdir():
        torch.load(path, weights_only=True)


def test_without_a_monitor_it_is_the_stock_one(tmp_path: Path) -> None:
    def files(kind: Any) -> set[str]:
        keep = kind(dirpath=tmp_path / "kept", filename="{step}", every_n_epochs=1, save_top_k=-1)
        fit(tmp_path, make(Scripted, values=easy_first, epochs=2), TinyTasks(), [keep], **OPTIONS)
        names = {p.name for p in (tmp_path / "kept").iterdir()}
        shutil.rmtree(tmp_path / "kept")
        return names

    assert files(ModelCheckpoint) == files(stock.ModelCheckpoint) == {f"step={n}.ckpt" for n in range(1, 7)}
