"""`StreamProgressBar`: what it says, and that it is silent without a terminal."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_cil import Stage
from lightning_cil.callbacks import StreamProgressBar, StreamState
from lightning_cil.data.splits import make_tasks
from lightning_cil.methods import FineTune
from tests.callbacks.conftest import TinyTasks
from tests.streams import fit, make


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def trainer(callbacks: list[Any]) -> Any:
    return SimpleNamespace(callbacks=callbacks, current_epoch=2, max_epochs=10)


def test_description_in_a_stream() -> None:
    state = StreamState()
    state.begin(5, seed=0)
    state.enter(make_tasks([2] * 5)[1], 0, Stage("warm-up", 10), 2, resumed=False, global_step=0)
    assert StreamProgressBar().description(trainer([state])) == "task 2/5 · warm-up · epoch 3/10"


def test_description_in_a_stock_fit() -> None:
    assert StreamProgressBar().description(trainer([])) == "epoch 3/10"
    assert StreamProgressBar().description(trainer([StreamState()])) == "epoch 3/10"


def test_it_names_every_stage_and_test_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    fit(tmp_path, make(FineTune), TinyTasks(), [StreamProgressBar(refresh_rate=1)], enable_progress_bar=True)
    text = terminal.getvalue()
    for part in ("task 1/3 · train · epoch 1/1", "task 3/3 · train · epoch 1/1", "testing task 1", "testing task 3"):
        assert part in text


def test_it_is_silent_in_a_log_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, make(FineTune), TinyTasks(), enable_progress_bar=True)
    out, err = capfd.readouterr()
    assert "it/s" not in out + err
    assert "epoch" not in out


def test_it_is_the_default_bar_and_can_be_switched_off(tmp_path: Path) -> None:
    from lightning_cil import IncrementalTrainer

    with_bar = IncrementalTrainer(accelerator="cpu", default_root_dir=tmp_path)
    assert isinstance(with_bar.progress_bar_callback, StreamProgressBar)
    assert with_bar.progress_bar_callback.refresh_rate == 20
    without = IncrementalTrainer(accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False)
    assert without.progress_bar_callback is None
