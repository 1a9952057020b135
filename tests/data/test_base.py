import hashlib
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import HalfPrecision
from PIL import Image

from lightning_cil._random import counter_hash, uniform
from lightning_cil.data import BatchAugment, FileImages, IncrementalDataModule, SplitDigits, TensorImages
from lightning_cil.types import Stage, Task

NAMES = ["ant", "bee", "cat", "dog", "eel"]
ORDER = [3, 0, 4, 1, 2]
SIZES = [2, 1, 2]
TASK_OF_CLASS = {3: 0, 0: 0, 4: 1, 1: 2, 2: 2}

OPTIONS = {
    "class_names": NAMES,
    "augment": BatchAugment([0.5], [0.25], crop_padding=1, flip=True),
    "num_tasks": None,
    "base": None,
    "increment": None,
    "sizes": SIZES,
    "class_order": ORDER,
    "batch_size": 4,
    "eval_batch_size": 7,
    "val_fraction": 0.0,
    "num_workers": 0,
    "split_seed": 0,
}


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def noisy(image, key):
    """Random in two steps, with time for other threads between them."""
    first = int(100 * uniform(key))
    time.sleep(0.0005)
    return (pixels(image).int() + first + int(100 * uniform(key, 1))).to(torch.uint8)


class Toy(IncrementalDataModule):
    """Twelve training and four test images of every class, the classes interleaved; an image holds its position."""

    def __init__(self, train=12, test=4, folder=None, **options):
        super().__init__(**{**OPTIONS, **options})
        self.counts = {True: train, False: test}
        self.folder = folder
        self.loads = []

    def load_split(self, train):
        self.loads.append(train)
        count = self.counts[train]
        targets = torch.arange(self.num_classes).repeat(count) if isinstance(count, int) else torch.tensor(count)
        source = "toy (train)" if train else "toy (test)"
        if self.folder is None:
            position = torch.arange(len(targets), dtype=torch.uint8)
            images = position.view(-1, 1, 1, 1).repeat(1, 1, 3, 4)
            return TensorImages(images, targets, self.num_classes, source)
        paths = [self.folder / f"{train}{i}.png" for i in range(len(targets))]
        for i, path in enumerate(paths):
            Image.new("RGB", (3, 2), (i, 2 * i, 100)).save(path)
        return FileImages(paths, targets, self.num_classes, source, noisy, pixels)


class NoData(Toy):
    def load_split(self, train):
        raise AssertionError("no data is needed")


def loaded(**options):
    data = Toy(**options)
    data.prepare_data()
    data.setup("fit")
    return data


def at(data, task, /, seed=0, **stage):
    data.set_stage(data.tasks[task], Stage("train", 1, **stage), seed)
    return data


def classes_of(data, name, indices):
    return set(data.split(name).targets[indices].tolist())


def index_of(loader):
    return torch.cat([batch["index"] for batch in loader])


# ---------------------------------------------------------------------- construction


def test_description_of_the_stream_exists_without_data():
    data = NoData()
    assert data.num_tasks == 3
    assert data.num_classes == 5
    assert data.class_order == ORDER
    assert data.class_names == ["dog", "ant", "eel", "bee", "cat"]
    assert data.original_names == NAMES
    assert data.task_sizes == SIZES
    assert data.tasks == [Task(0, 0, 2, 3), Task(1, 2, 1, 3), Task(2, 3, 2, 3)]
    assert data.task == data.tasks[0]
    assert data.label_kind == "single"
    assert data.order_hash() == hashlib.sha256(b"[3,0,4,1,2]").hexdigest()[:16]
    assert data.task_of(torch.tensor([4, 0, 2, 1, 3])).tolist() == [2, 0, 1, 0, 2]
    assert data.fingerprint() == ""
    assert data.state_dict()["class_order"] == ORDER


def test_default_order_is_that_of_seed_1993():
    names = [str(i) for i in range(100)]
    data = NoData(class_names=names, class_order="seed:1993", sizes=None, num_tasks=10)
    assert data.class_order[:5] == [68, 56, 78, 8, 23]
    assert data.class_names[:5] == ["68", "56", "78", "8", "23"]
    assert data.order_hash() == "88fdb256f51cc112"


