import io
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from lightning_cil._random import uniform
from lightning_cil.data import FileImages, TensorImages
from lightning_cil.data._files import RandomResizedCrop
from lightning_cil.data.images import read_image


def pixels(image):
    """PIL image to uint8 `[channels, height, width]`."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def noisy(image, key):
    """A random transform in two steps, with time for other threads between them."""
    first = int(256 * uniform(key, 0))
    time.sleep(0.0005)
    second = int(256 * uniform(key, 1))
    noise = torch.tensor([first, second], dtype=torch.uint8).expand(3, 1, 2)
    return torch.cat([pixels(image)[:, :1, :1], noise], dim=2)


def rgb(size=(8, 6), seed=0):
    """Random colours: `[height, width, 3]`."""
    return np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def write(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def files(folder, count=6, train_transform=noisy):
    paths = [write(folder / f"{i}.png", Image.fromarray(rgb(seed=i))) for i in range(count)]
    return FileImages(paths, torch.arange(count) % 2, 2, "here", train_transform, pixels)


def global_states():
    numpy = np.random.get_state()
    return torch.get_rng_state().tolist(), numpy[1].tolist(), numpy[2:], random.getstate()


# ---------------------------------------------------------------------- read_image


def test_colour_image_is_read_as_it_is(tmp_path):
    path = write(tmp_path / "a.png", Image.fromarray(rgb()))
    image = read_image(path)
    assert image.mode == "RGB"
    assert np.array_equal(np.array(image), rgb())
    assert np.array_equal(np.array(read_image(str(path))), rgb())


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_grey_becomes_three_equal_channels(tmp_path, suffix):
    grey = np.full((5, 7), 60, dtype=np.uint8)
    image = np.array(read_image(write(tmp_path / f"a.{suffix}", Image.fromarray(grey))))
    assert image.shape == (5, 7, 3)
    assert (image == 60).all()


def test_sixteen_bits_of_grey_are_scaled_not_clipped(tmp_path):
    grey = np.array([[0, 255, 256], [32768, 65280, 65535]], dtype=np.uint16)
    path = write(tmp_path / "a.png", Image.fromarray(grey))
    with Image.open(path) as image:
        assert image.mode == "I;16"
    image = np.array(read_image(path))
    assert image.tolist() == [[[v] * 3 for v in row] for row in [[0, 0, 1], [128, 255, 255]]]


def test_black_and_white_is_read(tmp_path):
    image = Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).convert("1")
    assert np.array(read_image(write(tmp_path / "a.png", image)))[:, :, 0].tolist() == [[0, 255], [255, 0]]


@pytest.mark.parametrize("options", [{}, {"transparency": 1}, {"transparency": bytes([255, 0, 128])}], ids=str)
def test_palette_becomes_its_colours_without_a_warning(tmp_path, options):
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    path = write(tmp_path / "a.png", image, **options)
    with Image.open(path) as written:
        assert written.mode == "P"
        assert ("transparency" in written.info) == bool(options)
    assert np.array(read_image(path)).tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped(tmp_path, mode):
    colours = rgb() if mode == "RGBA" else np.repeat(rgb()[:, :, :1], 3, axis=2)
    alpha = Image.fromarray(np.tile(np.arange(8, dtype=np.uint8) * 30, (6, 1)))
    image = Image.fromarray(colours).convert(mode)
    image.putalpha(alpha)
    assert np.array_equal(np.array(read_image(write(tmp_path / "a.png", image))), colours)


def test_colour_with_a_transparent_colour_is_read(tmp_path):
    path = write(tmp_path / "a.png", Image.fromarray(rgb()), transparency=(1, 2, 3))
    assert np.array_equal(np.array(read_image(path)), rgb())


def test_file_handle_is_closed(tmp_path):
    """An open handle would be a ResourceWarning, which is an error here, and a worker's limit after some epochs."""
    path = write(tmp_path / "a.png", Image.fromarray(rgb()))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    kept = [read_image(path) for _ in range(20)]
    assert len(kept) == 20
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 1


EXPECTED = "expected a complete JPEG, PNG or similar file. Replace the file, or take it out of the data set."


