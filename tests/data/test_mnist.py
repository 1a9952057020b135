import gzip
import shutil
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets.utils

from lightning_cil.data import SplitFashionMNIST, SplitMNIST
from lightning_cil.data.mnist import DEBIAN_FASHION_MNIST, FILES, read_idx
from lightning_cil.types import Stage
from tests.data.formats import write_idx, write_mnist

CLASSES = [(SplitMNIST, "MNIST/raw"), (SplitFashionMNIST, "FashionMNIST/raw")]


@pytest.fixture(autouse=True)
def _without_debian(monkeypatch):
    monkeypatch.setattr(SplitFashionMNIST, "elsewhere", ())


def assert_holds(data, written):
    for name, images, labels in (
        ("train", written.train_images, written.train_labels),
        ("test", written.test_images, written.test_labels),
    ):
        assert np.array_equal(data.split(name).images.numpy(), images)
        assert data.split(name).targets.tolist() == labels.tolist()


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize(("protocol", "folder"), CLASSES)
def test_images_and_labels_are_those_on_disk(tmp_path, protocol, folder, direct, suffix):
    written = write_mnist(tmp_path, "." if direct else folder, suffix=suffix)
    data = protocol(tmp_path)
    data.prepare_data()
    data.setup("fit")
    assert data.split("train").images.dtype == torch.uint8
    assert data.split("train").images.shape == (40, 1, 28, 28)
    assert_holds(data, written)


@pytest.mark.parametrize(("protocol", "folder"), CLASSES)
def test_protocol_is_known_without_data(tmp_path, protocol, folder):
    data = protocol(tmp_path / "nothing")
    assert (data.num_classes, data.num_tasks, data.task_sizes) == (10, 5, [2] * 5)
    assert len(set(data.class_names)) == 10
    with pytest.raises(RuntimeError, match="setup"):
        data.split("train")


def test_class_order_by_name_and_uneven_sizes(tmp_path):
    written = write_mnist(tmp_path, "FashionMNIST/raw")
    order = ["Bag", "Coat", "Trouser", "T-shirt/top", "Dress", "Sandal", "Shirt", "Sneaker", "Pullover", "Ankle boot"]
    data = SplitFashionMNIST(tmp_path, class_order=order, sizes=[1, 6, 3])
    data.setup("fit")
    assert data.class_names == order
    assert data.class_order[:3] == [8, 4, 1]
    assert [len(data.train_indices([t])) for t in range(3)] == [4, 24, 12]
    bags = data.train_indices([0])
    assert (written.train_labels[bags.numpy()] == 8).all()
    assert data.labels("train")[bags].tolist() == [0] * 4


def test_batches_are_normalised_and_not_augmented(tmp_path):
    write_mnist(tmp_path)
    data = SplitMNIST(tmp_path, batch_size=4, val_fraction=0.25)
    data.setup("fit")
    data.set_stage(data.tasks[1], Stage("train", 1), seed=0)
    batch = next(iter(data.train_dataloader()))
    stored = data.stored_images(batch["index"])
    batch = data.on_after_batch_transfer(batch, 0)
    torch.testing.assert_close(batch["image"], (stored / 255 - 0.1307) / 0.3081)
    assert sum(len(b["index"]) for loader in data.val_dataloader() for b in loader) == 4  # 1 of 4, 2 tasks of 2 classes


def test_debian_package_is_found_where_root_has_nothing(tmp_path, monkeypatch):
    written = write_mnist(tmp_path, "debian", suffix=".gz")
    monkeypatch.setattr(SplitFashionMNIST, "elsewhere", (str(tmp_path / "debian"),))
    data = SplitFashionMNIST(tmp_path / "nothing", download=True)
    data.prepare_data()
    data.setup("fit")
    assert_holds(data, written)


@pytest.mark.parametrize(("protocol", "folder"), CLASSES)
def test_missing_file_says_what_where_and_how(tmp_path, protocol, folder):
    write_mnist(tmp_path, folder)
    (tmp_path / folder / FILES[3]).unlink()
    for call in (lambda: protocol(tmp_path).prepare_data(), lambda: protocol(tmp_path).setup("fit")):
        with pytest.raises(FileNotFoundError) as error:
            call()
        for part in (FILES[3], str(tmp_path / folder), "download=True", "put the four files"):
            assert part in str(error.value)


