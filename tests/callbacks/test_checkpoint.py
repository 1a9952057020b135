"""`StreamCheckpoint`: which files there are and what is in them, also when writing fails."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_cil.callbacks import StreamCheckpoint
from lightning_cil.methods import FineTune
from tests.callbacks.conftest import Net, Recorder, TinyTasks, stock_fit, vectors
from tests.streams import fit, make

STEPS = 3
"""Optimizer steps of one epoch of `TinyTasks`."""


def run(root: Path, checkpoint: StreamCheckpoint | None = None, callbacks: Any = (), **options: Any) -> Any:
    given = [*callbacks, *([checkpoint] if checkpoint is not None else [])]
    module = make(FineTune, epochs=options.pop("epochs", 1))
    return fit(root, module, TinyTasks(), given, evaluate_before_training=False, **options)


def folder(root: Path) -> Path:
    return root / "version_0" / "checkpoints"


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a finished run with the defaults."""
    root = tmp_path_factory.mktemp("finished")
    run(root)
    return folder(root)


def test_every_finished_task_and_the_last_state_are_kept(finished: Path) -> None:
    assert {p.name for p in finished.iterdir()} == {"last.ckpt", "task_0.ckpt", "task_1.ckpt", "task_2.ckpt"}
    for task in range(3):
        saved = load(finished / f"task_{task}.ckpt")
        state = saved["callbacks"]["StreamState"]
        assert (state["phase"], state["task"]) == ("boundary", task)
        assert saved["state_dict"]["head.weight"].shape[0] == 2 * (task + 1)
        assert saved["global_step"] == STEPS * (task + 1)
        assert saved["optimizer_states"] == []
        assert (state["counts"]["class_il"]["total"][task + 1] > 0).all()


def test_last_is_the_newest_and_takes_no_second_copy(finished: Path) -> None:
    assert (finished / "last.ckpt").read_bytes() == (finished / "task_2.ckpt").read_bytes()
    assert os.path.samefile(finished / "last.ckpt", finished / "task_2.ckpt")
    assert not os.path.samefile(finished / "task_1.ckpt", finished / "task_2.ckpt")


def test_without_hard_links_last_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    run(tmp_path)
    last, task = folder(tmp_path) / "last.ckpt", folder(tmp_path) / "task_2.ckpt"
    assert last.read_bytes() == task.read_bytes()
    assert not os.path.samefile(last, task)


def test_only_the_last_state_when_tasks_are_not_kept(tmp_path: Path) -> None:
    run(tmp_path, StreamCheckpoint(keep_tasks=False))
    assert [p.name for p in folder(tmp_path).iterdir()] == ["last.ckpt"]
    assert load(folder(tmp_path) / "last.ckpt")["callbacks"]["StreamState"]["phase"] == "boundary"


def writes(root: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: StreamCheckpoint, **options: Any) -> list[Any]:
    """Name and step of every file in the order they were written."""
    written: list[Any] = []

    def note(self: StreamCheckpoint, trainer: Any, name: str) -> None:
        save(self, trainer, name)
        written.append((name, load(self.directory(trainer) / name)["global_step"]))

    save = StreamCheckpoint._save
    monkeypatch.setattr(StreamCheckpoint, "_save", note)
    run(root, checkpoint, stop_after_task=0, **options)
    return written


def test_written_at_epoch_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = writes(tmp_path, monkeypatch, StreamCheckpoint(), epochs=2)
    assert found == [("last.ckpt", 3), ("last.ckpt", 6), ("task_0.ckpt", 6)]


def test_written_every_few_steps_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = writes(tmp_path, monkeypatch, StreamCheckpoint(every_n_train_steps=2), epochs=2)
    assert [step for name, step in found if name == "last.ckpt"] == [2, 3, 4, 6]


def test_once_a_step_under_accumulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = StreamCheckpoint(every_n_train_steps=1)
    found = writes(tmp_path, monkeypatch, checkpoint, epochs=1, accumulate_grad_batches=2)
    assert [step for name, step in found if name == "last.ckpt"] == [1, 2]