@pytest.mark.parametrize(
    ("description", "sizes"),
    [
        ({"num_tasks": 5}, [1] * 5),
        ({"base": 3, "increment": 1}, [3, 1, 1]),
        ({"base": 0, "increment": 1}, [1] * 5),
        ({"sizes": [4, 1]}, [4, 1]),
    ],
    ids=str,
)
def test_each_description_of_the_tasks(description, sizes):
    assert NoData(**{"sizes": None, **description}).task_sizes == sizes


def test_number_of_tasks_has_a_default_only_where_the_protocol_names_one():
    with pytest.raises(ValueError, match="expected exactly one of `num_tasks`, `base` with `increment`, or `sizes`"):
        NoData(sizes=None)

    class FiveTasks(NoData):
        default_num_tasks = 5

    assert FiveTasks(sizes=None).task_sizes == [1] * 5
    assert FiveTasks(sizes=None, num_tasks=1).task_sizes == [5]
    assert FiveTasks(sizes=None, base=1, increment=2).task_sizes == [1, 2, 2]
    assert FiveTasks(sizes=[2, 3]).task_sizes == [2, 3]


def test_class_order_by_names():
    assert NoData(class_order=["dog", "ant", "eel", "bee", "cat"]).class_order == ORDER
    assert NoData(class_order=("dog", 0, "eel", 1, 2)).class_order == ORDER
    assert NoData(class_order="sorted").class_order == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"class_order": ["dog", "ant", "emu", "bee", "cat"]},
            "`class_order` names class 'emu', which the data set does not have; it has "
            "['ant', 'bee', 'cat', 'dog', 'eel'] … (5 classes).",
        ),
        (
            {"class_order": ["dog", "dog", "eel", "bee", "cat"]},
            "`class_order` lists class 3 more than once; expected each of the 5 classes once. Remove the duplicates.",
        ),
        (
            {"class_order": ["dog", "ant"]},
            "`class_order` lists 2 classes, the data set has 5: missing [1, 2, 4]. List every class once.",
        ),
        (
            {"class_order": ["bee"], "class_names": ["ant", "bee", "bee"], "sizes": [3]},
            "`class_order` names classes, but two classes share a name; give class ids.",
        ),
        ({"batch_size": 0}, "`batch_size=0`: expected at least 1."),
        ({"eval_batch_size": -1}, "`eval_batch_size=-1`: expected at least 1."),
        ({"num_workers": -1}, "`num_workers=-1`: expected 0 (in this process) or more."),
        ({"val_fraction": 1.0}, "`val_fraction=1.0`: expected a share in [0, 1), for example 0.1."),
        ({"val_fraction": -0.1}, "`val_fraction=-0.1`: expected a share in [0, 1), for example 0.1."),
    ],
)
def test_wrong_options_are_refused_before_data_is_read(options, message):
    with pytest.raises(ValueError, match=r"^`") as error:
        NoData(**options)
    assert str(error.value) == message


def test_classes_that_share_a_name_can_be_ordered_by_id():
    data = NoData(class_names=["crane", "crane", "maillot"], class_order=[1, 2, 0], sizes=[1, 2])
    assert data.class_names == ["crane", "maillot", "crane"]


# ---------------------------------------------------------------------- setup


def test_data_are_read_once():
    data = Toy()
    for _ in range(3):
        data.setup("fit")
        data.setup("test")
    assert data.loads == [True, False]


def test_data_before_setup_are_refused():
    with pytest.raises(RuntimeError) as error:
        Toy().train_dataloader()
    assert str(error.value) == "Toy has no 'train' images yet: call `setup('fit')` first."
    with pytest.raises(RuntimeError, match="Toy has no 'test' images yet"):
        Toy().test_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"train": [0, 1, 2, 3]},
            "toy (train): class 'eel' has no train image; expected at least one in every class. "
            "Add images, or remove the class.",
        ),
        (
            {"test": [3, 3]},
            "toy (test): class 'ant' has no test image, nor have 3 others; expected at least one in every class. "
            "Add images, or remove the class.",
        ),
    ],
)
def test_class_without_image_is_refused(options, message):
    with pytest.raises(ValueError, match="image") as error:
        loaded(**options)
    assert str(error.value) == message


