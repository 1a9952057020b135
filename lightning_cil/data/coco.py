"""`MultiLabelCOCO`: COCO as a multi-label stream, from the official files or anything in their layout.

Boxes and outlines are not needed: of each annotation only image, category and the crowd flag are read, one annotation
at a time. What a large file holds is kept beside it in a table of bits, so that it is read once.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np
import torch

from lightning_cil.data import _names
from lightning_cil.data._files import missing, write_cache
from lightning_cil.data._multilabel_files import LabelTable, MultiLabelFiles, check_unique
from lightning_cil.types import TestRule

CACHE_FROM_BYTES = 2**23
"""Smaller files are read as fast as their table."""
FORMAT = 1
"""Of the table."""


class MultiLabelCOCO(MultiLabelFiles):
    """COCO as a multi-label stream: 82,783 photographs to train and 40,504 to test (2014), 80 classes, 16 tasks.

    Source: T.-Y. Lin et al., Microsoft COCO: Common Objects in Context (ECCV 2014), https://arxiv.org/abs/1405.0312,
    https://cocodataset.org; annotations CC BY 4.0, pictures under Flickr's terms. The official validation images are
    the test set. An image belongs to each task of which it has a class, with that task's labels only (RebLL, Du et al.
    2025, https://arxiv.org/abs/2408.12161). Class ids follow the sorted names, not COCO's numbers. Training images are
    resized, partly covered and distorted (cutout, RandAugment); values are in [0, 1].

    Args:
        root: Folder with `annotations/instances_<split><year>.json` and the images in `<split><year>/`.
        year: 2014 or 2017; in the names of files and folders.
        train_split: Name of the training images' split.
        test_split: Name of the test images' split.
        classes: Names of the categories to use, in the order of their ids; objects of others do not count. `None`: all
            80.
        include_crowd_membership: Whether an image is also in the tasks of what it has as a crowd only; a crowd is never
            a label. KRT does so; such an image has no label then.
        cache: Whether what a large annotation file holds is kept beside it (under 3 MB), to be read at the next start.
        image_size: Side in pixels that images are resized to, whatever their aspect ratio.
        cutout: Side of the covered rectangle, as a share of the image's, in [0, 1]; 0: none.
        randaugment: Whether two of UDA's operations are drawn for each training image.
        mean: Subtracted from channels scaled to [0, 1].
        std: What they are then divided by.
        protocol: `Bx-Cy`: x classes in the first task, y in each further one; `B20-C4` when no other description is
            given.
        num_tasks: Number of equal tasks.
        base: Classes of the first task (with `increment`).
        increment: Classes of every further task (with `base`).
        sizes: Classes of each task, uneven ones allowed.
        class_order: `seed:N`, `sorted`, or the class ids or names in the order they are learned.
        test_rule: `seen`: after a task the network is tested on the images with a class seen so far, as in the papers;
            `all`: on all.
        batch_size: Training samples of a step on each process.
        eval_batch_size: Samples of an evaluation batch on each process.
        val_fraction: Share of the training images that is held out for validation, in [0, 1).
        num_workers: Decoding processes of each training process.
        split_seed: Selects the held-out images.
    """

    default_protocol = "B20-C4"

    def __init__(
        self,
        root: str | Path = "data",
        *,
        year: int = 2014,
        train_split: str = "train",
        test_split: str = "val",
        classes: Sequence[str] | None = None,
        include_crowd_membership: bool = False,
        cache: bool = True,
        image_size: int = 224,
        cutout: float = 0.5,
        randaugment: bool = True,
        mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
        std: tuple[float, float, float] = (1.0, 1.0, 1.0),
        protocol: str | None = None,
        num_tasks: int | None = None,
        base: int | None = None,
        increment: int | None = None,
        sizes: Sequence[int] | None = None,
        class_order: str | list[int] | list[str] = "sorted",
        test_rule: TestRule = "seen",
        batch_size: int = 64,
        eval_batch_size: int = 128,
        val_fraction: float = 0.0,
        num_workers: int = 4,
        split_seed: int = 0,
    ) -> None:
        super().__init__(
            class_names=_names.COCO if classes is None else classes,
            image_size=image_size,
            cutout=cutout,
            randaugment=randaugment,
            mean=mean,
            std=std,
            protocol=protocol,
            num_tasks=num_tasks,
            base=base,
            increment=increment,
            sizes=sizes,
            class_order=class_order,
            test_rule=test_rule,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            val_fraction=val_fraction,
            num_workers=num_workers,
            split_seed=split_seed,
        )
        self.root = Path(root)
        self.year = year
        self.splits = {True: train_split, False: test_split}
        self._own_classes = classes is not None
        self.include_crowd_membership = include_crowd_membership
        self.cache = cache

    def prepare_data(self) -> None:
        """Read large annotation files once for all processes of this machine."""
        for split in self.splits.values():
            path = self._annotations(split)
            if not self._splits and self.cache and path.stat().st_size >= CACHE_FROM_BYTES:
                read_instances(path, cache=True)

    def read_labels(self, train: bool) -> LabelTable:
        """See `MultiLabelFiles.read_labels`."""
        split = self.splits[train]
        path = self._annotations(split)
        found = read_instances(path, self.cache)
        unknown = sorted(set(found.categories) - set(_names.COCO))
        if unknown and not self._own_classes:
            raise ValueError(
                f"{path} has the category {unknown[0]!r}"
                + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
                + "; expected the 80 of COCO. Name the categories to use in `classes`."
            )
        column = {name: i for i, name in enumerate(found.categories)}
        absent = [name for name in self.original_names if name not in column]
        if absent:
            raise ValueError(
                f"{path} has no category {absent[0]!r}"
                + (f", nor {len(absent) - 1} others" if len(absent) > 1 else "")
                + f"; it has {found.categories[:5]} … ({len(found.categories)}). Name the ones to use in `classes`."
            )
        chosen = torch.tensor([column[name] for name in self.original_names])
        targets = torch.from_numpy(found.labels)[:, chosen]
        members = targets
        if self.include_crowd_membership:
            members = targets | torch.from_numpy(found.crowds)[:, chosen]
        folder = self.root / f"{split}{self.year}"
        return LabelTable([f"{folder}/{name}" for name in found.files], targets, members, str(path))

    def _annotations(self, split: str) -> Path:
        path = self.root / "annotations" / f"instances_{split}{self.year}.json"
        if not path.is_file():
            raise missing(
                self,
                f"annotations of `{split}{self.year}`",
                [path],
                f"Get annotations and images from https://cocodataset.org so that `{path}` and the folder "
                f"`{self.root / f'{split}{self.year}'}` are there, or correct `root`, `year` or the name of the split.",
            )
        return path


@dataclass
class Instances:
    """What a file of annotations says, images in the order of their ids.

    Args:
        files: File name of each image.
        categories: Names of the columns, sorted.
        labels: bool `[N, categories]`: has an object that is no crowd.
        crowds: bool `[N, categories]`: has a crowd.
    """

    files: list[str]
    categories: list[str]
    labels: np.ndarray[Any, Any]
    crowds: np.ndarray[Any, Any]


def read_instances(path: Path, cache: bool) -> Instances:
    """Read an annotation file, or the table that was kept of it.

    Args:
        path: `instances_*.json`.
        cache: Whether a table of it is read and, for a large file, written: `.<name>-<key>.npz`; the key changes with
            the file's size and time of change. A table that is not whole is made anew.

    Raises:
        ValueError: When the file is truncated or its parts do not fit.
    """
    info = path.stat()
    if not cache or info.st_size < CACHE_FROM_BYTES:
        return _parse(path)
    key = hashlib.sha256(f"{FORMAT} {info.st_size} {info.st_mtime_ns}".encode()).hexdigest()[:16]
    table = path.with_name(f".{path.stem}-{key}.npz")
    kept = _read_table(table)
    if kept is not None:
        return kept
    found = _parse(path)
    write_cache(table, lambda file: _write_table(file, found), f".{path.stem}-*.npz")
    return found


def _write_table(file: IO[bytes], found: Instances) -> None:
    content = io.BytesIO()
    np.savez_compressed(
        content,
        files=np.array(found.files, dtype=np.str_),
        categories=np.array(found.categories, dtype=np.str_),
        labels=np.packbits(found.labels, axis=1),
        crowds=np.packbits(found.crowds, axis=1),
    )
    file.write(hashlib.sha256(content.getvalue()).digest() + content.getvalue())


def _read_table(path: Path) -> Instances | None:
    with suppress(OSError, ValueError, KeyError, EOFError, BadZipFile):
        raw = path.read_bytes()
        if hashlib.sha256(raw[32:]).digest() == raw[:32]:
            with np.load(io.BytesIO(raw[32:]), allow_pickle=False) as arrays:
                names = arrays["categories"].tolist()
                bits = {n: np.unpackbits(arrays[n], axis=1, count=len(names)).view(bool) for n in ("labels", "crowds")}
                return Instances(arrays["files"].tolist(), names, bits["labels"], bits["crowds"])
    return None


def _parse(path: Path) -> Instances:
    images: dict[int, str] = {}
    categories: dict[int, str] = {}
    pairs: list[tuple[int, int, int]] = []
    try:
        for key, value in _items(path.read_text(encoding="utf-8")):
            if key == "images":
                if int(value["id"]) in images:
                    raise ValueError(f"image id {value['id']} is there more than once; expected each once")
                images[int(value["id"])] = str(value["file_name"])
            elif key == "categories":
                categories[int(value["id"])] = str(value["name"])
            elif key == "annotations":
                pairs.append((int(value["image_id"]), int(value["category_id"]), int(value.get("iscrowd", 0))))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"has an entry without {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
        raise ValueError(
            f"{path} {what}; expected COCO's format, with `images`, `annotations` and `categories`. It may be "
            "truncated: get the file again."
        ) from None
    if not images or not categories:
        raise ValueError(f"{path} has {len(images)} images and {len(categories)} categories; expected some of both.")
    check_unique(list(images.values()), path, "file")
    check_unique(list(categories.values()), path, "category")
    order, names = sorted(images), sorted(categories.values())
    table = np.array(pairs, dtype=np.int64).reshape(-1, 3)
    rows = _positions(table[:, 0], order, f"{path}: an annotation is of image", "images")
    columns = _positions(table[:, 1], sorted(categories), f"{path}: an annotation is of category", "categories")
    rank = {name: i for i, name in enumerate(names)}
    columns = np.array([rank[categories[c]] for c in sorted(categories)])[columns]
    flags = np.zeros((2, len(order), len(names)), dtype=bool)
    flags[(table[:, 2] != 0).astype(int), rows, columns] = True
    return Instances([images[i] for i in order], names, flags[0], flags[1])


def _positions(values: np.ndarray[Any, Any], known: list[int], what: str, where: str) -> np.ndarray[Any, Any]:
    """Position of each value in a sorted list that must have it."""
    ids = np.array(known, dtype=np.int64)
    found = np.searchsorted(ids, values)
    wrong = ids[np.minimum(found, len(ids) - 1)] != values
    if wrong.any():
        raise ValueError(
            f"{what} {int(values[wrong][0])}, which `{where}` does not have ({int(wrong.sum())} such annotations); "
            "expected every annotation to fit. Get the file again."
        )
    return found


def _items(text: str) -> Iterator[tuple[str, Any]]:
    """The entries of a JSON object's lists, one at a time: the whole would take several times the file's size."""
    decode, position = json.JSONDecoder().raw_decode, _expect(text, 0, "{")
    while True:
        key, position = decode(text, _skip(text, position))
        position = _skip(text, _expect(text, position, ":"))
        if text[position : position + 1] == "[":
            position = _skip(text, position + 1)
            while text[position : position + 1] != "]":
                value, position = decode(text, position)
                yield key, value
                position = _skip(text, position)
                if text[position : position + 1] == ",":
                    position = _skip(text, position + 1)
                elif text[position : position + 1] != "]":
                    raise ValueError(f"no ',' or ']' at character {position}")
            position += 1
        else:
            _, position = decode(text, position)
        position = _skip(text, position)
        if text[position : position + 1] != ",":
            break
        position += 1
    _expect(text, position, "}")


def _skip(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\n", "\t", "\r"):
        position += 1
    return position


def _expect(text: str, position: int, character: str) -> int:
    position = _skip(text, position)
    if text[position : position + 1] != character:
        raise ValueError(f"no {character!r} at character {position}")
    return position + 1
