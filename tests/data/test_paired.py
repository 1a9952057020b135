"""Streams of pictures with sounds: `ImageNetESC`, `SpokenDigits`, `AricLike`, `ManifestTasks` with `audio`."""

import csv
import doctest
import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_cil.data import AricLike, ImageNetESC, ManifestTasks, SplitDigits, SpokenDigits, paired
from lightning_cil.data._names import IMAGENET_ESC
from lightning_cil.data.paired import pair
from lightning_cil.data.splits import near_equal_sizes
from lightning_cil.types import Stage
from tests.data.formats import (
    data_pack,
    make_wave,
    write_aric,
    write_esc50,
    write_fsdd,
    write_imagenet_esc,
    write_manifest,
    write_rows,
    write_sound,
)

CATEGORIES = [entry[3] for entry in IMAGENET_ESC if entry[5]]
SOUND = {"sample_rate": 8_000, "seconds": 0.05}
OPTIONS = {**SOUND, "image_size": 24, "num_workers": 0, "batch_size": 4}


def ready(data):
    data.prepare_data()
    data.setup("fit")
    return data


def batches(data, loader):
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def esc(tmp_path_factory):
    """Three training pictures and two test pictures of each of 27 classes, two sounds in each of three folds."""
    root = tmp_path_factory.mktemp("esc")
    write_esc50(root / "esc", folds=(1, 2, 5), clips=2)
    write_imagenet_esc(root / "in", num_classes=27, train=3, test=2)
    return root


def esc19(root, **options):
    return ImageNetESC(root / "esc", root / "in", **{**OPTIONS, **options})


# ---------------------------------------------------------------------- the classes


def test_the_27_classes_are_those_of_the_benchmark():
    assert len(IMAGENET_ESC) == 27
    assert sum(entry[5] for entry in IMAGENET_ESC) == 19
    assert [entry[1] for entry in IMAGENET_ESC] == sorted(entry[1] for entry in IMAGENET_ESC)
    for column in (0, 1, 2, 3, 4):
        assert len({entry[column] for entry in IMAGENET_ESC}) == 27
    assert {entry[3] for entry in IMAGENET_ESC if not entry[5]} == {
        "can_opening", "church_bells", "crackling_fire", "toilet_flush", "water_drops", "drinking_sipping",
        "pouring_water", "sea_waves",
    }  # fmt: skip
    known = {entry[0]: entry[1:5] for entry in IMAGENET_ESC}
    assert known["n02091635"] == (175, "Otterhound", "dog", 0)
    assert known["n09421951"] == (977, "sandbar", "sea_waves", 11)


@pytest.mark.data
def test_the_classes_agree_with_the_packs():
    known = {entry[3]: (entry[0], str(entry[4])) for entry in IMAGENET_ESC if entry[5]}
    assert {row["category"] for row in rows_of(data_pack("imagenet_esc/classes.csv"))} == set(known)
    for row in rows_of(data_pack("imagenet_esc/classes.csv")):
        assert known[row["category"]][0] == row["wnid"]
    for row in rows_of(data_pack("ESC-50/meta/esc50.csv")):
        assert known[row["category"]][1] == row["target"]


@pytest.mark.parametrize(
    ("classes", "tasks", "sizes"),
    [
        (19, 3, [7, 6, 6]),
        (19, 6, [4, 3, 3, 3, 3, 3]),
        (27, 5, [6, 6, 5, 5, 5]),
        (27, 8, [4, 4, 4, 3, 3, 3, 3, 3]),
    ],
)
def test_the_papers_tasks_are_nearly_equal(esc, classes, tasks, sizes):
    assert near_equal_sizes(classes, tasks) == sizes
    assert esc19(esc, num_classes=classes, num_tasks=tasks).task_sizes == sizes


