import builtins
import io
import os
import pickle
import tarfile
import zipfile
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets.utils
from PIL import Image

from lightning_cil.data import SplitCIFAR10, SplitCIFAR100
from lightning_cil.data.cifar import read_pickle
from lightning_cil.types import Stage
from tests.data.formats import data_pack, python2_pickle, write_cifar10, write_cifar100, write_malicious_pickle

CASES = [
    (SplitCIFAR10, write_cifar10, "cifar-10-batches-py", "labels"),
    (SplitCIFAR100, write_cifar100, "cifar-100-python", "fine_labels"),
]


def assert_holds(data, written):
    for name, images, labels in (
        ("train", written.train_images, written.train_labels),
        ("test", written.test_images, written.test_labels),
    ):
        assert np.array_equal(data.split(name).images.numpy(), images)
        assert data.split(name).targets.tolist() == labels.tolist()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(("protocol", "write", "folder", "key"), CASES)
def test_images_and_labels_are_those_on_disk(tmp_path, protocol, write, folder, key, inside):
    written = write(tmp_path)
    data = protocol(tmp_path / folder if inside else tmp_path)
    data.prepare_data()
    data.setup("fit")
    assert_holds(data, written)


def test_python2_writer_of_the_tests_is_read_by_pickle(tmp_path):
    value = {"a": [1, 2], "b": "x" * 300, "c": None}
    assert pickle.loads(python2_pickle(value)) == value
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    path = tmp_path / "x"
    path.write_bytes(python2_pickle({"data": array}))
    assert np.array_equal(read_pickle(path)["data"], array)


def test_protocols_are_known_without_data(tmp_path):
    ten, hundred = SplitCIFAR10(tmp_path), SplitCIFAR100(tmp_path)
    assert (ten.num_classes, ten.task_sizes) == (10, [2] * 5)
    assert (hundred.num_classes, hundred.task_sizes) == (100, [10] * 10)
    assert hundred.order_hash() == "88fdb256f51cc112"
    assert hundred.original_names[:3] == ["apple", "aquarium_fish", "baby"]
    assert ten.original_names[6:8] == ["frog", "horse"]
    assert hundred.augment.mean == (0.5071, 0.4867, 0.4408)
    assert hundred.augment.std == (0.2675, 0.2565, 0.2761)
    augment = hundred.augment
    assert (augment.crop_padding, augment.flip, augment.brightness) == (4, True, 63 / 255)


def test_names_come_from_the_meta_file(tmp_path):
    write_cifar100(tmp_path)
    names = [f"name {i}" for i in range(100)]
    meta = tmp_path / "cifar-100-python/meta"
    meta.write_bytes(pickle.dumps({b"fine_label_names": [n.encode() for n in names]}))
    data = SplitCIFAR100(tmp_path, class_order="sorted")
    assert data.class_names == names
    meta.write_bytes(pickle.dumps({"fine_label_names": names[:99]}))
    with pytest.raises(ValueError, match="has 99 names; expected 100"):
        SplitCIFAR100(tmp_path)


