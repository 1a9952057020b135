"""One run at a time in a run folder; a lock that the system takes back when the process ends, however it ends."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

fcntl: Any = None  # not a POSIX system: runs are not kept apart
with suppress(ImportError):
    import fcntl

GRACE = 2.0
"""Seconds a taken lock is asked for again: a process forked while its run was killed holds it until it is scheduled."""

_held: set[int] = set()


def _let_go_in_child() -> None:
    """Decoding processes must not hold the lock of a run that was killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


def _lock(folder: Path, end: float) -> int | None:
    """A descriptor that holds the lock, `None` where files cannot be locked.

    Args:
        folder: The folder.
        end: Until when to ask again, in seconds of `time.monotonic`.

    Raises:
        BlockingIOError: When another process has it.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        while not (free := _takes(descriptor)) and time.monotonic() < end:
            time.sleep(0.02)
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    if not free:
        os.close(descriptor)
        raise BlockingIOError(f"{folder} is locked")
    return descriptor


def _takes(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from going on in a run folder.

    Args:
        folder: The folder; it exists.

    Raises:
        ValueError: When another process is running there.
    """
    try:
        descriptor = _lock(folder, time.monotonic() + GRACE)
    except BlockingIOError as error:
        raise ValueError(
            f"The run in {folder} goes on in another process. Wait until it ends, stop it, or start another run in a "
            "folder of its own."
        ) from error
    if descriptor is not None:
        _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:
            _held.discard(descriptor)
            os.close(descriptor)


def busy(folders: Iterable[Path]) -> set[Path]:
    """The folders in which a run goes on."""
    end = time.monotonic() + GRACE
    return {folder for folder in folders if _is_locked(folder, end)}


def _is_locked(folder: Path, end: float) -> bool:
    try:
        descriptor = _lock(folder, end)
    except BlockingIOError:
        return True
    if descriptor is not None:
        os.close(descriptor)
    return False