def test_classes_have_three_kinds_of_names(esc):
    for names, expected in (
        ("image", ["rooster", "chickadee"]),
        ("audio", ["rooster", "chirping birds"]),
        ("both", ["rooster", "chickadee, chirping birds"]),
    ):
        data = esc19(esc, names=names, class_order="sorted")
        assert [data.class_names[0], data.class_names[2]] == expected
    assert esc19(esc).task_sizes == [7, 6, 6]
    assert esc19(esc, base=9, increment=10).task_sizes == [9, 10]


# ---------------------------------------------------------------------- pairs


def test_pairs_are_of_one_class_and_use_everything():
    images, clips = [0] * 7 + [1] * 2 + [2], [1] * 3 + [0] * 3 + [3]
    for by in ("images", "clips"):
        found = pair(images, clips, seed=4, by=by)
        assert all(images[i] == clips[j] for i, j in found)
        assert found == pair(images, clips, seed=4, by=by)
    by_image = pair(images, clips, seed=4)
    assert sorted(i for i, _ in by_image) == list(range(9))  # class 2 has no sound
    uses = Counter(j for _, j in by_image if images[_] == 0)
    assert sorted(uses.values()) == [2, 2, 3]  # 7 pictures on 3 sounds
    assert sorted(j for _, j in pair(images, clips, seed=4, by="clips")) == list(range(6))
    assert len({tuple(pair(images, clips, seed=seed)) for seed in range(8)}) > 1
    assert Counter(images[i] for i, _ in pair(images, clips, seed=0, limit=2)) == {0: 2, 1: 2}
    assert doctest.testmod(paired).failed == 0


def test_pairs_join_the_right_files_of_disjoint_folds(tmp_path):
    samples = write_esc50(tmp_path / "esc", [*CATEGORIES, "fireworks"], folds=(1, 2, 5), clips=2)
    pictures = write_imagenet_esc(tmp_path / "in", train=3, test=2)
    data = ready(esc19(tmp_path, augment="none"))
    assert (len(data.split("train")), len(data.split("test"))) == (57, 38)
    used = {}
    for split, images in (("train", pictures.train_images), ("test", pictures.test_images)):
        part = data.split(split)
        names = [part.sounds.clips.paths[i].rsplit("/", 1)[1] for i in part.sounds.index.tolist()]
        used[split] = set(names)
        assert {name[0] for name in names} <= ({"1", "2"} if split == "train" else {"5"})
        targets = [IMAGENET_ESC[i][4] for i, entry in enumerate(IMAGENET_ESC) if entry[5]]
        assert [int(name.removesuffix(".wav").split("-")[-1]) for name in names] == [
            targets[t] for t in part.targets.tolist()
        ]
        heard = part.sounds.load(torch.arange(len(part)))[:, 0].numpy()
        assert np.array_equal(heard, np.stack([samples[name] for name in names]))
        seen = {image.tobytes() for image in part.stored(torch.arange(len(part))).numpy()}
        assert seen == {image.tobytes() for image in images}
    assert not used["train"] & used["test"]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_have_pictures_and_sounds(esc, workers):
    data = ready(esc19(esc, in_memory=not workers, num_workers=workers))
    data.set_stage(data.tasks[1], Stage("train", 1), seed=0)
    loader = data.train_dataloader()
    for batch in batches(data, loader):
        assert set(batch) == {"image", "audio", "clip", "target", "index", "task", "key"}
        assert (batch["audio"].shape, batch["audio"].dtype) == ((4, 1, 400), torch.float32)
        assert batch["audio"].abs().max() < 1
        assert batch["image"].dtype == torch.float32
        raw = data.load_audio(batch["index"])
        assert torch.equal((batch["audio"] * 32768).to(torch.int16), raw)
        assert torch.equal(raw, data.clips().load(batch["clip"]))
        assert set(batch["target"].tolist()) <= set(data.tasks[1].classes)
    data.provide_audio(False)
    batch = next(iter(loader))
    assert "audio" not in batch
    assert "clip" in batch
    tests = [b for part in data.test_dataloader() for b in part]
    assert sum(len(b["clip"]) for b in tests) == 38