def test_labels_are_positions_in_the_class_order():
    data = loaded()
    labels = data.labels("train")
    assert labels.dtype == torch.int64
    for original, label in zip(data.split("train").targets.tolist(), labels.tolist(), strict=True):
        assert ORDER[label] == original
    assert data.class_names[labels[0]] == NAMES[data.split("train").targets[0]]


# ---------------------------------------------------------------------- stages


@pytest.mark.parametrize("val_fraction", [0.0, 0.25])
def test_training_data_are_those_of_the_stage(val_fraction):
    data = loaded(val_fraction=val_fraction)
    share = 9 if val_fraction else 12
    for task in data.tasks:
        own = {c for c, t in TASK_OF_CLASS.items() if t == task.index}
        seen = {c for c, t in TASK_OF_CLASS.items() if t <= task.index}
        for name, classes in (("task", own), ("seen", seen)):
            loader = at(data, task.index, data=name).train_dataloader()
            assert classes_of(data, "train", loader.indices) == classes
            assert len(loader.indices) == share * len(classes)
            assert loader.batch_size == 4
            batch = next(iter(loader))
            assert batch.keys() == {"image", "target", "index", "task", "key"}
            assert batch["image"][:, 0, 0, 0].tolist() == batch["index"].tolist()
            assert [ORDER[t] for t in batch["target"].tolist()] == data.split("train").targets[batch["index"]].tolist()


def test_stages_seed_selects_the_order():
    data = loaded()
    first, again, other = (index_of(at(data, 0, seed=s).train_dataloader()).tolist() for s in (1, 1, 2))
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)


@pytest.mark.parametrize("task", [0, 1, 2])
def test_validation_has_one_loader_for_each_task_seen(task):
    data = at(loaded(val_fraction=0.25), task)
    loaders = data.val_dataloader()
    assert len(loaders) == task + 1
    for index, loader in enumerate(loaders):
        assert classes_of(data, "train", index_of(loader)) == {c for c, t in TASK_OF_CLASS.items() if t == index}
        assert len(index_of(loader)) == 3 * SIZES[index]
        batch = next(iter(loader))
        assert "key" not in batch
        assert len(batch["index"]) == min(7, 3 * SIZES[index])
        assert set(batch["task"].tolist()) == {index}


@pytest.mark.parametrize("task", [0, 2])
def test_test_has_one_loader_for_every_task_in_every_stage(task):
    data = at(loaded(), task)
    loaders = data.test_dataloader()
    assert len(loaders) == 3
    for index, loader in enumerate(loaders):
        assert classes_of(data, "test", index_of(loader)) == {c for c, t in TASK_OF_CLASS.items() if t == index}
        assert "key" not in next(iter(loader))
    assert sorted(torch.cat([index_of(loader) for loader in loaders]).tolist()) == list(range(20))


def test_nothing_held_out_means_no_validation():
    assert at(loaded(), 2).val_dataloader() == []


def test_held_out_images_are_never_trained_on():
    data = at(loaded(val_fraction=0.25), 2, data="seen")
    held_out = torch.cat([index_of(loader) for loader in data.val_dataloader()]).tolist()
    trained = data.train_dataloader().indices.tolist()
    assert len(held_out) == 15
    assert sorted(held_out + trained) == list(range(60))
    assert sorted(torch.cat([data.train_indices([t]) for t in range(3)]).tolist()) == sorted(trained)
    other = at(loaded(val_fraction=0.25, split_seed=1), 2)
    assert sorted(torch.cat([index_of(loader) for loader in other.val_dataloader()]).tolist()) != sorted(held_out)


def test_held_out_images_do_not_depend_on_the_tasks():
    one, other = loaded(val_fraction=0.25), loaded(val_fraction=0.25, class_order="sorted", sizes=[5])
    assert torch.equal(one.train_indices([0, 1, 2]), other.train_indices([0]))


