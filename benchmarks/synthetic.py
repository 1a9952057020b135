"""Random images as a stream, for benchmarks that need sizes and not content."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_cil.data import IncrementalDataModule
from lightning_cil.data.augment import BatchAugment
from lightning_cil.data.images import ImageSplit, TensorImages

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def random_images(count: int, shape: Sequence[int], seed: int = 0) -> Tensor:
    """uint8 `[count, *shape]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)


class RandomTasks(IncrementalDataModule):
    """Tasks of equal classes and any number of images.

    Args:
        classes: Classes of every task.
        images: Training images of every task.
        test_images: Test images of every task.
        batch_size: Samples of a training step.
        shape: Channels, height, width.
        augmented: Crop, flip and brightness; otherwise images are normalised only.
    """

    def __init__(
        self,
        *,
        classes: int,
        images: Sequence[int],
        test_images: int,
        batch_size: int,
        shape: tuple[int, int, int] = (3, 32, 32),
        augmented: bool = True,
    ) -> None:
        mean, std = MEAN[: shape[0]], STD[: shape[0]]
        augment = BatchAugment(mean, std, 4, True, 63 / 255) if augmented else BatchAugment(mean, std)
        super().__init__(
            class_names=[str(c) for c in range(classes * len(images))],
            augment=augment,
            num_tasks=len(images),
            base=None,
            increment=None,
            sizes=None,
            class_order="sorted",
            batch_size=batch_size,
            eval_batch_size=512,
            val_fraction=0.0,
            num_workers=0,
            split_seed=0,
        )
        self.shape = shape
        self.counts = {"train": list(images), "test": [test_images] * len(images)}
        self.classes = classes

    def load_split(self, train: bool) -> ImageSplit:
        """See `IncrementalDataModule.load_split`."""
        counts = self.counts["train" if train else "test"]
        targets = [torch.arange(n) % self.classes + self.classes * task for task, n in enumerate(counts)]
        return TensorImages(random_images(sum(counts), self.shape), torch.cat(targets), self.num_classes, "random")
