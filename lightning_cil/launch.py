"""The processes of a run: which strategies can train a stream, how processes start, and that all end when one dies.

| launcher | who starts the other processes | who notices that one died |
|---|---|---|
| `ddp` | rank 0 runs the command again | a thread of rank 0; in the others one that watches rank 0 |
| `ddp_spawn`, `ddp_fork`, `ddp_notebook` | a process that is no rank | that process, when it joins them |
| torchrun, SLURM | the cluster's own | its agent; `srun --kill-on-bad-exit` |
"""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from lightning.pytorch.strategies.xla import XLAStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from lightning_cil import _compat
from lightning_cil._pickling import functions_by_value

LAUNCHER_PID = "LIGHTNING_CIL_LAUNCHER_PID"
"""Set by rank 0 for the processes that it starts, so that they know whom to watch."""

POLL = 1.0
"""Seconds between two looks at the other processes."""

GRACE = 5.0
"""Seconds in which a process may end by an error of its own, before it is ended."""

REAP = 10.0
"""Seconds that killed processes may take to end."""

GO_ON = "To go on from the newest checkpoint, give the same command with `--ckpt_path last`."


STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGHUP)
"""Exit codes of a process that was asked to stop, did, and has said so."""


class ProcessDiedError(RuntimeError):
    """One of the run's processes ended before the run did."""


def check_strategy(strategy: Strategy) -> None:
    """Refuse a strategy under which a stream would go wrong.

    Args:
        strategy: The trainer's.

    Raises:
        ValueError: For FSDP1, DeepSpeed, XLA, and tensor parallelism.
    """
    name = type(strategy).__name__
    if isinstance(strategy, FSDPStrategy | DeepSpeedStrategy | XLAStrategy):
        raise ValueError(
            f"`strategy={name}` cannot train a stream: it wraps the network once, and a stream grows and freezes it "
            "between stages. Expected one process, 'ddp' (or 'ddp_spawn', 'ddp_fork', 'ddp_notebook'), or, to shard "
            "the weights, `ModelParallelStrategy` (FSDP2) with `data_parallel_size` processes and "
            "`tensor_parallel_size: 1`. Runs branch between them at any task: `--stop_after_task k` under one, then "
            "`--ckpt_path …/task_k.ckpt` under the other."
        )
    if isinstance(strategy, ModelParallelStrategy):
        size = _compat.tensor_parallel_size(strategy)
        if size != 1:
            raise ValueError(
                f"`strategy={name}` with `tensor_parallel_size={size}`: the methods split no layer over processes, "
                f"each trains on data of its own. Expected `tensor_parallel_size: 1` and `data_parallel_size: "
                f"{strategy.num_processes * strategy.num_nodes}`, all processes."
            )
    elif not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        rank_zero_warn(f"`strategy={name}` was never tried with a stream, which wraps the network anew in each stage.")


def check_checkpoint(strategy: Strategy, ckpt_path: str | Path) -> None:
    """Refuse a checkpoint that the strategy cannot read.

    Args:
        strategy: The trainer's.
        ckpt_path: A file, or the folder that `ModelParallelStrategy` writes.

    Raises:
        ValueError: For a folder, under another strategy.
    """
    sharded = os.path.isdir(ckpt_path) and _compat.metadata_file(ckpt_path).is_file()
    if sharded and not isinstance(strategy, ModelParallelStrategy):
        raise ValueError(
            f"`ckpt_path={ckpt_path}` is a folder, a sharded checkpoint of `ModelParallelStrategy`, and this run has "
            f"`strategy={type(strategy).__name__}`; expected a file. Go on from it with the strategy that wrote it; "
            "`save_distributed_checkpoint: false` there makes the next checkpoints files, which every strategy reads."
        )


@contextmanager
def launching(trainer: Trainer) -> Iterator[None]:
    """Inside, the trainer starts its processes; when one of them dies, the others end with a message.

    Raises:
        TypeError: When something cannot be sent to a spawned process.
        ProcessDiedError: In the process that noticed.
    """
    kind = _compat.launcher_kind(trainer)
    done = threading.Event()
    if kind == "subprocess":
        os.environ[LAUNCHER_PID] = str(os.getpid())
        _launchers[:] = [trainer.strategy.launcher]
        _watching.append(done)
    if _launchers:
        _start(_watch_children, done)
    elif LAUNCHER_PID in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        _start(_watch_parent, int(os.environ[LAUNCHER_PID]), trainer.global_rank, done)
    try:
        with functions_by_value(), _forwarding(kind), _compat.process_observer(lambda: not _watching):
            yield
        _watching[:] = [run for run in _watching if run is not done]  # after an error it stays, for a message
    except (ProcessExitedException, ProcessRaisedException) as error:
        if isinstance(error, ProcessExitedException) and error.exit_code in STOPPED:  # it has said so
            raise SystemExit(error.exit_code) from None
        raise ProcessDiedError(_joined_message(error)) from error
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        if kind != "multiprocessing" or "pickle" not in str(error):
            raise
        raise TypeError(
            "This strategy sends the trainer with its callbacks, the method and the data to new processes, and "
            f"something in them cannot be sent: {error}. Define it at the top level of a module, or use "
            "`strategy='ddp'`, which sends nothing: every process runs the command from its beginning."
        ) from error
    except RuntimeError as error:
        if trainer.world_size == 1 or not _is_lost_connection(str(error)):
            raise
        dead = _wait_for_death(GRACE)
        if dead:
            raise ProcessDiedError(f"{dead}, so that the run cannot go on. {GO_ON}") from error
        raise ProcessDiedError(_lost(trainer.global_rank)) from error
    finally:
        done.set()
        if sys.exc_info()[0] is not None:  # without this process the others would wait for it
            _wait_until(lambda: all(code is not None for code in _exit_codes().values()), GRACE)
            _kill_children()