def test_training_indices_are_sorted_and_of_the_tasks_asked_for():
    data = loaded()
    indices = data.train_indices([2, 0])
    assert indices.tolist() == sorted(indices.tolist())
    assert classes_of(data, "train", indices) == {0, 1, 2, 3}
    assert len(indices) == 48
    assert data.train_indices([]).tolist() == []


def test_evaluation_loader_gives_training_images_in_order():
    data = loaded()
    indices = torch.tensor([8, 3, 5])
    batches = list(data.eval_loader(indices))
    assert index_of(batches).tolist() == [8, 3, 5]
    assert batches[0]["image"][:, 0, 0, 0].tolist() == [8, 3, 5]
    assert "key" not in batches[0]


# ---------------------------------------------------------------------- images


def test_stored_images_are_the_training_images():
    data = loaded()
    assert data.stored_images(torch.tensor([9, 0]))[:, 0, 0, 0].tolist() == [9, 0]


def test_images_in_memory_are_given_as_they_are():
    data = loaded()
    image = data.load_augmented(torch.tensor([9, 0]), torch.tensor([1, 2]))
    assert image.dtype == torch.uint8
    assert image[:, 0, 0, 0].tolist() == [9, 0]


def test_files_are_augmented_by_index_as_in_a_training_batch(tmp_path):
    data = loaded(folder=tmp_path, train=4, test=1, num_workers=4)
    key = counter_hash(torch.arange(20), 3)
    state = torch.get_rng_state()
    parallel = data.load_augmented(torch.arange(20), key)
    assert torch.equal(torch.get_rng_state(), state)
    data.num_workers = 0
    assert torch.equal(data.load_augmented(torch.arange(20), key), parallel)
    one_by_one = [data.load_augmented(torch.tensor([i]), key[i : i + 1]) for i in range(20)]
    assert torch.equal(torch.cat(one_by_one), parallel)
    assert not torch.equal(data.load_augmented(torch.arange(20), key.flip(0)), parallel)
    batch = next(iter(at(data, 0).train_dataloader()))
    assert torch.equal(data.load_augmented(batch["index"], batch["key"]), batch["image"])


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("shape", [(1, 4, 6), (3, 4, 6)])
def test_any_image_is_prepared_as_the_data_sets_own(shape, mode):
    class Shaped(NoData):
        image_shape = shape

    grey = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    large = Image.fromarray(grey.repeat(3, axis=0).repeat(2, axis=1)).convert(mode)
    for image in (Image.fromarray(grey).convert(mode), large):
        prepared = Shaped().prepare_image(image)
        assert prepared.dtype == torch.uint8
        assert prepared.shape == shape
        assert np.array_equal(prepared.numpy(), np.broadcast_to(grey, shape))


def test_colours_keep_their_channels():
    class Shaped(NoData):
        image_shape = (3, 2, 2)

    prepared = Shaped().prepare_image(Image.new("RGB", (8, 4), (10, 20, 30)))
    assert prepared.tolist() == [[[10, 10], [10, 10]], [[20, 20], [20, 20]], [[30, 30], [30, 30]]]


def test_image_cannot_be_prepared_for_no_fixed_shape():
    with pytest.raises(NotImplementedError) as error:
        NoData().prepare_image(Image.new("RGB", (2, 2)))
    assert str(error.value) == "NoData has images of no fixed shape: override `prepare_image`."


# ---------------------------------------------------------------------- batch transform


def test_training_batches_are_augmented_and_evaluation_batches_only_normalised():
    data = at(loaded(), 0)
    batch = next(iter(data.train_dataloader()))
    expected = {**batch, "image": data.augment(batch["image"], batch["key"])}
    result = data.on_after_batch_transfer(batch, 0)
    assert result is batch
    assert result.keys() == expected.keys()
    assert all(torch.equal(result[name], expected[name]) for name in expected)
    assert result["image"].dtype == torch.float32
    batch = next(iter(data.test_dataloader()[0]))
    image = batch["image"]
    result = data.on_after_batch_transfer(batch, 0)["image"]
    torch.testing.assert_close(result, (image / 255 - 0.5) / 0.25)


