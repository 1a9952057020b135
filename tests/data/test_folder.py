import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_cil.data import FileImages, ImageFolderTasks, TensorImages, _files
from lightning_cil.types import Stage
from tests.data.formats import data_pack, to_pil, write_image_folder

OPTIONS = {"image_size": 32, "num_tasks": 2, "batch_size": 3, "num_workers": 0}


def loaded(root, **options):
    data = ImageFolderTasks(root, **{**OPTIONS, **options})
    data.prepare_data()
    data.setup("fit")
    return data


def stored(data, name):
    return data.split(name).stored(torch.arange(len(data.split(name)))).numpy()


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("second", ["test", "val"])
def test_images_and_labels_are_those_on_disk(tmp_path, second, in_memory):
    written = write_image_folder(tmp_path, splits=("train", second))
    data = loaded(tmp_path, in_memory=in_memory)
    assert data.original_names == ["bee", "cat", "dog", "eel"]
    assert isinstance(data.split("train"), TensorImages if in_memory else FileImages)
    assert np.array_equal(stored(data, "train"), written.train_images)
    assert np.array_equal(stored(data, "test"), written.test_images)
    assert data.split("train").targets.tolist() == written.train_labels.tolist()
    assert data.split("test").targets.tolist() == written.test_labels.tolist()
    assert data.val_dataloader() == []


def all_batches(data):
    data.set_stage(data.tasks[1], Stage("train", 2), seed=5)
    loader = data.train_dataloader()
    batches = [batch for _ in range(2) for batch in loader]
    batches += [batch for test in data.test_dataloader() for batch in test]
    return [data.on_after_batch_transfer(batch, 0) for batch in batches]


@pytest.mark.parametrize("size", [32, 24])
def test_batches_depend_neither_on_memory_nor_on_workers(tmp_path, size):
    write_image_folder(tmp_path, size=32)
    modes = ({"in_memory": True}, {"in_memory": False}, {"in_memory": False, "num_workers": 2})
    memory, files, workers = (all_batches(loaded(tmp_path, image_size=size, **mode)) for mode in modes)
    for a, b, c in zip(memory, files, workers, strict=True):
        assert all(torch.equal(a[k], b[k]) and torch.equal(a[k], c[k]) for k in a)
    plain = all_batches(loaded(tmp_path, image_size=size, augment="none"))
    assert not torch.equal(plain[0]["image"], memory[0]["image"])
    assert torch.equal(plain[-1]["image"], memory[-1]["image"])


def test_resized_crop_is_the_same_with_workers_and_reads_the_files(tmp_path):
    write_image_folder(tmp_path)
    data = loaded(tmp_path, augment="resized_crop")
    assert not data.in_memory
    here, workers = all_batches(data), all_batches(loaded(tmp_path, augment="resized_crop", num_workers=2))
    for a, b in zip(here, workers, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(ValueError, match=r"`in_memory=True` and `augment='resized_crop'`"):
        ImageFolderTasks(tmp_path, augment="resized_crop", in_memory=True)


def test_images_of_any_size_and_mode_become_squares_of_colour(tmp_path):
    write_image_folder(tmp_path, train=1, test=1)
    wide = np.random.RandomState(0).randint(0, 256, (1, 40, 90), dtype=np.uint8)
    to_pil(wide).save(tmp_path / "train/bee/0000.png")
    to_pil(wide).convert("RGBA").save(tmp_path / "train/cat/0000.png")
    data = loaded(tmp_path, image_size=20)
    small = np.asarray(to_pil(wide).convert("RGB").resize((45, 20), Image.Resampling.BILINEAR))
    expected = small[:, 12:32].transpose(2, 0, 1)
    assert np.array_equal(stored(data, "train")[0], expected)
    assert np.array_equal(stored(data, "train")[1], expected)
    assert torch.equal(data.prepare_image(to_pil(wide).convert("RGB")), torch.from_numpy(expected.copy()))


def test_memory_is_chosen_by_size(tmp_path, monkeypatch):
    write_image_folder(tmp_path)  # 24 images
    monkeypatch.setattr(_files, "MEMORY_BYTES", 24 * 3 * 100**2)
    assert ImageFolderTasks(tmp_path, image_size=64, num_tasks=2).in_memory
    assert ImageFolderTasks(tmp_path, image_size=100, num_tasks=2).in_memory
    assert not ImageFolderTasks(tmp_path, image_size=101, num_tasks=2).in_memory
    assert ImageFolderTasks(tmp_path, image_size=101, num_tasks=2, in_memory=True).in_memory
    monkeypatch.setattr(_files, "MEMORY_BYTES", 0)
    assert ImageFolderTasks(tmp_path, image_size=64, num_tasks=2).in_memory
    assert not ImageFolderTasks(tmp_path, image_size=65, num_tasks=2).in_memory


def test_val_beside_test_is_held_out(tmp_path):
    written = write_image_folder(tmp_path)
    write_image_folder(tmp_path, train=3, test=0, splits=("val", "x"))
    data = loaded(tmp_path)
    assert len(data.split("train")) == 16 + 12
    assert np.array_equal(stored(data, "test"), written.test_images)
    data.set_stage(data.tasks[1], Stage("train", 1), seed=0)
    held_out = [b["index"] for loader in data.val_dataloader() for b in loader]
    assert sorted(torch.cat(held_out).tolist()) == list(range(16, 28))
    assert data.train_indices([0, 1]).tolist() == list(range(16))
    data.setup("fit")
    assert len(data.train_indices([0, 1])) == 16
    with pytest.raises(ValueError, match=r"`val_fraction=0.1`.*val split of its own \(12 images\)"):
        ImageFolderTasks(tmp_path, num_tasks=2, val_fraction=0.1)


def test_test_fraction_takes_the_same_share_of_every_class(tmp_path):
    written = write_image_folder(tmp_path, train=10, test=0)
    data = loaded(tmp_path, test_fraction=0.3, split_seed=4)
    assert data.split("train").targets.bincount().tolist() == [7] * 4
    assert data.split("test").targets.bincount().tolist() == [3] * 4
    both = np.concatenate([stored(data, "train"), stored(data, "test")])
    assert {i.tobytes() for i in both} == {i.tobytes() for i in written.train_images}
    again = loaded(tmp_path, test_fraction=0.3, split_seed=5, val_fraction=0.2)
    assert np.array_equal(stored(data, "test"), stored(again, "test"))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0])
