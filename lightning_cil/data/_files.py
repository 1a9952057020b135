"""What the protocols that read files share: listing, decoding into memory, downloading, lists of files as a stream."""

import math
import os
import shutil
import tempfile
from abc import ABC
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_cil._random import uniform
from lightning_cil.data.audio import AudioClips, AudioFormat, Sounds, number_clips
from lightning_cil.data.augment import BatchAugment
from lightning_cil.data.base import IncrementalDataModule
from lightning_cil.data.images import FileImages, ImageSplit, TensorImages, read_image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"),
)
SMALL_SIDE = 64
SMALL_MEMORY_BYTES, MEMORY_BYTES = 2**32, 2**30
"""Largest data sets that are kept in memory by default: of small images, and of others."""
_CHUNK = 64
_CROP_ATTEMPTS = 10
"""As in torchvision's `RandomResizedCrop`."""

Augment = Literal["crop", "resized_crop", "none"]


# ---------------------------------------------------------------------- listing


def subfolders(folder: Path) -> list[str]:
    """Names of the visible folders in a folder, sorted."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def is_image(name: str) -> bool:
    """Whether a file name looks like a visible image file's."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def image_names(folder: Path) -> list[str]:
    """Names of the visible image files in a folder, sorted."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if is_image(e.name) and not e.is_dir())


@dataclass
class FileList:
    """Files of one split and their original class ids."""

    paths: list[str] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)

    @classmethod
    def of_folders(cls, folder: Path, names: Sequence[str]) -> "FileList":
        """The images of `folder/<name>/`, the class id is the name's position; a missing folder gives none."""
        result = cls()
        for label, name in enumerate(names):
            if (folder / name).is_dir():
                files = image_names(folder / name)
                result.paths += [os.path.join(folder, name, file) for file in files]
                result.targets += [label] * len(files)
        return result

    def take(self, indices: Tensor) -> "FileList":
        """Some of the files."""
        chosen = indices.tolist()
        return FileList([self.paths[i] for i in chosen], [self.targets[i] for i in chosen])

    def __len__(self) -> int:
        return len(self.paths)

    def __add__(self, other: "FileList") -> "FileList":
        return FileList(self.paths + other.paths, self.targets + other.targets)


# ---------------------------------------------------------------------- decoding


class ResizeCrop:
    """Shorter side to `resize`, centre crop of `size`; uint8 `[3, size, size]`. An image of that size is kept as is.

    Args:
        resize: Pixels of the shorter side.
        size: Pixels of the crop's sides.
        bicubic: Whether the resize is bicubic, as CLIP's, or bilinear.
    """

    def __init__(self, resize: int, size: int, bicubic: bool = False) -> None:
        from torchvision.transforms import InterpolationMode, v2

        mode = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
        self._steps = v2.Compose([v2.Resize(resize, interpolation=mode), v2.CenterCrop(size), v2.PILToTensor()])

    def __call__(self, image: Image.Image) -> Tensor:
        """Transform a PIL image."""
        result: Tensor = self._steps(image)
        return result


class RandomResizedCrop:
    """A random area (8 to 100 %) and aspect ratio (3/4 to 4/3) of the image; uint8 `[3, size, size]`.

    torchvision's transform of this name, but drawn from a key, so that threads need no lock around a generator.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, image: Image.Image, key: int) -> Tensor:
        """Transform a PIL image."""
        from torchvision.transforms.v2 import functional as v2

        top, left, height, width = self.box(image.height, image.width, key)
        size = [self._size, self._size]
        result: Tensor = v2.pil_to_tensor(v2.resized_crop(image, top, left, height, width, size))
        return result

    @staticmethod
    def box(height: int, width: int, key: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of the area: the first of ten tries that fits, else the middle."""
        low, high = math.log(3 / 4), math.log(4 / 3)
        for attempt in range(_CROP_ATTEMPTS):
            area = height * width * (0.08 + 0.92 * uniform(key, attempt, 0))
            ratio = math.exp(low + (high - low) * uniform(key, attempt, 1))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(uniform(key, attempt, 2) * (height - h + 1))
                return top, int(uniform(key, attempt, 3) * (width - w + 1)), h, w
        w, h = width, height
        if width / height < 3 / 4:
            h = round(width / (3 / 4))
        elif width / height > 4 / 3:
            w = round(height * (4 / 3))
        return (height - h) // 2, (width - w) // 2, h, w