def test_a_sound_that_several_pictures_share_is_read_once(esc):
    data = ready(esc19(esc, max_pairs=3))
    data.set_stage(data.tasks[0], Stage("train", 1, data="seen"), seed=0)
    for _ in range(2):
        batches(data, data.train_dataloader())
    task = data.stage_indices()
    assert data.clips().num_read <= len(data.split("train").sounds.index[task].unique())


def test_a_rank_without_a_share_gets_empty_sounds(esc):
    data = ready(esc19(esc))
    loader = data.eval_loader(torch.arange(1))
    loader.world_size, loader.rank = 2, 1
    (batch,) = loader
    assert batch["audio"].shape == (0, 1, 400)
    assert batch["image"].shape == (0, 3, 24, 24)


def test_a_checkpoint_with_other_pairs_is_refused(esc):
    data = ready(esc19(esc))
    ready(esc19(esc)).load_state_dict(data.state_dict())
    for options in ({"pair_seed": 1}, {"sample_rate": 4_000}):
        with pytest.raises(ValueError, match="another set of training images"):
            ready(esc19(esc, **options)).load_state_dict(data.state_dict())


# ---------------------------------------------------------------------- layouts of ImageNetESC


def test_a_table_of_pictures_and_a_list_of_splits(tmp_path):
    write_esc50(tmp_path / "esc", CATEGORIES, folds=(1,), clips=4, split=True)
    pictures = write_imagenet_esc(tmp_path / "in", table=True)
    data = ready(esc19(tmp_path))
    assert data.split("train").targets.tolist() == sorted(pictures.train_labels.tolist())
    names = [data.clips().paths[i].rsplit("/", 1)[1] for i in data.split("test").sounds.index.tolist()]
    assert all(int(name.split("-")[1]) % 2 == 1 for name in names)  # odd clips are for the test
    with pytest.raises(ValueError, match=r"19 of 19 classes have no test pair.*1 pictures.*0 sounds"):
        esc19(tmp_path, audio_split="folds")
    (tmp_path / "esc/meta/split.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"split\.csv"):
        esc19(tmp_path, audio_split="file")


def test_a_class_without_a_picture_in_one_split(tmp_path):
    write_esc50(tmp_path / "esc", CATEGORIES)
    write_imagenet_esc(tmp_path / "in", table=True)
    table = tmp_path / "in/images.csv"
    kept = [r for r in rows_of(table) if (r["category"], r["split"]) != ("hen", "test")]
    write_rows(table, kept)
    message = r"1 of 19 classes have no test pair, such as 'hen' \(n01514859, hen\) with 0 pictures .* and 1 sounds .*"
    with pytest.raises(ValueError, match=message + "`share_pictures=True`"):
        esc19(tmp_path)
    data = ready(esc19(tmp_path, share_pictures=True, class_order="sorted"))
    hens = (data.split("test").targets == 1).nonzero().flatten()
    theirs = data.split("train").stored((data.split("train").targets == 1).nonzero().flatten())
    assert torch.equal(data.split("test").stored(hens), theirs)


def change(table, index, **values):
    rows = rows_of(table)
    rows[index].update(values)
    write_rows(table, rows)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda r: change(r / "esc/meta/esc50.csv", 4, target="3"), ValueError, r"row 5 .*`target` of 'hen' is '3'"),
        (lambda r: change(r / "esc/meta/esc50.csv", 4, fold="x"), ValueError, r"row 5 .*`fold` is 'x'"),
        (
            lambda r: change(r / "esc/meta/esc50.csv", 4, filename="no.wav"),
            FileNotFoundError,
            r"row 5 .*no file .*no\.wav",
        ),
        (lambda r: (r / "esc/meta/esc50.csv").unlink(), FileNotFoundError, r"ImageNetESC found no `meta/esc50\.csv`"),
        (lambda r: write_rows(r / "esc/meta/esc50.csv", [{"filename": "a"}]), ValueError, "without .'fold', 'target'"),
        (lambda r: (r / "in/val").rename(r / "in/other"), FileNotFoundError, "`images.csv`, nor `train` and `val`"),
    ],
)
def test_wrong_files_are_named(tmp_path, spoil, error, message):
    write_esc50(tmp_path / "esc", CATEGORIES[:3], folds=(1, 5), clips=2)
    write_imagenet_esc(tmp_path / "in", train=1)
    spoil(tmp_path)
    with pytest.raises(error, match=message):
        esc19(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 20}, "num_classes=20"),
        ({"names": "text"}, "'text'"),
        ({"train_folds": [1, 5]}, "none in both"),
        ({"max_pairs": 0}, "max_pairs=0"),
        ({"num_tasks": 20}, "num_tasks=20"),
        ({"num_tasks": 0}, "num_tasks=0"),
    ],
)
def test_unknown_options_are_refused(esc, options, message):
    with pytest.raises(ValueError, match=message):
        esc19(esc, **options)