def test_impossible_test_fraction_is_refused(tmp_path, fraction):
    write_image_folder(tmp_path, test=0)
    with pytest.raises(ValueError, match=r"`test_fraction=.*expected a share in \(0, 1\)"):
        ImageFolderTasks(tmp_path, num_tasks=2, test_fraction=fraction)


def test_test_images_must_come_from_one_place(tmp_path):
    write_image_folder(tmp_path)
    with pytest.raises(ValueError, match=r"`test_fraction=0.2`.* has the folder 'test'.*Leave it out"):
        ImageFolderTasks(tmp_path, num_tasks=2, test_fraction=0.2)
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(ValueError, match=r"neither a test nor a val folder.*Add `test/<class>/\*`, or"):
        ImageFolderTasks(tmp_path, num_tasks=2)


def test_class_order_and_uneven_sizes(tmp_path):
    write_image_folder(tmp_path)
    data = loaded(tmp_path, num_tasks=None, sizes=[1, 3], class_order=["eel", "bee", "dog", "cat"])
    assert data.class_names == ["eel", "bee", "dog", "cat"]
    assert data.train_indices([0]).tolist() == [12, 13, 14, 15]
    assert data.labels("train").tolist() == [1] * 4 + [3] * 4 + [2] * 4 + [0] * 4
    with pytest.raises(ValueError, match="expected exactly one of `num_tasks`"):
        ImageFolderTasks(tmp_path)


def test_missing_folder_says_what_where_and_how(tmp_path):
    for root in (tmp_path / "nothing", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"found no folder of a class.*Put the images into") as error:
            ImageFolderTasks(root)
        assert str(root / "train") in str(error.value)
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match="found no folder of a class"):
        ImageFolderTasks(tmp_path)


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("test/cat", r"1 of 4 classes have no test image: \['cat'\]"),
        ("train/cat", r"test has classes that `train` has not: \['cat'\]"),
        ("train/cat/*", r"1 of 4 classes have no train image: \['cat'\]"),
        ("test/*/*", r"4 of 4 classes have no test image"),
    ],
)
def test_class_without_images_is_refused(tmp_path, remove, message):
    write_image_folder(tmp_path)
    for path in list(tmp_path.glob(remove)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=message):
        ImageFolderTasks(tmp_path, num_tasks=2)


def test_single_class_is_refused(tmp_path):
    write_image_folder(tmp_path, classes=["bee"])
    with pytest.raises(ValueError, match=r"has 1 class\(es\) \['bee'\]; expected at least 2"):
        ImageFolderTasks(tmp_path, num_tasks=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"image_size": 0}, "at least 1 pixel"), ({"augment": "flip"}, "'crop', 'resized_crop' or 'none'")],
)
def test_wrong_options_are_refused(tmp_path, options, message):
    write_image_folder(tmp_path)
    with pytest.raises(ValueError, match=message):
        ImageFolderTasks(tmp_path, num_tasks=2, **options)


@pytest.mark.parametrize("in_memory", [False, True])
def test_truncated_image_is_named(tmp_path, in_memory):
    write_image_folder(tmp_path)
    path = tmp_path / "train/dog/0009.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"train/dog/0009.png: cannot be read as an image"):
        stored(loaded(tmp_path, in_memory=in_memory), "train")


def test_labels_are_read_without_decoding(tmp_path):
    write_image_folder(tmp_path)
    for path in tmp_path.glob("*/*/*.png"):
        path.write_bytes(b"")
    assert loaded(tmp_path, in_memory=False).split("train").targets.bincount().tolist() == [4] * 4


@pytest.mark.data
def test_real_imagenette():
    data = loaded(data_pack("imagenette"), num_tasks=5, image_size=64)
    assert data.in_memory
    assert data.split("train").images.shape[1:] == (3, 64, 64)
    assert data.num_classes == 10
