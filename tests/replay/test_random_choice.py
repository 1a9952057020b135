"""Seeded random exemplars."""

import pytest
import torch

from lightning_cil.replay import random_choice


def test_choice_is_distinct_and_deterministic() -> None:
    index = torch.arange(100, 150)
    chosen = random_choice(index, 20, 0)
    assert chosen.dtype == torch.int64
    assert len(set(chosen.tolist())) == 20
    assert torch.equal(chosen, random_choice(index, 20, 0))
    assert not torch.equal(chosen, random_choice(index, 20, 1))


def test_fewer_is_a_prefix_of_more() -> None:
    index = torch.arange(50)
    order = random_choice(index, 50, 3)
    for count in range(51):
        assert torch.equal(random_choice(index, count, 3), order[:count])
    assert torch.equal(random_choice(index, 99, 3), order)


def test_the_same_examples_are_chosen_in_whatever_order_they_stand() -> None:
    index = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:80]
    shuffle = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    assert torch.equal(index[random_choice(index, 10, 5)], index[shuffle][random_choice(index[shuffle], 10, 5)])


def test_every_example_is_equally_likely_at_every_place() -> None:
    runs, size = 3000, 10
    counts = torch.zeros(size, size)
    for seed in range(runs):
        counts[torch.arange(size), random_choice(torch.arange(size), size, seed)] += 1
    assert (counts - runs / size).abs().max() < 5 * (runs / size) ** 0.5


def test_the_result_does_not_hold_on_to_a_larger_tensor() -> None:
    chosen = random_choice(torch.arange(10_000), 5, 0)
    assert chosen.untyped_storage().nbytes() == 5 * 8


@pytest.mark.parametrize(("shape", "count"), [((3, 2), 1), ((), 1), ((3,), -1)])
def test_bad_arguments_are_refused(shape: tuple[int, ...], count: int) -> None:
    with pytest.raises(ValueError, match=r"Got `index` of shape .*expected \[n\]"):
        random_choice(torch.zeros(shape, dtype=torch.int64), count, 0)
