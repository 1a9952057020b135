"""The exemplar store: rows in, rows out, memory, checkpoints and clear refusals."""

import io
import itertools

import pytest
import torch
from torch import Tensor

from lightning_cil.replay import ExemplarStore, last_writers, reservoir_slots


def samples(first: int, count: int) -> dict[str, Tensor]:
    """Rows whose content tells their number: uint8 images, long targets, float logits, bool masks."""
    number = torch.arange(first, first + count)
    return {
        "image": (number.reshape(-1, 1, 1, 1) + torch.zeros(1, 3, 4, 4, dtype=torch.int64)).to(torch.uint8),
        "target": number,
        "logits": number.unsqueeze(1) / torch.tensor([1.0, 7.0]),
        "known": number.unsqueeze(1) % torch.tensor([2, 3]) == 0,
    }


def assert_holds(store: ExemplarStore, numbers: list[int]) -> None:
    expected = {name: torch.cat([samples(n, 1)[name] for n in numbers]) for name in samples(0, 1)}
    assert len(store) == len(numbers)
    for name, values in expected.items():
        assert store.column(name).dtype == values.dtype
        assert torch.equal(store.column(name), values)


@pytest.fixture(params=[None, 20], ids=["growing", "fixed"])
def store(request: pytest.FixtureRequest) -> ExemplarStore:
    return ExemplarStore(capacity=request.param)


def test_appended_rows_come_back(store: ExemplarStore) -> None:
    for first, count in [(0, 3), (3, 1), (4, 0), (4, 9)]:
        store.append(samples(first, count))
    assert_holds(store, list(range(13)))
    rows = torch.tensor([12, 0, 0, 5])
    gathered = store.gather(rows)
    assert list(gathered) == ["image", "target", "logits", "known"]
    for name, values in samples(0, 13).items():
        assert torch.equal(gathered[name], values[rows])


def test_gathered_rows_are_copies_and_columns_are_views(store: ExemplarStore) -> None:
    store.append(samples(0, 3))
    store.gather(torch.tensor([0]))["target"].fill_(99)
    assert_holds(store, [0, 1, 2])
    store.column("target")[1] = 99
    assert store.gather(torch.tensor([1]))["target"].tolist() == [99]


def test_written_rows_are_copies(store: ExemplarStore) -> None:
    rows = samples(0, 3)
    store.append(rows)
    rows["target"].fill_(99)
    assert_holds(store, [0, 1, 2])


def test_write_overwrites_and_grows(store: ExemplarStore) -> None:
    store.append(samples(0, 3))
    store.write(torch.tensor([4, 1, 3]), samples(10, 3))
    assert_holds(store, [0, 11, 2, 12, 10])
    store.write(torch.zeros(0, dtype=torch.int64), samples(0, 0))
    assert_holds(store, [0, 11, 2, 12, 10])


def test_write_fills_an_empty_store(store: ExemplarStore) -> None:
    store.write(torch.tensor([2, 0, 1]), samples(5, 3))
    assert_holds(store, [6, 7, 5])


def test_reservoir_in_batches_equals_a_list(store: ExemplarStore) -> None:
    reference: list[int] = []
    for first in range(0, 200, 40):
        rows, slots = last_writers(reservoir_slots(first, 40, 20, seed=0))
        offered = samples(first, 40)
        store.write(slots, {name: values[rows] for name, values in offered.items()})
    for number, slot in enumerate(reservoir_slots(0, 200, 20, seed=0).tolist()):
        if slot == len(reference):
            reference.append(number)
        elif slot >= 0:
            reference[slot] = number
    assert_holds(store, reference)


@pytest.mark.parametrize(
    ("rows", "left"),
    [
        ([2, 0], [2, 0]),
        ([], []),
        ([4, 4, 1], [4, 4, 1]),
        ([True, False, False, True, False], [0, 3]),
    ],
)
def test_keep_drops_and_reorders(store: ExemplarStore, rows: list[int], left: list[int]) -> None:
    store.append(samples(0, 5))
    store.keep(torch.tensor(rows, dtype=torch.bool if True in rows and False in rows else torch.int64))
    assert_holds(store, left) if left else None
    assert len(store) == len(left)
    store.append(samples(30, 2))
    assert_holds(store, [*left, 30, 31])