def test_a_broken_sound_is_found_at_the_start(tmp_path):
    write_esc50(tmp_path / "esc", CATEGORIES)
    write_imagenet_esc(tmp_path / "in", train=1)
    data = esc19(tmp_path)
    path = next(p for p in (tmp_path / "esc/audio").iterdir() if p.name.endswith("-A-0.wav"))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=rf"{path.name}: cannot be read as a sound.*10 bytes are missing"):
        data.setup("fit")


def test_sounds_of_another_rate_can_be_refused(esc):
    ready(esc19(esc, sample_rate=4_000))
    with pytest.raises(ValueError, match="has 8000 Hz; expected 4000 Hz"):
        esc19(esc, sample_rate=4_000, resample=False).setup("fit")


@pytest.mark.data
@pytest.mark.parametrize("tasks", [3, 6])
def test_the_packs_make_a_stream_of_19_classes(tasks):
    data = ImageNetESC(
        data_pack("ESC-50"), data_pack("imagenet_esc"), num_tasks=tasks, share_pictures=True, image_size=32,
        in_memory=True, num_workers=0, batch_size=4, sample_rate=8_000, seconds=1.0,
    )  # fmt: skip
    ready(data)
    assert data.task_sizes == near_equal_sizes(19, tasks)
    data.set_stage(data.tasks[-1], Stage("train", 1), seed=0)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch["audio"].shape == (4, 1, 8_000)
    assert batch["audio"].std() > 1e-3
    train, test = (set(data.split(s).sounds.index.tolist()) for s in ("train", "test"))
    assert not train & test


# ---------------------------------------------------------------------- digits


def test_digits_are_seen_and_heard(tmp_path):
    data = ready(SpokenDigits(write_fsdd(tmp_path), test_takes=[0], seconds=0.05, class_order="sorted"))
    plain = ready(SplitDigits(class_order="sorted"))
    assert data.class_names[:2] == ["zero", "one"]
    assert data.image_shape == (3, 32, 32)
    for split in ("train", "test"):
        part = data.split(split)
        assert sorted(part.targets.tolist()) == sorted(plain.split(split).targets.tolist())
        names = [part.sounds.clips.paths[i].rsplit("/", 1)[1] for i in part.sounds.index.tolist()]
        assert [int(name[0]) for name in names] == part.targets.tolist()
        assert {int(name[:-4].rsplit("_", 1)[1]) for name in names} == ({1} if split == "train" else {0})
    small = torch.nn.functional.interpolate(data.split("test").stored(torch.arange(20)).float(), (8, 8), mode="area")
    index = (plain.split("test").targets == 0).nonzero().flatten()[:20]
    original = plain.split("test").stored(index).float()
    assert (small - original).abs().mean() < 25  # enlarged and shrunk again
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader()[0])), 0)
    assert batch["image"].shape[1:] == (3, 32, 32)
    assert batch["audio"].shape[1:] == (1, 400)
    other = ready(SpokenDigits(tmp_path, test_takes=[0], seconds=0.05, pair_by="clips", class_order="sorted"))
    with pytest.raises(ValueError, match="another set of training images"):
        other.load_state_dict(data.state_dict())
    limited = ready(SpokenDigits(tmp_path, test_takes=[0], seconds=0.05, pair_by="clips", max_pairs=2))
    assert len(limited.split("train")) == 20


