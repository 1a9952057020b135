import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_cil.data import SplitImageNet
from lightning_cil.types import Stage
from tests.data.formats import IMAGENET_WNIDS, data_pack, write_imagenet

SMALL = {"image_size": 48, "resize_size": 56, "num_workers": 0}


def loaded(root, **options):
    data = SplitImageNet(root, **{**SMALL, **options})
    data.prepare_data()
    data.setup("fit")
    return data


def test_labels_are_those_of_the_sorted_folders(tmp_path):
    written = write_imagenet(tmp_path)
    data = loaded(tmp_path, class_order="sorted")
    assert data.class_names == sorted(IMAGENET_WNIDS)
    assert (data.num_tasks, data.task_sizes) == (10, [1] * 10)
    for name, labels in (("train", written.train_labels), ("test", written.test_labels)):
        split = data.split(name)
        assert split.targets.tolist() == sorted(labels.tolist())
        wnids = [split.path(i).split("/")[-2] for i in range(len(split))]
        assert wnids == [IMAGENET_WNIDS[label] for label in split.targets.tolist()]


def test_evaluation_is_the_centre_of_the_resized_image(tmp_path):
    write_imagenet(tmp_path)
    data = loaded(tmp_path)
    with Image.open(data.split("train").path(4)) as image:
        assert image.size == (120, 80)
        small = np.asarray(image.resize((84, 56), Image.Resampling.BILINEAR))  # shorter side 56
    expected = small[4:52, 18:66].transpose(2, 0, 1)
    stored = data.stored_images(torch.tensor([4]))
    assert stored.dtype == torch.uint8
    assert np.array_equal(stored[0].numpy(), expected)
    with Image.open(data.split("train").path(4)) as image:
        assert torch.equal(SplitImageNet(tmp_path, **SMALL).prepare_image(image), stored[0])
    batch = data.on_after_batch_transfer(next(iter(data.eval_loader(torch.tensor([4])))), 0)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (stored / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(batch["image"], expected, rtol=0, atol=1e-5)


def test_defaults_are_those_of_the_protocol(tmp_path):
    write_imagenet(tmp_path, train=1, test=1, size=16)
    data = SplitImageNet(tmp_path)
    assert (data.augment.flip, data.augment.brightness, data.augment.crop_padding) == (True, 63 / 255, 0)
    data.setup("fit")
    assert data.stored_images(torch.tensor([0])).shape == (1, 3, 224, 224)
    plain = SplitImageNet(tmp_path, augment=False)
    assert (plain.augment.flip, plain.augment.brightness) == (False, 0)


def epochs(data, count=2):
    data.set_stage(data.tasks[0], Stage("train", count), seed=11)
    loader = data.train_dataloader()
    return [batch for _ in range(count) for batch in loader]


def test_training_batches_do_not_depend_on_workers(tmp_path):
    write_imagenet(tmp_path, train=5)
    here = epochs(loaded(tmp_path, batch_size=4, num_tasks=2))
    workers = epochs(loaded(tmp_path, batch_size=4, num_tasks=2, num_workers=2))
    assert len(here) == 2 * (25 // 4)
    for a, b in zip(here, workers, strict=True):
        assert a.keys() == b.keys() == {"image", "target", "index", "task", "key"}
        assert all(torch.equal(a[k], b[k]) for k in a)
    data = loaded(tmp_path, batch_size=4, num_tasks=2)
    fixed = data.stored_images(here[0]["index"])
    assert here[0]["image"].shape == fixed.shape
    assert not torch.equal(here[0]["image"], fixed)


def test_without_augmentation_training_images_are_evaluation_images(tmp_path):
    write_imagenet(tmp_path)
    data = loaded(tmp_path, batch_size=3, augment=False)
    batch = epochs(data, 1)[0]
    assert torch.equal(batch["image"], data.stored_images(batch["index"]))
    plain = data.augment.normalise(batch["image"])
    assert torch.equal(data.on_after_batch_transfer(batch, 0)["image"], plain)


def test_images_can_be_sent_to_spawned_workers(tmp_path):
    write_imagenet(tmp_path)
    split = loaded(tmp_path).split("train")
    assert torch.equal(pickle.loads(pickle.dumps(split)).load(0, 5), split.load(0, 5))


def test_classes_file_selects_a_subset(tmp_path):
    write_imagenet(tmp_path)
    chosen = tmp_path / "chosen.txt"
    chosen.write_text(f"# three of ten\n{IMAGENET_WNIDS[7]}\n\n  {IMAGENET_WNIDS[2]}  # second\n{IMAGENET_WNIDS[4]}\n")
    data = loaded(tmp_path, classes_file=chosen, sizes=[2, 1], class_order="sorted")
    assert data.class_names == [IMAGENET_WNIDS[i] for i in (2, 4, 7)]
    assert data.split("train").targets.bincount().tolist() == [3] * 3
    assert data.split("test").targets.bincount().tolist() == [2] * 3
    known = SplitImageNet(tmp_path / "nothing", classes_file=chosen, sizes=[2, 1])
    assert known.num_classes == 3
    with pytest.raises(FileNotFoundError, match="no folder `train`"):
        known.prepare_data()


def test_wrong_classes_files_are_refused(tmp_path):
    write_imagenet(tmp_path)
    with pytest.raises(FileNotFoundError, match="one WordNet id a line"):
        SplitImageNet(tmp_path, classes_file=tmp_path / "nothing.txt")
    path = tmp_path / "x.txt"
    path.write_text(f"{IMAGENET_WNIDS[0]}\nn1\n{IMAGENET_WNIDS[0]}\n")
    with pytest.raises(ValueError, match=r"lines 1 and 3 both list"):
        SplitImageNet(tmp_path, classes_file=path)
    path.write_text(f"{IMAGENET_WNIDS[0]}\n")
    with pytest.raises(ValueError, match=r"has 1 class.*at least 2"):
        SplitImageNet(tmp_path, classes_file=path)
    path.write_text(f"{IMAGENET_WNIDS[0]}\nn1\n")
    with pytest.raises(ValueError, match=r"class 'n1' has no train image"):
        SplitImageNet(tmp_path, classes_file=path, num_tasks=2).setup("fit")


def test_number_of_tasks_must_be_chosen_when_ten_does_not_divide(tmp_path):
    write_imagenet(tmp_path, IMAGENET_WNIDS[:4], train=1, test=1)
    with pytest.raises(ValueError, match="expected exactly one of `num_tasks`"):
        SplitImageNet(tmp_path)
    assert SplitImageNet(tmp_path, base=2, increment=1).task_sizes == [2, 1, 1]


def test_flat_val_folder_must_be_sorted_first(tmp_path):
    write_imagenet(tmp_path)
    for path in list((tmp_path / "val").glob("*/*")):
        path.rename(tmp_path / "val" / path.name)
    for folder in (tmp_path / "val").glob("n*/"):
        if folder.is_dir():
            folder.rmdir()
    with pytest.raises(ValueError, match=r"val is flat: 20 images and no folders.*must be sorted first"):
        SplitImageNet(tmp_path).prepare_data()


def test_missing_data_says_what_where_and_how(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder `train`.*Unpack ILSVRC 2012") as error:
        SplitImageNet(tmp_path / "nothing")
    assert str(tmp_path / "nothing") in str(error.value)
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match="no folder of a class"):
        SplitImageNet(tmp_path)
    write_imagenet(tmp_path / "x")
    for path in sorted((tmp_path / "x/val").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "x/val").rmdir()
    for call in (lambda d: d.prepare_data(), lambda d: d.setup("fit")):
        with pytest.raises(FileNotFoundError, match="no folder `val`"):
            call(SplitImageNet(tmp_path / "x"))


def test_classes_of_both_folders_must_agree(tmp_path):
    write_imagenet(tmp_path)
    (tmp_path / "val" / IMAGENET_WNIDS[3]).rename(tmp_path / "val/n1")
    with pytest.raises(ValueError, match=r"classes that .*train has not: \['n1'\]"):
        SplitImageNet(tmp_path).setup("fit")
    for path in (tmp_path / "val/n1").iterdir():
        path.unlink()
    (tmp_path / "val/n1").rmdir()
    with pytest.raises(ValueError, match=f"class '{IMAGENET_WNIDS[3]}' has no test image"):
        SplitImageNet(tmp_path).setup("fit")


def test_empty_class_is_refused(tmp_path):
    write_imagenet(tmp_path)
    for path in (tmp_path / "train" / IMAGENET_WNIDS[1]).iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=f"class '{IMAGENET_WNIDS[1]}' has no train image"):
        SplitImageNet(tmp_path).setup("fit")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_truncated_image_is_named(tmp_path, num_workers):
    write_imagenet(tmp_path, train=1)
    path = next((tmp_path / "train").glob("*/*"))
    path.write_bytes(path.read_bytes()[:300])
    data = loaded(tmp_path, num_workers=num_workers, batch_size=1)
    index = next(i for i in range(10) if data.split("train").path(i) == str(path))
    with pytest.raises(ValueError, match=f"{path.name}: cannot be read as an image"):
        list(data.eval_loader(torch.tensor([index])))


def test_hidden_and_other_files_do_not_count(tmp_path):
    write_imagenet(tmp_path)
    (tmp_path / "train/.cache").mkdir()
    (tmp_path / "train/notes.txt").write_text("")
    (tmp_path / "train" / IMAGENET_WNIDS[0] / "Thumbs.db").write_text("")
    (tmp_path / "train" / IMAGENET_WNIDS[0] / "._n.JPEG").write_text("")
    data = loaded(tmp_path)
    assert (data.num_classes, len(data.split("train"))) == (10, 30)


@pytest.mark.parametrize("sizes", [(0, 256), (224, 200)])
def test_impossible_sizes_are_refused(tmp_path, sizes):
    with pytest.raises(ValueError, match=r"expected 1 <= `image_size` <= `resize_size`"):
        SplitImageNet(tmp_path, image_size=sizes[0], resize_size=sizes[1])


@pytest.mark.data
def test_real_imagenette():
    data = SplitImageNet(data_pack("imagenette"), num_workers=2, batch_size=8)
    data.prepare_data()
    data.setup("fit")
    assert (data.num_classes, data.num_tasks) == (10, 10)
    assert "n01440764" in data.class_names
    assert data.split("train").targets.unique().tolist() == list(range(10))
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch["image"].shape == (8, 3, 224, 224)
    assert abs(batch["image"].mean().item()) < 1
    assert len(data.test_dataloader()) == 10
