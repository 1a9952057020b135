"""Files of weights: read without running code from them, named by their hash."""

import hashlib
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor


def read_state_dict(path: Path, argument: str = "weights") -> Mapping[str, Tensor]:
    """The state dict in a file, bare or under the key `state_dict` or `model`, without running code from the file.

    Args:
        path: `.safetensors`, else a file of `torch.save`.
        argument: How the user gave the path, for messages.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file could run code, is damaged or holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"`{argument}={str(path)!r}` is no file, expected one that `torch.save` or safetensors wrote. "
            f"The path is relative to {str(Path.cwd())!r}."
        )
    return _state_dict(_read(path, argument), path, argument)


def sha256(path: Path) -> str:
    """A file's SHA-256, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def some(names: Iterable[str], count: int = 5) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def cause(error: Exception) -> str:
    """The error's class and first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _read(path: Path, argument: str) -> Any:
    if _is_pointer(path):
        raise ValueError(
            f"`{argument}={str(path)!r}` is refused: it is a pointer of Git LFS and holds no weights, as a clone "
            "without LFS leaves it; expected the file itself, from the project's releases or with `git lfs pull`."
        )
    if _is_torchscript(path):
        state = str(path.with_name(f"{path.stem}_state_dict.pt"))
        raise ValueError(
            f"`{argument}={str(path)!r}` is refused: it is a TorchScript archive, and loading it would run code from "
            "it; expected a state dict. If you trust its source, convert it once: "
            f'python -c "import torch; torch.save(torch.jit.load({str(path)!r}, map_location={"cpu"!r}).state_dict(), '
            f'{state!r})"'
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"`{argument}={str(path)!r}` was refused: it is no plain file of tensors, and loading it could run code "
            f"({_refused(error)}). Expected a state dict. If you trust the file's source, load it in a process of your "
            "own and save the state dict alone with `torch.save` or `safetensors.torch.save_file`."
        ) from error
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise ValueError(
            f"`{argument}={str(path)!r}` could not be read ({cause(error)}), expected a file that `torch.save` or "
            "safetensors wrote. Is the download complete?"
        ) from error


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(40).startswith(b"version https://git-lfs.github.com/")


def _is_torchscript(path: Path) -> bool:
    """As `torch.load` tells: an archive with constants beside the data."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _refused(error: pickle.UnpicklingError) -> str:
    """What torch's safe unpickler met, without its advice to switch the safety off."""
    found = re.search(r"(Trying to load unsupported|Unsupported)[^\n]*?(?=\. |\n|$)", str(error))
    return found[0].rstrip(".") if found else "no known format"


def _state_dict(content: Any, path: Path, argument: str) -> Mapping[str, Tensor]:
    """The state dict inside a file's content."""
    if isinstance(content, Mapping):
        content = next((content[k] for k in ("state_dict", "model") if isinstance(content.get(k), Mapping)), content)
    if isinstance(content, Mapping) and content and all(isinstance(value, Tensor) for value in content.values()):
        return cast(Mapping[str, Tensor], content)
    given = f"a mapping of {some(map(str, content))}" if isinstance(content, Mapping) else type(content).__name__
    raise ValueError(
        f"`{argument}={str(path)!r}` holds {given}, expected a state dict of names and tensors, bare or under the key "
        "'state_dict' or 'model'. Save `model.state_dict()`."
    )