def test_digits_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"SpokenDigits found no `recordings/\*\.wav`"):
        SpokenDigits(tmp_path)
    write_fsdd(tmp_path)
    with pytest.raises(ValueError, match=r"the digit 0 has no train sound.*There are the takes \[0, 1\]"):
        ready(SpokenDigits(tmp_path))
    (tmp_path / "recordings/nine.wav").write_bytes(b"")
    with pytest.raises(ValueError, match=r"nine\.wav: expected a name such as"):
        SpokenDigits(tmp_path)


def test_a_stream_with_sounds_is_trained_stopped_and_resumed(run_cli, tmp_path):
    write_fsdd(tmp_path / "fsdd")
    options = ["--data", "SpokenDigits", "--data.root", tmp_path / "fsdd", "--data.test_takes", "[0]"]
    options += ["--data.num_tasks", 2, "--data.image_size", 8, "--data.seconds", 0.05, "--data.pair_by", "clips"]
    options += ["--model", "ER", "--model.backbone", "small_cnn", "--model.epochs", 1]
    options += ["--trainer.default_root_dir", tmp_path / "runs"]
    options += ["--trainer.accelerator", "cpu", "--trainer.devices", 1, "--seed_everything", 0]
    first = run_cli("fit", *options, "--stop_after_task", 0)
    assert first.code == 0, first.stderr
    second = run_cli("fit", *options, "--ckpt_path", "last")
    assert second.code == 0, second.stderr
    results = json.loads((tmp_path / "runs/version_0/results.json").read_text())
    assert results["status"] == "complete"
    assert results["class_names"][0] in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.mark.data
def test_the_pack_of_spoken_digits_is_read():
    data = ready(SpokenDigits(data_pack("fsdd"), test_takes=[0]))
    assert len(data.clips()) == 300
    assert data.load_audio(torch.arange(3)).shape == (3, 1, 8_000)


# ---------------------------------------------------------------------- boxes


ARIC = {**SOUND, "image_size": 20, "num_workers": 0, "num_tasks": 2}


@pytest.mark.parametrize("in_memory", [True, False])
def test_boxes_are_cut_out(tmp_path, in_memory):
    data = ready(AricLike(write_aric(tmp_path), in_memory=in_memory, **ARIC))
    assert data.original_names == ["reading", "sleeping", "standing", "writing"]
    part = data.split("train")
    assert len(part) == 12
    for i, row in enumerate(r for r in rows_of(tmp_path / "manifest.csv") if r["split"] == "train"):
        picture = np.asarray(Image.open(tmp_path / row["image"])).transpose(2, 0, 1)
        left = int(row["x1"])
        assert np.array_equal(part.stored(torch.tensor([i]))[0].numpy(), picture[:, :, left : left + 20])
        assert data.original_names[part.targets[i]] == row["label"]
        assert part.sounds.clips.paths[part.sounds.index[i]].endswith(row["wav"])


