import hashlib
import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_cil._random import counter_hash
from lightning_cil.data.splits import class_order, holdout, make_tasks, task_sizes
from lightning_cil.types import Task

checked = settings(
    max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


# ---------------------------------------------------------------------- class_order


@pytest.mark.parametrize(
    ("num_classes", "starts", "ends", "digest"),
    [
        (100, [68, 56, 78, 8, 23, 84, 90, 65, 74, 76], [29, 49, 57, 33], "88fdb256f51cc112"),
        (200, [168, 136, 51, 9, 183], [], "3b55531a29f4506f"),
        (1000, [54, 7, 894, 512, 126], [], "bae3be47b917b042"),
    ],
)
def test_seed_1993_gives_the_order_of_icarl_and_pycil(num_classes, starts, ends, digest):
    order = class_order("seed:1993", num_classes)
    assert order[: len(starts)] == starts
    assert order[num_classes - len(ends) :] == ends
    compact = json.dumps(order, separators=(",", ":"))
    assert hashlib.sha256(compact.encode()).hexdigest()[:16] == digest
    assert {type(c) for c in order} == {int}


@pytest.mark.parametrize("seed", [0, 1, 1993, 2**32 - 1])
def test_seeded_order_is_icarls_shuffle_in_place(seed):
    expected = np.arange(50)
    np.random.RandomState(seed).shuffle(expected)
    assert class_order(f"seed:{seed}", 50) == expected.tolist()


def test_order_neither_reads_nor_writes_numpys_global_state():
    np.random.seed(1)
    before = np.random.get_state()
    order = class_order("seed:1993", 10)
    after = np.random.get_state()
    assert before[2:] == after[2:]
    assert np.array_equal(before[1], after[1])
    np.random.seed(2)
    assert class_order("seed:1993", 10) == order
    assert class_order("seed:1994", 10) != order


def test_sorted_and_listed_orders():
    assert class_order("sorted", 4) == [0, 1, 2, 3]
    assert class_order([2, 0, 1], 3) == [2, 0, 1]
    listed = class_order(tuple(np.array([2, 0, 1])), 3)
    assert listed == [2, 0, 1]
    assert {type(c) for c in listed} == {int}


@pytest.mark.parametrize(
    "spec", ["", "random", "SORTED", "seed", "seed:", "seed:-1", "seed:1.5", "seed:x", "seed:4294967296", "sorted:3"]
)
def test_unknown_order_is_refused_with_the_choices(spec):
    with pytest.raises(ValueError, match="is unknown: expected 'sorted', 'seed:N'") as error:
        class_order(spec, 10)
    assert str(error.value) == (
        f"`class_order={spec!r}` is unknown: expected 'sorted', 'seed:N' with 0 <= N < 2**32 "
        "(for example 'seed:1993'), or a list of class ids."
    )


ONCE = "expected each of the 3 classes once. Remove the duplicates"


@pytest.mark.parametrize(
    ("spec", "num_classes", "message"),
    [
        ([0, 1, 1], 3, f"`class_order` lists class 1 more than once; {ONCE}."),
        ([0, 1, 2, 1], 3, f"`class_order` lists class 1 more than once; {ONCE}."),
        ([2, 1, 2, 1], 3, f"`class_order` lists class 1 more than once; {ONCE} ([1, 2])."),
        ([0, 1, 3], 3, "`class_order` holds class 3; expected ids from 0 to 2."),
        ([0, -1, 1], 3, "`class_order` holds class -1; expected ids from 0 to 2."),
        ([0, 1, 2, 3], 3, "`class_order` holds class 3; expected ids from 0 to 2."),
        (
            [3, 0],
            4,
            "`class_order` lists 2 classes, the data set has 4: missing [1, 2]. List every class once.",
        ),
        (
            [],
            10,
            "`class_order` lists 0 classes, the data set has 10: missing [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]. "
            "List every class once.",
        ),
        (
            [0],
            12,
            "`class_order` lists 1 classes, the data set has 12: missing [1, 2, 3, 4, 5, 6, 7, 8, 9, 10] …. "
            "List every class once.",
        ),
    ],
)
def test_wrong_list_is_refused_with_what_is_wrong(spec, num_classes, message):
    with pytest.raises(ValueError, match=r"^`class_order` ") as error:
        class_order(spec, num_classes)
    assert str(error.value) == message


# ---------------------------------------------------------------------- task_sizes


@pytest.mark.parametrize(
    ("num_classes", "description", "sizes"),
    [
        (100, {"num_tasks": 10}, [10] * 10),
        (100, {"num_tasks": 20}, [5] * 20),
        (10, {"num_tasks": 1}, [10]),
        (10, {"num_tasks": 10}, [1] * 10),
        (100, {"base": 50, "increment": 10}, [50, 10, 10, 10, 10, 10]),
        (100, {"base": 0, "increment": 20}, [20] * 5),
        (20, {"base": 4, "increment": 2}, [4] + [2] * 8),
        (10, {"base": 10, "increment": 3}, [10]),
        (10, {"base": 9, "increment": 1}, [9, 1]),
        (10, {"sizes": [1, 7, 2]}, [1, 7, 2]),
        (10, {"sizes": (10,)}, [10]),
    ],
)
def test_each_description_gives_its_sizes(num_classes, description, sizes):
    assert task_sizes(num_classes, **description) == sizes


OPTIONS = {"num_tasks": 2, "base": 2, "increment": 2, "sizes": [2, 2]}
COMPLETE = [{"num_tasks"}, {"base", "increment"}, {"sizes"}]


@pytest.mark.parametrize("given", [set(c) for n in range(5) for c in itertools.combinations(OPTIONS, n)], ids=sorted)
def test_exactly_one_complete_description_is_accepted(given):
    description = {name: OPTIONS[name] for name in given}
    if given in COMPLETE:
        assert task_sizes(4, **description) == [2, 2]
    elif given in ({"base"}, {"increment"}):
        with pytest.raises(ValueError, match=r"^got `base=.*; expected `base` >= 0 and `increment` >= 1\.$"):
            task_sizes(4, **description)
    else:
        with pytest.raises(ValueError, match="expected exactly one of `num_tasks`, `base` with `increment`, or"):
            task_sizes(4, **description)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (
            {"num_tasks": 5, "base": 4},
            "got `num_tasks=5`, `base=4`, `increment=None`, `sizes=None`; expected exactly one of `num_tasks`, "
            "`base` with `increment`, or `sizes`. Set the others to null.",
        ),
        (
            {"num_tasks": 3},
            "`num_tasks=3` does not divide 20 classes into equal tasks. Choose a divisor, or give the uneven `sizes`.",
        ),
        (
            {"num_tasks": 0},
            "`num_tasks=0` does not divide 20 classes into equal tasks. Choose a divisor, or give the uneven `sizes`.",
        ),
        (
            {"num_tasks": -4},
            "`num_tasks=-4` does not divide 20 classes into equal tasks. Choose a divisor, or give the uneven `sizes`.",
        ),
        (
            {"num_tasks": 40},
            "`num_tasks=40` does not divide 20 classes into equal tasks. Choose a divisor, or give the uneven `sizes`.",
        ),
        ({"base": 4}, "got `base=4` and `increment=None`; expected `base` >= 0 and `increment` >= 1."),
        ({"increment": 4}, "got `base=None` and `increment=4`; expected `base` >= 0 and `increment` >= 1."),
        ({"base": -1, "increment": 3}, "got `base=-1` and `increment=3`; expected `base` >= 0 and `increment` >= 1."),
        ({"base": 4, "increment": 0}, "got `base=4` and `increment=0`; expected `base` >= 0 and `increment` >= 1."),
        (
            {"base": 4, "increment": 5},
            "`base=4` and `increment=5` do not add up to 20 classes (16 remain after the first task). "
            "Change them, or give the uneven `sizes`.",
        ),
        (
            {"base": 24, "increment": 2},
            "`base=24` and `increment=2` do not add up to 20 classes (-4 remain after the first task). "
            "Change them, or give the uneven `sizes`.",
        ),
        ({"sizes": []}, "`sizes=[]`: expected at least one task and at least 1 class in each."),
        ({"sizes": [20, 0]}, "`sizes=[20, 0]`: expected at least one task and at least 1 class in each."),
        ({"sizes": [21, -1]}, "`sizes=[21, -1]`: expected at least one task and at least 1 class in each."),
        (
            {"sizes": [10, 9]},
            "`sizes=[10, 9]` adds up to 19 classes, the data set has 20. Change the sizes so that they add up.",
        ),
    ],
)
def test_description_that_does_not_add_up_is_refused(description, message):
    with pytest.raises(ValueError, match=r"expected|does not divide|add") as error:
        task_sizes(20, **description)
    assert str(error.value) == message


