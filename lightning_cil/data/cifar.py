"""`SplitCIFAR10` and `SplitCIFAR100`: 32x32 colour images from the official python pickles, all in memory.

The pickles are read by an unpickler that can rebuild NumPy arrays and nothing else, so that a file from an
untrusted place cannot run code. No checksum is asked for: subsets in the official layout are read too.
"""

import io
import pickle
from abc import ABC
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_cil.data import _names
from lightning_cil.data._files import fetch, missing
from lightning_cil.data.augment import BatchAugment
from lightning_cil.data.base import DEFAULT_ORDER, IncrementalDataModule
from lightning_cil.data.images import ImageSplit, TensorImages

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
SHAPE = (3, 32, 32)


class _CifarTasks(IncrementalDataModule, ABC):
    """What the two data sets share; a subclass names them."""

    names: ClassVar[Sequence[str]]
    mean: ClassVar[Sequence[float]]
    std: ClassVar[Sequence[float]]
    folder: ClassVar[str]
    train_files: ClassVar[Sequence[str]]
    test_file: ClassVar[str]
    meta_file: ClassVar[str]
    names_key: ClassVar[str]
    labels_key: ClassVar[str]
    url: ClassVar[str]
    md5: ClassVar[str]

    def __init__(
        self,
        root: str | Path = "data",
        *,
        download: bool = False,
        augment: bool = True,
        brightness: float = 63 / 255,
        num_tasks: int | None = None,
        base: int | None = None,
        increment: int | None = None,
        sizes: Sequence[int] | None = None,
        class_order: str | list[int] | list[str] = DEFAULT_ORDER,
        batch_size: int = 128,
        eval_batch_size: int = 512,
        val_fraction: float = 0.0,
        split_seed: int = 0,
    ) -> None:
        self.root = Path(root)
        random = BatchAugment(self.mean, self.std, crop_padding=4, flip=True, brightness=brightness)
        super().__init__(
            class_names=self._class_names(),
            augment=random if augment else BatchAugment(self.mean, self.std),
            num_tasks=num_tasks,
            base=base,
            increment=increment,
            sizes=sizes,
            class_order=class_order,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            val_fraction=val_fraction,
            num_workers=0,
            split_seed=split_seed,
        )
        self.download = download

    def prepare_data(self) -> None:
        """Download what is missing if asked to; otherwise only look whether everything is there."""
        if self.download and self._find() is None:
            fetch(self, [self.url], self.md5, self.root, self._by_hand(), extract=True)
        self._folder()

    def load_split(self, train: bool) -> ImageSplit:
        """See `IncrementalDataModule.load_split`."""
        folder = self._folder()
        batches = [self._read_batch(folder / name) for name in (self.train_files if train else [self.test_file])]
        images, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return TensorImages(images, targets, self.num_classes, f"{folder} ({'train' if train else 'test'})")

    def _read_batch(self, path: Path) -> tuple[Tensor, Tensor]:
        content = read_pickle(path)
        pixels, labels = content.get("data"), content.get(self.labels_key)
        width = SHAPE[0] * SHAPE[1] * SHAPE[2]
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (width,):
            what = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
            raise ValueError(f"{path}: `data` is {what}; expected a uint8 array [N, {width}], one image a row.")
        if labels is None or len(labels) != len(pixels):
            raise ValueError(
                f"{path}: {'no' if labels is None else len(labels)} `{self.labels_key}` for {len(pixels)} images; "
                "expected one for each image."
            )
        return torch.from_numpy(pixels).view(-1, *SHAPE), torch.tensor(labels, dtype=torch.int64)

    def _class_names(self) -> Sequence[str]:
        for folder in self._folders():
            path = folder / self.meta_file
            if path.is_file():
                found = read_pickle(path).get(self.names_key, ())
                if len(found) != len(self.names):
                    raise ValueError(
                        f"{path}: `{self.names_key}` has {len(found)} names; expected {len(self.names)}. "
                        f"Get the official file from {self.url}."
                    )
                return [_text(name) for name in found]
        return self.names

    def _folders(self) -> list[Path]:
        return [self.root / self.folder, self.root]

    def _find(self) -> Path | None:
        needed = [*self.train_files, self.test_file]
        complete = (f for f in self._folders() if all((f / name).is_file() for name in needed))
        return next(complete, None)

    def _folder(self) -> Path:
        folder = self._find()
        if folder is None:
            wanted = "folder with all of " + ", ".join(f"`{name}`" for name in [*self.train_files, self.test_file])
            raise missing(self, wanted, self._folders(), f"Pass `download=True`, or: {self._by_hand()}")
        return folder

    def _by_hand(self) -> str:
        return f"unpack {self.url} so that `{self.root / self.folder / self.test_file}` is there."


