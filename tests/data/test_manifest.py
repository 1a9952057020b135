import csv
import json

import numpy as np
import pytest
import torch

from lightning_cil.data import ManifestTasks
from lightning_cil.types import Stage
from tests.data.formats import data_pack, write_manifest, write_rows

OPTIONS = {"image_size": 32, "num_tasks": 2, "batch_size": 3, "num_workers": 0}


def loaded(path, **options):
    data = ManifestTasks(path, **{**OPTIONS, **options})
    data.prepare_data()
    data.setup("fit")
    return data


def stored(data, name):
    return data.split(name).stored(torch.arange(len(data.split(name)))).numpy()


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_images_and_labels_are_those_on_disk(tmp_path, suffix, in_memory):
    path, written = write_manifest(tmp_path, suffix=suffix)
    data = loaded(path, in_memory=in_memory)
    assert data.original_names == ["bee", "cat", "dog", "eel"]
    assert np.array_equal(stored(data, "train"), written.train_images)
    assert np.array_equal(stored(data, "test"), written.test_images)
    assert data.split("train").targets.tolist() == written.train_labels.tolist()
    assert data.split("test").targets.tolist() == written.test_labels.tolist()


def test_batches_depend_neither_on_memory_nor_on_workers(tmp_path):
    path, _ = write_manifest(tmp_path)

    def batches(**mode):
        data = loaded(path, **mode)
        data.set_stage(data.tasks[0], Stage("train", 1), seed=5)
        return [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]

    memory, files = batches(in_memory=True), batches(in_memory=False)
    workers = batches(in_memory=False, num_workers=2)
    for a, b, c in zip(memory, files, workers, strict=True):
        assert all(torch.equal(a[k], b[k]) and torch.equal(a[k], c[k]) for k in a)


def test_val_rows_are_held_out(tmp_path):
    path, written = write_manifest(tmp_path, val=2)
    data = loaded(path)
    assert np.array_equal(stored(data, "train"), written.train_images)
    data.set_stage(data.tasks[1], Stage("train", 1), seed=0)
    held_out = torch.cat([b["index"] for loader in data.val_dataloader() for b in loader])
    assert sorted(held_out.tolist()) == list(range(16, 24))
    assert data.train_indices([0, 1]).tolist() == list(range(16))
    with pytest.raises(ValueError, match=r"`val_fraction=0.2`.*val split of its own"):
        ManifestTasks(path, num_tasks=2, val_fraction=0.2)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_whole_numbers_are_sorted_by_value(tmp_path, suffix):
    path, _ = write_manifest(tmp_path, classes=["10", "9", "100", "0"])
    rows = [{**row, "label": int(row["label"])} for row in rows_of(path)]
    data = ManifestTasks(write_rows(tmp_path / f"numbers{suffix}", rows), num_tasks=2)
    assert data.original_names == ["0", "9", "10", "100"]
    assert data.files["train"].targets[:4] == [2, 1, 3, 0]


def test_class_order_and_uneven_sizes(tmp_path):
    path, _ = write_manifest(tmp_path)
    data = loaded(path, num_tasks=None, sizes=[3, 1], class_order=["eel", "bee", "dog", "cat"])
    assert data.class_names == ["eel", "bee", "dog", "cat"]
    assert set(data.split("train").targets[data.train_indices([1])].tolist()) == {1}


def test_paths_may_be_absolute_and_the_file_may_come_from_a_spreadsheet(tmp_path):
    path, written = write_manifest(tmp_path)
    rows = [{**row, "image": str(tmp_path / row["image"]), "note": "a, b"} for row in rows_of(path)]
    moved = write_rows(tmp_path.parent / f"{tmp_path.name}.csv", rows)
    moved.write_bytes(
        b"\xef\xbb\xbf" + moved.read_bytes().replace(b",label,", b", label ,").replace(b",cat,", b", cat ,")
    )
    data = loaded(moved)
    assert data.original_names == ["bee", "cat", "dog", "eel"]
    assert np.array_equal(stored(data, "train"), written.train_images)


def test_row_that_is_there_twice_counts_once(tmp_path):
    path, _ = write_manifest(tmp_path)
    rows = rows_of(path)
    assert len(ManifestTasks(write_rows(path, rows + rows[:3]), num_tasks=2).files["train"]) == 16


