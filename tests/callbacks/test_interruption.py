"""`Interruption`: which signals it notes, and what it says; `tests/resume` has the runs that go on."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_cil import _compat
from lightning_cil.callbacks import Interruption
from lightning_cil.callbacks.interruption import RUN_KEY, requeue_checkpoints, saved_job

HERE: Any = SimpleNamespace(world_size=1, is_global_zero=True, callbacks=[], global_step=7)
"""As much of a trainer as a signal needs."""


def test_two_signals_at_once_are_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    listener = Interruption()
    with listener.listening(HERE, None):
        listener.on_train_start(HERE, HERE)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert listener.agree(HERE) == signal.SIGTERM
    assert capfd.readouterr().err.count("the run ends after this step") == 1


def test_a_closed_terminal_is_noted_unless_it_is_ignored() -> None:
    listener = Interruption()
    before = signal.getsignal(signal.SIGHUP)
    try:
        for handler, noted in ((signal.SIG_DFL, signal.SIGHUP), (signal.SIG_IGN, 0)):
            signal.signal(signal.SIGHUP, handler)
            with listener.listening(HERE, None):
                listener.on_train_start(HERE, HERE)
                os.kill(os.getpid(), signal.SIGHUP)
                assert listener.agree(HERE) == noted
            assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_requeued_job_is_not_told_to_go_on(tmp_path: Path) -> None:
    last = tmp_path / "last.ckpt"
    last.touch()
    listener = Interruption()
    for requeue_signal, told in ((None, True), (signal.SIGUSR1, False)):
        with listener.listening(HERE, requeue_signal):
            assert ("Go on:" in listener._message(HERE, signal.SIGUSR1, last, saved=True)) is told


def test_a_sharded_checkpoint_knows_its_job_and_goes_with_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for number, job in ((1, "7"), (2, "8")):
        folder = tmp_path / f"hpc_ckpt_{number}.ckpt"
        folder.mkdir()
        torch.save({RUN_KEY: {"job": job}}, _compat.metadata_file(folder))
        assert saved_job(folder) == job
    trainer: Any = SimpleNamespace(is_global_zero=True, default_root_dir=tmp_path)
    Interruption().on_stream_end(trainer, HERE)
    assert [p.name for p in requeue_checkpoints(tmp_path)] == ["hpc_ckpt_2.ckpt"]  # another job's


def test_a_stock_trainer_is_given_the_file(tmp_path: Path) -> None:
    listener = Interruption()
    last = tmp_path / "last.ckpt"
    assert listener.way_on(HERE, last) == f"ckpt_path={str(last)!r}"
    ours: Any = SimpleNamespace(stop_after_task=None)
    assert listener.way_on(ours, last) == f"fit(..., ckpt_path='last'), or ckpt_path={str(last)!r}"
    listener.command = ["lightning-cil", "fit"]
    assert listener.way_on(HERE, last) == "lightning-cil fit --ckpt_path last"
