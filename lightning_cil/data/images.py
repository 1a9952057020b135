"""Where a split's images live: one uint8 tensor in memory, or files that are decoded when asked for.

Labels always come from metadata; no image is decoded to read one.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_cil.data.audio import Sounds

ImageTransform = Callable[[Image.Image], Tensor]

RandomImageTransform = Callable[[Image.Image, int], Tensor]
"""Image and key to pixels: a function of both alone, so that threads, workers and restarts agree."""


class ImageSplit(ABC):
    """The images and original labels of one split.

    Args:
        targets: Original class ids, long `[N]`.
        num_classes: Classes of the data set.
        source: Where they come from, for messages.

    Raises:
        ValueError: When a label is out of range or there is no image.
    """

    sounds: Sounds | None = None
    """The sound of each sample, where there are sounds; set after construction."""

    def __init__(self, targets: Tensor, num_classes: int, source: str) -> None:
        self.targets = targets.to(torch.int64)
        self.source = source
        if len(targets) == 0:
            raise ValueError(f"{source} holds no image; expected at least one for each of {num_classes} classes.")
        low, high = int(self.targets.min()), int(self.targets.max())
        if low < 0 or high >= num_classes:
            wrong = low if low < 0 else high
            position = int((self.targets == wrong).nonzero()[0, 0])
            raise ValueError(
                f"{source}: sample {position} has label {wrong}; expected 0 to {num_classes - 1}. "
                "Correct the label, or the number of classes."
            )

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def stored(self, indices: Tensor) -> Tensor:
        """Images as a replay buffer keeps them: uint8 `[B, channels, height, width]`, not augmented."""


class TensorImages(ImageSplit):
    """Images of one size, in memory.

    Args:
        images: uint8 `[N, channels, height, width]`.
        targets: Original class ids, long `[N]`.
        num_classes: Classes of the data set.
        source: Where they come from, for messages.

    Raises:
        ValueError: When shapes do not fit or labels are out of range.
        TypeError: When the images are not uint8.
    """

    def __init__(self, images: Tensor, targets: Tensor, num_classes: int, source: str) -> None:
        if images.dtype != torch.uint8:
            raise TypeError(f"{source}: images are {images.dtype}, expected torch.uint8 with values 0 to 255.")
        if images.ndim != 4 or len(images) != len(targets):
            raise ValueError(
                f"{source}: images {tuple(images.shape)} and targets {tuple(targets.shape)}; expected "
                "[N, channels, height, width] and [N] with the same N."
            )
        super().__init__(targets, num_classes, source)
        self.images = images.contiguous()

    def stored(self, indices: Tensor) -> Tensor:
        """See `ImageSplit.stored`."""
        return self.images[indices]


class FileImages(ImageSplit):
    """Image files, decoded in worker processes.

    Args:
        paths: One file for each sample. Kept as one byte array, so that forked workers share the memory.
        targets: Original class ids, long `[N]`.
        num_classes: Classes of the data set.
        source: Where they come from, for messages.
        train_transform: PIL image and key to uint8 `[channels, height, width]`; it draws what is random from the key
            (`_random.uniform`) and from no generator. `None`: nothing is random, `eval_transform` is used.
        eval_transform: PIL image to uint8 `[channels, height, width]`, fixed; also what a replay buffer stores.

    Raises:
        ValueError: When there are not as many paths as targets, or labels are out of range.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        targets: Tensor,
        num_classes: int,
        source: str,
        train_transform: RandomImageTransform | None,
        eval_transform: ImageTransform,
    ) -> None:
        if len(paths) != len(targets):
            raise ValueError(f"{source}: {len(paths)} paths and {len(targets)} targets; expected one for each other.")
        super().__init__(targets, num_classes, source)
        self._paths = np.array([os.fsencode(p) for p in paths], dtype=np.bytes_)
        self.train_transform = train_transform
        self.eval_transform = eval_transform

    def path(self, index: int) -> str:
        """The file of one sample."""
        return os.fsdecode(bytes(self._paths[index]))

    def load(self, index: int, key: int | None) -> Tensor:
        """Decode and transform one image.

        Args:
            index: Position in the split.
            key: Selects what the random transform does; `None`: the fixed one.

        Returns:
            uint8 `[channels, height, width]`.
        """
        image = read_image(self.path(index))
        if key is None or self.train_transform is None:
            return self.eval_transform(image)
        return self.train_transform(image, key)

    def stored(self, indices: Tensor) -> Tensor:
        """See `ImageSplit.stored`."""
        return torch.stack([self.load(int(i), None) for i in indices])


def read_image(path: str | Path) -> Image.Image:
    """Read an image file as RGB.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When the file is truncated or not an image.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):  # 16 bits of grey: PIL would clip them to white
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            if "transparency" in image.info:
                return image.convert("RGBA").convert("RGB")
            return image.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image; expected a file that the data set's list names.") from None
    except Exception as error:
        raise ValueError(
            f"{path}: cannot be read as an image ({error}); expected a complete JPEG, PNG or similar file. "
            "Replace the file, or take it out of the data set."
        ) from error
