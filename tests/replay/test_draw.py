"""Drawing replay batches."""

import pytest
import torch

from lightning_cil.replay import draw_rows


@pytest.mark.parametrize(("num_stored", "num_drawn"), [(10, 10), (10, 3), (1, 1), (5000, 128), (4, 0), (0, 0)])
def test_enough_rows_are_drawn_without_replacement(num_stored: int, num_drawn: int) -> None:
    rows = draw_rows(num_stored, num_drawn, 1, 2)
    assert rows.dtype == torch.int64
    assert len(rows) == num_drawn
    assert len(rows.unique()) == num_drawn
    assert ((rows >= 0) & (rows < num_stored)).all()


@pytest.mark.parametrize(("num_stored", "num_drawn"), [(10, 11), (10, 20), (7, 64), (1, 5)])
def test_too_few_rows_come_equally_often_up_to_one(num_stored: int, num_drawn: int) -> None:
    counts = draw_rows(num_stored, num_drawn, 1, 2).bincount(minlength=num_stored)
    assert counts.sum() == num_drawn
    assert counts.min() == num_drawn // num_stored
    assert (counts > num_drawn // num_stored).sum() == num_drawn % num_stored


@pytest.mark.parametrize(("num_stored", "num_drawn"), [(100, 10), (10, 25)])
def test_draws_are_a_function_of_the_words(num_stored: int, num_drawn: int) -> None:
    torch.manual_seed(0)
    first = draw_rows(num_stored, num_drawn, 5, 7)
    state = torch.random.get_rng_state()
    assert torch.equal(first, draw_rows(num_stored, num_drawn, 5, 7))
    assert torch.equal(state, torch.random.get_rng_state())  # the global generator is not touched
    for words in [(5, 8), (7, 5), (5, 7, 1)]:
        assert not torch.equal(first, draw_rows(num_stored, num_drawn, *words))


@pytest.mark.parametrize(("num_stored", "num_drawn"), [(8, 3), (8, 11)])
def test_every_row_is_equally_likely_at_every_place(num_stored: int, num_drawn: int) -> None:
    runs = 4000
    counts = torch.zeros(num_drawn, num_stored)
    for step in range(runs):
        counts[torch.arange(num_drawn), draw_rows(num_stored, num_drawn, 0, step)] += 1
    expected = runs / num_stored
    assert (counts - expected).abs().max() < 5 * expected**0.5


def test_the_result_does_not_hold_on_to_a_larger_tensor() -> None:
    assert draw_rows(10_000, 5, 0).untyped_storage().nbytes() == 5 * 8


@pytest.mark.parametrize(("num_stored", "num_drawn"), [(0, 1), (-1, 0), (3, -1)])
def test_impossible_draws_are_refused(num_stored: int, num_drawn: int) -> None:
    with pytest.raises(ValueError, match=f"Got `num_stored={num_stored}`, `num_drawn={num_drawn}`"):
        draw_rows(num_stored, num_drawn, 0)