@pytest.mark.parametrize(
    "batch",
    [
        [torch.zeros(2, 1, 3, 4, dtype=torch.uint8), torch.zeros(2)],
        (torch.zeros(2), torch.ones(2)),
        {"image": torch.rand(2, 1, 3, 4), "target": torch.zeros(2)},
        {"image": [torch.zeros(1, 3, 4, dtype=torch.uint8)], "target": torch.zeros(1)},
        {"x": torch.zeros(2, 1, 3, 4, dtype=torch.uint8)},
        torch.zeros(2, dtype=torch.uint8),
        None,
    ],
    ids=["list", "tuple", "float image", "list of images", "no image", "tensor", "none"],
)
def test_batches_of_foreign_loaders_pass_untouched(batch):
    before = dict(batch) if isinstance(batch, dict) else batch
    result = NoData().on_after_batch_transfer(batch, 0)
    assert result is batch
    if isinstance(batch, dict):
        assert batch.keys() == before.keys()
        assert all(batch[name] is before[name] for name in batch)


# ---------------------------------------------------------------------- with a trainer


def stub_trainer(**attributes):
    progress = SimpleNamespace(current=SimpleNamespace(processed=attributes.pop("epoch", 0)))
    return SimpleNamespace(
        **{
            "fit_loop": SimpleNamespace(epoch_progress=progress),
            "global_rank": 0,
            "world_size": 1,
            "limit_train_batches": 1.0,
            "strategy": SimpleNamespace(root_device=torch.device("cpu")),
            "precision_plugin": HalfPrecision("bf16-true"),
            **attributes,
        }
    )


def test_images_come_in_the_trainers_precision():
    data = loaded()
    image = data.stored_images(torch.arange(3))
    plain = data.transform(image)
    data.trainer = stub_trainer()
    assert data.transform(image).dtype == torch.bfloat16
    assert torch.equal(data.transform(image), plain.to(torch.bfloat16))
    key = torch.arange(3)
    assert torch.equal(data.transform(image, key), data.augment(image, key).to(torch.bfloat16))


def test_loaders_are_the_ranks_share():
    whole = at(loaded(batch_size=8, eval_batch_size=14), 0)
    ranks = []
    for rank in range(2):
        data = at(loaded(), 0)
        data.trainer = stub_trainer(global_rank=rank, world_size=2)
        ranks.append(data)
    for batch, *parts in zip(whole.train_dataloader(), *(r.train_dataloader() for r in ranks), strict=True):
        assert torch.equal(torch.cat([p["index"] for p in parts]), batch["index"])
        assert torch.equal(torch.cat([p["key"] for p in parts]), batch["key"])
    for loader, *shares in zip(whole.test_dataloader(), *(r.test_dataloader() for r in ranks), strict=True):
        for batch, *parts in zip(loader, *shares, strict=True):
            assert torch.equal(torch.cat([p["index"] for p in parts]), batch["index"])


def test_training_begins_with_the_trainers_epoch():
    """Lightning gives a loader its state back in mid-epoch only, and makes new loaders when it is told to."""
    data, plain = at(loaded(), 0), at(loaded(), 0).train_dataloader()
    data.trainer = stub_trainer(epoch=2)
    orders = [index_of(plain).tolist() for _ in range(4)]
    loader = data.train_dataloader()
    assert loader.state_dict() == {"epoch": 2, "position": 0, "global_batch": 4}
    assert [index_of(loader).tolist() for _ in range(2)] == orders[2:]
    assert data.test_dataloader()[0].state_dict()["epoch"] == 0


