"""The checkpoints of a stream: found, looked into without their weights, and refused when they do not fit."""

import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lightning_cil import _compat
from lightning_cil.callbacks.stream_state import SCHEMA, StreamState
from lightning_cil.data.base import IncrementalDataModule
from lightning_cil.run_lock import busy

STATE_KEY = "StreamState"


def is_readable(path: Path) -> bool:
    """Whether a checkpoint is whole and of a stream."""
    try:
        peek(path)
    except ValueError:
        return False
    return True


def newest_checkpoint(root: str | Path, idle: bool = False) -> Path | None:
    """The `checkpoints/last.ckpt` below a folder, at any depth, that was written last.

    Args:
        root: The folder.
        idle: Leave out runs that go on in another process.

    Raises:
        ValueError: When all runs go on in other processes.
    """
    for old in list(_below(root, "last.ckpt.old")):  # killed while one folder took another's place
        if not (old.with_suffix("").exists() or busy([old.parents[1]])):
            with suppress(FileNotFoundError):  # another rank was faster
                old.rename(old.with_suffix(""))
    found = list(_below(root, "last.ckpt"))
    taken = busy(p.parent.parent for p in found) if idle else set()
    free = [p for p in found if p.parent.parent not in taken]
    if found and not free:
        raise ValueError(
            f"`ckpt_path=last`: the run in {found[0].parent.parent} goes on in another process. Wait until it ends, "
            "stop it, or start another run without `ckpt_path`."
        )
    return max(free, key=lambda p: p.stat().st_mtime, default=None)


def _below(root: str | Path, name: str) -> Iterator[Path]:
    """Checkpoints of this name, at any depth; a folder that is gone when its turn comes, a draft, is passed over."""
    for folder, _, _ in os.walk(root):
        path = Path(folder, "checkpoints", name)
        if path.exists():
            yield path


def peek(ckpt_path: str | Path) -> dict[str, Any]:
    """Read a stream checkpoint without its weights, which stay mapped on disk.

    Args:
        ckpt_path: A checkpoint file of a stream, or the folder of a sharded one.

    Returns:
        The checkpoint; of a sharded one what is not sharded: everything but weights and optimizers.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is damaged, holds code, or is no checkpoint of a stream.
    """
    if not os.path.exists(ckpt_path):
        old = f"{ckpt_path}.old"
        hint = (
            f" A run that was killed left {old} in its place: give that one, or 'last'." if os.path.exists(old) else ""
        )
        raise FileNotFoundError(f"`ckpt_path={ckpt_path}`: no such file; expected a checkpoint or 'last'.{hint}")
    try:
        path = _compat.metadata_file(ckpt_path)
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError(_refusal(ckpt_path, _why_unreadable(Path(ckpt_path), error))) from error
    if _has_changed(path):
        raise ValueError(_refusal(ckpt_path, "it does not fit its own checksums, so that bytes in it have changed"))
    if not isinstance(saved, dict):
        raise ValueError(_refusal(ckpt_path, f"it holds a {type(saved).__name__}"))
    if STATE_KEY not in (saved.get("callbacks") or {}):
        other = "pytorch-lightning_version" in saved
        raise ValueError(_refusal(ckpt_path, "it is of another Lightning project" if other else "it has no stream"))
    weights = [] if os.path.isdir(ckpt_path) else ["state_dict"]  # a sharded checkpoint keeps them in other files
    absent = [k for k in (*weights, "loops", "global_step") if k not in saved]
    state = saved["callbacks"][STATE_KEY]
    absent += [f"callbacks.{STATE_KEY}.{k}" for k in StreamState().state_dict() if k not in state]
    if absent and state.get("schema", 0) <= SCHEMA:
        raise ValueError(_refusal(ckpt_path, f"it lacks {', '.join(f'`{k}`' for k in absent)}"))
    return dict(saved)


def _has_changed(path: Path) -> bool:
    """Whether bytes are not what was written; `torch.save` keeps a checksum of every tensor."""
    try:
        with zipfile.ZipFile(path) as archive:
            return torch.serialization.get_crc32_options() and archive.testzip() is not None
    except zipfile.BadZipFile:
        return True


def is_file(ckpt_path: str | Path | None) -> bool:
    """Whether it is a path of this machine, not one of Lightning's words or an address."""
    text = str(ckpt_path)
    return ckpt_path is not None and text not in ("best", "hpc") and "://" not in text and text[:8] != "registry"


def check_path(ckpt_path: str | Path | None, fit: bool) -> None:
    """Refuse values of `ckpt_path` that Lightning takes and that nothing can be done with.

    Args:
        ckpt_path: A path, or one of Lightning's words.
        fit: Whether a stream is to go on from it.

    Raises:
        ValueError: For an empty path, for "best", and, with `fit`, for an address.
    """
    if ckpt_path == "":
        raise ValueError(
            "`ckpt_path` is empty; expected a checkpoint or 'last'. Leave it out to start from the beginning."
        )
    if ckpt_path == "best":
        raise ValueError(
            "`ckpt_path=best`: which checkpoint is the best is known only inside the process that trained; expected a "
            "file or 'last'. Give the path of one, such as checkpoints/task_0.ckpt of a run folder."
        )
    if fit and "://" in str(ckpt_path):
        raise ValueError(
            f"`ckpt_path={ckpt_path}` is an address; expected a file of this machine, the only kind that a run goes on "
            "from. Copy it here, and give the path of the copy."
        )


def _refusal(ckpt_path: str | Path, why: str) -> str:
    return (
        f"`ckpt_path={ckpt_path}` is not a readable checkpoint of a stream: {why}; expected a file that lightning-cil "
        "wrote, such as checkpoints/last.ckpt or checkpoints/task_0.ckpt of a run folder. Give another one."
    )


def _why_unreadable(path: Path, error: Exception) -> str:
    if path.is_dir():
        return "it is a folder that holds no `meta.pt`"
    size = path.stat().st_size
    if not size:
        return "it is empty"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK":  # what torch.save writes is a zip archive
        return "it is no file of torch.save"
    if isinstance(error, pickle.UnpicklingError):
        return "it holds more than tensors and plain values, which could run code, so nothing of it was loaded"
    return f"it is damaged or cut off, at {size} bytes"


def check_learned(saved: dict[str, Any], path: str, datamodule: Any, method: str | None = None) -> None:
    """Refuse what a newer version wrote, what was learned from other classes, or by another method than `method`."""
    StreamState().load_state_dict(saved["callbacks"][STATE_KEY])
    written_by = saved.get("lightning_cil", {}).get("method", method)
    if method is not None and written_by != method:
        raise ValueError(
            f"`ckpt_path={path}` was written by {written_by}, and the method given is {method}, which may predict in "
            f"another way. Give `--model {written_by}`, or the config.yaml of its run."
        )
    if not isinstance(datamodule, IncrementalDataModule) or type(datamodule).__qualname__ in saved:
        return  # the datamodule compares the rest
    theirs = list(saved.get("lightning_cil", {}).get("class_names", []))
    if theirs != datamodule.class_names:
        raise ValueError(
            f"`ckpt_path={path}` was written with other data than {type(datamodule).__name__}: its classes are "
            f"{_few(theirs)} there and {_few(datamodule.class_names)} here. Use the data settings of the run that "
            "wrote it (its config.yaml), or start a new run without `--ckpt_path`."
        )


def _few(names: list[str]) -> str:
    return f"{', '.join(map(str, names[:4]))}{' …' if len(names) > 4 else ''} ({len(names)})"
