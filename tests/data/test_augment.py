import math
from collections import Counter

import numpy as np
import pytest
import torch

from lightning_cil._random import counter_hash, counter_uniform
from lightning_cil.data import BatchAugment

MEAN, STD = [0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]
CONFIGS = [
    {},
    {"crop_padding": 4},
    {"crop_padding": 1},
    {"flip": True},
    {"brightness": 63 / 255},
    {"brightness": 1.0},
    {"crop_padding": 2, "flip": True},
    {"crop_padding": 4, "flip": True, "brightness": 63 / 255},
]


def images(batch, channels=3, height=6, width=9, seed=0):
    shape = (batch, channels, height, width)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def keys(batch, seed=0):
    return counter_hash(torch.arange(batch), seed)  # of both signs, as the loader makes them


def draw(key, stream):
    return counter_uniform(torch.tensor(key), stream).item()


def slow_crop_and_flip(image, key, crop_padding, flip):
    """One sample: pad with zeros, cut out the original size, mirror. uint8 `[channels, height, width]`."""
    channels, height, width = image.shape
    padded = np.zeros((channels, height + 2 * crop_padding, width + 2 * crop_padding), dtype=np.uint8)
    padded[:, crop_padding : crop_padding + height, crop_padding : crop_padding + width] = image
    top = math.floor(draw(key, 0) * (2 * crop_padding + 1))
    left = math.floor(draw(key, 1) * (2 * crop_padding + 1))
    image = padded[:, top : top + height, left : left + width]
    return np.ascontiguousarray(image[:, :, ::-1] if flip and draw(key, 2) < 0.5 else image)


