"""Reservoir sampling against a loop, its statistics, and its independence of how offers are cut into calls."""

import math
from collections import Counter

import pytest
import torch

from lightning_cil._random import counter_uniform
from lightning_cil.replay import last_writers, reservoir_slots


def slow_slots(num_seen: int, num_offered: int, capacity: int, seed: int) -> list[int]:
    """Algorithm R, one offer after the other."""
    slots = []
    for n in range(num_seen, num_seen + num_offered):
        if n < capacity:
            slots.append(n)
        else:
            r = math.floor(counter_uniform(torch.tensor(n), seed).item() * (n + 1))
            slots.append(r if r < capacity else -1)
    return slots


@pytest.mark.parametrize("capacity", [0, 1, 7, 200])
@pytest.mark.parametrize("num_seen", [0, 5, 190])
def test_slots_equal_the_loop(num_seen: int, capacity: int) -> None:
    slots = reservoir_slots(num_seen, 100, capacity, seed=3)
    assert slots.dtype == torch.int64
    assert slots.tolist() == slow_slots(num_seen, 100, capacity, seed=3)


@pytest.mark.parametrize("sizes", [[1] * 50, [50], [13, 0, 37], [7, 7, 7, 29]])
def test_many_small_calls_equal_one_big_call(sizes: list[int]) -> None:
    parts, seen = [], 0
    for size in sizes:
        parts.append(reservoir_slots(seen, size, 6, seed=1))
        seen += size
    assert torch.equal(torch.cat(parts), reservoir_slots(0, 50, 6, seed=1))


def test_seeds_give_different_slots() -> None:
    assert not torch.equal(reservoir_slots(0, 500, 50, seed=0), reservoir_slots(0, 500, 50, seed=1))


def test_slots_stay_in_range_for_huge_counts() -> None:
    slots = reservoir_slots(2**40, 1000, 2**39, seed=0)
    assert slots.max() < 2**39
    assert 400 < (slots >= 0).sum() < 600


def test_every_offer_is_kept_with_the_same_probability() -> None:
    """K of N are in the buffer each time, each offer with probability K/N, late ones in each slot alike."""
    num_offered, capacity, runs = 30, 6, 4000
    kept, cells = Counter[int](), Counter[tuple[int, int]]()
    for seed in range(runs):
        rows, slots = last_writers(reservoir_slots(0, num_offered, capacity, seed))
        assert slots.tolist() == list(range(capacity))
        kept.update(rows.tolist())
        cells.update((row, slot) for row, slot in zip(rows.tolist(), slots.tolist(), strict=True))
    probability = capacity / num_offered
    spread = math.sqrt(runs * probability * (1 - probability))
    assert max(abs(kept[n] - runs * probability) for n in range(num_offered)) < 4 * spread
    chi_square = sum((kept[n] - runs * probability) ** 2 for n in range(num_offered)) / spread**2
    # 29 degrees of freedom up to the factor 30/29 of draws without replacement: mean 29, deviation 7.6
    assert chi_square * 29 / 30 < 29 + 5 * 7.6
    late = [cells[n, slot] for n in range(capacity, num_offered) for slot in range(capacity)]
    expected = runs / num_offered
    assert max(abs(count - expected) for count in late) < 5 * math.sqrt(expected)


def test_last_writers_equal_the_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        slots = torch.randint(-3, 8, (int(torch.randint(0, 20, (), generator=generator)),), generator=generator)
        expected = {slot: row for row, slot in enumerate(slots.tolist()) if slot >= 0}  # later rows replace earlier
        rows, written = last_writers(slots)
        assert written.tolist() == sorted(expected)
        assert rows.tolist() == [expected[slot] for slot in sorted(expected)]


def test_offers_written_in_one_go_equal_offers_written_one_by_one() -> None:
    values, buffer = torch.arange(100), [-1] * 9
    slots = reservoir_slots(0, 100, 9, seed=5)
    for value, slot in zip(values.tolist(), slots.tolist(), strict=True):
        if slot >= 0:
            buffer[slot] = value
    rows, written = last_writers(slots)
    assert values[rows].tolist() == buffer
    assert written.tolist() == list(range(9))


@pytest.mark.parametrize("arguments", [(-1, 1, 1), (0, -1, 1), (0, 1, -1)])
def test_negative_counts_are_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"Got `num_seen=.*expected counts of at least 0"):
        reservoir_slots(*arguments, seed=0)


def test_slots_must_be_a_vector() -> None:
    with pytest.raises(ValueError, match=r"Got `slots` of shape \[2, 2\]"):
        last_writers(torch.zeros(2, 2, dtype=torch.int64))