def decode_all(load: Callable[[int], np.ndarray[Any, Any]], names: Sequence[str]) -> Tensor:
    """Decode images of one size into memory, with one thread for each core.

    Args:
        load: Position to uint8 `[height, width, channels]`.
        names: What messages call the images.

    Returns:
        uint8 `[N, channels, height, width]`.

    Raises:
        ValueError: When sizes differ.
    """
    if not names:
        return torch.empty((0, 3, 1, 1), dtype=torch.uint8)
    height, width, channels = load(0).shape
    images = np.empty((len(names), channels, height, width), dtype=np.uint8)

    def fill(start: int) -> None:
        for i in range(start, min(start + _CHUNK, len(names))):
            image = load(i)
            if image.shape != (height, width, channels):
                raise ValueError(
                    f"{names[i]} has {image.shape[1]}x{image.shape[0]} pixels; expected {width}x{height}, the size of "
                    f"{names[0]}. Resize the images to one size."
                )
            images[i] = image.transpose(2, 0, 1)

    with ThreadPoolExecutor(_num_threads()) as pool:
        for _ in pool.map(fill, range(0, len(names), _CHUNK)):
            pass
    return torch.from_numpy(images)


def _num_threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ---------------------------------------------------------------------- missing data, download


def missing(owner: object, wanted: str, places: Iterable[str | Path], how: str) -> FileNotFoundError:
    """The error for absent data: what was looked for, where, and how to get it."""
    looked = ", ".join(f"`{place}`" for place in places)
    return FileNotFoundError(f"{type(owner).__name__} found no {wanted}; looked in {looked}. {how}")


def fetch(owner: object, urls: Sequence[str], md5: str, folder: Path, by_hand: str, extract: bool = False) -> None:
    """Download a file, check it and move it (or what is in it) into a folder; files that are there are kept.

    Nothing half-done is left behind: everything happens in a temporary folder beside the target.

    Args:
        owner: Whose data it is, for messages.
        urls: Addresses of the same file, tried in turn.
        md5: Its checksum.
        folder: Where it goes.
        by_hand: What the user can do instead.
        extract: Whether it is an archive to unpack.

    Raises:
        FileNotFoundError: When no address gives the file.
    """
    reasons = []
    for url in urls:
        error = _fetch_one(url, md5, folder, extract)
        if error is None:
            return
        reasons.append(f"{url} ({error})")
    raise FileNotFoundError(
        f"{type(owner).__name__} could not download {', nor '.join(reasons)}. Check the connection and start again, "
        f"or: {by_hand}"
    )


def _fetch_one(url: str, md5: str, folder: Path, extract: bool) -> Exception | None:
    from torchvision.datasets import utils

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
            utils.download_url(url, temporary, md5=md5)
            if extract:
                archive = os.path.join(temporary, os.path.basename(url))
                utils.extract_archive(archive, temporary)
                os.remove(archive)
            _move_files(Path(temporary), folder)
    except (OSError, RuntimeError) as error:  # no connection, no space, another checksum
        return error
    return None


def _move_files(source: Path, folder: Path) -> None:
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.move(path, target)


# ---------------------------------------------------------------------- a stream from lists of files