def slow_augment(image, key, mean, std, crop_padding=0, flip=False, brightness=0.0):
    """One sample in the order of torchvision's transforms: crop, flip, [0, 1], brightness, clamp, normalise."""
    scaled = slow_crop_and_flip(image, key, crop_padding, flip).astype(np.float64) / 255
    scaled = np.clip(scaled * (1 - brightness + 2 * brightness * draw(key, 3)), 0, 1)
    return (scaled - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_batch_equals_a_slow_reference_sample_by_sample(config, channels):
    image, key = images(40, channels), keys(40)
    mean, std = MEAN[:channels], STD[:channels]
    before = image.clone()
    result = BatchAugment(mean, std, **config)(image, key)
    assert result.dtype == torch.float32
    assert result.shape == image.shape
    assert torch.equal(image, before)
    for i, k in enumerate(key.tolist()):
        expected = slow_augment(image[i].numpy(), k, mean, std, **config)
        np.testing.assert_allclose(result[i].numpy(), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_pixels_are_moved_without_any_rounding(padding, flip):
    image, key = images(40), keys(40)
    augment = BatchAugment(MEAN, STD, crop_padding=padding, flip=flip)
    moved = [slow_crop_and_flip(i.numpy(), k, padding, flip) for i, k in zip(image, key.tolist(), strict=True)]
    assert torch.equal(augment(image, key), augment.normalise(torch.from_numpy(np.stack(moved))))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_sample_does_not_depend_on_its_batch(config):
    image, key = images(12), keys(12)
    augment = BatchAugment(MEAN, STD, **config)
    together = augment(image, key)
    alone = torch.cat([augment(image[i : i + 1], key[i : i + 1]) for i in range(12)])
    assert torch.equal(together, alone)
    order = torch.tensor([7, 0, 11, 3, 3, 5])
    assert torch.equal(augment(image[order], key[order]), together[order])


def test_other_keys_give_other_augmentations_and_no_generator_is_used():
    image = images(16)
    augment = BatchAugment(MEAN, STD, crop_padding=4, flip=True, brightness=0.2)
    state = torch.get_rng_state()
    first = augment(image, keys(16, seed=1))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(0)
    assert torch.equal(first, augment(image, keys(16, seed=1)))
    other = augment(image, keys(16, seed=2))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_without_key_images_are_only_normalised(config):
    image = images(5)
    result = BatchAugment(MEAN, STD, **config)(image)
    expected = (image.double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_empty_batch_stays_empty(config):
    augment = BatchAugment(MEAN, STD, **config)
    for key in (None, keys(0)):
        result = augment(images(0), key)
        assert result.shape == (0, 3, 6, 9)
        assert result.dtype == torch.float32


def test_memory_layout_does_not_matter():
    image, key = images(6), keys(6)
    augment = BatchAugment(MEAN, STD, crop_padding=2, flip=True, brightness=0.3)
    assert torch.equal(augment(image.to(memory_format=torch.channels_last), key), augment(image, key))


# ---------------------------------------------------------------------- statistics


def test_flips_and_crops_are_uniform_and_independent():
    """A 5x5 image padded by 2 has 5 x 5 crops, each mirrored or not: 50 outcomes of the same chance."""
    image = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5)
    count = 50_000
    augment = BatchAugment([0.0], [1 / 255], crop_padding=2, flip=True)
    result = augment(image.expand(count, 1, 5, 5), torch.arange(count)).round().to(torch.uint8)
    padded = np.zeros((9, 9), dtype=np.uint8)
    padded[2:7, 2:7] = image[0, 0]
    outcomes = {
        (top, left, flip): np.ascontiguousarray(padded[top : top + 5, left : left + 5][:, :: -1 if flip else 1])
        for top in range(5)
        for left in range(5)
        for flip in (False, True)
    }
    seen = Counter(sample.numpy().tobytes() for sample in result[:, 0])
    cells = {name: seen.pop(outcome.tobytes(), 0) for name, outcome in outcomes.items()}
    assert not seen
    assert len(cells) == 50
    chi_square = sum((n - count / 50) ** 2 / (count / 50) for n in cells.values())
    assert abs(chi_square - 49) < 5 * math.sqrt(2 * 49)
    flipped = sum(n for (_, _, flip), n in cells.items() if flip)
    assert abs(flipped - count / 2) < 5 * math.sqrt(count / 4)


@pytest.mark.parametrize("b", [63 / 255, 1.0])
def test_brightness_is_uniform_around_one_and_independent_of_the_flip(b):
    count = 20_000
    image = torch.tensor([100, 0], dtype=torch.uint8).view(1, 1, 1, 2).expand(count, 1, 1, 2)
    result = BatchAugment([0.0], [1 / 255], flip=True, brightness=b)(image, torch.arange(count))
    flipped = result[:, 0, 0, 0] == 0
    factor = result.amax(dim=(1, 2, 3)).double() / 100
    assert factor.min() >= 1 - b - 1e-6
    assert factor.max() <= 1 + b + 1e-6
    cells = ((factor - (1 - b)) / (2 * b) * 20).long().clamp(0, 19).bincount(minlength=20)
    chi_square = ((cells - count / 20).square() / (count / 20)).sum()
    assert abs(chi_square - 19) < 5 * math.sqrt(2 * 19)
    assert abs(factor[flipped].mean() - factor[~flipped].mean()) < 5 * 2 * b / math.sqrt(12) * 2 / math.sqrt(count)


def test_brightness_is_clamped_to_white():
    white = torch.full((1000, 1, 2, 2), 255, dtype=torch.uint8)
    result = BatchAugment([0.0], [1.0], brightness=0.5)(white, torch.arange(1000)).flatten(1)
    assert torch.equal(result.amax(dim=1), result.amin(dim=1))
    assert result.max() <= 1 + 1e-6
    brightened = (result[:, 0] > 1 - 1e-6).double().mean()
    assert abs(brightened - 0.5) < 5 * 0.5 / math.sqrt(1000)
    assert abs(result.min() - 0.5) < 0.01


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "options",
    [
        {"crop_padding": -1},
        {"brightness": -0.1},
        {"brightness": 1.01},
        {"brightness": float("nan")},
        {"mean": [0.5, 0.5]},
        {"std": [0.5, 0.0, 0.5]},
        {"std": [0.5, -1.0, 0.5]},
        {"mean": [], "std": []},
    ],
    ids=str,
)
def test_impossible_options_are_refused(options):
    options = {"mean": MEAN, "std": STD, "crop_padding": 0, "brightness": 0.0, **options}
    with pytest.raises(ValueError, match="crop_padding") as error:
        BatchAugment(**options)
    assert str(error.value) == (
        f"got `crop_padding={options['crop_padding']}`, `brightness={options['brightness']}`, "
        f"mean {tuple(options['mean'])}, std {tuple(options['std'])}; expected a padding >= 0, "
        "a brightness in [0, 1], and as many positive deviations as means."
    )
