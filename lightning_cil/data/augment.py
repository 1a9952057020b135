"""Augmentation of a whole uint8 batch at once, on whatever device it is, by counter-based randomness.

Sample i's crop, flip and brightness are functions of its `key` alone, so that the number of workers, ranks and
restarts cannot change them. In-memory CIFAR-size batches run several times faster than per-image transforms
(`benchmarks/augment.py` measures it).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_cil._random import counter_uniforms

_ROW, _COLUMN, _FLIP, _BRIGHTNESS = range(4)
"""Random streams of a sample."""


class BatchAugment:
    """Random crop with zero padding, horizontal flip, brightness; then normalisation.

    Args:
        mean: Channel means of images scaled to [0, 1].
        std: Channel standard deviations of images scaled to [0, 1].
        crop_padding: Zero pixels added to each side before a crop of the original size; 0: no crop.
        flip: Whether half of the images are mirrored.
        brightness: Images are multiplied by U(1 - b, 1 + b) and clamped to [0, 1]; 0: not.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        crop_padding: int = 0,
        flip: bool = False,
        brightness: float = 0.0,
    ) -> None:
        self.mean = tuple(float(m) for m in mean)
        self.std = tuple(float(s) for s in std)
        if (
            crop_padding < 0
            or not 0 <= brightness <= 1
            or len(self.mean) != len(self.std)
            or min(self.std, default=0) <= 0
        ):
            raise ValueError(
                f"got `crop_padding={crop_padding}`, `brightness={brightness}`, mean {self.mean}, std {self.std}; "
                "expected a padding >= 0, a brightness in [0, 1], and as many positive deviations as means."
            )
        self.crop_padding = crop_padding
        self.flip = flip
        self.brightness = brightness
        self._affine: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, image: Tensor, key: Tensor | None = None) -> Tensor:
        """Augment (with `key`) and normalise.

        Args:
            image: uint8 `[B, channels, height, width]`.
            key: long `[B]`; `None`: normalise only.

        Returns:
            float32 of the same shape.
        """
        if key is None:
            return self.normalise(image)
        if not self.crop_padding and not self.flip and not self.brightness:
            return self.normalise(image)
        draws = counter_uniforms(key, range(4))
        image = self._crop_and_flip(image, draws)
        if self.brightness:
            factor = 1 + self.brightness * (2 * draws[_BRIGHTNESS] - 1)
            scaled = image * factor.to(torch.float32).view(-1, 1, 1, 1)
            return self.normalise(scaled.clamp_(max=255.0))
        return self.normalise(image)

    def normalise(self, image: Tensor) -> Tensor:
        """Scale [0, 255] to [0, 1], subtract the means, divide by the deviations."""
        if image.device not in self._affine:  # once for each device: a copy from the host would wait for it
            mean = torch.tensor(self.mean).view(-1, 1, 1)
            std = torch.tensor(self.std).view(-1, 1, 1)
            self._affine[image.device] = ((1 / (255 * std)).to(image.device), (mean / std).to(image.device))
        scale, shift = self._affine[image.device]
        return image.to(torch.float32).mul_(scale).sub_(shift)

    def _crop_and_flip(self, image: Tensor, draws: Tensor) -> Tensor:
        if not self.crop_padding and not self.flip:
            return image
        batch, channels, height, width = image.shape
        pad = self.crop_padding
        rows = torch.arange(height, device=image.device).expand(batch, height)
        columns = torch.arange(width, device=image.device).expand(batch, width)
        if self.flip:
            mirrored = (draws[_FLIP] < 0.5).view(-1, 1)
            columns = torch.where(mirrored, width - 1 - columns, columns)
        if pad:
            span = 2 * pad + 1
            rows = rows + (draws[_ROW] * span).long().view(-1, 1)
            columns = columns + (draws[_COLUMN] * span).long().view(-1, 1)
            image = torch.nn.functional.pad(image, (pad, pad, pad, pad))
        flat = (rows.unsqueeze(2) * image.shape[3] + columns.unsqueeze(1)).view(batch, 1, height * width)
        picked = image.flatten(2).gather(2, flat.expand(batch, channels, height * width))
        return picked.view(batch, channels, height, width)
