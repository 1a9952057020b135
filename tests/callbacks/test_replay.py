"""`ReplayBuffer`: budgets, what is kept and drawn, batches, checkpoints, in a stream and in a stock fit."""

import copy
import math
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_cil._random import counter_hash, counter_uniform, fold_seed, permutation
from lightning_cil.callbacks import ReplayBuffer, StreamState, Teacher
from lightning_cil.callbacks.replay import CHECKPOINT_KEY
from lightning_cil.methods import ER
from tests.callbacks.conftest import Net, Recorder, TinyTasks, copied, stock_fit, vectors
from tests.streams import fit, make, weights_hash

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]

TOTAL = 11
SEED = 3
"""What `streams.fit` seeds every run with."""


def saved(trainer: Any) -> dict[str, Any]:
    """The checkpoint as it would be read back."""
    return torch.load(f"{trainer.log_dir}/checkpoints/last.ckpt", weights_only=True)


class Run(SimpleNamespace):
    """A stream with a buffer: `steps`, one record each; `tasks`, the store after each."""


def stream(root: Any, buffer: ReplayBuffer, method: type = ER, **options: Any) -> Run:
    steps, tasks, extra = [], [], {}

    def look(hook: str, trainer: Any, module: Any, *args: Any) -> None:
        if hook == "on_train_batch_start":
            steps.append(SimpleNamespace(size=len(buffer), batch=copied(args[0]), step=trainer.global_step))
        if hook == "on_train_batch_end":
            steps[-1].after = buffer.store.state_dict()
        if hook == "on_task_end":
            data, task = trainer.datamodule, args[0]
            index = data.train_indices([task.index])
            modes = [m.training for m in module.modules()]
            with torch.no_grad():
                features = module.eval().features(data.transform(data.stored_images(index)))
            for part, mode in zip(module.modules(), modes, strict=True):
                part.training = mode
            extra[task.index] = SimpleNamespace(index=index, target=data.labels("train")[index], features=features)
            tasks.append(SimpleNamespace(store=buffer.store.state_dict(), digest=buffer.digest()))

    trainer = fit(root, make(method), TinyTasks(), [buffer, Recorder(look)], **options)
    return Run(trainer=trainer, steps=steps, tasks=tasks, offered=extra, buffer=buffer, data=trainer.datamodule)


