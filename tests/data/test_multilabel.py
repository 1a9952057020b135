"""Multi-label streams: what a batch may know, which images a task has, what an evaluation sees."""

import pytest
import torch

from lightning_cil.data import FileImages, IncrementalDataModule, MultiLabelDigits, TensorImages
from lightning_cil.data.digits import digits_split
from lightning_cil.types import Stage
from tests.data.test_base import OPTIONS, pixels

LABELS = {True: ["ab", "b", "c", "ace", "de", "d", "", "bd", "cde", "a"], False: ["a", "be", "cd", "d", "", "abcde"]}
"""The classes of each image, a to e."""
ORDER = [3, 0, 4, 1, 2]  # tasks: {d, a}, {e}, {b, c}


class Toy(IncrementalDataModule):
    """Ten training and six test images; an image holds its position."""

    label_kind = "multi"

    def __init__(self, members=None, **options):
        super().__init__(**{**OPTIONS, "class_order": ORDER, **options})
        self.members = members

    def load_split(self, train):
        targets = torch.tensor([[c in labels for c in "abcde"] for labels in LABELS[train]])
        images = torch.arange(len(targets), dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 3, 4)
        members = None if self.members is None or not train else targets | self.members
        return TensorImages(images, targets, 5, "toy", members)


def loaded(task=0, stage=None, **options):
    data = Toy(**options)
    data.setup("fit")
    data.set_stage(data.tasks[task], stage or Stage("train", 1), seed=5)
    return data


def whole(loader):
    batches = list(loader)
    return {name: torch.cat([b[name] for b in batches]) for name in batches[0]}


def truth(indices, classes, train=True):
    """Independent of the code under test: 0 and 1 in incremental order, for some classes only."""
    rows = [[float("abcde"[c] in LABELS[train][i] and "abcde"[c] in classes) for c in ORDER] for i in indices]
    return torch.tensor(rows)


@pytest.mark.parametrize(("task", "images", "classes"), [(0, 7, "da"), (1, 3, "e"), (2, 6, "bc")])
def test_a_task_has_every_image_with_one_of_its_classes_and_knows_those_only(task, images, classes):
    data = loaded(task, batch_size=1)
    batch = whole(data.train_dataloader())
    index = batch["index"].tolist()
    assert sorted(index) == [i for i, labels in enumerate(LABELS[True]) if set(labels) & set(classes)]
    assert len(index) == images
    assert torch.equal(batch["image"].flatten(1)[:, 0].long(), batch["index"])
    assert batch["target"].dtype == torch.float32
    assert torch.equal(batch["target"], truth(index, classes))
    assert torch.equal(batch["known"], torch.tensor([["abcde"[c] in classes for c in ORDER]] * images))
    assert torch.equal(batch["task"], torch.full((images,), task))
    assert batch["key"].dtype == torch.int64


def test_a_stage_on_all_seen_data_has_each_image_once_with_all_seen_labels():
    data = loaded(1, Stage("joint", 1, data="seen"), batch_size=1)
    batch = whole(data.train_dataloader())
    assert sorted(batch["index"].tolist()) == [0, 3, 4, 5, 7, 8, 9]
    assert torch.equal(batch["target"], truth(batch["index"].tolist(), "dae"))
    assert torch.equal(batch["known"].all(0), torch.tensor([True, True, True, False, False]))


@pytest.mark.parametrize("task", [0, 1, 2])
def test_hidden_labels_are_in_nothing_that_a_task_gives(task):
    """Poison: whatever stands in the columns of other tasks, loaders and accessors give the same."""
    clean, poisoned = loaded(task), loaded(task)
    table = poisoned._labels["train"].table
    outside = clean._task_of != task
    assert table[:, outside].any()
    table[:, outside] = ~table[:, outside]
    for give in (lambda d: d.train_dataloader(), lambda d: d.eval_loader(d.stage_indices())):
        first, second = whole(give(clean)), whole(give(poisoned))
        assert all(torch.equal(value, second[name]) for name, value in first.items())
    indices = torch.arange(10)
    assert torch.equal(clean.task_labels(indices)[0], poisoned.task_labels(indices)[0])
    assert not torch.equal(clean.hidden_labels(indices), poisoned.hidden_labels(indices))
    with pytest.raises(RuntimeError, match="labels that the task does not annotate"):
        clean.labels("train")


def test_labels_of_another_task_can_be_asked_for():
    data = loaded(0)
    target, known = data.task_labels(torch.tensor([8, 0]), data.tasks[2])
    assert torch.equal(target, truth([8, 0], "bc"))
    assert known.sum(0).tolist() == [0, 0, 0, 2, 2]


@pytest.mark.parametrize(
    ("rule", "task", "images"), [("seen", 0, [0, 2, 3, 5]), ("seen", 2, [0, 1, 2, 3, 5]), ("all", 0, range(6))]
)
def test_one_test_loader_has_each_image_once_with_all_labels(rule, task, images):
    (loader,) = loaded(task, test_rule=rule).test_dataloader()
    batch = whole(loader)
    assert batch["index"].tolist() == list(images)
    assert torch.equal(batch["target"], truth(images, "abcde", train=False))
    assert batch["known"].all()