def test_a_subset_of_each_class_is_drawn_by_the_seed(tmp_path):
    write_aric(tmp_path, train=6)

    def chosen(**options):
        data = ready(AricLike(tmp_path, per_class=2, test_per_class=1, **ARIC, **options))
        assert Counter(data.split("train").targets.tolist()) == dict.fromkeys(range(4), 2)
        assert len(data.split("test")) == 4
        return data.split("train").stored(torch.arange(8)).numpy().tobytes()

    assert chosen() == chosen()
    assert len({chosen(subset_seed=seed) for seed in range(4)}) > 1


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"x2": "0"}, ValueError, r"row 3 \(line 4\): the box is"),
        ({"x1": "a"}, ValueError, r"row 3 .*the box is \['a'"),
        ({"wav": ""}, ValueError, r"row 3 .*no `wav`.*every sample has a picture and a sound"),
        ({"wav": "no.wav"}, FileNotFoundError, r"row 3 .*no file .*no\.wav"),
        ({"image": "no.png"}, FileNotFoundError, r"row 3 .*no file .*no\.png"),
        ({"split": "val"}, ValueError, r"row 3 .*`split` is 'val'"),
    ],
)
def test_wrong_rows_of_boxes_are_named(tmp_path, values, error, message):
    change(write_aric(tmp_path) / "manifest.csv", 2, **values)
    with pytest.raises(error, match=message):
        AricLike(tmp_path, **ARIC)


def test_a_box_outside_its_picture_is_named(tmp_path):
    change(write_aric(tmp_path) / "manifest.csv", 1, x2="41")
    with pytest.raises(ValueError, match=r"has 40x20 pixels; the box \(20, 0, 41, 20\)"):
        ready(AricLike(tmp_path, in_memory=True, **ARIC))


# ---------------------------------------------------------------------- lists


def with_sounds(root, suffix=".csv", **options):
    """`write_manifest` with a sound and a text for each row."""
    path, _ = write_manifest(root, suffix=".csv", val=1, **options)
    rows = rows_of(path)
    for i, row in enumerate(rows):
        name = f"sounds/{i}.wav"
        write_sound(root / name, make_wave(i, i, 0.05, 8_000), 8_000)
        row.update(audio=name, text=f"a {row['label']}, {row['split']} {i % 8}" if row["label"] != "eel" else "")
    return write_rows(root / f"sounds{suffix}", rows), rows


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_list_can_have_sounds_and_texts(tmp_path, suffix):
    path, rows = with_sounds(tmp_path, suffix)
    data = ready(ManifestTasks(path, num_tasks=2, image_size=32, class_order="sorted", **SOUND))
    train = [i for i, row in enumerate(rows) if row["split"] == "train"]
    held_out = [i for i, row in enumerate(rows) if row["split"] == "val"]
    expected = np.stack([make_wave(i, i, 0.05, 8_000) for i in train + held_out])
    part = data.split("train")
    assert np.array_equal(part.sounds.load(torch.arange(len(part)))[:, 0].numpy(), expected)
    assert data.class_texts == [
        ["a bee, train 0", "a bee, train 4"],
        ["a cat, train 1", "a cat, train 5"],
        ["a dog, train 2", "a dog, train 6"],
        ["eel"],
    ]


def test_a_list_without_sounds_is_as_before(tmp_path):
    path, _ = write_manifest(tmp_path)
    data = ready(ManifestTasks(path, num_tasks=2, image_size=32))
    data.set_stage(data.tasks[0], Stage("train", 1), seed=0)
    assert "audio" not in next(iter(data.eval_loader(torch.arange(2))))
    with pytest.raises(ValueError, match="images without sounds"):
        data.load_audio(torch.arange(2))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"audio": ""}, ValueError, r"row 3 \(line 4\): no `audio`, which other rows have"),
        ({"audio": "no.wav"}, FileNotFoundError, r"row 3 .*there is no file .*no\.wav"),
        (
            {"image": "images/train_0.png", "label": "bee", "split": "train"},
            ValueError,
            r"row 3 .*has the sound 'sounds/2\.wav', but .*sounds/0\.wav' in row 1",
        ),
    ],
)
def test_a_row_with_a_wrong_sound_is_named(tmp_path, values, error, message):
    path, _ = with_sounds(tmp_path)
    change(path, 2, **values)
    with pytest.raises(error, match=message):
        ManifestTasks(path, num_tasks=2, image_size=32, **SOUND)
