import json
import math
import multiprocessing
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lightning_cil._random import counter_hash, fold_seed, permutation, uniform
from lightning_cil.data import FileImages, StreamLoader, TensorImages

checked = settings(
    max_examples=120, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)

TASK_OF = torch.tensor([0, 0, 1, 1, 1])
"""Task of five incremental labels."""


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def noisy(image, key):
    return (pixels(image).int() + int(100 * uniform(key))).to(torch.uint8)


def memory_split(count, channels=1):
    """Every image holds its position, and no two are equal."""
    position = torch.arange(count)
    images = torch.stack([position % 256, position // 256], dim=1).to(torch.uint8)
    return TensorImages(images.view(count, 1, 1, 2).expand(count, channels, 1, 2), position * 3 % 5, 5, "here")


@pytest.fixture
def file_split(tmp_path):
    def make(count):
        paths = [tmp_path / f"{i}.png" for i in range(count)]
        for i, path in enumerate(paths):
            Image.new("RGB", (3, 2), (i, 2 * i, 100)).save(path)
        return FileImages(paths, torch.arange(count) * 3 % 5, 5, "here", noisy, pixels)

    return make


def loader(split, batch_size, *, shuffle=True, indices=None, **options):
    indices = torch.arange(len(split)) if indices is None else indices
    labels = 4 - split.targets  # not the original ids
    return StreamLoader(split, indices, labels, TASK_OF, batch_size, shuffle=shuffle, **options)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def workers():
    return {process.pid for process in multiprocessing.active_children()}


# ---------------------------------------------------------------------- what is in a batch


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("num_workers", [None, 0, 2], ids=["memory", "files", "files, 2 workers"])
def test_batch_belongs_to_its_indices(file_split, num_workers, shuffle):
    split = memory_split(12) if num_workers is None else file_split(12)
    indices = torch.tensor([1, 2, 3, 5, 7, 8, 9, 11])
    load = loader(split, 3, shuffle=shuffle, indices=indices, seed=9, num_workers=num_workers or 0)
    for epoch in range(2):
        for batch in load:
            index = batch["index"]
            assert set(index.tolist()) <= set(indices.tolist())
            assert torch.equal(batch["target"], 4 - split.targets[index])
            assert torch.equal(batch["task"], TASK_OF[batch["target"]])
            assert batch["image"].dtype == torch.uint8
            if shuffle:
                assert batch.keys() == {"image", "target", "index", "task", "key"}
                assert torch.equal(batch["key"], counter_hash(index, 9, epoch))
            else:
                assert batch.keys() == {"image", "target", "index", "task"}
            if shuffle and isinstance(split, FileImages):
                expected = [
                    split.load(i, fold_seed(k)) for i, k in zip(index.tolist(), batch["key"].tolist(), strict=True)
                ]
                assert torch.equal(batch["image"], torch.stack(expected))
            else:
                assert torch.equal(batch["image"], split.stored(index))


# ---------------------------------------------------------------------- order


def where(load):
    state = load.state_dict()
    assert state.pop("global_batch") == load.batch_size * load.world_size
    return state


def indices_of(batches):
    return [batch["index"].tolist() for batch in batches]


def order_of(batches):
    return [i for batch in batches for i in batch["index"].tolist()]


def test_order_is_a_function_of_seed_and_epoch():
    split = memory_split(60)
    one, same, other = (loader(split, 6, seed=s) for s in (1, 1, 2))
    epochs = [order_of(one) for _ in range(4)]
    torch.manual_seed(5)
    assert [order_of(same) for _ in range(4)] == epochs
    epochs += [order_of(other) for _ in range(4)]
    assert all(sorted(order) == list(range(60)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 8
    assert epochs[2] == permutation(60, 1, 2).tolist()


def test_keys_differ_between_samples_epochs_and_seeds():
    split = memory_split(50)
    keys = [b["key"] for seed in (1, 2) for load in [loader(split, 10, seed=seed)] for _ in range(3) for b in load]
    assert len(torch.cat(keys).unique()) == 2 * 3 * 50


def test_every_sample_leaves_out_turns_equally():
    """The incomplete last batch is left out, a different one in each epoch."""
    load = loader(memory_split(10), 4)
    counts = sum(torch.bincount(torch.tensor(order_of(load)), minlength=10) for _ in range(1000))
    assert counts.sum() == 8000
    assert (counts - 800).abs().max() < 5 * math.sqrt(1000 * 0.8 * 0.2)


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(10, 4, [4, 4]), (8, 4, [4, 4]), (4, 4, [4]), (3, 4, [3]), (1, 4, [1]), (5, 1, [1] * 5), (7, 4, [4])],
)
def test_incomplete_last_training_batch_is_left_out_unless_it_is_the_only_one(count, batch_size, sizes):
    load = loader(memory_split(count), batch_size)
    for _ in range(2):
        batches = list(load)
        assert [len(b["index"]) for b in batches] == sizes
        assert len(load) == load.epoch_length() == len(sizes)
        assert len(set(order_of(batches))) == sum(sizes)


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 4, [3]), (1, 1, [1]), (5, 2, [2, 2, 1])],
)
def test_evaluation_is_in_order_and_complete(count, batch_size, sizes):
    load = loader(memory_split(count), batch_size, shuffle=False, indices=torch.arange(count).flip(0))
    for _ in range(2):
        batches = list(load)
        assert [len(b["index"]) for b in batches] == sizes
        assert len(load) == len(sizes)
        assert order_of(batches) == list(range(count))[::-1]