def test_ranks_share_the_test_images_without_padding():
    data = loaded(2, test_rule="all", eval_batch_size=2)
    (loader,) = data.test_dataloader()
    loader.world_size = 2
    found = []
    for rank in (0, 1):
        loader.rank = rank
        found += [i for batch in loader for i in batch["index"].tolist()]
        assert all(len(batch["target"]) == len(batch["known"]) == len(batch["index"]) for batch in loader)
    assert sorted(found) == list(range(6))


def test_held_out_images_are_one_validation_loader():
    data = loaded(1, val_fraction=0.5, batch_size=1)
    train, held = data._train_indices.tolist(), data._val_indices.tolist()
    assert held
    assert sorted(train + held) == list(range(10))
    (loader,) = data.val_dataloader()
    batch = whole(loader)
    assert batch["index"].tolist() == [i for i in held if set(LABELS[True][i]) & set("dae")]
    assert torch.equal(batch["target"], truth(batch["index"].tolist(), "dae"))
    assert torch.equal(batch["known"].all(0), torch.tensor([True] * 3 + [False] * 2))
    assert not set(whole(data.train_dataloader())["index"].tolist()) & set(held)


def test_no_class_loses_its_last_training_image():
    for seed in range(30):
        data = loaded(val_fraction=0.7, split_seed=seed)
        train = data._train_indices.tolist()
        assert set("".join(LABELS[True][i] for i in train)) == set("abcde")
        assert len(data._val_indices) >= 3


def test_a_stages_holdout_divides_the_tasks_images():
    options = {"batch_size": 1}
    everything = loaded(0, **options).stage_indices().tolist()
    kept, held_out = (
        loaded(0, Stage("s", 1, data=part, holdout=0.3), **options).stage_indices().tolist()
        for part in ("task", "held_out")
    )
    assert len(held_out) == round(0.3 * len(everything))
    assert sorted(kept + held_out) == everything


def test_members_bring_images_into_a_task_without_a_label():
    members = torch.zeros(10, 5, dtype=torch.bool)
    members[6, 4] = True  # class e, by a crowd only
    data = loaded(1, members=members, batch_size=1)
    batch = whole(data.train_dataloader())
    assert sorted(batch["index"].tolist()) == [3, 4, 6, 8]
    assert batch["target"][batch["index"] == 6].sum() == 0


def test_tables_of_another_shape_are_refused():
    images = torch.zeros(2, 1, 3, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"toy: `targets` is torch.bool \[2, 4\]; expected torch.bool \[2, 5\]"):
        TensorImages(images, torch.zeros(2, 4, dtype=torch.bool), 5, "toy")
    with pytest.raises(ValueError, match=r"`members` is torch.int64"):
        FileImages(["a", "b"], torch.zeros(2, 5, dtype=torch.bool), 5, "toy", None, pixels, torch.zeros(2, 5).long())


def test_unknown_test_rule_is_refused():
    with pytest.raises(ValueError, match="`test_rule='some'` is unknown: expected 'seen'"):
        Toy(test_rule="some")


def test_a_task_of_which_nothing_is_held_out_has_no_validation() -> None:
    data = MultiLabelDigits(train_images=60, test_images=40, sizes=[1] * 10, val_fraction=0.03)
    data.setup("fit")
    lengths = []
    for task in data.tasks:
        data.set_stage(task, Stage("train", 1), seed=0)
        lengths.append(len(data.val_dataloader()))
    assert lengths[0] == 0
    assert lengths[-1] == 1


def test_pictures_of_digits_hold_their_labels():
    data = MultiLabelDigits(train_images=60, test_images=20, val_fraction=0.1)
    data.setup("fit")
    split = data.split("train")
    assert split.images.shape == (60, 1, 16, 16)
    assert len(data.split("test")) == 20
    cells = split.images.view(60, 2, 8, 2, 8).permute(0, 1, 3, 2, 4).reshape(60, 4, 64)
    filled = (cells > 0).any(2).sum(1)
    assert set(filled.tolist()) == {1, 2, 3, 4}
    labels = split.targets.sum(1)
    assert bool(((labels >= 1) & (labels <= filled)).all())
    digits, names = digits_split(True)
    own = {digits[i].flatten().numpy().tobytes(): int(names[i]) for i in range(len(digits))}
    for row in range(60):
        shown = {own[c.numpy().tobytes()] for c in cells[row] if bool(c.any())}
        assert shown == set(split.targets[row].nonzero().flatten().tolist())


def test_digits_refuse_no_pictures():
    with pytest.raises(ValueError, match="`max_digits=5`; expected at least 1 picture"):
        MultiLabelDigits(max_digits=5)
