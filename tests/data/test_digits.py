import hashlib
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lightning_cil.data import BatchAugment, SplitDigits, TensorImages
from lightning_cil.types import Stage


@pytest.fixture(scope="module")
def digits():
    data = SplitDigits()
    data.prepare_data()
    data.setup("fit")
    return data


def test_stream_is_described_without_data():
    data = SplitDigits()
    assert data.num_classes == 10
    assert data.class_order == np.random.RandomState(1993).permutation(10).tolist() == [4, 2, 7, 6, 0, 3, 5, 8, 9, 1]
    assert data.order_hash() == hashlib.sha256(b"[4,2,7,6,0,3,5,8,9,1]").hexdigest()[:16] == "ecfde01d008e9534"
    assert data.class_names == ["4", "2", "7", "6", "0", "3", "5", "8", "9", "1"]
    assert data.task_sizes == [2] * 5
    assert data.image_shape == (1, 8, 8)


def test_tasks_and_order_can_be_chosen():
    data = SplitDigits(base=4, increment=3, class_order="sorted")
    assert data.task_sizes == [4, 3, 3]
    assert data.class_order == list(range(10))
    assert SplitDigits(class_order=[str(d) for d in range(9, -1, -1)]).class_order == list(range(9, -1, -1))


def test_a_fifth_of_every_class_is_the_test_set(digits):
    train, test = digits.split("train"), digits.split("test")
    assert isinstance(train, TensorImages)
    assert (len(train), len(test)) == (1438, 359)
    total = np.bincount(load_digits().target, minlength=10)
    assert test.targets.bincount(minlength=10).tolist() == [round(0.2 * count) for count in total.tolist()]
    assert (train.targets.bincount(minlength=10) + test.targets.bincount(minlength=10)).tolist() == total.tolist()


def test_pixels_are_scikit_learns(digits):
    """Every scanned digit is in exactly one of the two sets, with its own label and its 17 grey levels."""
    original = load_digits()
    expected = Counter(
        (image.astype(int).tobytes(), int(label)) for image, label in zip(original.images, original.target, strict=True)
    )
    found = Counter()
    for name in ("train", "test"):
        split = digits.split(name)
        assert split.images.shape[1:] == (1, 8, 8)
        assert split.images.dtype == torch.uint8
        assert (split.images.amin(), split.images.amax()) == (0, 255)
        levels = np.round(split.images.numpy()[:, 0] / 255 * 16).astype(int)
        assert np.abs(levels / 16 * 255 - split.images.numpy()[:, 0]).max() <= 0.5
        found.update((image.tobytes(), label) for image, label in zip(levels, split.targets.tolist(), strict=True))
    assert found == expected


def test_sets_keep_scikit_learns_order(digits):
    original = load_digits()
    first = np.round(digits.split("train").images[:, 0].numpy() / 255 * 16)
    position = 0
    for image in first:
        while not np.array_equal(original.images[position], image):
            position += 1
        position += 1
    assert position <= 1797


@pytest.mark.parametrize(
    ("name", "digest"), [("train", "3346076e3fbe6801"), ("test", "4e18f613bf71a1a3")], ids=["train", "test"]
)
def test_sets_never_change(digits, name, digest):
    """Scores of different versions compare; also that no seed and no option moves an image."""
    for data in (digits, SplitDigits(num_tasks=2, class_order="sorted", split_seed=5, val_fraction=0.5)):
        data.setup("fit")
        split = data.split(name)
        content = split.images.numpy().tobytes() + split.targets.numpy().astype("<i8").tobytes()
        assert hashlib.sha256(content).hexdigest()[:16] == digest
    assert digits.fingerprint() == "ccc9ba2526bf487e"


def test_normalised_training_images_have_mean_zero_and_deviation_one(digits):
    image = digits.transform(digits.split("train").images)
    assert image.dtype == torch.float32
    assert abs(image.mean()) < 0.005
    assert abs(image.std() - 1) < 0.005


def test_training_batches_are_not_augmented(digits):
    digits.set_stage(digits.tasks[1], Stage("train", 1), seed=3)
    batch = next(iter(digits.train_dataloader()))
    image = batch["image"]
    assert image.shape == (32, 1, 8, 8)
    assert set(batch["target"].tolist()) == {2, 3}
    expected = BatchAugment([0.3053], [0.3763])(image)
    assert torch.equal(digits.on_after_batch_transfer(batch, 0)["image"], expected)