class Recorder(LightningModule):
    """Writes down which samples it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        assert batch["image"].dtype == torch.float32
        self.seen.append(("train", self.current_epoch, batch["index"].tolist()))
        return self.weight * batch["image"].sum()

    def validation_step(self, batch, batch_idx):
        kind = "sanity" if self.trainer.sanity_checking else "val"
        self.seen.append((kind, self.current_epoch, batch["index"].tolist()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The number of training batches")
@pytest.mark.parametrize("reload", [0, 1], ids=["", "new loaders in each epoch"])
@pytest.mark.parametrize("limit", [2, 0.34])
def test_lightnings_limits_cut_every_epoch_alike(limit, reload):
    data = at(loaded(val_fraction=0.5, eval_batch_size=2), 0)  # 3 training and 6 validation batches
    module = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        limit_train_batches=limit,
        limit_val_batches=2,
        num_sanity_val_steps=1,
        reload_dataloaders_every_n_epochs=reload,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    length = 2 if limit == 2 else 1
    assert trainer.global_step == 3 * length
    plain = at(loaded(val_fraction=0.5, eval_batch_size=2), 0)
    train, val = plain.train_dataloader(), [batch["index"].tolist() for batch in plain.val_dataloader()[0]]
    expected = [("sanity", 0, val[0])]
    for epoch in range(3):
        expected += [("train", epoch, batch.tolist()) for batch in train.batches(epoch)[:length]]
        expected += [("val", epoch, batch) for batch in val[:2]]
    assert module.seen == expected


# ---------------------------------------------------------------------- checkpoint


def test_own_state_is_accepted_and_safe_to_load(tmp_path):
    data = loaded(val_fraction=0.25, split_seed=3)
    torch.save(data.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state == json.loads(json.dumps(data.state_dict()))
    assert state == {
        "class_order": ORDER,
        "task_sizes": SIZES,
        "val_fraction": 0.25,
        "split_seed": 3,
        "fingerprint": hashlib.sha256(np.tile(np.arange(5), 12).astype("<i8").tobytes()).hexdigest()[:16],
    }
    loaded(val_fraction=0.25, split_seed=3).load_state_dict(state)
    Toy(val_fraction=0.25, split_seed=3).load_state_dict(state)  # before the data are there
    data.load_state_dict(Toy(val_fraction=0.25, split_seed=3).state_dict())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"class_order": [0, 3, 4, 1, 2]}, "another class order: `class_order` is [0, 3, 4, 1, 2] there and [3, 0, 4"),
        ({"sizes": [1, 2, 2]}, "another division into tasks: `task_sizes` is [1, 2, 2] there and [2, 1, 2] here."),
        ({"val_fraction": 0.5}, "another held-out split: `val_fraction` is 0.5 there and 0.0 here."),
        ({"split_seed": 1}, "another held-out split: `split_seed` is 1 there and 0 here."),
        ({"train": 13}, "another set of training images: `fingerprint` is "),
        ({"train": [4, 3, 2, 1, 0] * 12}, "another set of training images: `fingerprint` is "),
    ],
    ids=str,
)
def test_checkpoint_of_another_stream_is_refused(other, message):
    with pytest.raises(ValueError, match="The checkpoint was written with") as error:
        loaded().load_state_dict(loaded(**other).state_dict())
    assert message in str(error.value)
    assert str(error.value).endswith(
        " here. Use the data settings of the run that wrote it (its config.yaml), or start a new run without "
        "`--ckpt_path`."
    )


def test_checkpoint_without_a_stream_is_refused():
    with pytest.raises(ValueError, match="`class_order` is None there and"):
        loaded().load_state_dict({})


def test_long_orders_are_shortened_in_the_message():
    digits = [str(i) for i in range(100)]
    options = {"class_names": digits, "sizes": None, "num_tasks": 10}
    one, other = (NoData(class_order=order, **options) for order in ("seed:1993", "sorted"))
    with pytest.raises(ValueError, match="class_order") as error:
        one.load_state_dict(other.state_dict())
    theirs, ours = str(other.class_order)[:57], str(one.class_order)[:57]
    assert f"`class_order` is {theirs}… there and {ours}… here." in str(error.value)


def test_images_in_another_order_have_another_fingerprint():
    assert loaded().fingerprint() == loaded().fingerprint()
    assert loaded().fingerprint() != loaded(train=[4, 3, 2, 1, 0] * 12).fingerprint()
    digits = SplitDigits()
    assert digits.fingerprint() == ""