def no_network(url, root, filename=None, md5=None):
    raise URLError("Name or service not known")


@pytest.mark.parametrize(("protocol", "folder"), CLASSES)
def test_failed_download_says_where_to_put_the_files(tmp_path, monkeypatch, protocol, folder):
    monkeypatch.setattr(torchvision.datasets.utils, "download_url", no_network)
    with pytest.raises(FileNotFoundError, match=r"could not download .*Name or service not known") as error:
        protocol(tmp_path, download=True).prepare_data()
    assert str(tmp_path / folder) in str(error.value)
    assert [p for p in tmp_path.rglob("*") if p.is_file() or ".download" in p.name] == []


def test_download_tries_the_next_mirror_and_happens_once(tmp_path, monkeypatch):
    written = write_mnist(tmp_path / "server", ".", suffix=".gz")
    calls = []

    def serve(url, root, filename=None, md5=None):
        calls.append(url)
        if "amazonaws" in url:
            raise URLError("down")
        assert len(md5) == 32
        shutil.copy(tmp_path / "server" / url.rsplit("/", 1)[1], root)

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", serve)
    data = SplitMNIST(tmp_path / "here", download=True)
    data.prepare_data()
    data.prepare_data()
    assert len(calls) == 8
    data.setup("fit")
    assert_holds(data, written)
    assert sorted(p.name for p in (tmp_path / "here/MNIST/raw").iterdir()) == sorted(f"{name}.gz" for name in FILES)


def test_read_idx_gives_a_writable_array(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    read = read_idx(write_idx(tmp_path / "x", array), 3)
    assert np.array_equal(read, array)
    assert read.flags.writeable


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b"\x00\x00\x0d\x03" + b[4:], "starts with the bytes 00 00 0d 03; expected 00 00 08 03"),
        (lambda b: b[:3] + b"\x01" + b[4:], "expected 00 00 08 03.*3 dimension"),
        (lambda b: b"", "starts with"),
        (lambda b: b[:10], "truncated: 10 bytes"),
        (lambda b: b[:-1], "23 bytes of data; expected 24"),
        (lambda b: b + b"\x00", "25 bytes of data; expected 24"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_idx_is_refused(tmp_path, change, message, suffix):
    content = change(write_idx(tmp_path / "x", np.zeros((2, 3, 4))).read_bytes())
    path = tmp_path / f"y{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(ValueError, match=message):
        read_idx(path, 3)


@pytest.mark.parametrize("change", [lambda b: b[:-10], lambda b: b"no gzip", lambda b: b[:20] + b"\xff" * 9 + b[29:]])
def test_damaged_gzip_is_refused(tmp_path, change):
    path = write_idx(tmp_path / "x.gz", np.arange(200))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=r"not a complete gzip file.*Get the file again"):
        read_idx(path, 1)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (FILES[0], np.zeros((40, 27, 28)), "expected 28 by 28"),
        (FILES[1], np.zeros(39), "40 images.*39 labels"),
        (FILES[1], np.r_[np.arange(39) % 10, 10], "sample 39 has label 10; expected 0 to 9"),
        (FILES[1], np.arange(40) % 9, "class '9' has no train image"),
        (FILES[3], np.arange(20) % 8, "class '8' has no test image"),
    ],
)
def test_inconsistent_files_are_refused(tmp_path, name, array, message):
    write_mnist(tmp_path)
    write_idx(tmp_path / "MNIST/raw" / name, array)
    with pytest.raises(ValueError, match=message):
        SplitMNIST(tmp_path).setup("fit")


@pytest.mark.data
def test_debian_fashion_mnist_is_complete(monkeypatch):
    if not Path(DEBIAN_FASHION_MNIST).is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    monkeypatch.undo()
    data = SplitFashionMNIST("nothing")
    data.setup("fit")
    images = data.split("train").images
    assert (len(images), len(data.split("test"))) == (60_000, 10_000)
    assert data.split("test").targets.bincount().tolist() == [1000] * 10
    assert (images.double().mean() / 255).item() == pytest.approx(data.augment.mean[0], abs=5e-5)
    assert (images.double().std() / 255).item() == pytest.approx(data.augment.std[0], abs=5e-5)