@checked
@given(num_classes=st.integers(1, 60), num_tasks=st.integers(1, 60))
def test_equal_tasks_exist_exactly_for_divisors(num_classes, num_tasks):
    if num_classes % num_tasks == 0:
        sizes = task_sizes(num_classes, num_tasks=num_tasks)
        assert len(sizes) == num_tasks
        assert len(set(sizes)) == 1
        assert sum(sizes) == num_classes
    else:
        with pytest.raises(ValueError, match="does not divide"):
            task_sizes(num_classes, num_tasks=num_tasks)


@checked
@given(base=st.integers(0, 40), increment=st.integers(1, 20), further=st.integers(0, 12), off=st.integers(0, 19))
def test_base_and_increment_add_up_or_are_refused(base, increment, further, off):
    num_classes = base + increment * further + off % increment
    if num_classes == 0:
        return
    if off % increment:
        with pytest.raises(ValueError, match="do not add up"):
            task_sizes(num_classes, base=base, increment=increment)
        return
    expected = [base] if base else []
    while sum(expected) < num_classes:
        expected.append(increment)
    assert task_sizes(num_classes, base=base, increment=increment) == expected


@checked
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), excess=st.integers(-3, 3))
def test_listed_sizes_are_kept_or_refused(sizes, excess):
    if excess == 0:
        assert task_sizes(sum(sizes), sizes=sizes) == sizes
    else:
        with pytest.raises(ValueError, match=rf"adds up to {sum(sizes)} classes"):
            task_sizes(sum(sizes) + excess, sizes=sizes)


