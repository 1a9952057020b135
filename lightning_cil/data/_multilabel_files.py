"""What `MultiLabelVOC` and `MultiLabelCOCO` share: a table of labels read from metadata, one image pipeline."""

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from PIL import Image
from torch import Tensor

from lightning_cil.data.augment import BatchAugment
from lightning_cil.data.base import IncrementalDataModule
from lightning_cil.data.images import FileImages, ImageSplit
from lightning_cil.data.randaugment import CutoutRandAugment, ResizeTo
from lightning_cil.data.splits import parse_protocol
from lightning_cil.types import LabelKind, TestRule


@dataclass
class LabelTable:
    """Images of one split in a fixed order, and the classes in each.

    Args:
        paths: One file for each image.
        targets: bool `[N, C]`: the labels.
        members: bool `[N, C]`: what brings an image into a task.
        source: Where it comes from, for messages.
    """

    paths: list[str]
    targets: Tensor
    members: Tensor
    source: str


class MultiLabelFiles(IncrementalDataModule, ABC):
    """A multi-label stream from a table of labels and image files."""

    label_kind: LabelKind = "multi"
    default_protocol: ClassVar[str]

    def __init__(
        self,
        *,
        class_names: Sequence[str],
        image_size: int,
        cutout: float,
        randaugment: bool,
        mean: Sequence[float],
        std: Sequence[float],
        protocol: str | None,
        num_tasks: int | None,
        base: int | None,
        increment: int | None,
        sizes: Sequence[int] | None,
        class_order: str | Sequence[int] | Sequence[str],
        test_rule: TestRule,
        batch_size: int,
        eval_batch_size: int,
        val_fraction: float,
        num_workers: int,
        split_seed: int,
    ) -> None:
        if image_size < 1 or not 0 <= cutout <= 1:
            raise ValueError(
                f"got `image_size={image_size}` and `cutout={cutout}`; expected at least 1 pixel, and a share in "
                "[0, 1] of its side (0: no cutout)."
            )
        others = {"num_tasks": num_tasks, "base": base, "increment": increment, "sizes": sizes}
        given = [f"`{name}={value}`" for name, value in others.items() if value is not None]
        if protocol is not None and given:
            raise ValueError(
                f"got `protocol={protocol!r}` and {', '.join(given)}; expected one description of the tasks. Set the "
                "others to null."
            )
        names = _checked_names(class_names)
        if not given:
            base, increment = parse_protocol(self.default_protocol if protocol is None else protocol)
            rest = len(names) - base
            if rest < 0 or rest % increment:
                raise ValueError(
                    f"`protocol={protocol or self.default_protocol!r}`{'' if protocol else ', the default,'} does not "
                    f"make {len(names)} classes: {base} in the first task, {increment} in each further one. Give "
                    "another one, or `num_tasks` or `sizes`."
                )
        super().__init__(
            class_names=names,
            augment=BatchAugment(mean, std),
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
            test_rule=test_rule,
        )
        self._fixed = ResizeTo(image_size)
        self._random = CutoutRandAugment(image_size, cutout, randaugment) if cutout or randaugment else None

    @abstractmethod
    def read_labels(self, train: bool) -> LabelTable:
        """Return the table of the training or the test split, with classes in the order of `original_names`."""

    def load_split(self, train: bool) -> ImageSplit:
        """See `IncrementalDataModule.load_split`."""
        table = self.read_labels(train)
        _check_files(table)
        if not train:
            self._check_disjoint(table)
        return FileImages(
            table.paths,
            table.targets,
            self.num_classes,
            table.source,
            self._random,
            self._fixed,
            table.members,
        )

    def prepare_image(self, image: Image.Image) -> Tensor:
        """See `IncrementalDataModule.prepare_image`; needs no data."""
        return self._fixed(image)

    def _check_disjoint(self, test: LabelTable) -> None:
        train = self.split("train")
        assert isinstance(train, FileImages)
        both = sorted({train.path(i) for i in range(len(train))} & set(test.paths))
        if both:
            raise ValueError(
                f"{len(both)} image(s) are in {train.source} and in {test.source}, such as {both[0]}; expected each in "
                "one of them. Choose other splits, or take them out of one list."
            )


def _checked_names(names: Sequence[str]) -> list[str]:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated or len(names) < 2:
        raise ValueError(
            f"`classes` has {len(names)} name(s){f', {repeated[0]!r} more than once' if repeated else ''}; expected at "
            "least 2 different ones."
        )
    return list(names)


def _check_files(table: LabelTable) -> None:
    """One listing of each folder instead of a look at each file."""
    present = {folder: _names_in(folder) for folder in {os.path.dirname(path) for path in table.paths}}
    absent = [p for p in table.paths if os.path.basename(p) not in present[os.path.dirname(p)]]
    if absent:
        raise FileNotFoundError(
            f"{table.source} names {len(absent)} image(s) that are not there, such as {absent[0]}; expected a file for "
            f"each of {len(table.paths)} images. Get the images, or take them out of the list."
        )


def _names_in(folder: str) -> set[str]:
    return set(os.listdir(folder)) if os.path.isdir(folder) else set()


def check_unique(names: Sequence[str], source: str | Path, what: str) -> None:
    """Refuse a list that names something twice.

    Raises:
        ValueError: With the first such name.
    """
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{source} lists {what} {repeated[0]!r} more than once"
            + (f", and {len(repeated) - 1} others" if len(repeated) > 1 else "")
            + "; expected each once. Remove the duplicates."
        )
