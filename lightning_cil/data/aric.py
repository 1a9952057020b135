"""`AricLike`: people cut out of wide pictures by their boxes, each with the sound of the scene."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lightning_cil._random import permutation
from lightning_cil.data._files import Augment, FileList, FileListTasks, decode_all
from lightning_cil.data.audio import MEMORY_BUDGET, AudioFormat, Place
from lightning_cil.data.base import DEFAULT_ORDER
from lightning_cil.data.images import FileImages, ImageSplit, ImageTransform, TensorImages, read_image
from lightning_cil.data.paired import csv_rows
from lightning_cil.data.splits import near_equal_sizes
from lightning_cil.networks.audioclip import CLIP_MEAN, CLIP_STD

COLUMNS = ("image", "x1", "y1", "x2", "y2", "wav", "label", "split")
DEFAULT_TASKS = 3

Box = tuple[float, float, float, float]


class AricLike(FileListTasks):
    """Boxes in pictures, with sounds, listed in a csv file: the layout of ARIC, with files of your own.

    Source: Xu et al., ARIC: An Activity Recognition Dataset in Classroom Surveillance Images (2024),
    https://arxiv.org/abs/2410.12337, whose pictures are not public; the class list and the splits of the "miniARIC" of
    https://arxiv.org/abs/2506.09999 are not known. Columns of the list: `image`, `x1`, `y1`, `x2`, `y2` (pixels of
    the box: first corner included, last one not), `wav`, `label`, `split` (`train` or `test`); paths are relative to
    `root` or absolute. Class ids follow the sorted labels. For MFCC features of the sounds choose the audio tower's
    front end `mfcc`, which takes the 16 kHz that are the default here.

    Args:
        root: Folder of the files.
        manifest: The csv file, relative to `root` or absolute.
        per_class: Training samples of each class at most, drawn by `subset_seed`; `None`: all.
        test_per_class: The same of test samples.
        subset_seed: Selects them.
        image_size: Side of the crops in pixels: the box's shorter side is resized to it, the middle is kept.
        in_memory: See `ImageFolderTasks`.
        augment: `crop`: mirrored and shifted by up to an eighth of their size. `none`. Sounds are not augmented.
        mean: Channel means of pictures scaled to [0, 1]; CLIP's by default.
        std: Channel standard deviations of pictures scaled to [0, 1].
        sample_rate: Of the sounds, in hertz.
        seconds: Length of the sounds: shorter ones are filled with zeros, longer ones are cut.
        place: Where: `end`, or `center` for both sides.
        resample: Whether files of another rate are resampled; if not, they are refused.
        audio_memory: Bytes of sounds that are kept; the others are read anew each time.
        num_tasks: Number of tasks, of nearly equal size: the first ones get one class more. Default: 3.
        base: Classes of the first task (with `increment`).
        increment: Classes of every further task (with `base`).
        sizes: Classes of each task, uneven ones allowed.
        class_order: `seed:N`, `sorted`, or the class ids or labels in the order they are learned.
        batch_size: Training samples of a step on each process.
        eval_batch_size: Samples of an evaluation batch on each process.
        val_fraction: Share of the training samples that is held out for validation, in [0, 1).
        num_workers: Processes of each training process that decode pictures; pictures in memory need none.
        split_seed: Selects the held-out samples.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        manifest: str | Path = "manifest.csv",
        per_class: int | None = None,
        test_per_class: int | None = None,
        subset_seed: int = 0,
        image_size: int = 224,
        in_memory: bool | None = None,
        augment: Augment = "crop",
        mean: tuple[float, float, float] = CLIP_MEAN,
        std: tuple[float, float, float] = CLIP_STD,
        sample_rate: int = 16_000,
        seconds: float = 10.0,
        place: Place = "end",
        resample: bool = True,
        audio_memory: int = MEMORY_BUDGET,
        num_tasks: int | None = None,
        base: int | None = None,
        increment: int | None = None,
        sizes: Sequence[int] | None = None,
        class_order: str | list[int] | list[str] = DEFAULT_ORDER,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        val_fraction: float = 0.0,
        num_workers: int = 4,
        split_seed: int = 0,
    ) -> None:
        if augment == "resized_crop":
            raise ValueError("`augment='resized_crop'`: the boxes are crops already; expected 'crop' or 'none'.")
        for name, value in (("per_class", per_class), ("test_per_class", test_per_class)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}={value}`: expected at least 1, or null for all.")
        source = Path(root) / manifest
        form = AudioFormat(sample_rate, seconds, place, resample)
        names, files, boxes, sounds = _read(Path(root), source)
        for split, limit in (("train", per_class), ("test", test_per_class)):
            kept = _subset(files[split].targets, limit, subset_seed + (split == "test"))
            files[split] = files[split].take(torch.tensor(kept, dtype=torch.int64))
            boxes[split] = [boxes[split][i] for i in kept]
            sounds[split] = [sounds[split][i] for i in kept]
        if base is None and increment is None and sizes is None:
            num_tasks, sizes = (
                None,
                near_equal_sizes(len(names), min(DEFAULT_TASKS, len(names)) if num_tasks is None else num_tasks),
            )
        super().__init__(
            source=str(source),
            class_names=names,
            train=files["train"],
            test=files["test"],
            val=FileList(),
            image_size=image_size,
            in_memory=in_memory,
            augment=augment,
            mean=mean,
            std=std,
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
        self._boxes = boxes
        self.pair_sounds(sounds["train"], sounds["test"], form, audio_memory, f"{per_class} {subset_seed}")

    def load_split(self, train: bool) -> ImageSplit:
        """See `IncrementalDataModule.load_split`."""
        name = "train" if train else "test"
        files = self.files[name]
        targets = torch.tensor(files.targets, dtype=torch.int64)
        split = BoxImages(files.paths, self._boxes[name], targets, self.num_classes, self.source, self._fixed)
        if not self.in_memory:
            return split
        images = decode_all(lambda i: split.load(i, None).permute(1, 2, 0).numpy(), files.paths)
        return TensorImages(images, targets, self.num_classes, self.source)


class BoxImages(FileImages):
    """Parts of image files.

    Args:
        paths: One file for each sample; several can be the same.
        boxes: x1, y1, x2, y2 in pixels.
        targets: See `FileImages`.
        num_classes: See `FileImages`.
        source: See `FileImages`.
        eval_transform: See `FileImages`; also that of training.
    """

    def __init__(
        self,
        paths: Sequence[str],
        boxes: Sequence[Box],
        targets: torch.Tensor,
        num_classes: int,
        source: str,
        eval_transform: ImageTransform,
    ) -> None:
        super().__init__(paths, targets, num_classes, source, None, eval_transform)
        self._boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)

    def load(self, index: int, key: int | None) -> torch.Tensor:
        """See `FileImages.load`.

        Raises:
            ValueError: When a box leaves its picture.
        """
        image = read_image(self.path(index))
        x1, y1, x2, y2 = self._boxes[index].tolist()
        if math.ceil(x2) > image.width or math.ceil(y2) > image.height:
            raise ValueError(
                f"{self.path(index)} has {image.width}x{image.height} pixels; the box ({x1:g}, {y1:g}, {x2:g}, {y2:g}) "
                f"in {self.source} leaves it. Correct the box."
            )
        return self.eval_transform(image.crop((math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2))))


def _read(
    root: Path, manifest: Path
) -> tuple[list[str], dict[str, FileList], dict[str, list[Box]], dict[str, list[str]]]:
    """Class names; files, boxes and sounds of both splits."""
    rows: dict[tuple[str, Box], tuple[str, str, str, str]] = {}
    for where, row in csv_rows(manifest, COLUMNS):
        if row["split"] not in ("train", "test") or not row["label"]:
            raise ValueError(
                f"{where}: `split` is {row['split']!r} and `label` {row['label']!r}; expected 'train' or 'test', and a "
                "class name."
            )
        image, sound = (_existing(root, row, column, where) for column in ("image", "wav"))
        value = (row["label"], row["split"], sound, where)
        first = rows.setdefault((image, _box(row, where)), value)
        if first[:3] != value[:3]:
            raise ValueError(f"{where}: the same box is there with other values in {first[3]}; remove one of the rows.")
    names = sorted({label for label, _, _, _ in rows.values()})
    files = {split: FileList() for split in ("train", "test")}
    boxes: dict[str, list[Box]] = {"train": [], "test": []}
    sounds: dict[str, list[str]] = {"train": [], "test": []}
    for (image, box), (label, split, sound, _) in rows.items():
        files[split].paths.append(image)
        files[split].targets.append(names.index(label))
        boxes[split].append(box)
        sounds[split].append(sound)
    return names, files, boxes, sounds


def _existing(root: Path, row: dict[str, str], column: str, where: str) -> str:
    if not row[column]:
        raise ValueError(
            f"{where}: no `{column}`; expected the path of a file: every sample has a picture and a sound."
        )
    path = os.path.normpath(root / row[column])
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{where}: there is no file `{path}`; expected a path relative to `{root}`.")
    return path


def _box(row: dict[str, str], where: str) -> Box:
    given = [row[name] for name in ("x1", "y1", "x2", "y2")]
    try:
        x1, y1, x2, y2 = (float(value) for value in given)
    except ValueError:
        x1 = y1 = x2 = y2 = math.nan
    if not (0 <= x1 < x2 < math.inf and 0 <= y1 < y2 < math.inf):
        raise ValueError(f"{where}: the box is {given}; expected numbers with 0 <= x1 < x2 and 0 <= y1 < y2.")
    return x1, y1, x2, y2


def _subset(targets: Sequence[int], limit: int | None, seed: int) -> list[int]:
    """Positions of at most `limit` samples of each class, in order."""
    kept = []
    for label in sorted(set(targets)):
        members = [i for i, target in enumerate(targets) if target == label]
        kept += [members[i] for i in permutation(len(members), seed, label).tolist()[:limit]]
    return sorted(kept)