# ---------------------------------------------------------------------- make_tasks


def test_tasks_of_given_sizes():
    assert make_tasks([3, 1, 2]) == [Task(0, 0, 3, 3), Task(1, 3, 1, 3), Task(2, 4, 2, 3)]


@checked
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_tasks_are_consecutive_blocks_of_all_classes(sizes):
    tasks = make_tasks(sizes)
    assert [c for task in tasks for c in task.classes] == list(range(sum(sizes)))
    assert [len(task.classes) for task in tasks] == sizes
    assert [task.index for task in tasks] == list(range(len(sizes)))
    assert [task.is_first for task in tasks] == [True] + [False] * (len(sizes) - 1)
    assert [task.is_last for task in tasks] == [False] * (len(sizes) - 1) + [True]
    for before, task in itertools.pairwise(tasks):
        assert task.num_old == before.num_seen
    assert tasks[-1].num_seen == sum(sizes)


# ---------------------------------------------------------------------- holdout

TARGETS = st.lists(st.integers(0, 5), max_size=60)
FRACTIONS = st.floats(0.001, 0.999)
SEEDS = st.integers(0, 2**40)


def slow_holdout(targets, fraction, seed):
    held = []
    for label in sorted(set(targets)):
        members = [i for i, t in enumerate(targets) if t == label]
        members.sort(key=lambda i: counter_hash(torch.tensor(i), seed).item())
        count = round(fraction * len(members))
        if count == 0:
            count = 1
        if count >= len(members):
            count = len(members) - 1
        held += members[:count]
    return [i for i in range(len(targets)) if i not in held], sorted(held)


@checked
@given(targets=TARGETS, fraction=FRACTIONS, seed=SEEDS)
def test_holdout_equals_a_slow_reference(targets, fraction, seed):
    train, held = holdout(torch.tensor(targets, dtype=torch.int64), fraction, seed)
    assert train.dtype == held.dtype == torch.int64
    assert (train.tolist(), held.tolist()) == slow_holdout(targets, fraction, seed)


@checked
@given(targets=TARGETS, fraction=FRACTIONS, seed=SEEDS)
def test_holdout_is_a_stratified_partition(targets, fraction, seed):
    train, held = (part.tolist() for part in holdout(torch.tensor(targets, dtype=torch.int64), fraction, seed))
    assert sorted(train + held) == list(range(len(targets)))
    assert train == sorted(train)
    assert held == sorted(held)
    for label in set(targets):
        total = targets.count(label)
        taken = sum(targets[i] == label for i in held)
        if total == 1:
            assert taken == 0
        else:
            assert 1 <= taken <= total - 1
            assert abs(taken - fraction * total) <= 0.5 or taken in (1, total - 1)


@checked
@given(targets=st.lists(st.integers(0, 5), min_size=4, max_size=60), seed=SEEDS)
def test_held_out_samples_of_a_class_do_not_depend_on_the_others(targets, seed):
    _, held = holdout(torch.tensor(targets), 0.3, seed)
    for label in set(targets):
        _, alone = holdout(torch.tensor([t if t == label else 99 for t in targets]), 0.3, seed)
        assert [i for i in alone.tolist() if targets[i] == label] == [i for i in held.tolist() if targets[i] == label]


def test_holdout_is_a_function_of_the_seed_alone():
    targets = torch.arange(2000) % 10
    torch.manual_seed(1)
    before = torch.get_rng_state()
    train, held = holdout(targets, 0.1, 7)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again = holdout(targets, 0.1, 7)
    assert torch.equal(train, again[0])
    assert torch.equal(held, again[1])
    other = holdout(targets, 0.1, 8)[1]
    assert len(held) == len(other) == 200
    # two independent tenths of 2000 share 20 +- 4
    assert len(set(held.tolist()) & set(other.tolist())) < 40


def test_every_sample_is_held_out_equally_often():
    counts = sum(torch.zeros(20).index_fill(0, holdout(torch.zeros(20), 0.25, seed)[1], 1) for seed in range(2000))
    assert counts.sum() == 5 * 2000
    assert (counts - 500).abs().max() < 5 * (2000 * 0.25 * 0.75) ** 0.5


def test_fraction_zero_holds_nothing_out():
    train, held = holdout(torch.tensor([0, 1, 1]), 0, 3)
    assert train.tolist() == [0, 1, 2]
    assert held.tolist() == []
    assert held.dtype == torch.int64


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_fraction_outside_the_unit_interval_is_refused(fraction):
    with pytest.raises(ValueError, match="val_fraction") as error:
        holdout(torch.tensor([0, 1]), fraction, 0)
    assert str(error.value) == f"`val_fraction={fraction}`: expected a share in [0, 1), for example 0.1."