@pytest.mark.parametrize("numpy_labels", [False, True])
@pytest.mark.parametrize("byte_keys", [False, True])
@pytest.mark.parametrize("protocol", range(6))
def test_python3_pickles_are_read(tmp_path, protocol, byte_keys, numpy_labels):
    written = write_cifar100(tmp_path)
    for name, images, labels in (
        ("train", written.train_images, written.train_labels),
        ("test", written.test_images, written.test_labels),
    ):
        content = {
            "data": images.reshape(len(images), -1),
            "fine_labels": list(labels) if numpy_labels else labels.tolist(),
            "filenames": [b"a.png", b""],
        }
        if byte_keys:
            content = {k.encode(): v for k, v in content.items()}
        (tmp_path / "cifar-100-python" / name).write_bytes(pickle.dumps(content, protocol=protocol))
    data = SplitCIFAR100(tmp_path)
    data.setup("fit")
    assert_holds(data, written)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "argument"),
    [(os.mkdir, "{}"), (builtins.eval, "__import__('os').mkdir({!r})"), (builtins.exec, "open({!r}, 'w').close()")],
    ids=["posix.mkdir", "eval", "exec"],
)
def test_pickle_that_would_run_code_is_refused(tmp_path, function, argument, protocol):
    control = write_malicious_pickle(tmp_path / "x", function, argument.format(str(tmp_path / "a")), protocol=protocol)
    pickle.loads(control.read_bytes())
    assert (tmp_path / "a").exists()  # with the plain unpickler it does its work
    evil = write_malicious_pickle(tmp_path / "y", function, argument.format(str(tmp_path / "b")), protocol=protocol)
    with pytest.raises(ValueError, match=f"was refused: this pickle asks for `.*{function.__name__}`.*Nothing was run"):
        read_pickle(evil)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "call",
    [
        b"cbuiltins\ngetattr\n",
        b"c__builtin__\n__import__\n",
        b"cnumpy\nload\n",
        b"cnumpy\nfromfile\n",
        b"cnumpy.core.multiarray\nfromfile\n",
        b"c_codecs\nlookup\n",
        b"ccopy_reg\n_reconstructor\n",
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93",
        b"\x80\x04\x8c\x05numpy\x8c\x0f__loader__.load\x93",
        b"\x82\x01",
    ],
)
def test_other_globals_are_refused(tmp_path, call):
    path = tmp_path / "x"
    path.write_bytes(call + b".")
    with pytest.raises(ValueError, match=r"refused|not a pickle"):
        read_pickle(path)


def test_other_text_encodings_are_refused(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"c_codecs\nencode\n(Vtext\nVrot13\ntR.")
    with pytest.raises(ValueError, match=r"refused.*rot13"):
        read_pickle(path)


def test_malicious_files_are_refused_by_the_protocol(tmp_path):
    write_cifar100(tmp_path)
    write_malicious_pickle(tmp_path / "cifar-100-python/test", os.mkdir, str(tmp_path / "a"))
    with pytest.raises(ValueError, match=r"cifar-100-python/test was refused"):
        SplitCIFAR100(tmp_path).setup("fit")
    write_malicious_pickle(tmp_path / "cifar-100-python/meta", os.mkdir, str(tmp_path / "a"))
    with pytest.raises(ValueError, match=r"cifar-100-python/meta was refused"):
        SplitCIFAR100(tmp_path)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("protocol", "write", "folder", "key"), CASES)
@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_truncated_file_is_refused(tmp_path, protocol, write, folder, key, keep):
    write(tmp_path)
    path = tmp_path / folder / protocol.test_file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"truncated or not a pickle.*Get the file again"):
        protocol(tmp_path).setup("fit")


@pytest.mark.parametrize(("protocol", "write", "folder", "key"), CASES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, key: c.pop("data"), "`data` is NoneType"),
        (
            lambda c, key: c.update(data=c["data"][:, :-1]),
            r"`data` is uint8 .*3071.*expected a uint8 array \[N, 3072\]",
        ),
        (lambda c, key: c.update(data=c["data"].astype(np.float32)), "`data` is float32"),
        (lambda c, key: c.pop(key), "no `.*labels` for"),
        (lambda c, key: c[key].pop(), "expected one for each image"),
        (lambda c, key: c[key].__setitem__(3, 100), "sample 3 has label 100"),
        (lambda c, key: c[key].__setitem__(3, -1), "sample 3 has label -1"),
    ],
)
def test_wrong_content_is_refused(tmp_path, protocol, write, folder, key, change, message):
    write(tmp_path)
    path = tmp_path / folder / protocol.train_files[0]
    content = read_pickle(path)
    change(content, key)
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message):
        protocol(tmp_path).setup("fit")


def test_pickle_of_something_else_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match="holds a list; expected a dict"):
        read_pickle(tmp_path / "x")


def test_empty_class_is_refused(tmp_path):
    write_cifar100(tmp_path)
    path = tmp_path / "cifar-100-python/test"
    content = read_pickle(path)
    content["fine_labels"] = [0 if label == 99 else label for label in content["fine_labels"]]
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="class 'worm' has no test image"):
        SplitCIFAR100(tmp_path).setup("fit")


