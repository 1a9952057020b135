"""`MultiLabelVOC` against trees in the official layout, with the statistics of the real one."""

import os
import re
import shutil

import numpy as np
import pytest
import torch

from lightning_cil.data import MultiLabelVOC, _names
from lightning_cil.types import Stage
from tests.data.formats import data_pack, write_voc

# VOC2007's images with an object that is not difficult, by class in sorted order, and what follows for the protocols
TRAIN = [238, 243, 330, 181, 244, 186, 713, 337, 445, 141, 200, 421, 287, 245, 2008, 245, 96, 229, 261, 256]
TEST = [204, 239, 282, 172, 212, 174, 721, 322, 417, 127, 190, 418, 274, 222, 2007, 224, 97, 223, 259, 229]
PROTOCOLS = {
    "B4-C2": (
        [985, 430, 1048, 586, 620, 532, 2180, 325, 517],
        [892, 1268, 2235, 2729, 3186, 3634, 4497, 4652, 4952],
    ),
    "B5-C3": ([1227, 1171, 687, 943, 2264, 709], [1101, 2235, 2809, 3634, 4573, 4952]),
}
TRAIN_SHARED = {(0, 1): 7, (3, 4): 2, (6, 7): 2, (5, 6): 63, (9, 10): 99, (10, 11): 1, (11, 12): 10, (14, 15): 73}
TRAIN_SHARED |= {(15, 16): 12, (17, 18): 37}
"""Images that have two classes of one task, so that the tasks' image counts are those above."""


def official_train():
    """Values `[5011, 20]` with VOC2007's counts of images for every class, task and the whole."""
    left = list(TRAIN)
    sets = []
    for pair, count in TRAIN_SHARED.items():
        sets += [pair] * count
        for label in pair:
            left[label] -= count
    surplus = sum(left) + len(sets) - 5011
    for label in [c for c in range(20) if c not in (14, 15, 16)]:  # with a person, in no task of a person's
        count = min(left[label], left[14], surplus)
        sets += [(label, 14)] * count
        left[label] -= count
        left[14] -= count
        surplus -= count
    sets += [(6, 18)] * surplus
    left[6] -= surplus
    left[18] -= surplus
    return values_of(sets + [(c,) for c in range(20) for _ in range(left[c])])


