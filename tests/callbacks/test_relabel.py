"""`OnlineRelabel` and multi-label exemplars: who labels what, what is never touched, what is never read."""

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cil.callbacks import OnlineRelabel, ReplayBuffer, StreamCallback, Teacher
from lightning_cil.callbacks.replay import CHECKPOINT_KEY
from lightning_cil.data import MultiLabelDigits, MultiLabelVOC, SplitDigits
from lightning_cil.methods import MLER, RebLL
from lightning_cil.networks import Backbone
from tests.data import formats
from tests.methods.test_multilabel import adam, digits
from tests.ranks import all_well, run_ranks
from tests.streams import fit, make, results
from tests.trainer.test_ranks import saved

SIZES = [4, 3, 3]


class Look(StreamCallback):
    """Keeps the buffer as it is when a task has ended, and what the networks of that time say of its images."""

    def __init__(self) -> None:
        self.stores: list[dict[str, Tensor]] = []
        self.said: list[dict[str, Tensor]] = []

    def on_task_end(self, trainer: Any, module: Any, task: Any) -> None:
        memory, teacher = (next(c for c in trainer.callbacks if isinstance(c, k)) for k in (ReplayBuffer, Teacher))
        self.stores.append({k: v.clone() for k, v in memory.store.state_dict().items()})
        image = trainer.datamodule.transform(memory.store.column("image"))
        with torch.no_grad():
            old = teacher.network(image) if teacher.network is not None else image.new_zeros(len(image), 0)
            self.said.append({"new": module.eval()(image), "old": old})


def relabelled(root: Path, data: Any = None, extra: Any = None, **options: Any) -> tuple[Any, Look]:
    look = Look()
    callbacks = [ReplayBuffer(per_class=2, repeat=False), OnlineRelabel(**options), Teacher(), look]
    callbacks += [extra] if extra is not None else []
    same = {f"relabel_{name}": options[name] for name in ("threshold", "quota") if name in options}
    module = make(RebLL, epochs=3, optimizer=adam, **same)
    return fit(root, module, data or digits(train_images=200), callbacks), look


def check(look: Look, hidden: Tensor, threshold: float) -> list[tuple[int, int]]:
    """Every label of every exemplar after every task; how many were filled in, and how many of them are wrong."""
    task_of = torch.repeat_interleave(torch.arange(3), torch.tensor(SIZES))
    filled_in, previous = [], {}
    for t, (store, said) in enumerate(zip(look.stores, look.said, strict=True)):
        seen = sum(SIZES[: t + 1])
        assert store["known"].equal((task_of <= t).expand(len(store["index"]), -1))
        count = wrong = 0
        current: dict[tuple[int, int], list[float]] = {}
        for row, (index, task) in enumerate(zip(store["index"].tolist(), store["task"].tolist(), strict=True)):
            current[index, task] = store["target"][row].tolist()
            for c in range(seen):
                value, of = store["target"][row, c].item(), int(task_of[c])
                if of == task:
                    assert store["annotated"][row, c]
                    assert value == hidden[index, c]
                    continue
                assert not store["annotated"][row, c]
                if of < t and task < t:  # it was known before this task
                    assert value == previous[index, task][c]
                    continue
                score = said["new" if of == t else "old"][row, c]
                assert value == float(score.sigmoid() > threshold)
                count, wrong = count + 1, wrong + int(value != hidden[index, c])
        previous = current
        filled_in.append((count, wrong))
    return filled_in


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_each_missing_label_is_filled_in_once_by_the_right_model(tmp_path: Path, threshold: float) -> None:
    data = digits(train_images=200)
    trainer, look = relabelled(tmp_path, data, threshold=threshold)
    hidden = data.hidden_labels(torch.arange(200)).float()
    counts = check(look, hidden, threshold)
    assert counts[0] == (0, 0)
    assert all(count > 20 for count, _ in counts[1:])
    assert sum(wrong for _, wrong in counts) > 0  # guesses, not the hidden labels
    entries = results(trainer)["relabelling"]["tasks"]
    assert [e["labels"] for e in entries] == [count for count, _ in counts]
    assert all("recall" not in e for e in entries)
    last = entries[-1]
    assert sum(map(sum, last["known_after"])) == 20 * 10
    assert sum(map(sum, last["known_before"])) == 20 * 10 - last["labels"]


class Poisoned(MultiLabelDigits):
    """Whoever reads a label that the task does not annotate is caught."""

    def hidden_labels(self, indices: Tensor) -> Tensor:
        raise AssertionError("the hidden labels were read")