@pytest.mark.parametrize(("name", "keep"), [("a.jpg", 0.5), ("a.jpg", 0.05), ("a.png", 0.5), ("a.jpg", 0.0)])
def test_truncated_file_is_named(tmp_path, name, keep):
    buffer = io.BytesIO()
    Image.fromarray(rgb((64, 64))).save(buffer, "JPEG" if name.endswith("jpg") else "PNG")
    path = tmp_path / name
    path.write_bytes(buffer.getvalue()[: int(keep * buffer.tell())])
    with pytest.raises(ValueError, match="cannot be read as an image") as error:
        read_image(path)
    assert str(error.value).startswith(f"{path}: cannot be read as an image (")
    assert str(error.value).endswith(f"); {EXPECTED}")


def test_text_and_folders_are_no_images(tmp_path):
    (tmp_path / "a.jpg").write_text("not an image")
    (tmp_path / "b.jpg").mkdir()
    for name in ("a.jpg", "b.jpg"):
        with pytest.raises(ValueError, match=rf"{name}: cannot be read as an image \(.*\); expected a complete JPEG"):
            read_image(tmp_path / name)


def test_missing_file_is_named(tmp_path):
    path = tmp_path / "nothing" / "a.png"
    with pytest.raises(FileNotFoundError) as error:
        read_image(path)
    assert str(error.value) == f"{path}: no such image; expected a file that the data set's list names."


# ---------------------------------------------------------------------- labels, both kinds


def tensor_images(targets, num_classes=3):
    return TensorImages(torch.zeros(len(targets), 1, 2, 2, dtype=torch.uint8), targets, num_classes, "here")


def file_images(targets, num_classes=3):
    return FileImages(["a.png"] * len(targets), targets, num_classes, "here", pixels, pixels)


@pytest.mark.parametrize("make", [tensor_images, file_images])
@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([0, 1, 3, 2, 3], "here: sample 2 has label 3; expected 0 to 2. Correct the label, or the number of classes."),
        ([0, -1], "here: sample 1 has label -1; expected 0 to 2. Correct the label, or the number of classes."),
        ([9, -1], "here: sample 1 has label -1; expected 0 to 2. Correct the label, or the number of classes."),
        ([], "here holds no image; expected at least one for each of 3 classes."),
    ],
    ids=str,
)
def test_labels_out_of_range_are_refused(make, targets, message):
    with pytest.raises(ValueError, match=r"^here") as error:
        make(torch.tensor(targets, dtype=torch.int64))
    assert str(error.value) == message


@pytest.mark.parametrize("make", [tensor_images, file_images])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_targets_become_long(make, dtype):
    split = make(torch.tensor([2, 0], dtype=dtype))
    assert split.targets.dtype == torch.int64
    assert split.targets.tolist() == [2, 0]
    assert len(split) == 2
    assert split.source == "here"


# ---------------------------------------------------------------------- TensorImages


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.int8])
def test_images_of_another_type_are_refused(dtype):
    with pytest.raises(TypeError) as error:
        TensorImages(torch.zeros(2, 1, 2, 2, dtype=dtype), torch.tensor([0, 1]), 2, "here")
    assert str(error.value) == f"here: images are {dtype}, expected torch.uint8 with values 0 to 255."


@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 1, 4, 4), (2, 1, 1, 4, 4)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="same N") as error:
        TensorImages(torch.zeros(shape, dtype=torch.uint8), torch.tensor([0, 1]), 2, "here")
    assert str(error.value) == (
        f"here: images {shape} and targets (2,); expected [N, channels, height, width] and [N] with the same N."
    )


def test_stored_images_are_copies_of_the_rows():
    images = torch.arange(24, dtype=torch.uint8).view(6, 2, 2).unsqueeze(1).transpose(2, 3)
    split = TensorImages(images, torch.tensor([0, 1, 0, 1, 0, 1]), 2, "here")
    assert split.images.is_contiguous()
    chosen = split.stored(torch.tensor([4, 1, 4]))
    assert torch.equal(chosen, images[[4, 1, 4]])
    chosen.zero_()
    assert torch.equal(split.images, images)
    assert split.stored(torch.tensor([], dtype=torch.int64)).shape == (0, 1, 2, 2)


# ---------------------------------------------------------------------- FileImages


def test_every_target_needs_its_path():
    for count in (1, 3):
        with pytest.raises(ValueError, match="paths") as error:
            FileImages(["a.png"] * count, torch.tensor([0, 1]), 2, "here", pixels, pixels)
        assert str(error.value) == f"here: {count} paths and 2 targets; expected one for each other."


