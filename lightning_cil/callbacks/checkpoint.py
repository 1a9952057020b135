"""`StreamCheckpoint`: `last.ckpt` while training and one checkpoint for each finished task, replaced atomically."""

import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lightning_cil.callbacks.stream_state import in_stream
from lightning_cil.types import Task


class StreamCheckpoint(Checkpoint):
    """Writes the checkpoints that a run resumes and branches from.

    | when | effect |
    |---|---|
    | an epoch is over | `checkpoints/last.ckpt` |
    | every `every_n_train_steps` steps | the same |
    | `on_task_scored` | `checkpoints/task_<k>.ckpt`, and `last.ckpt` is the same file |

    In a stream, an epoch or a step is over after everything that belongs to it: logging, validation, schedules. Where
    the end of a step cannot be resumed exactly (half-summed gradients, before a validation), the file is written after
    the next step that can. In a stock fit, `on_train_epoch_end` and `on_train_batch_end` write.

    A file is written beside the old one, flushed to the disk, and then takes its name, so that a kill, a full disk or
    a crash of the machine leaves the old one or the new one, never half of one. Flushing takes as long as the disk
    needs (measured: 0.04 s for 90 MB, the size of a ResNet-18 with its momentum, on a virtual disk of a server).

    Args:
        every_n_train_steps: Also write every so many optimizer steps; 0: at epoch ends only.
        keep_tasks: Whether to keep one checkpoint for each finished task.
    """

    def __init__(self, every_n_train_steps: int = 0, keep_tasks: bool = True) -> None:
        if every_n_train_steps < 0:
            raise ValueError(f"`every_n_train_steps={every_n_train_steps}`: expected 0 (epoch ends only) or more.")
        self.every_n_train_steps = every_n_train_steps
        self.keep_tasks = keep_tasks
        self.saved_step = -1
        """Global step of the newest file."""
        self.written: set[str] = set()
        """Names of the files that this run has written."""
        self._seen_step = -1
        self._due = False

    def directory(self, trainer: Trainer) -> Path:
        """`checkpoints/` in the run folder."""
        return Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"

    def on_stream_start(self, trainer: Trainer, module: LightningModule, resumed: bool) -> None:
        """Clear away what a killed run left half-written."""
        folder = self.directory(trainer)
        if trainer.is_global_zero:
            old = [path for path in folder.glob("*.old") if path.with_suffix("").exists()]  # else it is all there is
            for draft in (*folder.glob("*.part"), *folder.parent.glob("*.part"), *old):
                remove_checkpoint(draft)
        self.saved_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The weights of this step are in a file already; between them and the next step are half-summed gradients."""
        self._seen_step, self._due = trainer.global_step, False

    def after_batch(self, trainer: Trainer, resumable: bool) -> None:
        """Write every few steps, where that can be resumed."""
        n, step = self.every_n_train_steps, trainer.global_step
        if not n:
            return
        if step != self._seen_step:
            self._seen_step = step
            self._due = self._due or step % n == 0
        if self._due and resumable:
            self._due = False
            self.save(trainer)

    def after_epoch(self, trainer: Trainer) -> None:
        """Write at the end of an epoch."""
        self._due = False
        self.save(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Stock fit: write every few steps."""
        if not in_stream(trainer):
            self.after_batch(trainer, resumable=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stock fit: write at the end of an epoch, after the monitors have decided."""
        if not in_stream(trainer):
            self.after_epoch(trainer)

    def on_task_scored(self, trainer: Trainer, pl_module: LightningModule, task: Task) -> None:
        """Keep the finished task."""
        name = f"task_{task.index}.ckpt"
        self._save(trainer, name if self.keep_tasks else "last.ckpt")
        folder = self.directory(trainer)  # a collective: not on rank 0 alone
        if self.keep_tasks and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            draft = folder / "last.ckpt.part"
            remove_checkpoint(draft)
            if (folder / name).is_dir():
                shutil.copytree(folder / name, draft)
            else:
                try:
                    os.link(folder / name, draft)
                except OSError:  # a file system without hard links
                    shutil.copyfile(folder / name, draft)
            replace_durably(draft, folder / "last.ckpt")
        self.written.add("last.ckpt")

    def save(self, trainer: Trainer) -> None:
        """Write `last.ckpt`; a collective."""
        self._save(trainer, "last.ckpt")

    def _save(self, trainer: Trainer, name: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = self.directory(trainer) / name  # a collective: not where one process alone has failed
        draft = path.with_name(name + ".part")
        try:
            trainer.save_checkpoint(draft, weights_only=False)
            if trainer.is_global_zero:
                if not self.written:
                    _check_readable(draft)
                replace_durably(draft, path)
        except OSError as error:
            remove_checkpoint(draft)
            raise OSError(_not_written(path, error, path.with_name("last.ckpt"))) from error
        self.written.add(name)
        self.saved_step = self._seen_step = trainer.global_step
        trainer.strategy.barrier("StreamCheckpoint")


def _check_readable(path: Path) -> None:
    """Find out with the first checkpoint, not when a run must go on from one, that it cannot be read.

    Raises:
        TypeError: When a callback's state can be restored by running code only.
    """
    if path.is_dir():
        return
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        states: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False).get("callbacks", {})
        names = [name for name, state in states.items() if not _is_plain(state)]
        remove_checkpoint(path)
        where = f"the state of {' and '.join(names)} holds" if names else "something in it is"
        raise TypeError(
            f"The checkpoint could not be read again: {where} more than tensors, numbers, strings, and dicts and lists "
            "of them, which only running code could restore. Convert it in `state_dict` (`float(x)`, `str(path)`)."
        ) from error


def _is_plain(state: Any) -> bool:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        torch.load(buffer, weights_only=True)
    except pickle.UnpicklingError:
        return False
    return True


def _not_written(path: Path, error: OSError, last: Path) -> str:
    """What a full disk or missing permissions mean for the run."""
    free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
    needed = f", the last one took {last.stat().st_size / 2**20:.1f} MiB" if last.is_file() else ""
    whole = f"{last} is whole: free some space and go on from it (`--ckpt_path {last}`)"
    return (
        f"The checkpoint {path} could not be written: {error.strerror or error} ({free / 2**20:.1f} MiB are free"
        f"{needed}). {whole if last.is_file() else 'Free some space and start again'}, or take another "
        "`default_root_dir`."
    )


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copy a checkpoint, file or folder; the target is there as a whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(target.name + ".part")
    remove_checkpoint(draft)
    if source.is_dir():
        shutil.copytree(source, draft)
    else:
        shutil.copyfile(source, draft)
    replace_durably(draft, target)


def replace_durably(source: Path, target: Path) -> None:
    """Give a written file or folder its name once its content is on the disk."""
    for path in source.rglob("*") if source.is_dir() else [source]:
        if path.is_file():
            _sync(path)
    if target.is_dir():  # sharded checkpoints are folders, which cannot be replaced in one step
        old = target.with_name(target.name + ".old")
        remove_checkpoint(old)
        os.rename(target, old)
        os.rename(source, target)
        remove_checkpoint(old)
    else:
        os.replace(source, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # a system that opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError:  # a file system that cannot
        pass
    finally:
        os.close(descriptor)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, file or folder, or a draft of one; nothing where there is none."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