def official_test():
    """Values `[4952, 20]`: the images that come with each group of classes, for both protocols at once."""
    seen = {}
    for protocol, (_, counts) in PROTOCOLS.items():
        base, increment = (int(number) for number in re.findall(r"\d+", protocol))
        seen |= dict(zip(range(base, 21, increment), counts, strict=True))
    values = np.full((4952, 20), -1, dtype=np.int8)
    start = low = 0
    for high in sorted(seen):
        end = seen[high]
        ends = start + np.round(np.cumsum([0, *TEST[low:high]]) / sum(TEST[low:high]) * (end - start)).astype(int)
        for label in range(low, high):
            values[ends[label - low] : ends[label - low + 1], label] = 1
            others = np.flatnonzero(values[:end, label] != 1)
            count = TEST[label] - (values[:, label] == 1).sum()
            values[others[np.arange(count) * len(others) // max(count, 1)], label] = 1
        start, low = end, high
    return difficult(values)


def values_of(sets):
    values = np.full((len(sets), 20), -1, dtype=np.int8)
    for row, labels in enumerate(sets):
        values[row, list(labels)] = 1
    return difficult(values)


def difficult(values):
    """Some absent labels become difficult only."""
    rows = np.arange(0, len(values), 8)
    columns = rows % 20
    absent = values[rows, columns] == -1
    values[rows[absent], columns[absent]] = 0
    return np.random.RandomState(0).permutation(values)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A tree with VOC2007's statistics and empty images, or the real one that `LIGHTNING_CIL_VOC` names."""
    if "LIGHTNING_CIL_VOC" in os.environ:
        return os.environ["LIGHTNING_CIL_VOC"]
    root = tmp_path_factory.mktemp("official")
    write_voc(root, official_train(), official_test(), size=0, xml=False)
    return root


def loaded(root, **options):
    data = MultiLabelVOC(root, **{"num_workers": 0, "image_size": 32, **options})
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_official_counts(protocol, official, monkeypatch):
    monkeypatch.setattr("PIL.Image.open", None)  # no image is decoded for a label
    data = loaded(official, protocol=protocol, labels="both" if "LIGHTNING_CIL_VOC" in os.environ else "lists")
    assert data.class_names == list(_names.VOC)
    assert len(data.split("train")) == 5011
    assert data.split("train").targets.sum(0).tolist() == TRAIN
    assert data.split("test").targets.sum(0).tolist() == TEST
    train, test = PROTOCOLS[protocol]
    seen = []
    for task in data.tasks:
        data.set_stage(task, Stage("train", 1), 0)
        (loader,) = data.test_dataloader()
        seen.append(len(loader.indices))
    assert [len(data.train_indices([t.index])) for t in data.tasks] == train
    assert seen == test
    assert len(data.train_indices(range(data.num_tasks))) == 5011


@pytest.mark.parametrize("labels", ["lists", "xml", "both", "auto"])
def test_labels_are_those_on_disk_and_difficult_ones_are_absent(tmp_path, labels):
    written = write_voc(tmp_path)
    data = loaded(tmp_path, labels=labels)
    for split, names, values in (
        ("train", written.train_names, written.train_values),
        ("test", written.test_names, written.test_values),
    ):
        found = data.split(split)
        assert [found.path(i) for i in range(len(found))] == [
            str(tmp_path / f"VOCdevkit/VOC2007/JPEGImages/{name}.jpg") for name in names
        ]
        assert (values == 0).any()
        assert torch.equal(found.targets, torch.from_numpy(values == 1))


def test_auto_reads_xml_where_a_list_of_a_class_is_missing(tmp_path):
    written = write_voc(tmp_path, lists=False)
    assert torch.equal(loaded(tmp_path).split("train").targets, torch.from_numpy(written.train_values == 1))


@pytest.mark.parametrize("folder", ["VOCdevkit/VOC2007", "VOCdevkit", "."])
def test_root_may_be_any_of_the_three_folders(tmp_path, folder):
    write_voc(tmp_path)
    assert len(loaded(tmp_path / folder).split("test")) == 20


def test_own_classes_and_lists(tmp_path):
    names = ["ant", "bee", "cat"]
    written = write_voc(tmp_path, classes=names, year=2012)
    data = loaded(tmp_path, classes=["cat", "ant"], sizes=[1, 1], year=2012, labels="both")
    assert torch.equal(data.split("train").targets, torch.from_numpy(written.train_values == 1)[:, [2, 0]])
    with pytest.raises(ValueError, match=r"object of class 'ant'; expected one of the 20 of VOC. Name the classes"):
        loaded(tmp_path, year=2012, labels="xml")


def test_batches_are_pictures_of_one_size_from_0_to_1(tmp_path):
    write_voc(tmp_path)
    data = loaded(tmp_path, batch_size=4, cutout=0, randaugment=False)
    data.set_stage(data.tasks[0], Stage("train", 1), 0)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch["image"].shape == (4, 3, 32, 32)
    stored = data.stored_images(batch["index"])
    assert torch.allclose(batch["image"], stored.float() / 255)
    normalised = loaded(tmp_path, mean=(0.5,) * 3, std=(0.25,) * 3).transform(stored)
    assert torch.allclose(normalised, (stored.float() / 255 - 0.5) / 0.25, atol=1e-6)


def test_batches_depend_on_neither_workers_nor_ranks(tmp_path):
    write_voc(tmp_path)
    found = {}
    for workers, world in ((0, 1), (2, 1), (0, 2)):
        data = loaded(tmp_path, batch_size=6 // world, num_workers=workers)
        data.set_stage(data.tasks[2], Stage("train", 1), 3)
        loader = data.train_dataloader()
        loader.world_size = world
        for rank in range(world):
            loader.rank, loader.epoch, loader.position = rank, 1, 0
            for batch in loader:
                for position, index in enumerate(batch["index"].tolist()):
                    row = {name: value[position] for name, value in batch.items()}
                    same = found.setdefault(index, row)
                    assert all(torch.equal(value, same[name]) for name, value in row.items())
    assert len(found) == 6


def test_exemplars_are_augmented_by_index_as_the_batch_was(tmp_path):
    write_voc(tmp_path)
    data = loaded(tmp_path, batch_size=4)
    data.set_stage(data.tasks[1], Stage("train", 1), 3)
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(data.load_augmented(batch["index"], batch["key"]), batch["image"])
    assert not torch.equal(data.stored_images(batch["index"]), batch["image"])


MAIN, CAT, XML = "ImageSets/Main", "ImageSets/Main/cat_test.txt", "Annotations/000005.xml"
DIFFERENT = "aeroplane_trainval.txt gives 1 for image '000005', but .* has no object 'aeroplane' that is not difficult"


def swap(name, old, new):
    def change(folder):
        path = folder / name if "/" in name else folder / MAIN / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("change", "labels", "error", "message"),
    [
        (lambda f: shutil.rmtree(f / MAIN), "auto", FileNotFoundError, "found no list of images `trainval.txt`"),
        (swap("trainval.txt", "000006", "000005"), "lists", ValueError, "lists image '000005' more than once"),
        (swap("cat_test.txt", " -1\n", " 2\n"), "lists", ValueError, r"test.txt, line 1 is '\d{6} 2'; expected"),
        (swap("cat_test.txt", " -1\n", "\n"), "lists", ValueError, r"test.txt, line 1 is '\d{6}'; expected"),
        (lambda f: (f / CAT).write_text(""), "lists", ValueError, "has 0 images, the split 20; '000045' is not"),
        (lambda f: (f / CAT).unlink(), "lists", FileNotFoundError, "cat_test.txt: no such list"),
        (lambda f: (f / XML).write_text("<annotation><obj"), "xml", ValueError, "000005.xml is truncated or not XML"),
        (lambda f: (f / XML).unlink(), "xml", FileNotFoundError, "000005.xml: no such annotation"),
        (swap(XML, "aeroplane", "zeppelin"), "xml", ValueError, "object of class 'zeppelin'"),
        (swap(XML, "plane</name><difficult>0", "plane</name><difficult>1"), "both", ValueError, DIFFERENT),
        (lambda f: (f / "JPEGImages/000007.jpg").unlink(), "auto", FileNotFoundError, "not there, such as .*000007.j"),
        (swap("test.txt", "000045", "000044"), "xml", ValueError, r"1 image\(s\) are in .*trainval.txt and in"),
    ],
)
def test_damaged_trees_are_refused_with_one_message(tmp_path, change, labels, error, message):
    write_voc(tmp_path, size=2)
    change(tmp_path / "VOCdevkit/VOC2007")
    with pytest.raises(error, match=message):
        loaded(tmp_path, labels=labels)


def test_truncated_image_is_refused(tmp_path):
    write_voc(tmp_path)
    path = tmp_path / "VOCdevkit/VOC2007/JPEGImages/000005.jpg"
    path.write_bytes(path.read_bytes()[:200])
    data = loaded(tmp_path)
    with pytest.raises(ValueError, match=r"000005.jpg: cannot be read as an image"):
        data.stored_images(torch.tensor([0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "4-2"}, "`protocol='4-2'`: expected 'Bx-Cy'"),
        ({"protocol": "B4-C0"}, "`protocol='B4-C0'`: expected 'Bx-Cy'"),
        ({"protocol": "B4-C3"}, "`protocol='B4-C3'` does not make 20 classes: 4 in the first task, 3 in each"),
        ({"classes": ["cat", "dog"]}, "`protocol='B4-C2'`, the default, does not make 2 classes"),
        ({"protocol": "B4-C2", "num_tasks": 5}, "got `protocol='B4-C2'` and `num_tasks=5`; expected one"),
        ({"labels": "txt"}, "`labels='txt'` is unknown"),
        ({"classes": ["cat", "dog", "cat"]}, "3 name(s), 'cat' more than once; expected at least 2 different"),
        ({"cutout": 2.0}, "`cutout=2.0`; expected"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MultiLabelVOC("nowhere", **options)


def test_protocol_in_letters_and_in_numbers_are_the_same():
    assert MultiLabelVOC(protocol="B0-C5").task_sizes == [5] * 4
    assert MultiLabelVOC(base=5, increment=3).task_sizes == MultiLabelVOC(protocol="b5-c3").task_sizes
    assert MultiLabelVOC().task_sizes == [4] + [2] * 8


def test_data_pack_lists_and_annotations_agree():
    names = [n for n in _names.VOC if n not in ("aeroplane", "diningtable", "pottedplant", "sofa", "tvmonitor")]
    root = data_pack("VOCdevkit")
    data = loaded(root, labels="both")
    assert len(data.split("train")) == 350
    pascal = loaded(root, train_split="pascal_trainval", test_split="pascal_test", classes=names, protocol="B5-C2")
    assert (len(pascal.split("train")), len(pascal.split("test"))) == (304, 160)
    assert pascal.load_augmented(torch.tensor([0]), torch.tensor([1])).shape == (1, 3, 32, 32)
