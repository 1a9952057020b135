import os
import zipfile
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets.utils
from PIL import Image

from lightning_cil.data import SplitTinyImageNet, _names, tinyimagenet
from lightning_cil.types import Stage
from tests.data.formats import data_pack, jpeg, make_images, write_tiny_imagenet

WNIDS = sorted(_names.TINY_IMAGENET)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """One small copy of the folder, not to be changed."""
    return write_tiny_imagenet(tmp_path_factory.mktemp("official"), size=16, train=2, test=1)


def reference(folder, train):
    """Images and labels the slow way: class by class, PIL alone."""
    if train:
        files = [(p, WNIDS.index(w)) for w in WNIDS for p in sorted((folder / "train" / w / "images").iterdir())]
    else:
        lines = (folder / "val/val_annotations.txt").read_text().splitlines()
        files = [(folder / "val/images" / line.split("\t")[0], WNIDS.index(line.split("\t")[1])) for line in lines]
    images = np.stack([np.asarray(Image.open(p).convert("RGB")).transpose(2, 0, 1) for p, _ in files])
    return images, [label for _, label in files]


def assert_holds(data, folder):
    for name, train in (("train", True), ("test", False)):
        images, labels = reference(folder, train)
        assert np.array_equal(data.split(name).images.numpy(), images)
        assert data.split(name).targets.tolist() == labels


def loaded(root, **options):
    data = SplitTinyImageNet(root, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def test_protocol_is_known_without_data(tmp_path):
    data = SplitTinyImageNet(tmp_path)
    assert (data.num_classes, data.task_sizes) == (200, [20] * 10)
    assert data.order_hash() == "3b55531a29f4506f"
    assert data.original_names[:2] == ["goldfish", "European fire salamander"]
    assert len(set(data.class_names)) == 200
    assert data.augment.mean == (0.4802, 0.4480, 0.3975)
    assert data.augment.std == (0.2770, 0.2691, 0.2821)
    assert (data.augment.crop_padding, data.augment.flip, data.augment.brightness) == (4, True, 0)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_images_and_labels_are_those_on_disk(tmp_path, official, zipped, direct, cache):
    path = write_tiny_imagenet(tmp_path, size=16, zipped=zipped)
    data = loaded(path if direct else tmp_path, cache=cache)
    assert_holds(data, official)
    grey = data.split("train").images[0]  # the first image of every class is grey on disk
    assert torch.equal(grey[0], grey[1])
    assert data.split("train").images.shape == (400, 3, 16, 16)
    kept = sorted(p.name.rsplit("-", 1)[0] for p in tmp_path.glob("*.npy"))
    assert kept == (["tiny-imagenet-200-train", "tiny-imagenet-200-val"] if cache else [])


def test_zip_of_another_name_is_found_when_alone(tmp_path, official):
    write_tiny_imagenet(tmp_path, size=16, zipped=True).rename(tmp_path / "tiny-imagenet-200-small.zip")
    assert_holds(loaded(tmp_path, cache=False), official)
    (tmp_path / "tiny-imagenet-200-other.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"tiny-imagenet-200-other.zip.*expected one. Give the one you mean as `root`"):
        SplitTinyImageNet(tmp_path).prepare_data()


@pytest.mark.parametrize("zipped", [False, True])
def test_second_start_reads_the_cache_and_decodes_nothing(tmp_path, official, monkeypatch, zipped):
    write_tiny_imagenet(tmp_path, size=16, zipped=zipped)
    loaded(tmp_path)

    def no_decoding(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(tinyimagenet, "decode_all", no_decoding)
    data = loaded(tmp_path)
    data.prepare_data()
    assert_holds(data, official)


@pytest.mark.parametrize("zipped", [False, True])
def test_cache_is_renewed_when_the_data_changes(tmp_path, zipped):
    write_tiny_imagenet(tmp_path, size=16, zipped=zipped)
    loaded(tmp_path)
    before = set(tmp_path.glob("*.npy"))
    write_tiny_imagenet(tmp_path, size=24, zipped=zipped)
    assert loaded(tmp_path).split("train").images.shape == (400, 3, 24, 24)
    after = set(tmp_path.glob("*.npy"))
    assert len(after) == 2
    assert not before & after


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"no array", None])
def test_broken_cache_is_made_anew(tmp_path, official, content):
    write_tiny_imagenet(tmp_path, size=16)
    loaded(tmp_path)
    for path in tmp_path.glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    assert_holds(loaded(tmp_path), official)


def test_changing_a_batch_does_not_change_the_cache(tmp_path):
    write_tiny_imagenet(tmp_path, size=16)
    loaded(tmp_path)
    contents = {p: p.read_bytes() for p in tmp_path.glob("*.npy")}
    loaded(tmp_path).split("train").images.zero_()
    assert {p: p.read_bytes() for p in contents} == contents


def test_unwritable_folder_warns_and_goes_on(tmp_path, official, monkeypatch):
    write_tiny_imagenet(tmp_path, size=16)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    data = SplitTinyImageNet(tmp_path)
    with pytest.warns(UserWarning, match=r"could not be kept in .*No space left.*`cache=False`"):
        data.setup("fit")
    assert_holds(data, official)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny-imagenet-200"]


def test_read_only_folder_is_not_decoded_twice(tmp_path, monkeypatch):
    write_tiny_imagenet(tmp_path, size=16)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(tinyimagenet, "decode_all", lambda *_: pytest.fail("decoded in prepare_data"))
    SplitTinyImageNet(tmp_path).prepare_data()


def test_batches_are_augmented_and_normalised(tmp_path, official):
    data = SplitTinyImageNet(official.parent, cache=False, batch_size=8, val_fraction=0.5, sizes=[1, 150, 49])
    data.setup("fit")
    data.set_stage(data.tasks[1], Stage("train", 1), seed=0)
    assert [len(data.train_indices([t])) for t in range(3)] == [1, 150, 49]
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (8, 3, 16, 16)
    assert set(batch["task"].tolist()) == {1}
    assert data.on_after_batch_transfer(batch, 0)["image"].dtype == torch.float32


def test_missing_data_says_what_where_and_how(tmp_path):
    for call in (lambda d: d.prepare_data(), lambda d: d.setup("fit")):
        with pytest.raises(FileNotFoundError) as error:
            call(SplitTinyImageNet(tmp_path / "nothing"))
        for part in ("wnids.txt", str(tmp_path / "nothing/tiny-imagenet-200.zip"), "download=True", tinyimagenet.URL):
            assert part in str(error.value)


def test_failed_download_says_where_to_put_the_file(tmp_path, monkeypatch):
    def no_network(url, root, filename=None, md5=None):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", no_network)
    with pytest.raises(FileNotFoundError, match=r"could not download .*Name or service not known.*put http") as error:
        SplitTinyImageNet(tmp_path, download=True).prepare_data()
    assert str(tmp_path) in str(error.value)


def test_download_gives_the_zip(tmp_path, official, monkeypatch):
    write_tiny_imagenet(tmp_path / "server", size=16, zipped=True)

    def serve(url, root, filename=None, md5=None):
        assert (url, md5) == (tinyimagenet.URL, "90528d7ca1a48142e341f4ef8d21d0de")
        os.replace(tmp_path / "server/tiny-imagenet-200.zip", os.path.join(root, "tiny-imagenet-200.zip"))

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", serve)
    assert_holds(loaded(tmp_path / "here", download=True, cache=False), official)
    assert [p.name for p in (tmp_path / "here").iterdir()] == ["tiny-imagenet-200.zip"]


def test_truncated_zip_is_refused(tmp_path):
    path = write_tiny_imagenet(tmp_path, size=16, zipped=True)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"truncated or not a zip.*Get it again"):
        SplitTinyImageNet(tmp_path).prepare_data()