class SplitCIFAR10(_CifarTasks):
    """CIFAR-10 as a stream: 60,000 photographs (50,000 to train), 32x32 colour, ten classes, 5 tasks of 2.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009),
    https://www.cs.toronto.edu/~kriz/cifar.html; no licence stated. The protocol of five tasks is that of Buzzega et
    al., Dark Experience for General Continual Learning (NeurIPS 2020), https://arxiv.org/abs/2004.07211. Training
    images are shifted by up to 4 pixels, mirrored and changed in brightness.

    Args:
        root: Folder with `cifar-10-batches-py`, or that folder itself.
        download: Whether missing files are downloaded.
        augment: Whether training images are augmented.
        brightness: Images are multiplied by U(1 - b, 1 + b).
        num_tasks: Number of equal tasks; 5 when no other description is given.
        base: Classes of the first task (with `increment`).
        increment: Classes of every further task (with `base`).
        sizes: Classes of each task, uneven ones allowed.
        class_order: `seed:N`, `sorted`, or the class ids or names in the order they are learned.
        batch_size: Training samples of a step on each process.
        eval_batch_size: Samples of an evaluation batch on each process.
        val_fraction: Share of the training images that is held out for validation, in [0, 1).
        split_seed: Selects the held-out images.
    """

    default_num_tasks = 5
    image_shape = (3, 32, 32)
    names = _names.CIFAR10
    mean, std = CIFAR10_MEAN, CIFAR10_STD
    folder = "cifar-10-batches-py"
    train_files = tuple(f"data_batch_{i}" for i in range(1, 6))
    test_file = "test_batch"
    meta_file = "batches.meta"
    names_key = "label_names"
    labels_key = "labels"
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    md5 = "c58f30108f718f92721af3b95e74349a"


class SplitCIFAR100(_CifarTasks):
    """CIFAR-100 as a stream: 60,000 photographs (50,000 to train), 32x32 colour, 100 classes, 10 tasks of 10.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009),
    https://www.cs.toronto.edu/~kriz/cifar.html; no licence stated. Protocol, augmentation (shifts of up to 4 pixels,
    mirroring, brightness) and normalisation as in PyCIL (https://arxiv.org/abs/2112.12533); the tasks are those of
    iCaRL (https://arxiv.org/abs/1611.07725).

    Args:
        root: Folder with `cifar-100-python`, or that folder itself.
        download: Whether missing files are downloaded.
        augment: Whether training images are augmented.
        brightness: Images are multiplied by U(1 - b, 1 + b); PyCIL's default.
        num_tasks: Number of equal tasks; 10 when no other description is given.
        base: Classes of the first task (with `increment`).
        increment: Classes of every further task (with `base`).
        sizes: Classes of each task, uneven ones allowed.
        class_order: `seed:N`, `sorted`, or the class ids or names in the order they are learned.
        batch_size: Training samples of a step on each process.
        eval_batch_size: Samples of an evaluation batch on each process.
        val_fraction: Share of the training images that is held out for validation, in [0, 1).
        split_seed: Selects the held-out images.
    """

    default_num_tasks = 10
    image_shape = (3, 32, 32)
    names = _names.CIFAR100
    mean, std = CIFAR100_MEAN, CIFAR100_STD
    folder = "cifar-100-python"
    train_files = ("train",)
    test_file = "test"
    meta_file = "meta"
    names_key = "fine_label_names"
    labels_key = "fine_labels"
    url = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    md5 = "eb9058c3a382ffc7106e4002c42a8d85"


# ---------------------------------------------------------------------- pickles


class _RefusedError(pickle.UnpicklingError):
    """The pickle asks for something that is not part of an array."""


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds dicts, lists, strings, numbers and NumPy arrays; refuses everything else before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        """Look a global name up among the allowed ones."""
        allowed = _ALLOWED.get((module, name))
        if allowed is None:
            raise _RefusedError(f"{module}.{name}")
        return allowed


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes with pickle protocol 2."""
    if encoding != "latin1":
        raise _RefusedError(f"the text encoding {encoding!r}")
    return text.encode("latin1")


def _dtype(code: str, align: int = 0, copy: int = 0) -> "np.dtype[Any]":
    """The dtype as Python 2's NumPy writes it: 0 and 1 for the flags, which NumPy 2.4 warns of."""
    return np.dtype(code, bool(align), bool(copy))


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode_latin1,
    **{(module, t.__name__): t for module in ("builtins", "__builtin__") for t in (bytes, bytearray)},
    **{  # NumPy 2 renamed the package; files written before and after name either
        (f"numpy.{package}.{module}", name): function
        for package in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", np.empty(0).__reduce__()[0]),
            ("multiarray", "scalar", np.uint8(0).__reduce__()[0]),
            ("numeric", "_frombuffer", np.empty(0).__reduce_ex__(5)[0]),
        )
    },
}


def read_pickle(path: str | Path) -> dict[str, Any]:
    """Read a pickled dict of arrays, lists and strings, written by Python 2 or 3, without running code from it.

    Raises:
        ValueError: When the file is damaged, is not such a dict, or asks for anything but NumPy arrays.
    """
    data = Path(path).read_bytes()
    try:
        content = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    except _RefusedError as error:
        raise ValueError(
            f"{path} was refused: this pickle asks for `{error}`, and only plain NumPy arrays, lists and strings are "
            "expected. Nothing was run. Do not open the file with `pickle`; get the official one."
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(
            f"{path} is truncated or not a pickle ({type(error).__name__}: {error}); expected one of CIFAR's python "
            "files. Get the file again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a dict as in CIFAR's python files.")
    return {_text(key): value for key, value in content.items()}


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
