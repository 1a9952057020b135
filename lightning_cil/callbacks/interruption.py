"""`Interruption`: SIGTERM, SIGHUP, Ctrl-C and SLURM's requeue signal end a run where it can be resumed exactly."""

import os
import shlex
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_cil import _compat
from lightning_cil.callbacks.base import StreamCallback
from lightning_cil.callbacks.checkpoint import StreamCheckpoint, copy_checkpoint, remove_checkpoint
from lightning_cil.callbacks.stream_state import stream_state

RUN_KEY = "lightning_cil.run"
SECOND_AFTER = 0.5
"""Seconds after which another Ctrl-C is a second one; launchers repeat the first one at once."""
WORKER_GRACE = 30
"""Seconds that a decoding process lives on after SIGTERM, so that the step in progress gets its data."""
AGREE_EVERY = 8
"""Evaluation batches between two agreements of several processes."""
AGREE_EVERY_ON_GPU = 16
"""Training batches between two agreements of several processes on GPUs, each of which waits for the device."""


class Interrupted(SIGTERMException):
    """Ends the process with status 128 + signal, as a shell reports it; other ranks than 0 end quietly with 0."""


class Interruption(StreamCallback):
    """Ends the run at the next safe point after SIGTERM, SIGHUP, SIGINT (Ctrl-C) or SLURM's requeue signal.

    | when the signal comes | what happens |
    |---|---|
    | while training | the step ends (under accumulation the optimizer's step), `last.ckpt` is written |
    | task-end work, evaluation, set-up | one process: at once, several: soon; they are repeated from `last.ckpt` |
    | a second Ctrl-C | the run ends at once |

    A handler only notes the signal. Several processes agree at the start of a step (in place of Lightning's own
    message; on GPUs of every 16th), so that all end at the same one whichever of them got the signal. After SLURM's
    requeue signal the checkpoint is also kept as `hpc_ckpt_<n>.ckpt` in the root, and the job is put back into the
    queue. SIGHUP, a closed terminal, is as SIGTERM, except under nohup, which has it ignored.

    Attributes:
        command: Command line of the run, where there is one; what to type to go on is derived from it.
    """

    def __init__(self) -> None:
        self.command: Sequence[str] | None = None
        self._requeue_signal: int | None = None
        self._clear()

    def _clear(self) -> None:
        self._pid = os.getpid()
        self._pending = self._agreed = self._batches = 0
        self._since = 0.0
        self._training = self._said = False
        self._trainer: Trainer | None = None
        self._previous: dict[int, Any] = {}

    # ------------------------------------------------------------------ signals

    @contextmanager
    def listening(self, trainer: Trainer, requeue_signal: int | None) -> Iterator[None]:
        """Handle signals of this process; nothing is done outside the main thread, which alone can."""
        self._clear()
        self._trainer, self._requeue_signal = trainer, requeue_signal
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, requeue_signal):
                if signum is not None and signal.getsignal(signum) is not signal.SIG_IGN:  # nohup and the like
                    self._previous[signum] = signal.signal(signum, self._handle)
        try:
            yield
        finally:
            for signum, handler in self._previous.items():
                signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
            self._clear()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            _outlive(signum)
            return
        trainer = self._trainer
        assert trainer is not None
        if signum == signal.SIGINT and self._pending and time.monotonic() - self._since > SECOND_AFTER:
            signal.signal(signum, self._previous.pop(signum))
            os.kill(self._pid, signum)
            return
        if signum == signal.SIGHUP:
            _leave_terminal()
        first = not self._pending
        if self._pending != signal.SIGTERM:
            self._pending = signum
            self._since = time.monotonic()
        if first and self._training and trainer.is_global_zero:
            _write(f"\n{_name(signum)}: the run ends after this step with a checkpoint.")
        if not self._training and trainer.world_size == 1:
            self.stop(trainer, saved=False)

    def before_batch(self, trainer: Trainer) -> None:
        """Several processes agree, at the same batches on all of them."""
        on_gpu = trainer.strategy.root_device.type != "cpu"
        if self._batches % (AGREE_EVERY_ON_GPU if on_gpu else 1) == 0:
            self.agree(trainer)
        self._batches += 1

    def agree(self, trainer: Trainer) -> int:
        """The signal that any process got, 0 without one; a collective."""
        if trainer.world_size > 1:
            value = torch.tensor([self._pending], device=trainer.strategy.root_device)
            torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
            self._agreed = int(value.item())
        else:
            self._agreed = self._pending
        return self._agreed

    # ------------------------------------------------------------------ safe points

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on, a signal waits for the end of a step."""
        self._training = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last epoch's checkpoint is written."""
        self._training = False

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """An evaluation is broken off: it is repeated as a whole."""
        if self._trainer is not None and (trainer.world_size == 1 or batch_idx % AGREE_EVERY == 0):
            self.check(trainer)

    def check(self, trainer: Trainer) -> None:
        """Between two parts of the stream: end it if a signal came."""
        if self.agree(trainer):
            self.stop(trainer, saved=False)

    def after_batch(self, trainer: Trainer, resumable: bool) -> None:
        """A batch is over; `resumable`: a checkpoint of this moment would go on exactly."""
        if trainer.world_size == 1:
            self._agreed = self._pending
        if resumable and self._agreed:
            self.stop(trainer, saved=self._save(trainer))

    def after_epoch(self, trainer: Trainer) -> None:
        """An epoch is over, and its checkpoint is written."""
        if self.agree(trainer):
            self.stop(trainer, saved=self._save(trainer))

    def _save(self, trainer: Trainer) -> bool:
        checkpoint = _checkpoint(trainer)
        if checkpoint is None:
            return False
        if checkpoint.saved_step != trainer.global_step:
            checkpoint.save(trainer)
        return True

    def stop(self, trainer: Trainer, saved: bool) -> None:
        """Say how to go on and end the run.

        Raises:
            Interrupted: Always, except when a SLURM job could not be requeued: then the run goes on.
        """
        signum = self._agreed or self._pending
        checkpoint = _checkpoint(trainer)
        last = checkpoint.directory(trainer) / "last.ckpt" if checkpoint is not None else None
        if signum == self._requeue_signal and not self._requeue(trainer, last):
            self._pending = self._agreed = 0
            return
        if trainer.is_global_zero and not self._said:  # a second signal may come before the first one has ended it
            self._said = True
            _write(self._message(trainer, signum, last, saved))
        if trainer.world_size > 1:
            trainer.strategy.barrier("Interruption")
        raise Interrupted(128 + signum if trainer.is_global_zero else 0)

    def _message(self, trainer: Trainer, signum: int, last: Path | None, saved: bool) -> str:
        state = stream_state(trainer)
        where = f"task {state.task}, after step {trainer.global_step}" if state and state.task >= 0 else "the beginning"
        lines = [f"\nInterrupted by {_name(signum)} in {where}."]
        if last is None:
            return "\n".join([*lines, "No checkpoint: they are switched off (`enable_checkpointing=False`)."])
        if not last.exists():
            lines += ["Nothing was saved yet: no epoch was over."]
            lines += [f"Start again:  {shlex.join(self.command)}"] if self.command else []
            return "\n".join(lines)
        if saved:
            lines += [f"Saved: {last}"]
        else:
            lines += [f"The last checkpoint, {last}, is from before this work, which is repeated exactly from there."]
        if signum != self._requeue_signal:  # else the cluster does
            lines += [f"Go on:  {self.way_on(trainer, last)}"]
        return "\n".join(lines)

    def way_on(self, trainer: Trainer, checkpoint: Path, without: Sequence[str] = ()) -> str:
        """What to type, or to call, to go on with the run.

        Args:
            trainer: The trainer.
            checkpoint: The file to go on from.
            without: Options of the command line that must not be repeated.
        """
        is_last = checkpoint.name == "last.ckpt"
        if self.command is not None:
            return resume_command(self.command, "last" if is_last else str(checkpoint), without)
        knows_last = is_last and hasattr(trainer, "stop_after_task")  # an `IncrementalTrainer`
        return "fit(..., ckpt_path='last'), or " * knows_last + f"ckpt_path={str(checkpoint)!r}"

    # ------------------------------------------------------------------ which run a checkpoint is of

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the run folder, how many rows are logged, and the SLURM job."""
        logger: Any = getattr(trainer, "run_logger", None) or trainer.logger
        position: dict[str, Any] = {}
        if hasattr(logger, "position"):
            position = logger.position()
        elif isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:  # others do not know the version
            position = {"folder": Path(logger.log_dir).name}
        checkpoint[RUN_KEY] = {"job": slurm_job(), **position}

    # ------------------------------------------------------------------ SLURM

    def _requeue(self, trainer: Trainer, last: Path | None) -> bool:
        done = False
        if trainer.is_global_zero:
            if last is not None and last.exists():
                keep_for_requeue(last, Path(trainer.default_root_dir))
            job = slurm_job()
            done = job is not None and _scontrol(job)
            _write(f"\nSLURM job {job} is requeued." if done else f"\nSLURM job {job} could not be requeued.")
        return bool(trainer.strategy.broadcast(done))

    def on_stream_end(self, trainer: Trainer, module: LightningModule) -> None:
        """A finished stream leaves no checkpoint for a requeued job."""
        if slurm_job() is not None and trainer.is_global_zero:
            for path in requeue_checkpoints(Path(trainer.default_root_dir)):
                if saved_job(path) == slurm_job():
                    remove_checkpoint(path)


def slurm_job() -> str | None:
    """Identity of this SLURM job, the same after a requeue; `None` outside SLURM."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    return os.environ.get("SLURM_JOB_ID")