@contextmanager
def _forwarding(kind: str) -> Iterator[None]:
    """The process that started the others by spawn or fork is no rank: it hands SIGTERM on to them and waits."""
    if kind != "multiprocessing" or threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def hand_on(signum: int, frame: Any) -> None:
        if os.getpid() == owner:
            for process in multiprocessing.active_children():
                os.kill(process.pid or 0, signum)

    previous = signal.signal(signal.SIGTERM, hand_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


_watching: list[threading.Event] = []
"""Runs that this module watches over, so that Lightning need not."""

_launchers: list[Any] = []
"""Rank 0: what started the other processes, which serve every trainer of the script."""


def _exit_codes() -> dict[int, int | None]:
    """Rank 0: how the other processes of this node ended, by rank."""
    started: list[Popen[bytes]] = _launchers[0].procs if _launchers else []
    return {rank: process.poll() for rank, process in enumerate(started, 1)}


def _dead(*, clean: bool) -> str:
    """Who ended, and how; `clean`: also without an error."""
    codes = {rank: code for rank, code in _exit_codes().items() if code is not None}
    ended = [(rank, code) for rank, code in codes.items() if clean or code not in (0, *STOPPED)]
    return ", ".join(f"rank {rank} ended ({_exit(code)})" for rank, code in ended)


def _wait_until(condition: Callable[[], Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)


def _wait_for_death(seconds: float) -> str:
    if _launchers:
        _wait_until(lambda: _dead(clean=True), seconds)
    return _dead(clean=True)


def _kill_children() -> None:
    """End the other processes of this node; they are gone when this returns, unless the system cannot end them."""
    started: list[Popen[bytes]] = [process for launcher in _launchers for process in launcher.procs]
    for process in started:
        process.kill()
    end = time.monotonic() + REAP
    for process in started:
        with suppress(TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))


def _start(target: Any, *args: Any) -> None:
    threading.Thread(target=target, args=args, daemon=True, name="lightning-cil watch").start()


def _watch_children(done: threading.Event) -> None:
    """Rank 0: a process that died leaves the others waiting for it, on a GPU for minutes."""
    while not done.wait(POLL):
        dead = _dead(clean=False)
        if dead and not done.wait(GRACE):  # else this process noticed by itself, and says so
            _kill_children()
            _end(f"{dead}; all processes of the run are ended. {GO_ON}")


def _watch_parent(parent: int, rank: int, done: threading.Event) -> None:
    """Other ranks: without rank 0, which may be gone before this starts, nobody would end them."""
    while not done.wait(POLL):
        if os.getppid() != parent and not _is_alive(parent) and not done.wait(3 * GRACE):
            _end(f"rank 0 (process {parent}) ended, so that rank {rank} ends too. {GO_ON}")


def _is_alive(process: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except OSError:  # another user's process, or a system without /proc
        return True
    return state != "Z"


def _end(message: str) -> None:
    try:
        print(f"lightning-cil: {message}", file=sys.stderr, flush=True)
        sys.stdout.flush()
    finally:  # also where nobody reads the output any more
        os._exit(1)  # the main thread may hang in a collective and hears nothing


def _joined_message(error: ProcessExitedException | ProcessRaisedException) -> str:
    if isinstance(error, ProcessExitedException):
        return f"rank {error.error_index} ended ({_exit(error.exit_code)}), and the others with it. {GO_ON}"
    lines = str(error).strip().splitlines()
    code = [i for i, line in enumerate(lines) if line.startswith("  ")]
    message = "\n".join(lines[code[-1] + 1 :] if code else lines[-1:])
    return _lost(error.error_index) if _is_lost_connection(message) else f"rank {error.error_index}: {message}"


def _lost(rank: int) -> str:
    return f"rank {rank} lost its connection to another process of the run, which must have ended. {GO_ON}"


def _exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def _is_lost_connection(message: str) -> bool:
    signs = ("gloo", "nccl", "connection closed", "connection reset", "connection was", "failed to recv", "tcpstore")
    return any(sign in message.lower() for sign in signs)
