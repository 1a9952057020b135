"""`SplitMNIST` and `SplitFashionMNIST`: small grey images in the idx format, all in memory."""

import gzip
import math
import struct
import zlib
from abc import ABC
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from lightning_cil.data import _names
from lightning_cil.data._files import fetch, missing
from lightning_cil.data.augment import BatchAugment
from lightning_cil.data.base import DEFAULT_ORDER, IncrementalDataModule
from lightning_cil.data.images import ImageSplit, TensorImages

MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
FASHION_MNIST_MEAN, FASHION_MNIST_STD = (0.2860,), (0.3530,)
DEBIAN_FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package `dataset-fashion-mnist` puts its files."""

SIDE = 28
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class _IdxTasks(IncrementalDataModule, ABC):
    """What the two data sets share; a subclass names them."""

    default_num_tasks = 5
    image_shape = (1, 28, 28)
    names: ClassVar[Sequence[str]]
    mean: ClassVar[Sequence[float]]
    std: ClassVar[Sequence[float]]
    folder: ClassVar[str]
    """Below `root`, as torchvision has it."""
    elsewhere: ClassVar[Sequence[str]] = ()
    urls: ClassVar[Sequence[str]]
    md5: ClassVar[Sequence[str]]
    """Of the four `.gz` files in the order of `FILES`."""
    by_package: ClassVar[str] = ""

    def __init__(
        self,
        root: str | Path = "data",
        *,
        download: bool = False,
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
        super().__init__(
            class_names=self.names,
            augment=BatchAugment(self.mean, self.std),
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
        self.root = Path(root)
        self.download = download

    def prepare_data(self) -> None:
        """Download what is missing if asked to; otherwise only look whether everything is there."""
        if self.download and self._find() is None:
            folder = self.root / self.folder
            for name, md5 in zip(FILES, self.md5, strict=True):
                if _plain_or_gz(folder / name) is None:
                    fetch(self, [f"{url}{name}.gz" for url in self.urls], md5, folder, self._by_hand())
        self._files()

    def load_split(self, train: bool) -> ImageSplit:
        """See `IncrementalDataModule.load_split`."""
        files = self._files()
        image_file, label_file = files[:2] if train else files[2:]
        images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
        if images.shape[1:] != (SIDE, SIDE):
            raise ValueError(f"{image_file} holds images of {images.shape[1:]} pixels; expected {SIDE} by {SIDE}.")
        if len(images) != len(labels):
            raise ValueError(
                f"{image_file} holds {len(images)} images, {label_file} {len(labels)} labels; expected as many. "
                "The two files do not belong together: get them again from one place."
            )
        targets = torch.from_numpy(labels).to(torch.int64)
        return TensorImages(torch.from_numpy(images).unsqueeze(1), targets, self.num_classes, str(image_file))

    def _folders(self) -> list[Path]:
        return [self.root / self.folder, self.root, *map(Path, self.elsewhere)]

    def _find(self) -> list[Path] | None:
        for folder in self._folders():
            files = [_plain_or_gz(folder / name) for name in FILES]
            found = [f for f in files if f is not None]
            if len(found) == len(FILES):
                return found
        return None

    def _files(self) -> list[Path]:
        files = self._find()
        if files is None:
            wanted = "folder with all of " + ", ".join(f"`{name}`" for name in FILES) + " (each plain or .gz)"
            raise missing(self, wanted, self._folders(), f"Pass `download=True`, or: {self._by_hand()}")
        return files

    def _by_hand(self) -> str:
        return f"put the four files from {self.urls[0]} into `{self.root / self.folder}`{self.by_package}."


class SplitMNIST(_IdxTasks):
    """MNIST as a stream: 70,000 handwritten digits (60,000 to train), 28x28 grey, ten classes, 5 tasks of 2.

    Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-Based Learning Applied to Document Recognition (Proc.
    IEEE, 1998), https://doi.org/10.1109/5.726791; licence CC BY-SA 3.0. The protocol of five tasks is that of Zenke,
    Poole, Ganguli, Continual Learning Through Synaptic Intelligence (ICML 2017), https://arxiv.org/abs/1703.04200.
    No augmentation.

    Args:
        root: Folder with the four idx files, plain or .gz, or with `MNIST/raw` (torchvision's layout).
        download: Whether missing files are downloaded.
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

    names = _names.MNIST
    mean, std = MNIST_MEAN, MNIST_STD
    folder = "MNIST/raw"
    urls = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
    md5 = (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    )


class SplitFashionMNIST(_IdxTasks):
    """Fashion-MNIST as a stream: 70,000 pictures of clothes (60,000 to train), 28x28 grey, ten classes, 5 tasks of 2.

    Source: H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
    Algorithms (2017), https://arxiv.org/abs/1708.07747; licence MIT. Split as `SplitMNIST`. No augmentation.

    Args:
        root: Folder with the four idx files, plain or .gz, or with `FashionMNIST/raw` (torchvision's layout). Where
            neither has them, those of Debian's package `dataset-fashion-mnist` are taken if it is installed.
        download: Whether missing files are downloaded.
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

    names = _names.FASHION_MNIST
    mean, std = FASHION_MNIST_MEAN, FASHION_MNIST_STD
    folder = "FashionMNIST/raw"
    elsewhere = (DEBIAN_FASHION_MNIST,)
    urls = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
    md5 = (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    )
    by_package = ", or install Debian's package (`apt-get install dataset-fashion-mnist`)"


def _plain_or_gz(path: Path) -> Path | None:
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    return None


def read_idx(path: str | Path, ndim: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read an idx file of unsigned bytes, plain or .gz.

    The header is two zero bytes, the type (8: unsigned byte), the number of dimensions, and each dimension as a
    big-endian 32-bit integer (http://yann.lecun.com/exdb/mnist/).

    Args:
        path: The file.
        ndim: Expected number of dimensions.

    Returns:
        A writable array.

    Raises:
        ValueError: When the header is another one, or the data is shorter or longer than the header says.
    """
    again = "Get the file again."
    try:
        with (gzip.open if Path(path).suffix == ".gz" else open)(path, "rb") as file:
            data = file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a complete gzip file ({error}). {again}") from error
    expected = bytes((0, 0, 8, ndim))
    if data[:4] != expected:
        raise ValueError(
            f"{path} starts with the bytes {data[:4].hex(' ')}; expected {expected.hex(' ')}, an idx file of unsigned "
            f"bytes with {ndim} dimension(s). {again}"
        )
    start = 4 + 4 * ndim
    if len(data) < start:
        raise ValueError(f"{path} is truncated: {len(data)} bytes, its header alone takes {start}. {again}")
    shape = struct.unpack(f">{ndim}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{path} holds {len(data) - start} bytes of data; expected {math.prod(shape)} for the shape {shape} that "
            f"its header gives: it is truncated or damaged. {again}"
        )
    return np.frombuffer(bytearray(data), np.uint8, offset=start).reshape(shape)