@pytest.fixture(scope="module", params=["reservoir", "balanced", "herding"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with each selection."""
    return stream(tmp_path_factory.mktemp(request.param), ReplayBuffer(total=TOTAL, selection=request.param))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Runs with the same settings but for where images come from."""
    storages = {
        "uint8": ReplayBuffer(total=TOTAL, storage="uint8"),
        "index": ReplayBuffer(total=TOTAL, storage="index"),
    }
    return {name: stream(tmp_path_factory.mktemp(name), buffer) for name, buffer in storages.items()}


def by_class(store: dict[str, Tensor]) -> dict[int, list[int]]:
    """Positions in the data set, as they stand in the store, of each class."""
    pairs = list(zip(store["target"].tolist(), store["index"].tolist(), strict=True))
    return {label: [i for t, i in pairs if t == label] for label in sorted({t for t, _ in pairs})}


def shares(budget: int, classes: int) -> list[int]:
    """⌊K/C⌋, the remainder to the first classes, handed out one by one."""
    quotas = [0] * classes
    for n in range(budget):
        quotas[n % classes] += 1
    return quotas


# ---------------------------------------------------------------------- what is kept


def test_budget_is_never_exceeded_and_reached_after_the_first_task(run: Run) -> None:
    sizes = [s.size for s in run.steps]
    assert max(sizes) == TOTAL
    assert [s.size for s in run.steps if (s.batch["task"] == 0).all()] == [0] * 3
    assert {s.size for s in run.steps if (s.batch["task"] > 0).any()} == {TOTAL}


@pytest.mark.parametrize("run", ["balanced", "herding"], indirect=True)
def test_equal_shares_of_classes(run: Run) -> None:
    for seen, task in zip((2, 4, 6), run.tasks, strict=True):
        assert [len(members) for members in by_class(task.store).values()] == shares(TOTAL, seen)
        assert run.buffer.quotas(seen).tolist() == shares(TOTAL, seen)


@pytest.mark.parametrize("run", ["balanced", "herding"], indirect=True)
def test_what_is_kept_is_the_beginning_of_what_was_chosen(run: Run) -> None:
    for earlier, later in zip(run.tasks, run.tasks[1:], strict=False):
        before, after = by_class(earlier.store), by_class(later.store)
        for label, members in before.items():
            assert after[label] == members[: len(after[label])]


def test_rows_fit_together(run: Run) -> None:
    for task in run.tasks:
        index = task.store["index"]
        assert torch.equal(task.store["image"], run.data.stored_images(index))
        assert torch.equal(task.store["target"], run.data.labels("train")[index])
        assert torch.equal(task.store["task"], run.data.task_of(task.store["target"]))
        assert len(set(index.tolist())) == len(index)


def test_contents_are_those_of_a_plain_reservoir(runs: dict[str, Run]) -> None:
    """Algorithm R, one offer after the other, with the buffer's numbers."""
    run, slots, n = runs["uint8"], [], 0
    for task, offered in run.offered.items():
        for row in permutation(len(offered.index), SEED, 5, task).tolist():
            if n < TOTAL:
                slots.append(int(offered.index[row]))
            else:
                r = math.floor(counter_uniform(torch.tensor(n), fold_seed(SEED, 7)).item() * (n + 1))
                if r < TOTAL:
                    slots[r] = int(offered.index[row])
            n += 1
        assert run.tasks[task].store["index"].tolist() == slots
    assert run.buffer.num_offered == n


@pytest.mark.parametrize("run", ["balanced"], indirect=True)
def test_balanced_takes_the_smallest_hashes_of_each_class(run: Run) -> None:
    for task, quota in ((0, 5), (1, 2), (2, 1)):
        offered, kept = run.offered[task], by_class(run.tasks[task].store)
        for label in set(offered.target.tolist()):
            members = offered.index[offered.target == label].tolist()
            order = sorted(members, key=lambda i: counter_hash(torch.tensor(i), SEED, 6).item())
            assert kept[label][:quota] == order[:quota]


@pytest.mark.parametrize("run", ["herding"], indirect=True)
def test_herding_keeps_the_running_mean_near_the_class_mean(run: Run) -> None:
    for task, offered in run.offered.items():
        kept = by_class(run.tasks[task].store)
        for label in set(offered.target.tolist()):
            members = offered.index[offered.target == label].tolist()
            features = offered.features[offered.target == label].double()
            unit = features / features.norm(dim=1, keepdim=True)
            chosen: list[int] = []
            for k in range(1, len(kept[label]) + 1):
                rest = [i for i in range(len(unit)) if i not in chosen]
                gap = {i: (unit.mean(0) - (unit[chosen].sum(0) + unit[i]) / k).norm().item() for i in rest}
                chosen.append(min(gap, key=gap.__getitem__))
            assert kept[label] == [members[i] for i in chosen]


def test_per_class_budget(tmp_path: Any) -> None:
    run = stream(tmp_path, ReplayBuffer(per_class=3, selection="balanced"))
    for seen, task in zip((2, 4, 6), run.tasks, strict=True):
        assert [len(m) for m in by_class(task.store).values()] == [3] * seen
    assert by_class(run.tasks[0].store)[1] == by_class(run.tasks[2].store)[1]


def test_a_quota_above_the_class_size_keeps_the_class(tmp_path: Any) -> None:
    run = stream(tmp_path, ReplayBuffer(per_class=100, selection="herding"))
    assert {len(m) for m in by_class(run.tasks[-1].store).values()} == {13}


def test_every_batch_is_offered_online(tmp_path: Any) -> None:
    run = stream(tmp_path, ReplayBuffer(total=6, update="batch"))
    slots: list[int] = []
    n = 0
    for step in run.steps:
        for index in step.batch["index"].tolist():  # the batch as it came: exemplars are not offered again
            r = n if n < 6 else math.floor(counter_uniform(torch.tensor(n), fold_seed(SEED, 7)).item() * (n + 1))
            slots[r : r + 1] = [index] if r < 6 else slots[r : r + 1]
            n += 1
        assert step.after["index"].tolist() == slots
    assert (n, len(run.buffer)) == (run.buffer.num_offered, 6)
    assert "replay_image" in run.steps[1].batch


# ---------------------------------------------------------------------- what is drawn


def test_keys_of_a_batch(run: Run) -> None:
    own = {"image", "target", "index", "task", "key"}
    for step in run.steps:
        batch = step.batch
        added = {"replay_image", "replay_target", "replay_task", "replay_index"} if step.size else set()
        assert set(batch) == own | added
        for name in added - {"replay_image"}:
            assert batch[name].shape == (8,)
            assert batch[name].dtype == torch.int64
        if added:
            assert batch["replay_image"].shape == batch["image"].shape == (8, 1, 6, 6)
            assert batch["replay_image"].dtype == torch.float32
            assert torch.equal(batch["target"], run.data.labels("train")[batch["index"]])


def test_drawn_rows_are_of_the_store_and_augmented_by_the_steps_counters(run: Run) -> None:
    mirrored = 0
    for step in (s for s in run.steps if s.size):
        batch = step.batch
        store = run.tasks[int(batch["task"][0]) - 1].store
        assert set(batch["replay_index"].tolist()) <= set(store["index"].tolist())
        assert torch.equal(batch["replay_target"], run.data.labels("train")[batch["replay_index"]])
        assert torch.equal(batch["replay_task"], run.data.task_of(batch["replay_target"]))
        key = counter_hash(torch.arange(8), SEED, 4, step.step)
        plain = run.data.stored_images(batch["replay_index"])
        assert torch.equal(batch["replay_image"], run.data.augment(plain, key))
        mirrored += int((batch["replay_image"] != run.data.augment(plain)).flatten(1).any(1).sum())
    assert mirrored


def test_draws_are_without_replacement_and_differ_from_step_to_step(run: Run) -> None:
    drawn = [tuple(s.batch["replay_index"].tolist()) for s in run.steps if s.size]
    assert all(len(set(d)) == 8 for d in drawn)
    assert len(set(drawn)) == len(drawn)


def rank(rank: int, world_size: int, seed: int = 5) -> Any:
    """What `draw` needs of a trainer."""
    state = StreamState()
    state.begin(3, seed)
    return SimpleNamespace(global_rank=rank, world_size=world_size, callbacks=[state], datamodule=None)


def test_a_draw_is_a_function_of_seed_and_step(run: Run) -> None:
    def rows(trainer: Any, step: int) -> list[int]:
        return run.buffer.draw(trainer, 4, step)["index"].tolist()

    assert rows(rank(0, 1), 7) == rows(rank(0, 1), 7)
    assert rows(rank(0, 1), 7) != rows(rank(0, 1), 8)
    assert rows(rank(0, 1), 7) != rows(rank(0, 1, seed=6), 7)


def test_two_draws_of_a_step_are_independent(run: Run) -> None:
    first, second = ([run.buffer.draw(rank(0, 1), 5, s, n) for s in range(400)] for n in (0, 1))
    assert all(len(set(d["index"].tolist())) == 5 for d in second)
    assert not any(a["key"].equal(b["key"]) for a, b in zip(first, second, strict=True))
    common = [len(set(a["index"].tolist()) & set(b["index"].tolist())) for a, b in zip(first, second, strict=True)]
    assert sum(common) / 400 == pytest.approx(5 * 5 / TOTAL, abs=0.25)  # as often as by chance
    parts = [run.buffer.draw(rank(r, 3), 2, 9, 1) for r in range(3)]
    assert run.buffer.draw(rank(0, 1), 6, 9, 1)["index"].equal(torch.cat([p["index"] for p in parts]))


def test_several_draws_are_read_ahead_apart(tmp_path: Any) -> None:
    found = {}
    for storage in ("uint8", "index"):
        run = stream(tmp_path / storage, ReplayBuffer(total=TOTAL, num_draws=2, storage=storage))
        found[storage] = [s.batch for s in run.steps if s.size]
    for one, two in zip(found["uint8"], found["index"], strict=True):
        assert all(one[f"{key}_image"].equal(two[f"{key}_image"]) for key in ("replay", "replay2"))
        assert not one["replay_index"].equal(one["replay2_index"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"columns": ["logits"]}, "`columns=\\['logits'\\]` with `update='task'`"),
        ({"columns": "logits", "update": "batch"}, "expected a list of names"),
        ({"num_draws": 0}, "`num_draws=0`"),
    ],
)
def test_bad_columns_and_draws(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ReplayBuffer(total=5, **options)


def test_a_step_that_does_not_return_the_columns(tmp_path: Any) -> None:
    buffer = ReplayBuffer(total=TOTAL, update="batch", columns=["logits"])
    with pytest.raises(TypeError, match=r"`columns` names 'logits'.*returned NoneType"):
        stream(tmp_path, buffer)


def test_pairs_cannot_have_columns_or_several_draws() -> None:
    buffer = ReplayBuffer(total=5, num_draws=2)
    with pytest.raises(TypeError, match=r"got a list \[x, y\]"):
        stock_fit(Net(), vectors([0, 1]), [buffer])


def test_ranks_draw_the_shares_of_one_draw(run: Run) -> None:
    whole = run.buffer.draw(rank(0, 1), 6, 9)
    parts = [run.buffer.draw(rank(r, 3), 2, 9) for r in range(3)]
    for name, values in whole.items():
        assert torch.equal(values, torch.cat([p[name] for p in parts]))


def test_batch_size_sets_the_number_of_exemplars(tmp_path: Any) -> None:
    run = stream(tmp_path, ReplayBuffer(total=TOTAL, batch_size=3), max_steps=-1)
    assert {len(s.batch["replay_image"]) for s in run.steps if s.size} == {3}


# ---------------------------------------------------------------------- storage, checkpoints


def test_images_and_positions_train_the_same_network(runs: dict[str, Run]) -> None:
    images, positions = runs["uint8"], runs["index"]
    assert "image" not in positions.tasks[-1].store
    for a, b in zip(images.steps, positions.steps, strict=True):
        assert a.batch.keys() == b.batch.keys()
        assert all(torch.equal(a.batch[name], b.batch[name]) for name in a.batch)
    assert weights_hash(images.trainer.lightning_module) == weights_hash(positions.trainer.lightning_module)


def test_positions_of_the_next_step_are_read_while_this_one_is_computed(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, load = [], TinyTasks.load_augmented

    def noted(self: Any, indices: Tensor, key: Tensor) -> Tensor:
        threads.append(threading.current_thread() is threading.main_thread())
        return load(self, indices, key)

    monkeypatch.setattr(TinyTasks, "load_augmented", noted)
    run = stream(tmp_path, ReplayBuffer(total=TOTAL, storage="index"))
    assert len(threads) == sum(bool(s.size) for s in run.steps)  # each draw is read once
    assert sum(threads) == 2  # of the two tasks with exemplars, only the first step waits


def test_a_checkpoint_takes_no_memory_beside_the_exemplars(runs: dict[str, Run]) -> None:
    checkpoint: dict[str, Any] = {}
    buffer = runs["uint8"].buffer
    buffer.on_save_checkpoint(runs["uint8"].trainer, None, checkpoint)
    (saved_now,) = checkpoint.values()
    assert saved_now["store"]["image"].data_ptr() == buffer.store.column("image").data_ptr()


def test_footprint_counts_images_wherever_they_are(runs: dict[str, Run]) -> None:
    expected = {"exemplar_bytes": TOTAL * 36, "exemplar_label_bytes": TOTAL * 3 * 8}
    assert runs["uint8"].buffer.footprint() == runs["index"].buffer.footprint() == expected


@pytest.mark.parametrize(("pixels", "stored"), [(64, True), (65, False)])
def test_large_images_are_kept_by_position(pixels: int, stored: bool) -> None:
    data = SimpleNamespace(
        num_classes=2,
        train_indices=lambda tasks: torch.arange(6),
        labels=lambda split: torch.arange(6) % 2,
        stored_images=lambda index: torch.zeros(len(index), 3, 8, pixels, dtype=torch.uint8),
    )
    trainer = SimpleNamespace(**{**vars(rank(0, 1)), "datamodule": data})
    buffer = ReplayBuffer(total=4)
    buffer.on_task_end(trainer, None, SimpleNamespace(index=0, num_seen=2))
    assert ("image" in buffer.store.names) == stored
    assert buffer.footprint()["exemplar_bytes"] == 4 * 3 * 8 * pixels


@pytest.mark.parametrize("storage", ["uint8", "index"])
def test_checkpoint_brings_back_every_bit(runs: dict[str, Run], storage: str) -> None:
    run = runs[storage]
    other = ReplayBuffer(total=TOTAL, storage=storage)
    assert other.digest() != run.buffer.digest()
    other.on_load_checkpoint(run.trainer, None, saved(run.trainer))
    assert other.digest() == run.buffer.digest()
    assert other.footprint() == run.buffer.footprint()
    first, second = (b.draw(rank(0, 1), 8, 5) for b in (run.buffer, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    again: dict[str, Any] = {}
    other.on_save_checkpoint(run.trainer, None, again)
    assert again[CHECKPOINT_KEY].keys() == saved(run.trainer)[CHECKPOINT_KEY].keys()
    assert all(torch.equal(v, run.buffer.store.column(n)) for n, v in again[CHECKPOINT_KEY]["store"].items())


def test_a_restored_buffer_goes_on_as_the_old_one(runs: dict[str, Run]) -> None:
    """The same offers after a restore leave the same exemplars."""
    run = runs["uint8"]
    trainer = SimpleNamespace(**{**vars(rank(0, 1)), "datamodule": run.data})
    old, new = copy.deepcopy(run.buffer), ReplayBuffer(total=TOTAL)
    new.on_load_checkpoint(run.trainer, None, saved(run.trainer))
    for buffer in (old, new):
        buffer.on_task_end(trainer, None, run.data.tasks[1])
    assert old.digest() == new.digest() != run.buffer.digest()


def test_digest_tells_contents_and_offers_apart(runs: dict[str, Run]) -> None:
    run = runs["uint8"]
    digests = {t.digest for t in run.tasks}
    assert len(digests) == len(run.tasks)
    other = copy.deepcopy(run.buffer)
    other.num_offered += 1
    assert other.digest() != run.buffer.digest()


def test_a_checkpoint_without_a_buffer_changes_nothing(runs: dict[str, Run]) -> None:
    buffer = copy.deepcopy(runs["uint8"].buffer)
    buffer.on_load_checkpoint(runs["uint8"].trainer, None, {})
    assert buffer.digest() == runs["uint8"].buffer.digest()


def test_a_new_stream_starts_without_exemplars(runs: dict[str, Run]) -> None:
    buffer = copy.deepcopy(runs["uint8"].buffer)
    buffer.on_stream_start(runs["uint8"].trainer, None, True)
    assert len(buffer) == TOTAL
    buffer.on_stream_start(runs["uint8"].trainer, None, False)
    assert buffer.digest() == ReplayBuffer(total=TOTAL).digest()


# ---------------------------------------------------------------------- a stock fit


def rows_of(data: TensorDataset) -> set[tuple[Any, ...]]:
    x, y = data.tensors
    return {(*a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True)}


@pytest.mark.parametrize("selection", ["reservoir", "balanced", "herding"])
def test_stock_fit_adds_exemplars_of_the_last_fit_to_lists(selection: Any) -> None:
    net, buffer = Net(), ReplayBuffer(total=7, selection=selection)
    old, new = vectors([0, 1]), vectors([2, 3], seed=1)
    stock_fit(net, old, [buffer])
    assert [len(x) for x, _ in net.batches] == [8, 8, 4]
    assert len(buffer) == 7
    net.batches.clear()
    stock_fit(net, new, [buffer])
    assert [len(x) for x, _ in net.batches] == [16, 16, 8]
    for x, y in net.batches:
        half = len(x) // 2
        assert rows_of(TensorDataset(x[:half], y[:half])) <= rows_of(new)
        assert rows_of(TensorDataset(x[half:], y[half:])) <= rows_of(old)
    assert len(buffer) == 7
    if selection != "reservoir":
        assert torch.bincount(buffer.store.column("target")).tolist() == shares(7, 4)


def test_stock_batch_is_the_same_list() -> None:
    seen: list[bool] = []
    batches: list[Any] = []

    def look(hook: str, trainer: Any, module: Any, *args: Any) -> None:
        if hook == "on_train_batch_start":
            batches.append(args[0])
        if hook == "on_train_batch_end":
            seen.append(args[0] is batches[-1] and len(args[0][0]) == 10)

    buffer = ReplayBuffer(total=4, batch_size=2)
    stock_fit(Net(), vectors([0, 1], per_class=8), [buffer])
    stock_fit(Net(), vectors([2, 3], per_class=8), [buffer, Recorder(look)])
    assert seen == [True, True]


def test_stock_reservoir_is_the_plain_one() -> None:
    buffer, slots, n = ReplayBuffer(total=5, seed=9), [], 0
    for number, data in enumerate((vectors([0, 1]), vectors([2, 3], seed=1)), 1):
        stock_fit(Net(), data, [buffer])
        for row in permutation(len(data), 9, 5, number).tolist():
            r = n if n < 5 else math.floor(counter_uniform(torch.tensor(n), fold_seed(9, 7)).item() * (n + 1))
            slots[r : r + 1] = [data[row]] if r < 5 else slots[r : r + 1]
            n += 1
    assert torch.equal(buffer.store.column("image"), torch.stack([x for x, _ in slots]))
    assert buffer.store.column("target").tolist() == [int(y) for _, y in slots]


@pytest.mark.parametrize("batch_size", [None, 3])
def test_stock_online_reservoir_takes_the_own_part_of_each_batch(batch_size: int | None) -> None:
    net, buffer = Net(), ReplayBuffer(total=6, update="batch", batch_size=batch_size, seed=2)
    stock_fit(net, vectors([0, 1]), [buffer], epochs=2)
    slots: list[Any] = []
    n = 0
    for number, (x, y) in enumerate(net.batches):
        own = 4 if number % 3 == 2 else 8  # 20 samples in batches of 8
        exemplars = 0 if number == 0 else batch_size or own
        assert len(x) == own + exemplars
        for sample in zip(x[:own], y[:own], strict=True):
            r = n if n < 6 else math.floor(counter_uniform(torch.tensor(n), fold_seed(2, 7)).item() * (n + 1))
            slots[r : r + 1] = [sample] if r < 6 else slots[r : r + 1]
            n += 1
    assert torch.equal(buffer.store.column("image"), torch.stack([x for x, _ in slots]))
    assert buffer.num_offered == n == 40


def test_stock_checkpoint_round_trip(tmp_path: Any) -> None:
    buffer = ReplayBuffer(total=4)
    trainer = stock_fit(Net(), vectors([0, 1]), [buffer])
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = ReplayBuffer(total=4)
    other.on_load_checkpoint(trainer, Net(), torch.load(tmp_path / "a.ckpt", weights_only=True))
    assert other.digest() == buffer.digest()


def test_micro_batches_of_one_step_get_different_exemplars() -> None:
    net, buffer = Net(), ReplayBuffer(total=20)
    stock_fit(net, vectors([0, 1]), [buffer])
    net.batches.clear()
    stock_fit(net, vectors([2, 3], per_class=12), [buffer], accumulate_grad_batches=3)
    exemplars = [tuple(x[8:].flatten().tolist()) for x, _ in net.batches]
    assert len(set(exemplars)) == len(exemplars) == 3


class Scaled(Net):
    """Normalises batches on the device, as many users do."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0].float() / 100, batch[1]]


@pytest.mark.parametrize("update", ["task", "batch"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_exemplars_pass_through_the_users_batch_transform(update: Any, dtype: torch.dtype) -> None:
    data = TensorDataset(torch.full((16, 3), 50).to(dtype), torch.arange(16) % 2)
    net, buffer = Scaled(), ReplayBuffer(total=8, update=update)
    stock_fit(net, data, [buffer])
    stock_fit(net, data, [buffer])
    assert {len(x) for x, _ in net.batches[2:]} == {16}
    assert all((x == 0.5).all() and x.dtype == torch.float32 for x, _ in net.batches)


def test_stock_classes_share_the_budget_whatever_their_labels_are() -> None:
    buffer = ReplayBuffer(total=9, selection="balanced")
    stock_fit(Net(50), vectors([7, 40]), [buffer])
    assert torch.bincount(buffer.store.column("target"))[[7, 40]].tolist() == [5, 4]
    stock_fit(Net(50), vectors([3, 12], seed=1), [buffer])
    assert torch.bincount(buffer.store.column("target"))[[3, 7, 12, 40]].tolist() == [3, 2, 2, 2]


@pytest.mark.parametrize("selection", ["balanced", "herding"])
@pytest.mark.parametrize("budget", [{"total": 9}, {"per_class": 3}])
def test_classes_that_come_again_stay_within_the_budget(selection: Any, budget: dict[str, int]) -> None:
    buffer = ReplayBuffer(**budget, selection=selection)
    stock_fit(Net(), vectors([0, 1, 2]), [buffer])
    new = vectors([1, 2, 3], seed=1)
    stock_fit(Net(), new, [buffer])
    target = buffer.store.column("target")
    assert torch.bincount(target).tolist() == (shares(9, 4) if "total" in budget else [3] * 4)
    again = target > 0
    assert rows_of(TensorDataset(buffer.store.column("image")[again], target[again])) <= rows_of(new)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of them"),
        ({"total": 5, "per_class": 5}, "exactly one of them"),
        ({"total": 0}, "expected at least 1"),
        ({"per_class": -1, "selection": "balanced"}, "expected at least 1"),
        ({"total": 5, "batch_size": 0}, "expected at least 1"),
        ({"total": 5, "selection": "random"}, "expected 'reservoir', 'balanced', 'herding' or"),
        ({"total": 5, "grow": True}, "only a reservoir with `per_class` grows"),
        ({"per_class": 5, "selection": "balanced", "grow": True}, "only a reservoir with `per_class` grows"),
        ({"total": 5, "selection": "herding", "update": "batch"}, "only a reservoir fills batch by batch"),
        ({"total": 5, "remainder": "unused"}, "`remainder='unused'` with `selection='reservoir'`"),
        ({"per_class": 5, "selection": "herding", "remainder": "unused"}, "equal shares of `total`"),
        ({"total": 5, "selection": "herding", "remainder": "last"}, "`remainder='last'`.*expected 'first_classes'"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReplayBuffer(**options)


def test_fewer_exemplars_than_classes_must_be_allowed(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"`total=4` exemplars are fewer than the 6 classes.*allow_missing_classes"):
        stream(tmp_path, ReplayBuffer(total=4, selection="balanced"), limit_train_batches=1)
    allowed = ReplayBuffer(total=4, selection="balanced", allow_missing_classes=True)
    run = stream(tmp_path, allowed, limit_train_batches=1)
    assert {label: len(m) for label, m in by_class(run.tasks[-1].store).items()} == {0: 1, 1: 1, 2: 1, 3: 1}


def test_stock_fewer_exemplars_than_classes_must_be_allowed() -> None:
    with pytest.raises(ValueError, match="`total=2` exemplars are fewer than the 3 classes"):
        stock_fit(Net(), vectors([0, 1, 2]), [ReplayBuffer(total=2, selection="balanced")])
    buffer = ReplayBuffer(total=2, selection="balanced", allow_missing_classes=True)
    stock_fit(Net(), vectors([0, 1, 2]), [buffer])
    assert buffer.store.column("target").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("collate", "given"),
    [
        (lambda pairs: tuple(map(torch.stack, zip(*pairs, strict=True))), "tuple"),
        (lambda pairs: torch.stack([x for x, _ in pairs]), "Tensor"),
        (lambda pairs: {"image": torch.stack([x for x, _ in pairs])}, "dict"),
        (lambda pairs: [torch.stack([x for x, _ in pairs])] * 3, "list of 3"),
    ],
)
def test_batches_that_cannot_be_extended_are_refused_in_the_first_fit(collate: Any, given: str) -> None:
    loader = DataLoader(vectors([0, 1]), batch_size=4, collate_fn=collate)
    with pytest.raises(TypeError, match=rf"got a batch of type {given}, .* expected a list \[x, y\]"):
        stock_fit(Net(), None, [ReplayBuffer(total=4)], loader=loader)


def test_a_teacher_in_front_of_the_buffer_is_refused() -> None:
    callbacks = [Teacher(), ReplayBuffer(total=4)]
    net = Net()
    net.training_step = lambda batch, batch_idx: torch.nn.functional.cross_entropy(net(batch[0]), batch[1])
    stock_fit(net, vectors([0, 1]), callbacks)
    with pytest.raises(TypeError, match=r"list of 3, .*put `Teacher` behind"):
        stock_fit(net, vectors([2, 3]), callbacks)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.zeros(3), 0)] * 8)


def test_a_stock_fit_needs_a_dataset_with_a_length() -> None:
    with pytest.raises(TypeError, match=r"expected one with a length.*update='batch'"):
        stock_fit(Net(), None, [ReplayBuffer(total=4)], loader=DataLoader(Endless(), batch_size=4))


def test_herding_needs_features() -> None:
    class NoFeatures(Net):
        features = None  # type: ignore[assignment]

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    net = NoFeatures()
    with pytest.raises(TypeError, match=r"features"):
        stock_fit(net, vectors([0, 1]), [ReplayBuffer(total=4, selection="herding")])


def test_an_empty_buffer_is_true_and_says_its_budget() -> None:
    buffer = ReplayBuffer(per_class=3, selection="balanced")
    assert buffer
    assert len(buffer) == 0
    assert repr(buffer) == "ReplayBuffer(per_class=3, selection='balanced', update='task')"
    assert repr(ReplayBuffer(total=8)) == "ReplayBuffer(total=8, selection='reservoir', update='task')"
