"""The pipeline of multi-label work against what PIL gives."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from lightning_cil.data import randaugment
from lightning_cil.data.randaugment import GREY, OPERATIONS, CutoutRandAugment, ResizeTo, cut_out

NOISE = np.random.RandomState(0).randint(30, 220, size=(8, 10, 3)).astype(np.uint8)
PICTURE = Image.fromarray(NOISE).resize((60, 48), Image.Resampling.BILINEAR)
STRENGTH = 5 / 9
BY_PIL = {
    "invert": lambda image, sign: ImageOps.invert(image),
    "sharpness": lambda image, sign: ImageEnhance.Sharpness(image).enhance(1 + sign * 0.5),
    "autocontrast": lambda image, sign: ImageOps.autocontrast(image),
    "posterize": lambda image, sign: ImageOps.posterize(image, 6),
    "shear_x": lambda image, sign: sheared(image, (1, sign * 0.3 * STRENGTH, 0, 0, 1, 0)),
    "shear_y": lambda image, sign: sheared(image, (1, 0, 0, sign * 0.3 * STRENGTH, 1, 0)),
    "translate_x": lambda image, sign: shifted(image, sign * round(60 * 150 / 331 * STRENGTH), 0),
    "translate_y": lambda image, sign: shifted(image, 0, sign * round(48 * 150 / 331 * STRENGTH)),
    "rotate": lambda image, sign: image.rotate(30 * STRENGTH, fillcolor=GREY),
    "equalize": lambda image, sign: ImageOps.equalize(image),
    "contrast": lambda image, sign: ImageEnhance.Contrast(image).enhance(1 + sign * 0.5),
    "color": lambda image, sign: ImageEnhance.Color(image).enhance(1 + sign * 0.5),
    "brightness": lambda image, sign: ImageEnhance.Brightness(image).enhance(1 + sign * 0.5),
    "solarize": lambda image, sign: ImageOps.solarize(image, 256 * 4 / 9),
}


def sheared(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=GREY)


def shifted(image, right, down):
    result = Image.new("RGB", image.size, GREY)
    result.paste(image, (right, down))
    return result


def array(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", BY_PIL)
def test_operation_is_that_of_pil(name, sign):
    found = array(OPERATIONS[name](PICTURE, STRENGTH, sign, (0.5, 0.5)))
    assert np.abs(found - array(BY_PIL[name](PICTURE, sign))).max() <= 1
    assert np.abs(found - array(PICTURE)).max() > 1


def test_there_are_fifteen_operations():
    assert set(OPERATIONS) == {*BY_PIL, "cutout"}
    assert len(OPERATIONS) == 15


@pytest.mark.parametrize(
    ("side", "position", "box"),
    [(10, (0.5, 0.5), (25, 19, 35, 29)), (20, (0.0, 0.0), (0, 0, 10, 10)), (20, (0.99, 0.99), (49, 37, 60, 48))],
)
def test_square_is_cut_off_at_the_borders(side, position, box):
    found = array(cut_out(PICTURE, side, position, (1, 2, 3)))
    covered = np.zeros((48, 60), dtype=bool)
    covered[box[1] : box[3], box[0] : box[2]] = True
    assert (found[covered] == (1, 2, 3)).all()
    assert (found[~covered] == array(PICTURE)[~covered]).all()


@pytest.mark.parametrize(("level", "side"), [(1, 2), (5, 11), (9, 20)])
def test_the_policys_cutout_is_grey_and_up_to_20_pixels(level, side):
    found = array(OPERATIONS["cutout"](PICTURE, level / 9, 1, (0.5, 0.5)))
    assert (found == GREY).all(2).sum() == side**2


def test_resize_ignores_the_aspect_ratio():
    expected = np.asarray(PICTURE.resize((24, 24), Image.Resampling.BILINEAR))
    assert torch.equal(ResizeTo(24)(PICTURE), torch.from_numpy(expected.copy()).permute(2, 0, 1))


def test_a_key_says_everything():
    transform = CutoutRandAugment(24)
    found = [transform(PICTURE, key) for key in (1, 2, 1)]
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    assert found[0].dtype == torch.uint8
    assert found[0].shape == (3, 24, 24)


def test_cutout_covers_half_a_side_anywhere_in_any_colour():
    transform = CutoutRandAugment(32, randaugment=False)
    plain = ResizeTo(32)(PICTURE)
    areas, colours, centres = [], set(), []
    for key in range(200):
        covered = (transform(PICTURE, key) != plain).any(0)
        rows, columns = covered.any(1).nonzero(), covered.any(0).nonzero()
        areas.append((len(rows), len(columns)))
        centres.append((rows.float().mean().item(), columns.float().mean().item()))
        colours.add(
            tuple(transform(PICTURE, key)[:, int(rows[len(rows) // 2]), int(columns[len(columns) // 2])].tolist())
        )
    assert max(a for a, _ in areas) == max(b for _, b in areas) == 16
    assert min(a for a, _ in areas) >= 8
    assert len(colours) > 150
    assert np.std(centres, axis=0).min() > 5


def test_two_operations_are_drawn_evenly_and_each_applied_half_of_the_time(monkeypatch):
    drawn = []
    names = list(OPERATIONS)
    for name in names:
        monkeypatch.setitem(
            OPERATIONS, name, lambda image, strength, *_, name=name: drawn.append((name, round(9 * strength))) or image
        )
    transform = CutoutRandAugment(4, cutout=0)
    counts = []
    for key in range(3000):
        before = len(drawn)
        transform(PICTURE, key)
        counts.append(len(drawn) - before)
    assert set(counts) == {0, 1, 2}
    assert abs(np.mean(counts) - 2 * randaugment.PROBABILITY) < 0.05
    share = [sum(name == n for n, _ in drawn) / len(drawn) for name in names]
    assert max(share) < 1.35 / 15
    assert min(share) > 0.7 / 15
    levels = [sum(level == found for _, found in drawn) / len(drawn) for level in range(10)]
    assert levels[0] == 0
    assert all(abs(found - 1 / 9) < 0.03 for found in levels[1:])


def test_both_can_be_switched_off():
    assert torch.equal(CutoutRandAugment(24, 0.0, False)(PICTURE, 5), ResizeTo(24)(PICTURE))