class Garbage(StreamCallback):
    """Puts noise in place of every training label that the current task does not annotate."""

    def on_task_start(self, trainer: Any, module: Any, task: Any) -> None:
        labels = trainer.datamodule._labels["train"]
        true = labels._members  # which images a task has stays as it is
        noise = torch.rand(true.shape, generator=torch.Generator().manual_seed(task.index)) > 0.5
        labels.table = torch.where(labels.task_of == task.index, true, noise)


def test_the_hidden_labels_are_never_read(tmp_path: Path) -> None:
    options: dict[str, Any] = {"train_images": 120, "test_images": 60, "sizes": SIZES}
    plain_run, plain = relabelled(tmp_path / "plain", MultiLabelDigits(**options))
    poisoned_run, poisoned = relabelled(tmp_path / "poisoned", Poisoned(**options), extra=Garbage())
    for a, b in zip(plain.stores, poisoned.stores, strict=True):
        assert all(a[name].equal(b[name]) for name in a)
    weights = [saved(run)["state_dict"] for run in (plain_run, poisoned_run)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    with pytest.raises(AssertionError, match="hidden labels were read"):
        relabelled(tmp_path / "diagnostics", Poisoned(**options), diagnostics=True)


def test_diagnostics_compare_with_the_hidden_labels(tmp_path: Path) -> None:
    data = digits(train_images=200)
    trainer, look = relabelled(tmp_path, data, diagnostics=True)
    store, entry = look.stores[1], results(trainer)["relabelling"]["tasks"][1]
    filled = store["known"] & ~store["annotated"]
    truth, guess = data.hidden_labels(store["index"])[filled], store["target"][filled] > 0
    assert entry["precision"] == pytest.approx((truth & guess).sum().item() / guess.sum().item())
    assert entry["recall"] == pytest.approx((truth & guess).sum().item() / truth.sum().item())


def test_a_quota_gives_the_share_of_positives(tmp_path: Path) -> None:
    trainer, _ = relabelled(tmp_path, quota=0.25)
    for entry in results(trainer)["relabelling"]["tasks"][1:]:
        assert abs(entry["positives"] - 0.25 * entry["labels"]) <= 1.01  # two models, each rounded


@pytest.mark.parametrize(("method", "callback"), [({}, {"threshold": 0.7}), ({"relabel_quota": 0.1}, {})])
def test_two_settings_that_contradict_each_other_are_refused(tmp_path: Path, method: Any, callback: Any) -> None:
    with pytest.raises(
        ValueError, match=r"got `relabel_threshold=0\.5`, .* a callback `OnlineRelabel.*the same in both"
    ):
        fit(tmp_path, make(RebLL, **method), digits(), [ReplayBuffer(per_class=2), OnlineRelabel(**callback)])


def test_exemplars_that_are_files_are_read_again(tmp_path: Path) -> None:
    """Kept by their position, not as images; decoded by the evaluation's transform when they are relabelled."""
    formats.write_voc(tmp_path, train=3, test=1)
    data = MultiLabelVOC(tmp_path / "VOCdevkit", image_size=16, sizes=[8, 6, 6], num_workers=0, batch_size=8)
    memory = ReplayBuffer(per_class=1, storage="index", repeat=False)
    module = make(RebLL, optimizer=adam, backbone=Backbone("small_cnn"))
    trainer = fit(tmp_path, module, data, [memory, OnlineRelabel(), Teacher()])
    store = memory.store
    assert set(store.names) == {"index", "task", "target", "known", "annotated"}
    assert store.column("known").all()
    truth = data.hidden_labels(store.column("index")).float()
    annotated = store.column("annotated")
    assert annotated.any(dim=1).all()
    assert store.column("target")[annotated].equal(truth[annotated])
    assert results(trainer)["relabelling"]["tasks"][-1]["labels"] > 0


# ---------------------------------------------------------------------- exemplars


@pytest.mark.parametrize("update", ["task", "batch"])
@pytest.mark.parametrize(("dedupe", "grow"), [(False, False), (True, False), (True, True)])
def test_exemplars_know_what_their_tasks_annotated(tmp_path: Path, update: Any, dedupe: bool, grow: bool) -> None:
    data = digits(train_images=60)
    buffer = ReplayBuffer(per_class=3, update=update, repeat=False, dedupe=dedupe, grow=grow)
    trainer = fit(tmp_path, make(MLER, epochs=2, optimizer=adam), data, [buffer])
    truth = data.hidden_labels(torch.arange(60)).float()
    task_of = torch.repeat_interleave(torch.arange(3), torch.tensor(SIZES))
    sizes = []
    for t in range(3):
        store = saved(trainer, f"task_{t}")[CHECKPOINT_KEY]["store"]
        index, known = store["index"], store["known"]
        assert known.equal(store["annotated"])
        assert store["target"].equal(truth[index] * known)
        own = task_of == store["task"].unsqueeze(1)
        assert known[own].all()
        if dedupe:
            assert len(index.unique()) == len(index)
            members = torch.stack([torch.isin(index, data.train_indices([j])) for j in range(t + 1)], dim=1)
            since = task_of[task_of <= t] >= store["task"].unsqueeze(1)  # what earlier tasks said was not kept
            assert known[:, : sum(SIZES[: t + 1])].equal(members[:, task_of[task_of <= t]] & since)
        else:
            assert known.equal(own)
        sizes.append(len(index))
    if update == "task":
        assert sizes == ([12, 21, 30] if grow else [30, 30, 30])
    assert sizes[-1] == 30 or dedupe


def test_a_batch_has_each_exemplar_once_at_most(tmp_path: Path) -> None:
    class Count(StreamCallback):
        def __init__(self) -> None:
            self.sizes: list[tuple[int, int]] = []

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if "replay_index" in batch:
                assert batch["replay_known"].shape == batch["replay_target"].shape == (len(batch["replay_index"]), 10)
                self.sizes.append((len(batch["replay_index"]), len(batch["index"])))

    for repeat, expected in ((False, 10), (True, 32)):
        count = Count()
        buffer = ReplayBuffer(per_class=1, repeat=repeat)
        fit(tmp_path / str(repeat), make(MLER, optimizer=adam), digits(), [buffer, count])
        assert set(count.sizes) == {(expected, 32)}


@pytest.mark.parametrize(
    ("data", "callbacks", "words"),
    [
        (digits, [ReplayBuffer(total=20, selection="balanced")], "expected 'reservoir' for multi-label data"),
        (digits, [OnlineRelabel(), Teacher()], "expected `ReplayBuffer` and `Teacher`"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, data: Any, callbacks: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit(tmp_path, make(RebLL, memory="none"), data(), callbacks)


@pytest.mark.parametrize("options", [{"threshold": 0.0}, {"threshold": 1.0}, {"quota": 1.5}])
def test_numbers_out_of_range_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        OnlineRelabel(**options)


def test_single_label_data_are_refused(tmp_path: Path) -> None:
    from lightning_cil.methods import ER

    for callbacks, words in (
        ([ReplayBuffer(total=20), OnlineRelabel(), Teacher()], "none is missing"),
        ([ReplayBuffer(total=20, dedupe=True)], "`dedupe` only there"),
    ):
        with pytest.raises(ValueError, match=words):
            fit(tmp_path, make(ER), SplitDigits(), callbacks)


# ---------------------------------------------------------------------- stock fits


class Net(pl.LightningModule):
    """A user's own module."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 6)
        self.batches: list[list[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y, *_ = batch
        self.batches.append([b.detach().clone() for b in batch])
        known = ~y.isnan()
        return (
            nn.functional.binary_cross_entropy_with_logits(self(x), y.nan_to_num(), reduction="none") * known
        ).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.02)


def samples(classes: list[int], seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 5, generator=generator)
    y = torch.full((40, 6), torch.nan)
    y[:, classes] = (x @ torch.randn(5, 6, generator=torch.Generator().manual_seed(9)) > 0).float()[:, classes]
    return TensorDataset(x, y)


def stock(
    net: Net, callbacks: list[Any], classes: list[int], seed: int, data: Any = None, **options: Any
) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options = {"max_epochs": 4, "accelerator": "cpu", "logger": False, **quiet, **options}
    trainer = pl.Trainer(callbacks=callbacks, **options)
    trainer.fit(net, DataLoader(data or samples(classes, seed), batch_size=8, shuffle=data is None))
    return trainer


class Apart(Net):
    """Each rank's network ends with statistics of its own last batch, as with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + 50 * self.last

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.last = batch[0][:8].mean()
        return loss


def test_two_ranks_of_a_stock_trainer_fill_in_the_same(tmp_path: Path) -> None:
    def rank() -> None:
        pl.seed_everything(0, verbose=False)
        memory, net = ReplayBuffer(total=30), Apart()
        callbacks = [memory, OnlineRelabel(), Teacher()]
        for seed, classes in enumerate(([0, 1], [2, 3])):
            data = samples(classes, seed)
            data.tensors[1][1:, classes[1]] = torch.nan  # one image has it, of which one rank knows
            stock(net, callbacks, classes, seed, data, max_epochs=1, devices=2, strategy="ddp")
            assert not memory.store.column("target")[:, : classes[1] + 1].isnan().any()
        found = {"digest": memory.digest(), "last": net.last, "batches": [b[0] for b in net.batches]}
        torch.save(found, tmp_path / f"{os.environ['RANK']}.pt")

    assert all_well(run_ranks(rank, tmp_path))
    one, two = (torch.load(tmp_path / f"{r}.pt") for r in (0, 1))
    assert one["digest"] == two["digest"]
    assert one["last"] != two["last"]
    assert len(one["batches"]) == len(two["batches"]) == 6
    assert not any(a.equal(b) for a, b in zip(one["batches"], two["batches"], strict=True))


def test_processes_that_end_with_a_stock_fit_are_refused() -> None:
    with pytest.raises(Exception, match=r"would be lost with them when the fit ends.*torchrun"):
        stock(Net(), [ReplayBuffer(total=5), OnlineRelabel(), Teacher()], [0, 1], 0, devices=2, strategy="ddp_fork")


def test_a_stock_fit_fills_in_what_is_nan() -> None:
    pl.seed_everything(0, verbose=False)
    memory, net = ReplayBuffer(total=30), Net()
    callbacks = [memory, OnlineRelabel(), Teacher()]
    known_classes: list[int] = []
    models: list[nn.Module] = []
    before: dict[tuple[float, ...], Tensor] = {}
    for seed, classes in enumerate(([0, 1], [2, 3], [4, 5])):
        stock(net, callbacks, classes, seed)
        models.append(nn.Linear(5, 6))
        models[-1].load_state_dict(net.layer.state_dict())
        known_classes += classes
        truth = {tuple(x.tolist()): y for x, y in samples(classes, seed)}
        x, y = memory.store.column("image"), memory.store.column("target")
        assert y.isnan().equal((~torch.isin(torch.arange(6), torch.tensor(known_classes))).expand(30, -1))
        fresh = 0
        for image, labels in zip(x, y, strict=True):
            key = tuple(image.tolist())
            if key in truth:
                fresh += 1
                assert labels[classes].equal(truth[key][classes])
                old = [c for c in known_classes if c not in classes]
                expected = models[seed - 1](image)[old].detach() > 0 if old else torch.zeros(0)
                assert labels[old].equal(expected.float())
            else:
                assert labels[classes].equal((models[seed](image)[classes].detach() > 0).float())
                kept = [c for c in known_classes if c not in classes]
                assert labels[kept].equal(before[key][kept])
        assert 0 < fresh <= 30
        before = {tuple(i.tolist()): labels.clone() for i, labels in zip(x, y, strict=True)}
    assert net.batches[-1][0].shape == (16, 5)
    assert len(net.batches[-1]) == 3


def test_the_order_of_callbacks_in_a_stock_fit_is_checked() -> None:
    with pytest.raises(ValueError, match="must stand between"):
        stock(Net(), [ReplayBuffer(total=5), Teacher(), OnlineRelabel()], [0, 1], 0)
    with pytest.raises(ValueError, match="expected `ReplayBuffer` and `Teacher`"):
        stock(Net(), [OnlineRelabel()], [0, 1], 0)


def test_a_reservoir_without_a_size_is_refused_before_a_stock_fit_trains() -> None:
    net = Net()
    with pytest.raises(ValueError, match=r"`per_class=4` .* the number of classes is not known; expected `total`"):
        stock(net, [ReplayBuffer(per_class=4), OnlineRelabel(), Teacher()], [0, 1], 0)
    assert net.batches == []


def test_labels_that_cannot_be_unknown_are_refused_in_a_stock_fit() -> None:
    class Classes(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    callbacks: list[Any] = [ReplayBuffer(total=5), OnlineRelabel(), Teacher()]
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, callbacks=callbacks, **quiet)
    data = TensorDataset(torch.randn(16, 5), torch.zeros(16, dtype=torch.long))
    with pytest.raises(TypeError, match="NaN where a label is not known"):
        trainer.fit(Classes(), DataLoader(data, batch_size=8))