def test_keep_on_an_empty_store_does_nothing(store: ExemplarStore) -> None:
    store.keep(torch.zeros(0, dtype=torch.int64))
    assert len(store) == 0
    assert store.gather(torch.zeros(0, dtype=torch.int64)) == {}


def test_clear_forgets_rows_and_columns(store: ExemplarStore) -> None:
    store.append(samples(0, 5))
    store.clear()
    assert len(store) == 0
    assert store.names == ()
    assert store.nbytes() == {}
    store.append({"index": torch.tensor([7])})
    assert store.names == ("index",)


@pytest.mark.parametrize("rows", [[3], [-4]])
def test_missing_rows_are_refused(store: ExemplarStore, rows: list[int]) -> None:
    """Also behind the last row, where a store with a capacity has memory."""
    store.append(samples(0, 3))
    with pytest.raises(IndexError):
        store.gather(torch.tensor(rows))
    with pytest.raises(IndexError):
        store.keep(torch.tensor(rows))
    assert_holds(store, [0, 1, 2])


# memory


def allocated(store: ExemplarStore) -> int:
    return sum(store.column(name).untyped_storage().nbytes() for name in store.names)


def test_nbytes_counts_the_rows(store: ExemplarStore) -> None:
    store.append(samples(0, 5))
    assert store.nbytes() == {"image": 5 * 48, "target": 5 * 8, "logits": 5 * 2 * 4, "known": 5 * 2}


def test_full_store_with_a_capacity_takes_no_more_than_its_rows() -> None:
    store = ExemplarStore(capacity=1000)
    for first in range(0, 1000, 10):
        store.append(samples(first, 10))
    store.write(torch.arange(500), samples(0, 500))
    store.keep(torch.arange(1000).flip(0))
    assert sum(store.nbytes().values()) == allocated(store)


def test_memory_with_a_capacity_is_allocated_once() -> None:
    store = ExemplarStore(capacity=50)
    store.append(samples(0, 1))
    before = store.column("image").data_ptr()
    store.append(samples(1, 20))
    store.keep(torch.tensor([3, 5]))
    store.write(torch.tensor([2]), samples(9, 1))
    assert store.column("image").data_ptr() == before


def test_growing_store_is_copied_seldom_and_is_at_most_half_as_large_again() -> None:
    store, moves, address = ExemplarStore(), 0, 0
    for number in range(2000):
        store.append({"index": torch.tensor([number])})
        moves += store.column("index").data_ptr() != address
        address = store.column("index").data_ptr()
        assert allocated(store) <= max(1.5 * sum(store.nbytes().values()), 16)
    assert moves < 25
    assert torch.equal(store.column("index"), torch.arange(2000))


# checkpoints


def test_state_survives_a_weights_only_checkpoint(store: ExemplarStore) -> None:
    store.append(samples(0, 6))
    file = io.BytesIO()
    torch.save(store.state_dict(), file)
    file.seek(0)
    other = ExemplarStore(capacity=20)
    other.append({"index": torch.tensor([1.0])})
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_holds(other, list(range(6)))
    assert other.digest() == store.digest()
    other.append(samples(6, 1))
    assert_holds(other, list(range(7)))


def test_a_store_that_lost_all_rows_is_saved_and_comes_back(tmp_path) -> None:
    store = ExemplarStore(capacity=50)
    store.append({"image": torch.zeros(50, 3, 8, 8, dtype=torch.uint8), "target": torch.arange(50)})
    store.keep(torch.zeros(0, dtype=torch.int64))
    torch.save(store.state_dict(copy=False), tmp_path / "store")
    assert (tmp_path / "store").stat().st_size < 50 * 3 * 8 * 8
    other = ExemplarStore(capacity=50)
    other.load_state_dict(torch.load(tmp_path / "store", weights_only=True))
    assert len(other) == 0


def test_state_is_a_snapshot_without_reserved_memory(store: ExemplarStore) -> None:
    for first in range(6):
        store.append(samples(first, 1))
    state = store.state_dict()
    store.column("target").fill_(99)
    assert state["target"].tolist() == [0, 1, 2, 3, 4, 5]
    assert state["target"].untyped_storage().nbytes() == 6 * 8
    other = ExemplarStore()
    other.load_state_dict(state)
    state["target"].fill_(99)
    assert_holds(other, [0, 1, 2, 3, 4, 5])


