"""Training augmentation of CIFAR-size images: one batch at once against one image at a time, in one run.

    python benchmarks/augment.py

Prints images a second on one thread, the median of several repeats, and the ratio.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torchvision.transforms import v2

from lightning_cil.data.augment import BatchAugment

BATCH, REPEATS = 128, 15
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def rate(step: Callable[[], object]) -> float:
    """Images a second, median."""
    step()
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return BATCH / statistics.median(seconds)


def main() -> None:
    """Measure both in turn."""
    torch.set_num_threads(1)
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)
    keys = torch.arange(BATCH)
    batched = BatchAugment(MEAN, STD, crop_padding=4, flip=True, brightness=63 / 255)
    single = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=63 / 255),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    ours = rate(lambda: batched(images, keys))
    theirs = rate(lambda: torch.stack([single(image) for image in images]))
    print(f"batched {ours:,.0f} images/s   one at a time {theirs:,.0f} images/s   ratio {ours / theirs:.1f}")


if __name__ == "__main__":
    main()