def changed(index, **values):
    return lambda rows: rows[index].update(values)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (changed(2, split="training"), ValueError, "`split` is 'training'; expected 'train', 'val' or 'test'"),
        (changed(2, image="images/no.png"), FileNotFoundError, "there is no file `.*images/no.png`.*relative to"),
        (changed(2, image=""), ValueError, "`image` is ''"),
        (changed(2, label=""), ValueError, "`label` is ''; expected a class name"),
        (
            changed(2, image="images/train_0.png"),
            ValueError,
            "'images/train_0.png' is 'dog' in train, but 'bee' .* row 1",
        ),
        (
            lambda rows: [row.update(labels="") for row in rows] and rows[2].update(labels="a;b"),
            ValueError,
            "has `labels`, and the rows before it have `label`; expected the same in all",
        ),
    ],
)
def test_wrong_row_is_named(tmp_path, change, error, message, suffix):
    path, _ = write_manifest(tmp_path)
    rows = rows_of(path)
    change(rows)
    write_rows(tmp_path / f"x{suffix}", rows)
    place = r"x.csv, row 3 \(line 4\): " if suffix == ".csv" else "x.jsonl, row 3: "
    with pytest.raises(error, match=place + message):
        ManifestTasks(tmp_path / f"x{suffix}", num_tasks=2)


def test_image_in_two_splits_is_refused(tmp_path):
    path, _ = write_manifest(tmp_path)
    rows = rows_of(path)
    rows[20].update(image=f"images/../{rows[0]['image']}")  # the same file by another path
    with pytest.raises(ValueError, match=r"row 21 .*'bee' in test, but 'bee' in train in row 1 "):
        ManifestTasks(write_rows(path, rows), num_tasks=2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "row 2: not JSON"),
        ("[1]", "row 2: holds list; expected an object"),
        ('{"image": "images/train_1.png", "split": "train"}', "row 2: `label` is None"),
        ('{"image": "images/train_1.png", "label": "cat"}', "row 2: `split` is None"),
        ('{"label": "cat", "split": "train"}', "row 2: `image` is None"),
        ('{"image": "images/train_1.png", "label": 1.5, "split": "train"}', "row 2: `label` is 1.5"),
        ('{"image": "images/train_1.png", "label": true, "split": "train"}', "row 2: `label` is True"),
        (
            '{"image": "images/train_1.png", "label": ["cat", "dog"], "split": "train"}',
            r"row 2: `label` is \['cat', 'dog'\]; expected one label, or a list of them under `labels`",
        ),
        ('{"image": "images/train_1.png", "labels": ["cat", "dog"], "split": "train"}', "row 2: has `labels`, and the"),
    ],
)
def test_wrong_json_row_is_named(tmp_path, line, message):
    path, _ = write_manifest(tmp_path, suffix=".jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:]]))
    with pytest.raises(ValueError, match=message):
        ManifestTasks(path, num_tasks=2)


def test_blank_lines_do_not_count_as_rows_but_keep_their_numbers(tmp_path):
    path, _ = write_manifest(tmp_path, suffix=".jsonl")
    path.write_text("\n" + path.read_text() + "\n\n")
    assert len(ManifestTasks(path, num_tasks=2).files["train"]) == 16
    path.write_text("\n" + path.read_text().replace('"train"', '"tarin"', 1))
    with pytest.raises(ValueError, match="row 3: `split`"):
        ManifestTasks(path, num_tasks=2)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("image,label", r"the header is \['image', 'label'\], without \['split'\]"),
        ("path,Label,split", r"without \['image', 'label'\]"),
        ("image;label;split", "separated by commas"),
        ("", r"the header is \[\]"),
    ],
)
def test_wrong_header_is_refused(tmp_path, header, message):
    path = tmp_path / "x.csv"
    path.write_text(header + "\n" if header else "")
    with pytest.raises(ValueError, match=message):
        ManifestTasks(path)


def test_too_many_values_in_a_row_are_refused(tmp_path):
    path, _ = write_manifest(tmp_path)
    path.write_text(path.read_text().replace(",cat,", ",cat, wild,", 1))
    with pytest.raises(ValueError, match=r"row 2 \(line 3\): 4 values for 3 columns.*double quotes"):
        ManifestTasks(path, num_tasks=2)


