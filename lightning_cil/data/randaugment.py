"""The training transform of multi-label work on VOC and COCO: resize, cutout, two random operations; from a key.

The pipeline is that of KRT (https://github.com/witdsl/KRT-MLCIL), CSC (https://github.com/Kaile-Du/CSC) and ASL
(https://github.com/Alibaba-MIIL/ASL, `train.py`), which RebLL's comparisons share. Its `RandAugment` is the package
`randaugment` 1.0.2, with the fifteen operations of UDA (Xie et al. 2020, https://arxiv.org/abs/1904.12848); it is not
torchvision's of that name. Mirroring and cropping are not part of it.
"""

import math
from collections.abc import Callable

from PIL import Image
from torch import Tensor

from lightning_cil._random import uniform

GREY = (128, 128, 128)
LEVELS = 10
"""Strengths 0 to 9; 0 does nothing and is never drawn."""
OPERATIONS_PER_IMAGE = 2
PROBABILITY = 0.5
_CUTOUT, _POLICY = range(2)
"""Random streams of a sample."""
_OPERATION, _LEVEL, _APPLY, _SIGN, _X, _Y = range(6)
"""Random streams of an operation."""

Operation = Callable[[Image.Image, float, int, tuple[float, float]], Image.Image]
"""Image, strength in (0, 1], sign -1 or 1, position in [0, 1) x [0, 1)."""


class ResizeTo:
    """Both sides to `size`, whatever the aspect ratio, bilinear; uint8 `[3, size, size]`.

    Args:
        size: Side in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Tensor:
        """Transform a PIL image."""
        from torchvision.transforms.v2 import functional as v2

        result: Tensor = v2.pil_to_tensor(self.resize(image))
        return result

    def resize(self, image: Image.Image) -> Image.Image:
        """Only resize."""
        return image.resize((self.size, self.size), Image.Resampling.BILINEAR)


class CutoutRandAugment:
    """Resize, cutout, RandAugment: a function of image and key; uint8 `[3, size, size]`.

    Args:
        size: Side in pixels.
        cutout: Side of the rectangle of one random colour, as a share of the image's, in [0, 1]; 0: none. Its centre is
            anywhere in the image; what lies outside is cut off.
        randaugment: Whether two of the fifteen operations are drawn, each applied with probability 0.5.
    """

    def __init__(self, size: int, cutout: float = 0.5, randaugment: bool = True) -> None:
        self._resize = ResizeTo(size)
        self.cutout = cutout
        self.randaugment = randaugment

    def __call__(self, image: Image.Image, key: int) -> Tensor:
        """Transform a PIL image."""
        from torchvision.transforms.v2 import functional as v2

        image = self._resize.resize(image)
        if self.cutout:
            draws = [uniform(key, _CUTOUT, i) for i in range(5)]
            colour = tuple(int(256 * u) for u in draws[2:])
            image = cut_out(image, round(self.cutout * image.width), (draws[0], draws[1]), colour)
        if self.randaugment:
            for number in range(OPERATIONS_PER_IMAGE):
                image = _random_operation(image, key, number)
        result: Tensor = v2.pil_to_tensor(image)
        return result


def _random_operation(image: Image.Image, key: int, number: int) -> Image.Image:
    def draw(stream: int) -> float:
        return uniform(key, _POLICY, number, stream)

    if draw(_APPLY) >= PROBABILITY:
        return image
    operation = OPERATIONS[_NAMES[int(draw(_OPERATION) * len(_NAMES))]]
    level = 1 + int(draw(_LEVEL) * (LEVELS - 1))
    return operation(image, level / (LEVELS - 1), 1 if draw(_SIGN) < 0.5 else -1, (draw(_X), draw(_Y)))


# ---------------------------------------------------------------------- operations


def cut_out(
    image: Image.Image, side: int, position: tuple[float, float], colour: tuple[int, ...] = GREY
) -> Image.Image:
    """Fill a square, cut off at the borders, with a colour.

    Args:
        image: Any RGB image; it stays as it is.
        side: Of the square, in pixels.
        position: Its centre, x and y in [0, 1) of the image's size.
        colour: Red, green and blue, 0 to 255.
    """
    left = int(position[0] * image.width) - side // 2
    top = int(position[1] * image.height) - side // 2
    box = (max(left, 0), max(top, 0), min(left + side, image.width), min(top + side, image.height))
    result = image.copy()
    result.paste(colour, box)
    return result


def _affine(image: Image.Image, shear: tuple[float, float], translate: tuple[int, int]) -> Image.Image:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as v2

    mode = InterpolationMode.BICUBIC if any(shear) else InterpolationMode.NEAREST
    degrees = [math.degrees(math.atan(s)) for s in shear]
    result: Image.Image = v2.affine(
        image, 0.0, list(translate), 1.0, degrees, interpolation=mode, fill=list(GREY), center=[0, 0]
    )
    return result


def _enhance(name: str) -> Operation:
    def apply(image: Image.Image, strength: float, sign: int, position: tuple[float, float]) -> Image.Image:
        from torchvision.transforms.v2 import functional as v2

        result: Image.Image = getattr(v2, f"adjust_{name}")(image, 1 + sign * 0.9 * strength)
        return result

    return apply


def _plain(name: str, parameter: Callable[[float], float | int] | None = None, **options: object) -> Operation:
    def apply(image: Image.Image, strength: float, sign: int, position: tuple[float, float]) -> Image.Image:
        from torchvision.transforms.v2 import functional as v2

        arguments = [] if parameter is None else [parameter(strength)]
        result: Image.Image = getattr(v2, name)(image, *arguments, **options)
        return result

    return apply


SHARE = 150 / 331
"""Largest shift, of the image's side."""

OPERATIONS: dict[str, Operation] = {
    "invert": _plain("invert"),
    "cutout": lambda image, strength, sign, position: cut_out(image, round(20 * strength), position),
    "sharpness": _enhance("sharpness"),
    "autocontrast": _plain("autocontrast"),
    "posterize": _plain("posterize", lambda strength: round(8 - 4 * strength)),
    "shear_x": lambda image, strength, sign, position: _affine(image, (sign * 0.3 * strength, 0.0), (0, 0)),
    "shear_y": lambda image, strength, sign, position: _affine(image, (0.0, sign * 0.3 * strength), (0, 0)),
    "translate_x": lambda image, strength, sign, position: _affine(
        image, (0.0, 0.0), (round(sign * SHARE * strength * image.width), 0)
    ),
    "translate_y": lambda image, strength, sign, position: _affine(
        image, (0.0, 0.0), (0, round(sign * SHARE * strength * image.height))
    ),
    "rotate": _plain("rotate", lambda strength: 30 * strength, fill=list(GREY)),
    "equalize": _plain("equalize"),
    "contrast": _enhance("contrast"),
    "color": _enhance("saturation"),
    "brightness": _enhance("brightness"),
    "solarize": _plain("solarize", lambda strength: 256 * (1 - strength)),
}
"""The fifteen operations; contrast and the like go to 1 +- 0.9."""

_NAMES = tuple(OPERATIONS)