IMAGE = f"train/{WNIDS[7]}/images/{WNIDS[7]}_1.JPEG"
LINE = "val/val_annotations.txt, line 3"


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("wnids.txt", lambda b: b + b"\nn00000000", ValueError, "201 classes, 1 of them unknown.*n00000000"),
        ("wnids.txt", lambda b: b.replace(WNIDS[3].encode(), b""), ValueError, "199 classes.*SplitImageNet"),
        (IMAGE, lambda b: b[:200], ValueError, f"{IMAGE} cannot be read as an image"),
        (IMAGE, lambda b: b"", ValueError, f"{IMAGE} cannot be read as an image"),
        (IMAGE, lambda b: jpeg(make_images([0], 18)[0]), ValueError, f"{IMAGE} has 18x18 pixels; expected 16x16"),
        ("val/val_annotations.txt", lambda b: b.replace(b"val_197", b"val_x"), ValueError, f"{LINE} is 'val_x.JPEG"),
        ("val/val_annotations.txt", lambda b: b.replace(WNIDS[197].encode(), b"n1"), ValueError, f"{LINE} is"),
        (
            "val/val_annotations.txt",
            lambda b: b"\n".join(b.split(b"\n")[1:]),
            ValueError,
            "names 199 of the 200 images",
        ),
        ("val/val_annotations.txt", lambda b: None, FileNotFoundError, "holds no `val/val_annotations.txt`"),
    ],
)
def test_damaged_data_is_refused(tmp_path, name, change, error, message, zipped):
    folder = write_tiny_imagenet(tmp_path, size=16)
    content = change((folder / name).read_bytes())
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    root = tmp_path
    if zipped:
        root = tmp_path / "x.zip"
        with zipfile.ZipFile(root, "w") as archive:
            for path in sorted(folder.rglob("*")):
                archive.write(path, path.relative_to(tmp_path))
    with pytest.raises(error, match=message):
        SplitTinyImageNet(root, cache=False).setup("fit")


def test_empty_class_is_refused(tmp_path):
    folder = write_tiny_imagenet(tmp_path, size=16)
    for path in (folder / "train" / WNIDS[0] / "images").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="class 'goldfish' has no train image"):
        SplitTinyImageNet(tmp_path, cache=False).setup("fit")
    for path in folder.glob("train/*/images/*"):
        path.unlink()
    with pytest.raises(ValueError, match="holds no image"):
        SplitTinyImageNet(tmp_path, cache=False).setup("fit")


@pytest.mark.data
def test_real_small_tiny_imagenet(tmp_path):
    pack = data_pack("tiny-imagenet-200-32px.zip")
    data = SplitTinyImageNet(pack, cache=False)
    data.prepare_data()
    data.setup("fit")
    assert data.split("train").images.shape[1:] == (3, 32, 32)
    assert data.split("train").targets.unique().tolist() == list(range(200))
    means = data.split("train").images.double().mean((0, 2, 3)) / 255
    assert means.tolist() == pytest.approx(data.augment.mean, abs=0.01)
    with zipfile.ZipFile(pack) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "tiny-imagenet-200"
    words = dict(line.split("\t") for line in (folder / "words.txt").read_text().splitlines())
    assert {wnid: text.split(",")[0] for wnid, text in words.items()} == _names.TINY_IMAGENET
    assert_holds(data, folder)
    assert_holds(loaded(tmp_path), folder)