@pytest.mark.parametrize(("protocol", "write", "folder", "key"), CASES)
def test_missing_file_says_what_where_and_how(tmp_path, protocol, write, folder, key):
    write(tmp_path)
    (tmp_path / folder / protocol.test_file).unlink()
    with pytest.raises(FileNotFoundError) as error:
        protocol(tmp_path).prepare_data()
    for part in (protocol.test_file, str(tmp_path / folder), "download=True", "unpack", protocol.url):
        assert part in str(error.value)


@pytest.mark.parametrize(("protocol", "write", "folder", "key"), CASES)
def test_failed_download_says_where_to_put_the_files(tmp_path, monkeypatch, protocol, write, folder, key):
    def no_network(url, root, filename=None, md5=None):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", no_network)
    with pytest.raises(FileNotFoundError, match=r"could not download .*Name or service not known") as error:
        protocol(tmp_path, download=True).prepare_data()
    assert str(tmp_path / folder) in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_download_is_unpacked_and_keeps_what_is_there(tmp_path, monkeypatch):
    written = write_cifar100(tmp_path / "server")

    def serve(url, root, filename=None, md5=None):
        with tarfile.open(os.path.join(root, os.path.basename(url)), "w:gz") as tar:
            tar.add(tmp_path / "server/cifar-100-python", "cifar-100-python")

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", serve)
    home = tmp_path / "here/cifar-100-python"
    home.mkdir(parents=True)
    (home / "train").write_text("mine")
    SplitCIFAR100(tmp_path / "here", download=True).prepare_data()
    assert (home / "train").read_text() == "mine"
    (home / "train").unlink()
    data = SplitCIFAR100(tmp_path / "here", download=True)
    data.prepare_data()
    data.setup("fit")
    assert_holds(data, written)
    assert sorted(p.name for p in (tmp_path / "here").rglob("*")) == ["cifar-100-python", "meta", "test", "train"]


def test_uneven_tasks_in_a_given_order(tmp_path):
    written = write_cifar10(tmp_path)
    data = SplitCIFAR10(tmp_path, sizes=[1, 4, 5], class_order=[9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    data.setup("fit")
    for task, classes in enumerate(([9], [8, 7, 6, 5], [4, 3, 2, 1, 0])):
        labels = written.train_labels[data.train_indices([task]).numpy()]
        assert set(labels.tolist()) == set(classes)
        assert len(labels) == 5 * len(classes)


def test_training_batches_are_augmented_the_same_every_time(tmp_path):
    write_cifar10(tmp_path)

    def batches(augment):
        data = SplitCIFAR10(tmp_path, batch_size=5, augment=augment)
        data.setup("fit")
        data.set_stage(data.tasks[0], Stage("train", 1), seed=7)
        return [data.on_after_batch_transfer(b, 0) for b in data.train_dataloader()], data

    first, data = batches(True)
    again, _ = batches(True)
    plain, _ = batches(False)
    for a, b, c in zip(first, again, plain, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["index"], c["index"])
        assert not torch.equal(a["image"], c["image"])
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (data.augment.mean, data.augment.std))
        torch.testing.assert_close(c["image"], (data.stored_images(c["index"]) / 255 - mean) / std, rtol=0, atol=1e-5)


@pytest.mark.data
def test_real_cifar100_subset(tmp_path):
    pack = data_pack("cifar100")
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        images, labels = [], []
        with zipfile.ZipFile(pack / f"{name}.zip") as archive:
            for member in sorted(archive.namelist()):
                count = int(member.rsplit("_", 1)[1][:-5])
                sheet = np.asarray(Image.open(io.BytesIO(archive.read(member))).convert("RGB"))
                tiles = sheet.reshape(-1, 32, 20, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3072)
                images.append(tiles[:count])
                labels += [int(member[:3])] * count
        content = {"data": np.concatenate(images), "fine_labels": labels}
        (folder / name).write_bytes(python2_pickle(content))
        if name == "train":
            train = content
    data = SplitCIFAR100(tmp_path)
    data.setup("fit")
    split = data.split("train")
    assert np.array_equal(split.images.flatten(1).numpy(), train["data"])
    assert split.targets.tolist() == train["fine_labels"]
    means = split.images.double().mean((0, 2, 3)) / 255
    assert means.tolist() == pytest.approx(data.augment.mean, abs=0.01)