def test_state_without_a_copy_shares_the_rows_and_not_the_reserved_memory(store: ExemplarStore) -> None:
    for first in range(6):
        store.append(samples(first, 1))
    state, copied, files = store.state_dict(copy=False), store.state_dict(), []
    for name, values in state.items():
        assert values.data_ptr() == store.column(name).data_ptr()
        assert values.untyped_storage().nbytes() == store.nbytes()[name]
        assert values.dtype == copied[name].dtype
        assert torch.equal(values, copied[name])
    for content in (state, copied):
        file = io.BytesIO()
        torch.save(content, file)
        files.append(file.getvalue())
    assert len(files[0]) == len(files[1])


@pytest.mark.parametrize("count", [1, 40, 5000])
def test_ascending_rows_are_kept_without_moving_the_store(count: int) -> None:
    store = ExemplarStore(capacity=6000)
    store.append({"index": torch.arange(6000)})
    address = store.column("index").data_ptr()
    rows = torch.randperm(6000, generator=torch.Generator().manual_seed(count))[:count].sort().values
    store.keep(rows)
    assert torch.equal(store.column("index"), rows)
    assert store.column("index").data_ptr() == address


def test_empty_state_empties_the_store(store: ExemplarStore) -> None:
    store.append(samples(0, 2))
    store.load_state_dict(ExemplarStore().state_dict())
    assert len(store) == 0


def test_state_larger_than_the_capacity_is_refused_and_changes_nothing() -> None:
    store, large = ExemplarStore(capacity=3), ExemplarStore()
    store.append(samples(7, 2))
    large.append(samples(0, 4))
    with pytest.raises(ValueError, match="Got 4 rows in all, expected at most `capacity=3`"):
        store.load_state_dict(large.state_dict())
    assert_holds(store, [7, 8])


def test_rows_stored_in_inference_mode_can_be_changed_and_trained_on_later(store: ExemplarStore) -> None:
    with torch.inference_mode():
        store.append(samples(0, 4))
        store.keep(torch.tensor([2, 3]))
    store.column("logits")[0] = 0.0
    store.append(samples(4, 1))
    weight = torch.ones(2, requires_grad=True)
    (store.gather(torch.tensor([1, 2]))["logits"] * weight).sum().backward()
    assert weight.grad is not None


def test_stored_values_carry_no_graph(store: ExemplarStore) -> None:
    logits = torch.ones(2, 3, requires_grad=True) * 2
    store.append({"logits": logits})
    store.write(torch.tensor([0]), {"logits": logits[:1]})
    assert not store.column("logits").requires_grad


# digest


def test_equal_content_has_an_equal_digest() -> None:
    growing, fixed, reordered = ExemplarStore(), ExemplarStore(capacity=40), ExemplarStore()
    for first in range(9):
        growing.append(samples(first, 1))
    fixed.write(torch.arange(9).flip(0), {name: values.flip(0) for name, values in samples(0, 9).items()})
    reordered.append(dict(reversed(samples(0, 9).items())))
    assert growing.digest() == fixed.digest() == reordered.digest()
    assert len(growing.digest()) == 64


def test_different_content_has_a_different_digest() -> None:
    variants: list[dict[str, Tensor]] = [
        {},
        {"a": torch.zeros(4, dtype=torch.int64)},
        {"b": torch.zeros(4, dtype=torch.int64)},
        {"a": torch.zeros(4, dtype=torch.float64)},
        {"a": torch.zeros(4, 1, dtype=torch.int64)},
        {"a": torch.zeros(2, 2, dtype=torch.int64)},
        {"a": torch.zeros(0, dtype=torch.int64)},
        {"a": torch.tensor([0, 0, 0, 1])},
        {"a": torch.tensor([0, 0, 1, 0])},
        {"a": torch.zeros(4, dtype=torch.int64), "b": torch.zeros(4, dtype=torch.int64)},
        {"a": torch.zeros(8, dtype=torch.bool)},
        {"a": torch.zeros(8, dtype=torch.bfloat16)},
    ]
    digests = []
    for columns in variants:
        store = ExemplarStore()
        if columns:
            store.append(columns)
        digests.append(store.digest())
    assert len(set(digests)) == len(variants)


# refusals