# ---------------------------------------------------------------------- ranks


@checked
@given(
    count=st.integers(1, 40),
    world=st.integers(1, 5),
    batch_size=st.integers(1, 7),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**40),
)
def test_ranks_share_the_batches_of_one_process(count, world, batch_size, shuffle, seed):
    split = memory_split(count)
    together = loader(split, batch_size * world, shuffle=shuffle, seed=seed)
    ranks = [loader(split, batch_size, shuffle=shuffle, seed=seed, rank=r, world_size=world) for r in range(world)]
    for _ in range(2):
        batches = list(together)
        shares = [list(rank) for rank in ranks]
        assert {len(share) for share in shares} == {len(batches)} == {len(rank) for rank in ranks}
        for whole, *parts in zip(batches, *shares, strict=True):
            joined = {name: torch.cat([part[name] for part in parts]) for name in whole}
            sizes = [len(part["index"]) for part in parts]
            assert max(sizes) <= batch_size
            if shuffle:  # equal shares, also of a set that is smaller than one batch
                assert sizes == [max(1, min(count, batch_size * world) // world)] * world
                rows = torch.arange(sum(sizes)) % len(whole["index"])
                assert equal(joined, {name: column[rows] for name, column in whole.items()})
            else:
                assert equal(joined, whole)
                assert max(sizes) - min(sizes) <= 1
        assert len({json.dumps(rank.state_dict()) for rank in [together, *ranks]}) == 1


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("count", [1, 5, 12, 13])
def test_evaluation_covers_every_sample_exactly_once_over_all_ranks(count, world):
    split = memory_split(30)
    indices = torch.arange(count) * 2
    ranks = [loader(split, 2, shuffle=False, indices=indices, rank=r, world_size=world) for r in range(world)]
    shares = [list(rank) for rank in ranks]
    assert {len(share) for share in shares} == {math.ceil(count / (2 * world))}
    seen = torch.cat([batch["index"] for share in shares for batch in share])
    assert sorted(seen.tolist()) == indices.tolist()


@pytest.mark.parametrize("num_workers", [None, 0, 2], ids=["memory", "files", "files, 2 workers"])
def test_rank_without_a_share_gets_an_empty_batch_of_the_right_shape(file_split, num_workers):
    split = memory_split(3, channels=3) if num_workers is None else file_split(3)
    ranks = [loader(split, 1, shuffle=False, rank=r, world_size=2, num_workers=num_workers or 0) for r in (0, 1)]
    first, last = (list(rank)[-1] for rank in ranks)
    assert len(first["index"]) == 1
    assert last["image"].shape == (0, *first["image"].shape[1:])
    assert last["image"].dtype == torch.uint8
    for name in ("target", "index", "task"):
        assert last[name].shape == (0,)
        assert last[name].dtype == torch.int64


# ---------------------------------------------------------------------- resume

EPOCHS = 3


@pytest.mark.parametrize("num_workers", [None, 0, 2], ids=["memory", "files", "files, 2 workers"])
def test_resumed_at_any_batch_equals_the_uninterrupted_run(file_split, num_workers):
    """A checkpoint is written while the trainer works on a batch: at the first, a middle, the last of an epoch."""
    split = memory_split(11, channels=3) if num_workers is None else file_split(11)

    def make(**options):
        return loader(split, 3, seed=4, num_workers=num_workers or 0, **options)

    load = make()
    whole, states = [], [where(load)]
    for _ in range(EPOCHS):
        for batch in load:
            whole.append(batch)
            states.append(where(load))
    assert len(whole) == EPOCHS * 3
    assert states == [{"epoch": i // 3, "position": i % 3} for i in range(EPOCHS * 3 + 1)]
    for done, state in enumerate(states[:-1]):
        resumed = make()
        resumed.load_state_dict(json.loads(json.dumps(state)))
        assert where(resumed) == state
        rest = []
        while len(rest) < len(whole) - done:
            rest += list(resumed)
        assert len(rest) == len(whole) - done
        assert all(equal(a, b) for a, b in zip(rest, whole[done:], strict=True))
        assert where(resumed) == states[-1]


def test_every_rank_resumes_from_the_state_of_rank_zero():
    split = memory_split(30)

    def make(rank):
        return loader(split, 3, seed=4, rank=rank, world_size=3)

    source = iter(first := make(0))
    next(source)
    next(source)
    state = first.state_dict()
    for rank in range(3):
        resumed = make(rank)
        resumed.load_state_dict(state)
        assert equal(next(iter(resumed)), list(make(rank))[2])


@pytest.mark.parametrize(("batch_size", "world_size"), [(4, 2), (8, 1), (2, 4)])
def test_the_same_global_batch_goes_on_inside_an_epoch(batch_size, world_size):
    state = {"epoch": 1, "position": 2, "global_batch": 8}
    load = loader(memory_split(40), batch_size, world_size=world_size)
    load.load_state_dict(state)
    assert load.state_dict() == state


def test_another_global_batch_is_refused_inside_an_epoch_only():
    load = loader(memory_split(40), 4, world_size=2)
    load.load_state_dict({"epoch": 1, "position": 0, "global_batch": 5})
    assert where(load) == {"epoch": 1, "position": 0}
    with pytest.raises(ValueError, match=r"with 5 samples in a step .* `batch_size` that makes 5, or go on from"):
        load.load_state_dict({"epoch": 1, "position": 3, "global_batch": 5})


def test_iterator_that_nobody_asked_takes_nothing():
    """Lightning makes an iterator and throws it away."""
    load = loader(memory_split(12), 4)
    iter(load)
    assert where(load) == {"epoch": 0, "position": 0}
    assert equal(next(iter(load)), next(iter(loader(memory_split(12), 4))))


def test_used_loader_can_be_put_back():
    load = loader(memory_split(12), 4)
    first = list(load)
    list(load)
    load.load_state_dict({"epoch": 0, "position": 1})
    assert all(equal(a, b) for a, b in zip(list(load), first[1:], strict=True))


def test_training_goes_on_where_it_was_left():
    load, whole = (loader(memory_split(12), 4) for _ in range(2))
    for _ in load:
        break
    assert indices_of(load) == indices_of(whole)[1:]
    assert where(load) == {"epoch": 1, "position": 0}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_that_was_cut_short_begins_again(file_split, num_workers):
    """The sanity check and `limit_val_batches` leave an evaluation half-way."""
    load = loader(file_split(6), 2, shuffle=False, num_workers=num_workers)
    for expected in ([0, 1], [0, 1]):
        source = iter(load)
        assert next(source)["index"].tolist() == expected
        del source
    assert indices_of(load) == [[0, 1], [2, 3], [4, 5]]


def test_state_beyond_the_epoch_begins_the_next_one():
    """A run that goes on with larger batches must not find every further epoch empty."""
    load = loader(memory_split(12), 4, seed=1)
    load.load_state_dict({"epoch": 2, "position": 5})
    expected = loader(memory_split(12), 4, seed=1)
    expected.load_state_dict({"epoch": 3, "position": 0})
    assert indices_of(load) == indices_of(expected)
    assert where(load) == {"epoch": 4, "position": 0}


@pytest.mark.parametrize(
    ("limit", "length"), [(1.0, 5), (2, 2), (5, 5), (9, 5), (0.5, 2), (0.1, 1), (0, 1), (0.8, 4), (1, 1)]
)
def test_limited_epoch_is_an_epoch(limit, length):
    """`limit_train_batches`: the next epoch begins where Lightning's does."""
    load, full = loader(memory_split(20), 4, limit_batches=limit), loader(memory_split(20), 4)
    assert len(load) == 5  # Lightning applies its limit to this
    assert load.epoch_length() == length
    for epoch in range(3):
        assert indices_of(load) == indices_of(full)[:length]
        assert where(load) == {"epoch": epoch + 1, "position": 0}


# ---------------------------------------------------------------------- global state, processes


def global_states():
    numpy = np.random.get_state()
    return torch.get_rng_state().tolist(), numpy[1].tolist(), numpy[2:], random.getstate()


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("num_workers", [None, 0, 2], ids=["memory", "files", "files, 2 workers"])
def test_loading_leaves_the_global_generators_as_they_are(file_split, num_workers, shuffle):
    split = memory_split(9) if num_workers is None else file_split(9)
    before = global_states()
    load = loader(split, 4, shuffle=shuffle, num_workers=num_workers or 0)
    for _ in range(2):
        list(load)
    assert global_states() == before


def test_images_in_memory_start_no_process():
    load = loader(memory_split(9), 4, num_workers=2)
    before = workers()
    next(iter(load))
    assert workers() == before
    assert load.num_workers == 0


def test_training_processes_stay_until_the_loader_is_dropped(file_split):
    before = workers()
    load = loader(file_split(9), 4, num_workers=2)
    assert workers() == before
    started = set()
    for _ in range(3):
        list(load)
        started |= workers() - before
        assert len(started) == 2
        assert started <= workers()
    for _ in load:
        break
    del load
    assert not workers() & started


def test_evaluation_processes_end_with_the_evaluation(file_split):
    before = workers()
    loads = [loader(file_split(9), 4, shuffle=False, num_workers=2) for _ in range(2)]
    for load in loads:
        source = iter(load)
        next(source)
        assert len(workers() - before) == 2
        assert len(list(source)) == 2
        assert workers() == before
    source = iter(loads[0])  # and when it is broken off
    next(source)
    assert len(workers() - before) == 2
    del source, loads, load
    assert workers() == before


@pytest.mark.parametrize("shuffle", [True, False])
def test_broken_file_is_named(file_split, tmp_path, shuffle):
    split = file_split(4)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"2\.png: cannot be read as an image .*expected a complete JPEG, PNG"):
        list(loader(split, 4, shuffle=shuffle))


def test_broken_file_is_named_by_the_process_that_decodes_it(file_split, tmp_path):
    split = file_split(4)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:40])
    load = loader(split, 4, num_workers=2)
    with pytest.raises(ValueError, match=r"2\.png: cannot be read as an image .*expected a complete JPEG, PNG"):
        list(load)
    load._workers._iterator._shutdown_workers()  # left to the garbage collector, pipes may be closed twice


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_must_be_positive(batch_size):
    with pytest.raises(ValueError, match="batch_size") as error:
        loader(memory_split(3), batch_size)
    assert str(error.value) == f"`batch_size={batch_size}`: expected at least 1."


@pytest.mark.parametrize("shuffle", [True, False])
def test_nothing_to_load_is_refused(shuffle):
    with pytest.raises(ValueError, match="no sample") as error:
        loader(memory_split(3), 1, shuffle=shuffle, indices=torch.tensor([], dtype=torch.int64))
    assert str(error.value) == "here: no sample for this task; expected at least one in every class."
