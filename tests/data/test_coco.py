"""`MultiLabelCOCO` against trees in the official layout."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_cil.data import MultiLabelCOCO, _names, coco
from tests.data.formats import data_pack, write_coco

POSITIVES = [2243, 1171, 3924, 1618, 1804, 1884, 668, 2539, 3844, 2287, 2241, 2098, 3734, 5968, 5028, 1340, 2791, 2080]
POSITIVES += [8606, 1186, 2818, 3322, 8950, 3159, 3170, 1389, 6518, 8378, 3041, 1062, 1518, 1205, 2537, 1511, 1798, 128]
POSITIVES += [4861, 2068, 821, 1471, 1625, 3097, 2475, 1089, 2442, 1290, 1216, 2003, 481, 45174, 2202, 3084, 1671, 2180]
POSITIVES += [1645, 673, 1105, 3291, 2511, 2209, 1170, 2493, 2986, 1214, 1631, 2343, 1510, 2368, 2667, 151, 2317, 700]
POSITIVES += [2893, 2464, 4321, 3191, 2749, 2530, 1771, 1324]
"""Images of COCO 2014's training set with an object of a class that is no crowd, classes in sorted order."""
IMAGES, LABELLED = 82783, 82081
"""All of them, and those with any object."""


def loaded(root, **options):
    data = MultiLabelCOCO(root, **{"num_workers": 0, "image_size": 32, **options})
    data.prepare_data()
    data.setup("fit")
    return data


def test_labels_are_those_on_disk_and_crowds_are_none(tmp_path):
    written = write_coco(tmp_path, size=2)
    data = loaded(tmp_path)
    assert data.class_names == sorted(data.class_names)
    for split, folder, names, values in (
        ("train", "train2014", written.train_names, written.train_values),
        ("test", "val2014", written.test_names, written.test_values),
    ):
        found = data.split(split)
        assert [found.path(i) for i in range(len(found))] == [str(tmp_path / folder / name) for name in names]
        assert torch.equal(found.targets, torch.from_numpy(values == 1))
        assert found.members is found.targets


def test_crowds_can_bring_an_image_into_a_task(tmp_path):
    written = write_coco(tmp_path, year=2017, size=0)
    plain, crowd = (loaded(tmp_path, year=2017, include_crowd_membership=c) for c in (False, True))
    for task in plain.tasks:
        columns = written.train_values[:, list(task.classes)]
        assert plain.train_indices([task.index]).tolist() == np.flatnonzero((columns == 1).any(1)).tolist()
        assert crowd.train_indices([task.index]).tolist() == np.flatnonzero((columns >= 0).any(1)).tolist()
    assert torch.equal(plain.split("train").targets, crowd.split("train").targets)
    assert (written.train_values == 0).any()


@pytest.mark.parametrize(
    ("protocol", "sizes"), [("B20-C4", [20] + [4] * 15), ("B0-C5", [5] * 16), (None, [20] + [4] * 15)]
)
def test_protocols(protocol, sizes):
    assert MultiLabelCOCO(protocol=protocol).task_sizes == sizes


def test_images_without_any_label_are_tested_on_by_one_rule_only(tmp_path):
    write_coco(
        tmp_path, test=np.array([[1, -1], [-1, 0], [-1, 1]]), train=np.array([[1, 1]] * 2), classes=["a", "b"], size=0
    )
    options = {"classes": ["a", "b"], "num_tasks": 2}
    assert len(loaded(tmp_path, **options).test_dataloader()[0].indices) == 1
    assert len(loaded(tmp_path, test_rule="all", **options).test_dataloader()[0].indices) == 3


@pytest.fixture
def _every_file_is_large(monkeypatch):
    monkeypatch.setattr(coco, "CACHE_FROM_BYTES", 1)


def tables(root):
    return sorted((root / "annotations").glob(".instances_*.npz"))


@pytest.mark.usefixtures("_every_file_is_large")
def test_a_large_file_is_parsed_once(tmp_path, monkeypatch):
    write_coco(tmp_path, size=0)
    first = loaded(tmp_path, include_crowd_membership=True)
    assert len(tables(tmp_path)) == 2
    with monkeypatch.context() as patch:
        patch.setattr(coco, "_parse", None)
        second = loaded(tmp_path, include_crowd_membership=True)
    for split in ("train", "test"):
        one, two = first.split(split), second.split(split)
        assert torch.equal(one.targets, two.targets)
        assert torch.equal(one.members, two.members)
        assert [one.path(i) for i in range(len(one))] == [two.path(i) for i in range(len(two))]