class FileListTasks(IncrementalDataModule, ABC):
    """A stream from lists of files: what `ImageFolderTasks` and `ManifestTasks` share.

    The images of `val` are the held-out ones; they are kept behind the training images in the split `train`.
    """

    def __init__(
        self,
        *,
        source: str,
        class_names: Sequence[str],
        train: FileList,
        test: FileList,
        val: FileList,
        image_size: int,
        in_memory: bool | None,
        augment: Augment,
        mean: Sequence[float],
        std: Sequence[float],
        num_tasks: int | None,
        base: int | None,
        increment: int | None,
        sizes: Sequence[int] | None,
        class_order: str | Sequence[int] | Sequence[str],
        batch_size: int,
        eval_batch_size: int,
        val_fraction: float,
        num_workers: int,
        split_seed: int,
    ) -> None:
        if image_size < 1:
            raise ValueError(f"`image_size={image_size}`: expected at least 1 pixel.")
        if augment not in ("crop", "resized_crop", "none"):
            raise ValueError(f"`augment={augment!r}` is unknown: expected 'crop', 'resized_crop' or 'none'.")
        if in_memory and augment == "resized_crop":
            raise ValueError(
                "got `in_memory=True` and `augment='resized_crop'`, which crops the files' own pixels. "
                "Leave `in_memory` out, or choose `augment='crop'`."
            )
        _check_classes(source, class_names, {"train": train, "test": test} | ({"val": val} if len(val) else {}))
        if len(val) and val_fraction:
            raise ValueError(
                f"got `val_fraction={val_fraction}`, but {source} has a val split of its own ({len(val)} images), "
                "which is held out. Leave `val_fraction` at 0, or make the val images part of train."
            )
        super().__init__(
            class_names=class_names,
            augment=BatchAugment(
                mean, std, crop_padding=image_size // 8 if augment == "crop" else 0, flip=augment != "none"
            ),
            num_tasks=num_tasks,
            base=base,
            increment=increment,
            sizes=sizes,
            class_order=class_order,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            val_fraction=val_fraction,
            num_workers=num_workers,
            split_seed=split_seed,
        )
        self.source = source
        self.files = {"train": train + val, "test": test}
        self.num_held_out = len(val)
        self.sounds: dict[str, Sounds] = {}
        self.image_size = image_size
        self.resized_crop = augment == "resized_crop"
        self._fixed = ResizeCrop(image_size, image_size)
        total = (len(train) + len(val) + len(test)) * 3 * image_size**2
        fits = total <= (SMALL_MEMORY_BYTES if image_size <= SMALL_SIDE else MEMORY_BYTES)
        self.in_memory = (fits and not self.resized_crop) if in_memory is None else in_memory

    def pair_sounds(
        self, train: Sequence[str], test: Sequence[str], form: AudioFormat, memory_budget: int, chosen: str = ""
    ) -> None:
        """Give every sample a sound file; a subclass calls it at the end of its construction.

        Args:
            train: One file for each training image, then for each held-out one.
            test: One for each test image.
            form: What the sounds are brought to.
            memory_budget: See `AudioClips`.
            chosen: See `Sounds`.
        """
        paths, index = number_clips([train, test])
        clips = AudioClips(paths, form, memory_budget)
        self.sounds = {name: Sounds(clips, part, chosen) for name, part in zip(("train", "test"), index, strict=True)}

    def load_split(self, train: bool) -> ImageSplit:
        """See `IncrementalDataModule.load_split`."""
        name = "train" if train else "test"
        files = self.files[name]
        source = f"{self.source} ({name})"
        targets = torch.tensor(files.targets, dtype=torch.int64)
        if self.in_memory:
            images = decode_all(
                lambda i: self.prepare_image(read_image(files.paths[i])).permute(1, 2, 0).numpy(), files.paths
            )
            return TensorImages(images, targets, self.num_classes, source)
        random = RandomResizedCrop(self.image_size) if self.resized_crop else None
        return FileImages(files.paths, targets, self.num_classes, source, random, self._fixed)

    def prepare_image(self, image: Image.Image) -> Tensor:
        """See `IncrementalDataModule.prepare_image`; needs no data."""
        return self._fixed(image)

    def setup(self, stage: str) -> None:
        """See `IncrementalDataModule.setup`; a val split of the data set is the held-out part."""
        if self._splits:
            return
        super().setup(stage)
        for name, sounds in self.sounds.items():
            sounds.clips.check()
            self._splits[name].sounds = sounds
        self.files = {}  # the splits know their files; strings of a million paths take 200 MB and more in workers
        if self.num_held_out:
            positions = torch.arange(len(self.split("train")))
            self._train_indices = positions[: -self.num_held_out]
            self._val_indices = positions[-self.num_held_out :]


def _check_classes(source: str, names: Sequence[str], splits: dict[str, FileList]) -> None:
    if len(names) < 2:
        raise ValueError(f"{source} has {len(names)} class(es) {list(names)}; expected at least 2.")
    for split, files in splits.items():
        counts = Counter(files.targets)
        empty = [name for label, name in enumerate(names) if not counts[label]]
        if empty:
            raise ValueError(
                f"{source}: {len(empty)} of {len(names)} classes have no {split} image: {empty[:5]}"
                f"{' …' if len(empty) > 5 else ''}; expected at least one in every class. "
                "Add images, or remove the classes."
            )
