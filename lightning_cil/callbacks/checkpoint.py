"""`StreamCheckpoint`: `last.ckpt` while training and one checkpoint for each finished task, replaced atomically."""

import os
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lightning_cil.types import Task


class StreamCheckpoint(Checkpoint):
    """Writes the checkpoints that a run resumes and branches from.

    | hook | effect |
    |---|---|
    | `on_train_epoch_end` | `checkpoints/last.ckpt` |
    | `on_train_batch_end` | the same, every `every_n_train_steps` steps |
    | `on_task_scored` | `checkpoints/task_<k>.ckpt`, and `last.ckpt` is the same file |

    A file is written beside the old one and then takes its name, so that a kill or a full disk leaves the old one
    readable.

    Args:
        every_n_train_steps: Also write every so many optimizer steps; 0: at epoch ends only.
        keep_tasks: Whether to keep one checkpoint for each finished task.
    """

    def __init__(self, every_n_train_steps: int = 0, keep_tasks: bool = True) -> None:
        if every_n_train_steps < 0:
            raise ValueError(f"`every_n_train_steps={every_n_train_steps}`: expected 0 (epoch ends only) or more.")
        self.every_n_train_steps = every_n_train_steps
        self.keep_tasks = keep_tasks
        self._last_step = -1
        self.written: set[str] = set()
        """Names of the files that this run has written."""

    def directory(self, trainer: Trainer) -> Path:
        """`checkpoints/` in the run folder."""
        return Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The weights of this step are in a file already; between them and the next step are half-summed gradients."""
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Write every few steps."""
        n = self.every_n_train_steps
        if n and trainer.global_step % n == 0 and trainer.global_step != self._last_step:
            self._save(trainer, "last.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write at the end of an epoch, after the monitors have decided."""
        self._save(trainer, "last.ckpt")

    def on_task_scored(self, trainer: Trainer, pl_module: LightningModule, task: Task) -> None:
        """Keep the finished task."""
        name = f"task_{task.index}.ckpt"
        self._save(trainer, name if self.keep_tasks else "last.ckpt")
        folder = self.directory(trainer)  # a collective: not on rank 0 alone
        if self.keep_tasks and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            draft = folder / "last.ckpt.part"
            _remove(draft)
            if (folder / name).is_dir():
                shutil.copytree(folder / name, draft)
            else:
                try:
                    os.link(folder / name, draft)
                except OSError:  # a file system without hard links
                    shutil.copyfile(folder / name, draft)
            _replace(draft, folder / "last.ckpt")
        self.written.add("last.ckpt")

    def _save(self, trainer: Trainer, name: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._last_step = trainer.global_step
        path = self.directory(trainer) / name
        draft = path.with_name(name + ".part")
        try:
            trainer.save_checkpoint(draft, weights_only=False)
            if trainer.is_global_zero:
                _replace(draft, path)
        except OSError as error:
            _remove(draft)
            raise OSError(_not_written(path, error, self.directory(trainer) / "last.ckpt")) from error
        self.written.add(name)
        trainer.strategy.barrier("StreamCheckpoint")


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


def _replace(source: Path, target: Path) -> None:
    if target.is_dir():  # sharded checkpoints are folders, which cannot be replaced in one step
        old = target.with_name(target.name + ".old")
        _remove(old)
        os.rename(target, old)
        os.rename(source, target)
        _remove(old)
    else:
        os.replace(source, target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