@pytest.mark.parametrize("method", ["append", "write"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda c: c.pop("target"), r"Got columns \['image', 'known', 'logits'\], expected .*'target'", id="no"
        ),
        pytest.param(lambda c: c.update(extra=c["target"]), r"Got columns .*'extra'.*, expected ", id="extra"),
        pytest.param(lambda c: c.update(target=torch.zeros(3)), r"'target': 3.*expected equally many", id="length"),
        pytest.param(
            lambda c: c.update(target=torch.zeros(2)), r"'target' as torch.float32 .*expected torch.int64", id="type"
        ),
        pytest.param(
            lambda c: c.update(logits=torch.zeros(2, 3)), r"rows of shape \[3\], expected .*\[2\]", id="shape"
        ),
        pytest.param(lambda c: c.update(target=torch.tensor(3)), r"Got column 'target' as tensor\(3\)", id="scalar"),
        pytest.param(
            lambda c: c.update(target=[1, 2]), r"Got column 'target' as \[1, 2\], expected a tensor", id="list"
        ),
        pytest.param(lambda c: c.clear(), "Got no column", id="nothing"),
    ],
)
def test_columns_that_do_not_fit_are_refused_and_change_nothing(store, method: str, change, message: str) -> None:
    store.append(samples(0, 3))
    columns = samples(5, 2)
    change(columns)
    arguments = (torch.tensor([0, 3]),) if method == "write" else ()
    with pytest.raises(ValueError, match=message):
        getattr(store, method)(*arguments, columns)
    assert_holds(store, [0, 1, 2])


@pytest.mark.parametrize(
    "slots",
    [
        pytest.param([0, 0], id="twice"),
        pytest.param([-1, 0], id="negative"),
        pytest.param([3, 5], id="gap"),
        pytest.param([4, 5], id="gap at once"),
        pytest.param([3, 3], id="new twice"),
    ],
)
def test_bad_slots_are_refused_and_change_nothing(store: ExemplarStore, slots: list[int]) -> None:
    store.append(samples(0, 3))
    with pytest.raises(ValueError, match=r"Got `slots=.*with 3 rows stored, expected .*`last_writers`"):
        store.write(torch.tensor(slots), samples(5, 2))
    assert_holds(store, [0, 1, 2])


@pytest.mark.parametrize("slots", [torch.tensor([0]), torch.tensor([0.0, 1.0]), torch.tensor([[0], [1]])])
def test_slots_of_another_form_are_refused(store: ExemplarStore, slots: Tensor) -> None:
    with pytest.raises(ValueError, match=r"Got `slots` as .*for 2 new rows, expected torch.int64 of shape \[2\]"):
        store.write(slots, samples(0, 2))


def test_more_rows_than_the_capacity_are_refused() -> None:
    store = ExemplarStore(capacity=3)
    store.append(samples(0, 3))
    for change in (
        lambda: store.append(samples(3, 1)),
        lambda: store.write(torch.tensor([3]), samples(3, 1)),
        lambda: store.keep(torch.tensor([0, 0, 0, 0])),
    ):
        with pytest.raises(ValueError, match="Got 4 rows in all, expected at most `capacity=3`"):
            change()
    assert_holds(store, [0, 1, 2])


def test_unknown_column_is_refused(store: ExemplarStore) -> None:
    store.append(samples(0, 1))
    with pytest.raises(KeyError, match=r"Got column 'images', expected one of \['image', "):
        store.column("images")


def test_negative_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match="Got `capacity=-1`, expected at least 0"):
        ExemplarStore(capacity=-1)


def test_capacity_zero_stores_nothing() -> None:
    store = ExemplarStore(capacity=0)
    store.append(samples(0, 0))
    assert len(store) == 0
    with pytest.raises(ValueError, match="capacity=0"):
        store.append(samples(0, 1))


def test_random_operations_equal_a_list() -> None:
    generator = torch.Generator().manual_seed(0)
    for capacity in (None, 60):
        store, reference = ExemplarStore(capacity), list[int]()
        for number in itertools.chain.from_iterable([range(0, 200, 4)]):
            kind = int(torch.randint(3, (), generator=generator))
            if kind == 0 and len(reference) < 50:
                store.append(samples(number, 4))
                reference += range(number, number + 4)
            elif kind == 1 and len(reference) >= 2:
                slots = torch.randperm(len(reference), generator=generator)[:2]
                store.write(slots, samples(number, 2))
                reference[slots[0]], reference[slots[1]] = number, number + 1
            elif len(reference) >= 4:
                rows = torch.randperm(len(reference), generator=generator)[: len(reference) - 1]
                store.keep(rows)
                reference = [reference[row] for row in rows]
        assert len(reference) > 5
        assert_holds(store, reference)
