"""`MultiLabelDigits`: pictures of one to four scanned digits each; real multi-label input with nothing to download.

Source: the digits of `SplitDigits` (CC BY 4.0), put together on a canvas of two by two. Training pictures are made of
its training digits, test pictures of its test digits.
"""

from collections.abc import Sequence

import torch

from lightning_cil._random import counter_hash
from lightning_cil.data.augment import BatchAugment
from lightning_cil.data.base import IncrementalDataModule
from lightning_cil.data.digits import digits_split
from lightning_cil.data.images import ImageSplit, TensorImages
from lightning_cil.types import LabelKind, TestRule

CELLS = 4
_CELL, _DIGIT, _COUNT = range(3)
"""Random streams of a picture."""


class MultiLabelDigits(IncrementalDataModule):
    """Pictures of 1 to 4 scanned digits as a multi-label stream, by default 5 tasks of 2 classes.

    Each picture has 16x16 pixels and room for four digits; how many there are, which and where is fixed by a hash of
    its position. The labels are the digits in it, 2.3 on average.

    Args:
        train_images: Training pictures.
        test_images: Test pictures.
        max_digits: Most digits in a picture, 1 to 4; all numbers of digits are equally likely.
        test_rule: `seen`: after a task the network is tested on the images with a class seen so far; `all`: on all.
        num_tasks: Number of equal tasks; 5 when no other description is given.
        base: Classes of the first task (with `increment`).
        increment: Classes of every further task (with `base`).
        sizes: Classes of each task, uneven ones allowed.
        class_order: `seed:N`, `sorted`, or the class ids in the order they are learned.
        batch_size: Training samples of a step on each process.
        eval_batch_size: Samples of an evaluation batch on each process.
        val_fraction: Share of the training images that is held out for validation, in [0, 1).
        split_seed: Selects the held-out images.
    """

    label_kind: LabelKind = "multi"
    default_num_tasks = 5
    image_shape = (1, 16, 16)

    def __init__(
        self,
        *,
        train_images: int = 1000,
        test_images: int = 300,
        max_digits: int = CELLS,
        test_rule: TestRule = "seen",
        num_tasks: int | None = None,
        base: int | None = None,
        increment: int | None = None,
        sizes: Sequence[int] | None = None,
        class_order: str | list[int] | list[str] = "sorted",
        batch_size: int = 32,
        eval_batch_size: int = 512,
        val_fraction: float = 0.0,
        split_seed: int = 0,
    ) -> None:
        super().__init__(
            class_names=[str(digit) for digit in range(10)],
            augment=BatchAugment(mean=[0.19], std=[0.33]),
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
            test_rule=test_rule,
        )
        if min(train_images, test_images) < 1 or not 1 <= max_digits <= CELLS:
            raise ValueError(
                f"got `train_images={train_images}`, `test_images={test_images}`, `max_digits={max_digits}`; expected "
                f"at least 1 picture in each and 1 to {CELLS} digits."
            )
        self.num_images = {True: train_images, False: test_images}
        self.max_digits = max_digits

    def load_split(self, train: bool) -> ImageSplit:
        """See `IncrementalDataModule.load_split`."""
        digits, labels = digits_split(train)
        picture = torch.arange(self.num_images[train])
        cell = CELLS * picture.unsqueeze(1) + torch.arange(CELLS)
        count = counter_hash(picture, _COUNT) % self.max_digits + 1
        filled = counter_hash(cell, _CELL).argsort(1).argsort(1) < count.unsqueeze(1)
        chosen = counter_hash(cell, _DIGIT) % len(digits)
        targets = torch.zeros(len(picture), self.num_classes, dtype=torch.bool)
        targets[torch.arange(len(picture)).unsqueeze(1).expand_as(filled)[filled], labels[chosen[filled]]] = True
        pieces = digits[chosen] * filled.view(-1, CELLS, 1, 1, 1)
        height, width = digits.shape[-2:]
        pixels = pieces.view(-1, 2, 2, height, width).permute(0, 1, 3, 2, 4).reshape(-1, 1, 2 * height, 2 * width)
        return TensorImages(pixels, targets, self.num_classes, "pictures of scikit-learn's digits")
