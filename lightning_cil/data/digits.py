"""`SplitDigits`: 1,797 scanned digits that scikit-learn ships; real input with nothing to download.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), https://doi.org/10.24432/C50P49,
the test part as packaged by scikit-learn (CC BY 4.0): 8x8 pixels with 17 grey levels, ten classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_cil._random import counter_hash
from lightning_cil.data.augment import BatchAugment
from lightning_cil.data.base import DEFAULT_ORDER, IncrementalDataModule
from lightning_cil.data.images import ImageSplit, TensorImages

TEST_SHARE = 0.2


class SplitDigits(IncrementalDataModule):
    """scikit-learn's scanned digits, by default 5 tasks of 2 classes.

    A fifth of every class is the test set, chosen once and for all by a hash of the image's position.

    Args:
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

    default_num_tasks = 5
    image_shape = (1, 8, 8)

    def __init__(
        self,
        *,
        num_tasks: int | None = None,
        base: int | None = None,
        increment: int | None = None,
        sizes: Sequence[int] | None = None,
        class_order: str | list[int] | list[str] = DEFAULT_ORDER,
        batch_size: int = 32,
        eval_batch_size: int = 512,
        val_fraction: float = 0.0,
        split_seed: int = 0,
    ) -> None:
        super().__init__(
            class_names=[str(digit) for digit in range(10)],
            augment=BatchAugment(mean=[0.3053], std=[0.3763]),
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

    def load_split(self, train: bool) -> ImageSplit:
        """See `IncrementalDataModule.load_split`."""
        images, targets = digits_split(train)
        return TensorImages(images, targets, 10, "scikit-learn's digits")


def digits_split(train: bool) -> tuple[Tensor, Tensor]:
    """The training or the test digits.

    Returns:
        Images uint8 `[N, 1, 8, 8]` and labels long `[N]`.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    targets = torch.from_numpy(digits.target).to(torch.int64)
    test = torch.zeros(len(targets), dtype=torch.bool)
    for label in range(10):
        members = (targets == label).nonzero().flatten()
        count = round(TEST_SHARE * len(members))
        test[members[counter_hash(members, 0).argsort()[:count]]] = True
    keep = ~test if train else test
    return images[keep], targets[keep]
