import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_cil.data import SplitDigits
from lightning_cil.data.predict import SUFFIXES, FolderLoader, write_predictions


def digit(seed, size=(8, 8)):
    return np.random.RandomState(seed).randint(0, 256, size, dtype=np.uint8)


def write(path, seed=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(digit(seed, size)).save(path)
    return path


# ---------------------------------------------------------------------- FolderLoader


def test_images_of_all_types_are_found_in_all_folders_sorted(tmp_path):
    names = ["b.png", "a/z.JPG", "a/b/c.bmp", "a/b/d.tiff", "ß/é.jpeg", "c.PpM", "10.tif", "9.webp", ".hidden.png"]
    paths = [write(tmp_path / name) for name in names]
    for name in ("notes.txt", "a/list.csv", "png", "b.png.txt", "noend."):
        (tmp_path / name).write_text("no image")
    (tmp_path / "folder.png").mkdir()
    paths.append(write(tmp_path / "folder.png" / "inside.png"))
    for folder in (tmp_path, str(tmp_path)):
        assert FolderLoader(SplitDigits(), folder).paths == sorted(paths)
    assert {path.suffix.lower() for path in paths} == SUFFIXES


@pytest.mark.parametrize(("batch_size", "sizes"), [(2, [2, 2, 1]), (5, [5]), (100, [5]), (1, [1] * 5)])
def test_batches_hold_the_images_as_the_data_sets_evaluation_prepares_them(tmp_path, batch_size, sizes):
    for i in range(5):
        write(tmp_path / f"{i}.png", seed=i)
    data = SplitDigits(eval_batch_size=batch_size)
    loader = FolderLoader(data, tmp_path)
    assert len(loader) == len(sizes)
    for _ in range(2):
        batches = list(loader)
        assert [len(batch["image"]) for batch in batches] == sizes
        assert all(batch.keys() == {"image"} for batch in batches)
        image = torch.cat([batch["image"] for batch in batches])
        assert image.dtype == torch.float32
        expected = (np.stack([digit(i) for i in range(5)])[:, None] / 255 - 0.3053) / 0.3763
        np.testing.assert_allclose(image.numpy(), expected, rtol=0, atol=1e-5)


def test_images_of_any_size_fit_into_one_batch_and_pass_the_transform_once(tmp_path):
    write(tmp_path / "a.png", size=(8, 8))
    write(tmp_path / "b.png", size=(40, 24))
    data = SplitDigits()
    (batch,) = FolderLoader(data, tmp_path)
    assert batch["image"].shape == (2, 1, 8, 8)
    image = batch["image"].clone()
    assert torch.equal(data.on_after_batch_transfer(batch, 0)["image"], image)


def test_prediction_needs_no_data_set(tmp_path, monkeypatch):
    write(tmp_path / "a.png")
    monkeypatch.setattr(SplitDigits, "load_split", None)
    assert len(list(FolderLoader(SplitDigits(), tmp_path))) == 1


@pytest.mark.parametrize("content", ["nothing", "text", "no folder", "a file"])
def test_folder_without_images_is_refused(tmp_path, content):
    folder = tmp_path / "images"
    if content != "no folder":
        folder.mkdir()
    if content == "text":
        (folder / "notes.txt").write_text("no image")
    if content == "a file":
        folder = write(folder / "a.png")
    with pytest.raises(FileNotFoundError) as error:
        FolderLoader(SplitDigits(), folder)
    assert str(error.value) == (
        f"`images={folder}`: no image in there; expected a folder with files of type "
        "['.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp']."
    )


def test_broken_image_is_named(tmp_path):
    path = write(tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"a\.png: cannot be read as an image"):
        list(FolderLoader(SplitDigits(), tmp_path))


# ---------------------------------------------------------------------- write_predictions

IMAGES = [Path("x/a.png"), Path("x/ü, b.png"), Path("c.png")]
BATCHES = [torch.tensor([[0.125, 0.75, 0.125], [1.0, 0.0, 0.0]]), torch.tensor([[0.2, 0.3, 0.5]])]


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_table_holds_class_probability_and_every_probability(tmp_path):
    target = tmp_path / "p.csv"
    assert write_predictions(str(target), IMAGES, BATCHES, ["cat", 'dog, "big"', "émeu"]) == target
    assert rows_of(target) == [
        ["image", "class", "probability", "cat", 'dog, "big"', "émeu"],
        ["x/a.png", 'dog, "big"', "0.750000", "0.125000", "0.750000", "0.125000"],
        ["x/ü, b.png", "cat", "1.000000", "1.000000", "0.000000", "0.000000"],
        ["c.png", "émeu", "0.500000", "0.200000", "0.300000", "0.500000"],
    ]
    assert b"\r\r" not in target.read_bytes()


def test_several_labels_or_none_are_written_as_a_list(tmp_path):
    batches = [torch.tensor([[0.75, 0.25, 0.875], [0.5, 0.0, 0.125], [0.0, 1.0, 0.5]])]
    assert rows_of(write_predictions(tmp_path / "p.csv", IMAGES, batches, ["cat", "dog", "eel"], multi=True)) == [
        ["image", "labels", "cat", "dog", "eel"],
        ["x/a.png", "cat|eel", "0.750000", "0.250000", "0.875000"],
        ["x/ü, b.png", "", "0.500000", "0.000000", "0.125000"],
        ["c.png", "dog", "0.000000", "1.000000", "0.500000"],
    ]


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        ([], ["0", "1", "2"]),
        (["cat", "dog"], ["0", "1", "2"]),
        (["cat", "dog", "eel", "not yet learned"], ["cat", "dog", "eel"]),
    ],
)
def test_names_of_the_classes_seen_or_else_numbers(tmp_path, names, columns):
    rows = rows_of(write_predictions(tmp_path / "p.csv", IMAGES, BATCHES, names))
    assert rows[0][3:] == columns
    assert [row[1] for row in rows[1:]] == [columns[1], columns[0], columns[2]]


def test_half_precision_and_ties(tmp_path):
    batches = [torch.tensor([[0.5, 0.5]], dtype=torch.bfloat16)]
    assert rows_of(write_predictions(tmp_path / "p.csv", IMAGES[:1], batches, ["cat", "dog"]))[1] == [
        "x/a.png",
        "cat",
        "0.500000",
        "0.500000",
        "0.500000",
    ]


def test_as_many_predictions_as_images_are_expected(tmp_path):
    with pytest.raises(ValueError, match=r"shorter|longer"):
        write_predictions(tmp_path / "p.csv", IMAGES[:2], BATCHES, [])