@pytest.mark.parametrize("failing", [2, 3, 4])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    """The disk is full at the n-th write: epoch ends of task 0, its end, epoch end of task 1."""
    written: list[bytes] = []
    save = torch.save

    def full(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if len(written) + 1 == failing:
            file.write(b"half of a check")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, file, *args, **kwargs)
        written.append(file.getvalue())

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, epochs=2)
    assert len(written) == failing - 1
    assert (folder(tmp_path) / "last.ckpt").read_bytes() == written[-1]
    assert load(folder(tmp_path) / "last.ckpt")["global_step"] == {2: 3, 3: 6, 4: 6}[failing]
    monkeypatch.setattr(torch, "save", save)
    steps: list[int] = []

    def look(hook: str, trainer: Any, module: Any, *args: Any) -> None:
        if hook == "on_train_batch_end":
            steps.append(trainer.global_step)

    run(tmp_path, callbacks=[Recorder(look)], epochs=2, ckpt_path="last")  # the run goes on and finishes
    assert steps == list(range({2: 4, 3: 7, 4: 7}[failing], 19))
    assert load(folder(tmp_path) / "task_2.ckpt")["global_step"] == 18


def test_a_kill_before_the_new_name_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[Path] = []
    replace = os.replace

    def killed(source: Any, target: Any) -> None:
        if Path(target).name == "last.ckpt" and len(replaced) == 1:
            raise KeyboardInterrupt
        replace(source, target)
        if Path(target).name == "last.ckpt":
            replaced.append(Path(target))

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(tmp_path, epochs=2)
    assert load(replaced[0])["global_step"] == 3


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def flush(descriptor: int) -> None:
        done.append(("flush", Path(f"/proc/self/fd/{descriptor}").resolve().name))
        fsync(descriptor)

    def rename(source: Any, target: Any) -> None:
        done.append(("name", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    run(tmp_path, stop_after_task=0)
    for name in ("last.ckpt", "task_0.ckpt"):
        named = done.index(("name", name))
        assert done[named - 1] == ("flush", f"{name}.part")
        assert done[named + 1] == ("flush", "checkpoints")


def test_a_stock_fit_is_saved_too(tmp_path: Path) -> None:
    checkpoint = StreamCheckpoint(every_n_train_steps=2)
    steps: list[int] = []
    checkpoint.save = lambda trainer: steps.append(trainer.global_step)  # type: ignore[method-assign]
    stock_fit(
        Net(), vectors([0, 1, 2, 3]), [checkpoint], epochs=2, default_root_dir=tmp_path, enable_checkpointing=True
    )
    assert steps == [2, 4, 5, 6, 8, 10, 10]


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    run(tmp_path, fast_dev_run=True)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_negative_interval_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`every_n_train_steps=-1`: expected 0"):
        StreamCheckpoint(every_n_train_steps=-1)


def test_sharded_checkpoints_are_folders(tmp_path: Path) -> None:
    """A strategy that writes a folder instead of a file: replaced as well, nothing else is left."""
    count = [0]

    def save(path: Path, weights_only: bool) -> None:
        count[0] += 1
        path.mkdir(parents=True)
        (path / "shard").write_text(str(count[0]))

    trainer: Any = SimpleNamespace(
        log_dir=str(tmp_path),
        callbacks=[],
        fast_dev_run=0,
        is_global_zero=True,
        global_step=1,
        save_checkpoint=save,
        strategy=SimpleNamespace(barrier=lambda name: None),
    )
    checkpoint = StreamCheckpoint()
    (tmp_path / "checkpoints" / "last.ckpt.old" / "shard").mkdir(parents=True)  # an earlier run was killed here
    for task in range(2):
        checkpoint.on_train_epoch_end(trainer, None)
        checkpoint.on_task_scored(trainer, None, SimpleNamespace(index=task))
    kept = {p.name: (p / "shard").read_text() for p in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"task_0.ckpt": "2", "task_1.ckpt": "4", "last.ckpt": "4"}
