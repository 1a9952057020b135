"""`MultiLabelVOC`: PASCAL VOC as a multi-label stream, from the official folder or anything in its layout."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightning_cil.data import _names
from lightning_cil.data._files import missing
from lightning_cil.data._multilabel_files import LabelTable, MultiLabelFiles, check_unique
from lightning_cil.types import TestRule

LabelSource = Literal["auto", "lists", "xml", "both"]


class MultiLabelVOC(MultiLabelFiles):
    """PASCAL VOC 2007 as a multi-label stream: 5,011 photographs to train, 4,952 to test, 20 classes, 9 tasks.

    Source: M. Everingham et al., The PASCAL Visual Object Classes Challenge (IJCV 2010),
    http://host.robots.ox.ac.uk/pascal/VOC; pictures under Flickr's terms. An image belongs to each task of which it has
    a class, with that task's labels only (RebLL, Du et al. 2025, https://arxiv.org/abs/2408.12161). Objects marked
    "difficult" count as absent, in training and in testing. Class ids follow the sorted names. Training images are
    resized, partly covered and distorted (cutout, RandAugment); values are in [0, 1].

    Args:
        root: Folder with `VOCdevkit/VOC<year>`, `VOC<year>`, or the latter itself: `ImageSets/Main`, `Annotations`,
            `JPEGImages`. Names of images need not be numbers.
        year: In the folder's name.
        train_split: List in `ImageSets/Main` (without `.txt`) of the training images.
        test_split: The same of the test images.
        labels: `lists`: from `ImageSets/Main/<class>_<split>.txt`, which is fast; `xml`: from `Annotations`; `both`:
            from both, which must agree; `auto`: lists where the split has them for every class, else xml.
        classes: Names of the classes to use, in the order of their ids; objects of other classes do not count. `None`:
            all 20.
        image_size: Side in pixels that images are resized to, whatever their aspect ratio.
        cutout: Side of the covered rectangle, as a share of the image's, in [0, 1]; 0: none.
        randaugment: Whether two of UDA's operations are drawn for each training image.
        mean: Subtracted from channels scaled to [0, 1].
        std: What they are then divided by.
        protocol: `Bx-Cy`: x classes in the first task, y in each further one; `B4-C2` when no other description is
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

    default_protocol = "B4-C2"

    def __init__(
        self,
        root: str | Path = "data",
        *,
        year: int = 2007,
        train_split: str = "trainval",
        test_split: str = "test",
        labels: LabelSource = "auto",
        classes: Sequence[str] | None = None,
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
        if labels not in ("auto", "lists", "xml", "both"):
            raise ValueError(f"`labels={labels!r}` is unknown: expected 'auto', 'lists', 'xml' or 'both'.")
        super().__init__(
            class_names=_names.VOC if classes is None else classes,
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
        self.label_source: LabelSource = labels

    def prepare_data(self) -> None:
        """Look whether both lists are there."""
        for split in self.splits.values():
            self._list(split)

    def read_labels(self, train: bool) -> LabelTable:
        """See `MultiLabelFiles.read_labels`."""
        split = self.splits[train]
        path = self._list(split)
        folder = path.parents[2]
        ids = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        check_unique(ids, path, "image")
        ids.sort()
        targets = self._targets(folder, split, ids)
        paths = [f"{folder}/JPEGImages/{name}.jpg" for name in ids]
        return LabelTable(paths, targets, targets, f"{path}")

    def _targets(self, folder: Path, split: str, ids: list[str]) -> Tensor:
        names, source = self.original_names, self.label_source
        lists = [folder / "ImageSets" / "Main" / f"{name}_{split}.txt" for name in names]
        if source == "auto":
            source = "lists" if all(path.is_file() for path in lists) else "xml"
        if source == "xml":
            return self._from_xml(folder / "Annotations", ids)
        targets = _from_lists(lists, ids)
        if source == "both":
            wrong = (targets != self._from_xml(folder / "Annotations", ids)).nonzero()
            if len(wrong):
                image, label = wrong[0].tolist()
                said = "1" if targets[image, label] else "0 or -1"
                raise ValueError(
                    f"{lists[label]} gives {said} for image {ids[image]!r}, but Annotations/{ids[image]}.xml has "
                    f"{'no' if targets[image, label] else 'an'} object {names[label]!r} that is not difficult"
                    + (f" ({len(wrong)} labels differ)" if len(wrong) > 1 else "")
                    + "; expected the same. Get the data set again, or choose one of `labels: lists` and `labels: xml`."
                )
        return targets

    def _from_xml(self, folder: Path, ids: Sequence[str]) -> Tensor:
        """Labels from one file for each image; bool `[N, C]`."""
        column = {name: i for i, name in enumerate(self.original_names)}
        targets = torch.zeros(len(ids), self.num_classes, dtype=torch.bool)
        for row, image in enumerate(ids):
            path = folder / f"{image}.xml"
            try:
                objects = ElementTree.parse(path).getroot().findall("object")
            except FileNotFoundError:
                raise FileNotFoundError(
                    f"{path}: no such annotation; expected one for each of {len(ids)} images. Get the data set again."
                ) from None
            except ElementTree.ParseError as error:
                raise ValueError(f"{path} is truncated or not XML ({error}). Get the data set again.") from None
            for item in objects:
                name = (item.findtext("name") or "").strip()
                if name not in column and not self._own_classes:
                    raise ValueError(
                        f"{path} has an object of class {name!r}; expected one of the 20 of VOC. Name the classes to "
                        "use in `classes`."
                    )
                if name in column and (item.findtext("difficult") or "0").strip() != "1":
                    targets[row, column[name]] = True
        return targets

    def _list(self, split: str) -> Path:
        places = [self.root / "VOCdevkit" / f"VOC{self.year}", self.root / f"VOC{self.year}", self.root]
        lists = [place / "ImageSets" / "Main" / f"{split}.txt" for place in places]
        found = next((path for path in lists if path.is_file()), None)
        if found is None:
            raise missing(
                self,
                f"list of images `{split}.txt`",
                lists,
                f"Unpack the trainval and test archives of http://host.robots.ox.ac.uk/pascal/VOC/voc{self.year} so "
                f"that `{lists[0]}` is there, or correct `root`, `year` or the name of the split.",
            )
        return found


def _from_lists(paths: list[Path], ids: list[str]) -> Tensor:
    """Labels from the lists of each class; bool `[N, C]`, rows as `ids`, which are sorted."""
    rows = np.array(ids)
    targets = np.zeros((len(ids), len(paths)), dtype=bool)
    for column, path in enumerate(paths):
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path}: no such list; expected one line `image value` for each of {len(ids)} images. Get the data "
                "set again, or choose `labels: xml`."
            ) from None
        lines = [line.split() for line in text.splitlines()]
        for number, fields in enumerate(lines, 1):
            if fields and (len(fields) != 2 or fields[1] not in ("1", "0", "-1")):
                raise ValueError(
                    f"{path}, line {number} is {' '.join(fields)!r}; expected the name of an image and 1 (present), 0 "
                    "(difficult only) or -1 (absent). Get the data set again."
                )
        listed = [fields[0] for fields in lines if fields]
        if sorted(listed) != ids:
            check_unique(listed, path, "image")
            lacking = sorted(set(ids) - set(listed))
            raise ValueError(
                f"{path} has {len(listed)} images, the split {len(ids)}"
                + (f"; {lacking[0]!r} is not in it" if lacking else "")
                + "; expected the same ones. The file may be truncated: get the data set again."
            )
        present = np.array([fields[0] for fields in lines if fields and fields[1] == "1"], dtype=rows.dtype)
        targets[np.searchsorted(rows, present), column] = True
    return torch.from_numpy(targets)