def test_missing_or_unknown_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file; expected a csv or jsonl file with the columns image"):
        ManifestTasks(tmp_path / "nothing.csv")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ValueError, match=r"ends in '.json'; expected '.csv' or '.jsonl'"):
        ManifestTasks(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda row: row["split"] == "train", r"4 of 4 classes have no test image"),
        (lambda row: row["split"] == "test", r"4 of 4 classes have no train image"),
        (lambda row: (row["label"], row["split"]) != ("dog", "test"), r"no test image: \['dog'\]"),
        (lambda row: (row["label"], row["split"]) != ("dog", "val"), r"no val image: \['dog'\]"),
        (lambda row: row["label"] == "dog", r"has 1 class\(es\) \['dog'\]"),
    ],
)
def test_class_without_images_is_refused(tmp_path, keep, message):
    path, _ = write_manifest(tmp_path, val=1)
    write_rows(path, [row for row in rows_of(path) if keep(row)])
    with pytest.raises(ValueError, match=message):
        ManifestTasks(path, num_tasks=2)


def test_list_without_rows_is_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("image,label,split\n")
    with pytest.raises(ValueError, match=r"has 0 class"):
        ManifestTasks(path)


@pytest.mark.data
def test_real_pictures_of_imagenet_esc(tmp_path):
    pack = data_pack("imagenet_esc")
    with (pack / "images.csv").open(newline="") as file:
        rows = [
            {"image": str(pack / r["path"]), "label": r["category"], "split": r["split"]} for r in csv.DictReader(file)
        ]
    rows = [r for r in rows if r["label"] not in ("rooster", "hen")]  # one picture each, none in test
    data = loaded(write_rows(tmp_path / "list.csv", rows), num_tasks=None, base=2, increment=5)
    assert data.num_classes == 17
    assert len(data.split("train")) + len(data.split("test")) == len(rows)


def write_multi(root, suffix, separator="|"):
    """The list of `write_manifest` with up to three labels for each image, and what they are."""
    path, _ = write_manifest(root, val=1)
    names, rows, expected = ("bee", "cat", "dog", "eel"), rows_of(path), {}
    for i, row in enumerate(rows):
        labels = sorted({row.pop("label"), *([names[(i + 1) % 4]] if i % 2 else []), *(["cat"] if i % 5 == 0 else [])})
        labels = [] if i == 3 else labels
        expected[row["image"]] = labels
        row["labels"] = labels if suffix == ".jsonl" else separator.join(labels)
    return write_rows(root / f"multi{suffix}", rows), expected


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(("suffix", "separator"), [(".csv", "|"), (".csv", " ; "), (".jsonl", "")])
def test_several_labels_make_a_multi_label_stream(tmp_path, suffix, separator, in_memory):
    path, expected = write_multi(tmp_path, suffix, separator)
    data = ManifestTasks(path, num_tasks=2, class_order="sorted", image_size=32, in_memory=in_memory, num_workers=0)
    paths = list(data.files["train"].paths)
    data.setup("fit")
    assert data.label_kind == "multi"
    assert data.class_names == ["bee", "cat", "dog", "eel"]
    truth = [[name in expected[p[p.index("images/") :]] for name in data.class_names] for p in paths]
    assert data.split("train").targets.tolist() == truth
    kept = range(len(paths) - 4)  # the val images come last
    data.set_stage(data.tasks[1], Stage("train", 1), 0)
    assert data.stage_indices().tolist() == [i for i in kept if truth[i][2] or truth[i][3]]
    batch = next(iter(data.train_dataloader()))
    assert not batch["target"][:, :2].any()
    assert batch["known"].sum(0).tolist() == [0, 0] + [len(batch["index"])] * 2


def test_single_label_methods_see_a_list_with_an_empty_column_of_labels_as_before(tmp_path):
    path, _ = write_manifest(tmp_path)
    rows = [{**row, "labels": ""} for row in rows_of(path)]
    assert ManifestTasks(write_rows(path, rows), num_tasks=2).label_kind == "single"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(2, label="cat"), r"row 3: has `label` \('cat'\) and `labels` \(\['dog'\]\); expected one of them"),
        (changed(2, labels=None, label="cat"), r"row 3: has `label`, and the rows before it have `labels`"),
        (changed(2, labels=["cat", 1.5]), r"row 3: `labels` is \['cat', 1.5\]; expected class names"),
        (changed(2, labels="cat||dog"), r"row 3: `labels` is 'cat\|\|dog'; expected class names"),
        (changed(2, image="images/train_0.png"), r"row 3: .* is \['dog'\] in train, but \['bee', 'cat'\] in train in"),
    ],
)
def test_wrong_row_of_several_labels_is_named(tmp_path, change, message):
    path, _ = write_multi(tmp_path, ".jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    with pytest.raises(ValueError, match=message):
        ManifestTasks(write_rows(path, rows), num_tasks=2)
