"""`SplitTinyImageNet`: 200 ImageNet classes at 64x64, from the official folder or straight from the official zip.

The JPEG files are decoded once by all cores into one array, which is kept in a file beside the data and mapped into
memory the next time, so that the processes of one machine share it.
"""

import hashlib
import io
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_cil.data import _names
from lightning_cil.data._files import decode_all, fetch, image_names, is_image, missing, write_cache
from lightning_cil.data.augment import BatchAugment
from lightning_cil.data.base import DEFAULT_ORDER, IncrementalDataModule
from lightning_cil.data.images import ImageSplit, TensorImages

TINY_IMAGENET_MEAN = (0.4802, 0.4480, 0.3975)
TINY_IMAGENET_STD = (0.2770, 0.2691, 0.2821)
FOLDER = "tiny-imagenet-200"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
ANNOTATIONS = "val/val_annotations.txt"


class SplitTinyImageNet(IncrementalDataModule):
    """Tiny ImageNet as a stream: 110,000 photographs (100,000 to train), 64x64 colour, 200 classes, 10 tasks of 20.

    Source: Stanford's course CS231n, http://cs231n.stanford.edu/tiny-imagenet-200.zip, a part of ImageNet (terms of
    ImageNet: non-commercial research). The official validation images are the test set (the official test images have
    no labels). Protocol, augmentation (shifts of up to 4 pixels, mirroring) and normalisation as in Mammoth, the code
    of Buzzega et al., Dark Experience for General Continual Learning (NeurIPS 2020), https://arxiv.org/abs/2004.07211.
    Class ids follow the sorted WordNet ids; class names are the first ones in `words.txt`. Grey images become colour
    images. Shrunken copies are read as well, in whatever size all images have.

    Args:
        root: Folder with `tiny-imagenet-200` or `tiny-imagenet-200.zip` (read without unpacking), or either of them.
        download: Whether the zip is downloaded when it is missing.
        cache: Whether the decoded images are kept in `.npy` files beside the data (1.4 GB).
        augment: Whether training images are augmented.
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
    image_shape = (3, 64, 64)

    def __init__(
        self,
        root: str | Path = "data",
        *,
        download: bool = False,
        cache: bool = True,
        augment: bool = True,
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
            class_names=list(_names.TINY_IMAGENET.values()),
            augment=BatchAugment(TINY_IMAGENET_MEAN, TINY_IMAGENET_STD, crop_padding=4 if augment else 0, flip=augment),
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
        self.cache = cache

    def prepare_data(self) -> None:
        """Download the zip if asked to, and decode the images once for all processes of this machine."""
        if self._splits:
            return
        if self.download and self._find() is None:
            fetch(self, [URL], MD5, self.root, self._by_hand())
        with self._open() as store:
            if self.cache and os.access(store.beside, os.W_OK):
                for train in (True, False):
                    self._images(store, list(_wnids(store, train)), train)

    def load_split(self, train: bool) -> ImageSplit:
        """See `IncrementalDataModule.load_split`."""
        with self._open() as store:
            wnids = _wnids(store, train)
            images = self._images(store, list(wnids), train)
        ids = {wnid: i for i, wnid in enumerate(_names.TINY_IMAGENET)}
        targets = torch.tensor([ids[wnid] for wnid in wnids.values()], dtype=torch.int64)
        return TensorImages(images, targets, self.num_classes, f"{store.path} ({'train' if train else 'val'})")

    def _images(self, store: "_Store", names: list[str], train: bool) -> Tensor:
        if not self.cache:
            return decode_all(lambda i: store.decode(names[i]), names)
        start = f"{store.stem}-{'train' if train else 'val'}-"
        path = store.beside / f"{start}{store.key(names)}.npy"
        with suppress(OSError, ValueError, EOFError):  # absent, or not whole: made anew
            images = torch.from_numpy(np.asarray(np.load(path, mmap_mode="c", allow_pickle=False)))
            if images.dtype == torch.uint8 and images.ndim == 4 and len(images) == len(names):
                return images
        images = decode_all(lambda i: store.decode(names[i]), names)
        write_cache(path, lambda file: np.save(file, images.numpy()), f"{start}*.npy")
        return images

    def _find(self) -> Path | None:
        if self.root.is_file():
            return self.root
        for folder in (self.root / FOLDER, self.root):
            if (folder / "wnids.txt").is_file():
                return folder
        official = self.root / f"{FOLDER}.zip"
        zips = [official] if official.is_file() else sorted(self.root.glob(f"{FOLDER}*.zip"))
        if len(zips) > 1:
            raise ValueError(
                f"{self.root} holds {[z.name for z in zips]}; expected one. Give the one you mean as `root`."
            )
        return zips[0] if zips else None

    def _open(self) -> "_Store":
        path = self._find()
        if path is None:
            places = [self.root / FOLDER, self.root / f"{FOLDER}.zip"]
            raise missing(
                self, "folder with `wnids.txt`, nor a zip", places, f"Pass `download=True`, or: {self._by_hand()}"
            )
        store = _ZipStore(path) if path.is_file() else _FolderStore(path)
        found = store.read("wnids.txt").decode().split()
        if set(found) != set(_names.TINY_IMAGENET):
            unknown = sorted(set(found) - set(_names.TINY_IMAGENET))
            raise ValueError(
                f"{path}: `wnids.txt` lists {len(set(found))} classes, {len(unknown)} of them unknown {unknown[:3]}; "
                "expected the 200 of Tiny ImageNet. For other classes use `SplitImageNet` or `ImageFolderTasks`."
            )
        return store

    def _by_hand(self) -> str:
        return f"put {URL} into `{self.root}`; it need not be unpacked."


class _Store(ABC):
    """A folder or a zip in the official layout; names are relative and have forward slashes."""

    path: Path
    beside: Path
    stem: str

    def __enter__(self) -> "_Store":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of one file."""

    @abstractmethod
    def images(self, folder: str) -> list[str]:
        """File names of the images in a folder, sorted; none where there is no such folder."""

    @abstractmethod
    def stamp(self, name: str) -> tuple[int, int]:
        """Size of a file, and a number that changes with its content."""

    def key(self, names: list[str]) -> str:
        """16 hex digits that change with the list of files and with any file."""
        digest = hashlib.sha256()
        for name in names:
            digest.update(f"{name} {self.stamp(name)}\n".encode())
        return digest.hexdigest()[:16]

    def decode(self, name: str) -> np.ndarray[Any, Any]:
        """One image, uint8 `[height, width, 3]`."""
        try:
            with Image.open(io.BytesIO(self.read(name))) as image:
                return np.asarray(image.convert("RGB"))
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(
                f"{self.path}: {name} cannot be read as an image ({error}); expected a complete JPEG. "
                "Get the data set again."
            ) from error

    def _absent(self, name: str) -> FileNotFoundError:
        return FileNotFoundError(
            f"{self.path} holds no `{name}`; expected the layout of the official {FOLDER}.zip. Get it from {URL}."
        )