@pytest.mark.usefixtures("_every_file_is_large")
def test_the_table_is_made_anew_when_the_file_changes_or_the_table_is_damaged(tmp_path):
    write_coco(tmp_path, size=0)
    loaded(tmp_path)
    table = tables(tmp_path)[1]  # train comes before val
    assert "val" in table.name
    whole = table.read_bytes()
    for damaged in (whole[:-10], whole[:100], b"", whole[:40] + b"x" + whole[41:]):
        table.write_bytes(damaged)
        assert coco._read_table(table) is None
        assert loaded(tmp_path).split("test").targets.sum() > 0
        assert coco._read_table(table) is not None
    path = tmp_path / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    removed = content["annotations"].pop(next(i for i, a in enumerate(content["annotations"]) if not a["iscrowd"]))
    path.write_text(json.dumps(content, indent=1))
    data = loaded(tmp_path)
    assert len(tables(tmp_path)) == 2  # the old one is gone
    row = [int(data.split("test").path(i)[-16:-4]) for i in range(80)].index(removed["image_id"])
    names = {c["id"]: c["name"] for c in content["categories"]}
    assert not data.split("test").targets[row, data.original_names.index(names[removed["category_id"]])]


@pytest.mark.usefixtures("_every_file_is_large")
def test_without_cache_nothing_is_written(tmp_path):
    write_coco(tmp_path, size=0)
    loaded(tmp_path, cache=False)
    assert tables(tmp_path) == []


def change(key, number, **values):
    def apply(path):
        content = json.loads(path.read_text())
        content[key][number].update(values)
        path.write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda p: p.unlink(), FileNotFoundError, r"found no annotations of `train2014`; looked in"),
        (lambda p: p.write_text(p.read_text()[:-30]), ValueError, r"train2014.json cannot be read .*truncated"),
        (lambda p: p.write_text(p.read_text()[:3000]), ValueError, r"train2014.json cannot be read .*truncated"),
        (lambda p: p.write_text("[]"), ValueError, r"cannot be read \(no '\{' at character 0\)"),
        (lambda p: p.write_text('{"images": [], "info": {}}'), ValueError, r"has 0 images and 0 categories"),
        (lambda p: p.write_text('{"images": [{"id": 1}]}'), ValueError, r"has an entry without 'file_name'"),
        (lambda p: p.write_text('{"images": [3]}'), ValueError, r"cannot be read"),
        (change("images", 0, id=7), ValueError, r"image id 7 is there more than once"),
        (change("images", 0, file_name="COCO_train2014_000000000007.jpg"), ValueError, r"lists file 'COCO_.*7.jpg'"),
        (change("categories", 0, name="apple"), ValueError, r"lists category 'apple' more than once"),
        (change("categories", 0, name="zeppelin"), ValueError, r"has the category 'zeppelin'; expected the 80 of COCO"),
        (change("annotations", 5, image_id=8), ValueError, r"annotation is of image 8, which `images` does not have"),
        (change("annotations", 5, category_id=1), ValueError, r"annotation is of category 1, which `categories` does"),
        (lambda p: next((p.parents[1] / "train2014").iterdir()).unlink(), FileNotFoundError, r"names 1 image"),
    ],
)
def test_damaged_trees_are_refused_with_one_message(tmp_path, damage, error, message):
    write_coco(tmp_path, size=0)
    damage(tmp_path / "annotations" / "instances_train2014.json")
    with pytest.raises(error, match=message):
        loaded(tmp_path)


def test_a_class_that_the_file_does_not_have_is_refused(tmp_path):
    write_coco(tmp_path, size=0)
    with pytest.raises(ValueError, match=r"has no category 'dgo'; it has \['airplane'.* Name the ones to use"):
        loaded(tmp_path, classes=["cat", "dgo"], num_tasks=2)


def test_data_pack_is_read():
    data = loaded(data_pack("coco"), year=2017)
    assert (len(data.split("train")), len(data.split("test"))) == (206, 80)
    assert data.class_names == list(_names.COCO)
    assert data.stored_images(torch.tensor([0, 205])).shape == (2, 3, 32, 32)


def annotations_of_official_size(path):
    """An annotation file with COCO 2014's counts of images and labels, no box in it."""
    images = ",".join(f'{{"id": {i}, "file_name": "{i}.jpg"}}' for i in range(IMAGES))
    names = ",".join(f'{{"id": {90 - i}, "name": "{name}"}}' for i, name in enumerate(_names.COCO))
    number = np.arange(sum(POSITIVES)) % LABELLED  # a class has fewer images than there are: none twice
    category = 90 - np.repeat(np.arange(80), POSITIVES)
    pairs = zip(number.tolist(), category.tolist(), strict=True)
    objects = ",".join(f'{{"image_id": {i}, "category_id": {c}, "iscrowd": 0}}' for i, c in pairs)
    path.write_text(f'{{"images": [{images}], "annotations": [{objects}], "categories": [{names}]}}')
    return path


def test_official_counts(tmp_path):
    """The real file where `LIGHTNING_CIL_COCO` names a folder."""
    root = os.environ.get("LIGHTNING_CIL_COCO")
    official = Path(root or "", "annotations", "instances_train2014.json")
    path = official if root else annotations_of_official_size(tmp_path / "instances_train2014.json")
    found = coco.read_instances(path, cache=False)
    assert found.categories == list(_names.COCO)
    assert found.labels.shape == (IMAGES, 80)
    assert found.labels.sum(0).tolist() == POSITIVES
    assert found.labels.sum() == 241_035
    assert (found.labels | found.crowds).any(1).sum() == LABELLED