def test_files_of_any_name_are_read(tmp_path):
    names = ["a.png", "Über größe.png", "图片/猫 1.png", "ελληνικά/" + "x" * 100 + ".png", "e\u0301.png", "😀.png"]
    paths = [write(tmp_path / name, Image.fromarray(rgb(seed=i))) for i, name in enumerate(names)]
    split = FileImages([str(p) if i % 2 else p for i, p in enumerate(paths)], torch.zeros(6), 1, "x", pixels, pixels)
    assert [split.path(i) for i in range(6)] == [str(p) for p in paths]
    for i in range(6):
        assert np.array_equal(split.load(i, None).numpy(), rgb(seed=i).transpose(2, 0, 1))
    paths[2].unlink()
    with pytest.raises(FileNotFoundError, match=r"图片/猫 1\.png: no such image"):
        split.load(2, None)


@pytest.mark.skipif(os.name != "posix", reason="names of arbitrary bytes")
def test_file_name_that_is_no_text_is_read(tmp_path):
    name = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    try:
        with open(name, "wb") as file:
            Image.fromarray(rgb()).save(file, "PNG")
    except OSError:
        pytest.skip("the file system wants UTF-8")
    split = FileImages([os.fsdecode(name)], torch.zeros(1), 1, "here", pixels, pixels)
    assert np.array_equal(split.load(0, None).numpy(), rgb().transpose(2, 0, 1))


def test_stored_images_went_through_the_fixed_transform(tmp_path):
    split = files(tmp_path)
    stored = split.stored(torch.tensor([5, 0, 5]))
    assert stored.dtype == torch.uint8
    assert np.array_equal(stored.numpy(), np.stack([rgb(seed=i).transpose(2, 0, 1) for i in (5, 0, 5)]))


def test_random_transform_is_a_function_of_the_key(tmp_path):
    split = files(tmp_path)
    torch.manual_seed(1)
    first = split.load(2, 7)
    torch.manual_seed(2)
    torch.rand(3)
    assert torch.equal(split.load(2, 7), first)
    assert not torch.equal(split.load(2, 8), first)
    expected = [int(256 * uniform(7, i)) for i in range(2)]
    assert first[0, 0, 1:].tolist() == expected


@pytest.mark.parametrize("key", [None, 0, 2**63 - 1])
def test_loading_leaves_the_global_generators_as_they_are(tmp_path, key):
    split = files(tmp_path)
    torch.manual_seed(3)
    before = global_states()
    split.load(0, key)
    assert global_states() == before


def test_without_a_random_transform_training_images_are_the_fixed_ones(tmp_path):
    split = files(tmp_path, train_transform=None)
    assert torch.equal(split.load(3, 7), split.load(3, None))


def test_random_crops_fit_and_are_spread_as_torchvisions(tmp_path):
    """Area, aspect ratio and position of 4,000 boxes beside those of torchvision's own transform."""
    height, width, count = 90, 120, 4000
    boxes = torch.tensor([RandomResizedCrop.box(height, width, key) for key in range(count)]).double()
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = [v2.RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(count)]
    top, left, h, w = boxes.T
    assert ((top >= 0) & (left >= 0) & (top + h <= height) & (left + w <= width)).all()
    for ours, reference in zip(_shape(boxes), _shape(torch.tensor(theirs).double()), strict=True):
        error = 5 * (2 / count) ** 0.5 * reference.std()
        assert abs(ours.mean() - reference.mean()) < error
        assert abs(ours.std() - reference.std()) < error


def _shape(boxes):
    top, left, height, width = boxes.T
    return height * width, width / height, top, left


@pytest.mark.parametrize("size", [(1, 60), (60, 1), (1, 1)])
def test_crop_of_a_strip_is_its_middle(size):
    for key in range(50):
        top, left, height, width = RandomResizedCrop.box(*size, key)
        assert 0 <= top <= size[0] - height
        assert 0 <= left <= size[1] - width
        assert 1 <= height * width <= 2


def test_threads_do_not_draw_from_each_others_generator(tmp_path):
    split = files(tmp_path)
    work = [(i % 6, 1000 + i) for i in range(60)]
    torch.manual_seed(5)
    before = global_states()
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(lambda item: split.load(*item), work))
    assert global_states() == before
    sequential = [split.load(*item) for item in work]
    assert all(torch.equal(a, b) for a, b in zip(parallel, sequential, strict=True))