class _FolderStore(_Store):
    def __init__(self, path: Path) -> None:
        self.path, self.beside, self.stem = path, path.resolve().parent, FOLDER

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            raise self._absent(name) from None

    def images(self, folder: str) -> list[str]:
        return image_names(self.path / folder) if (self.path / folder).is_dir() else []

    def stamp(self, name: str) -> tuple[int, int]:
        info = os.stat(self.path / name)
        return info.st_size, info.st_mtime_ns


class _ZipStore(_Store):
    def __init__(self, path: Path) -> None:
        self.path, self.beside, self.stem = path, path.resolve().parent, path.stem
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise ValueError(
                f"{path} is truncated or not a zip ({error}); expected {FOLDER}.zip. Get it again from {URL}."
            ) from error
        self._prefix = next((n[: -len("wnids.txt")] for n in self._zip.namelist() if n.endswith("wnids.txt")), "")
        self._folders: dict[str, list[str]] = {}
        for member in self._zip.namelist():
            folder, _, name = member.removeprefix(self._prefix).rpartition("/")
            if is_image(name):
                self._folders.setdefault(folder, []).append(name)

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def read(self, name: str) -> bytes:
        try:
            return self._zip.read(self._prefix + name)
        except KeyError:
            raise self._absent(name) from None

    def images(self, folder: str) -> list[str]:
        return sorted(self._folders.get(folder, []))

    def stamp(self, name: str) -> tuple[int, int]:
        info = self._zip.getinfo(self._prefix + name)
        return info.file_size, info.CRC


def _wnids(store: _Store, train: bool) -> dict[str, str]:
    """Every image of a split with its class, from folder names (train) or the annotations (val)."""
    if train:
        folders = {wnid: f"train/{wnid}/images" for wnid in _names.TINY_IMAGENET}
        return {f"{folder}/{name}": wnid for wnid, folder in folders.items() for name in store.images(folder)}
    found = set(store.images("val/images"))
    result: dict[str, str] = {}
    for number, line in enumerate(store.read(ANNOTATIONS).decode().splitlines(), 1):
        if not line.strip():
            continue
        name, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in _names.TINY_IMAGENET or name not in found:
            raise ValueError(
                f"{store.path}: {ANNOTATIONS}, line {number} is {line!r}; expected, separated by tabs, the name of a "
                "file in val/images and one of the 200 class ids. Get the data set again."
            )
        result[f"val/images/{name}"] = wnid
    if len(result) != len(found):
        raise ValueError(
            f"{store.path}: {ANNOTATIONS} names {len(result)} of the {len(found)} images in val/images; expected all. "
            "Get the data set again."
        )
    return result