def requeue_checkpoints(root: Path) -> list[Path]:
    """`hpc_ckpt_<n>.ckpt` in the root, the newest first, as Lightning counts them."""
    found = [p for p in root.glob("hpc_ckpt_*.ckpt") if p.stem[9:].isdecimal()]
    return sorted(found, key=lambda p: int(p.stem[9:]), reverse=True)


def saved_job(path: Path) -> str | None:
    """The SLURM job that wrote a checkpoint; `None` for another's, or a damaged one."""
    try:
        saved = torch.load(_compat.metadata_file(path), map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        return None
    job: str | None = saved.get(RUN_KEY, {}).get("job")
    return job


def keep_for_requeue(last: Path, root: Path) -> Path:
    """Copy `last.ckpt` to the next `hpc_ckpt_<n>.ckpt`, which a requeued job resumes from without being told."""
    found = requeue_checkpoints(root)
    path = root / f"hpc_ckpt_{int(found[0].stem[9:]) + 1 if found else 1}.ckpt"
    copy_checkpoint(last, path)
    return path


def _scontrol(job: str) -> bool:
    try:
        return subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0
    except OSError:
        return False


def resume_command(command: Sequence[str], checkpoint: str = "last", without: Sequence[str] = ()) -> str:
    """The same command with `--ckpt_path last`, or another checkpoint, and without some of its options."""
    dropped = ("--ckpt_path", *without)
    kept = []
    skip = False
    for argument in command:
        if skip or argument.startswith(tuple(f"{name}=" for name in dropped)):
            skip = False
        elif argument in dropped:
            skip = True
        else:
            kept.append(argument)
    kept += ["--ckpt_path", checkpoint]
    if "TORCHELASTIC_RUN_ID" in os.environ:  # a command of its own would be a single process
        return f"start torchrun again with the options it had and  -m lightning_cil {shlex.join(kept[1:])}"
    return shlex.join(kept)


def given_option(command: Sequence[str] | None, name: str) -> str | None:
    """The value that a command line has for an option, the last one if it is repeated."""
    found = None
    for position, argument in enumerate(command or ()):
        if argument.startswith(f"{name}="):
            found = argument.partition("=")[2]
        elif argument == name and command is not None and position + 1 < len(command):
            found = command[position + 1]
    return found


def interruption(trainer: Trainer) -> Interruption | None:
    """The trainer's, `None` in a stock run."""
    return next((c for c in trainer.callbacks if isinstance(c, Interruption)), None)  # type: ignore[attr-defined]


def _checkpoint(trainer: Trainer) -> StreamCheckpoint | None:
    callbacks = trainer.callbacks if not trainer.fast_dev_run else []  # type: ignore[attr-defined]
    return next((c for c in callbacks if isinstance(c, StreamCheckpoint)), None)


def _outlive(signum: int) -> None:
    """In a decoding process: let the main process end its step, but not for ever."""
    if signum != signal.SIGINT:
        signal.signal(signum, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(WORKER_GRACE)


def _name(signum: int) -> str:
    return "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name


def _write(text: str) -> None:
    with suppress(OSError):  # a reader that is gone must not keep the run from ending well
        os.write(2, (text + "\n").encode())  # a handler must not use buffered files


def _leave_terminal() -> None:
    """What is printed into a terminal that was closed raises; the step in progress and its checkpoint come first."""
    for output in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(output).st_mode) and not os.isatty(output):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, output)
                os.close(nowhere)
