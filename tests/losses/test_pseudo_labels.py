"""The search for the pseudo-label threshold against a literal walk, its sums, and its ways out."""

import pytest
import torch

from lightning_cil.losses import PseudoLabelSearch, pseudo_labels

PROBABILITIES = [[0.953, 0.503, 0.102], [0.902, 0.703, 0.303], [0.852, 0.203, 0.052], [0.822, 0.782, 0.603]]
LOGITS = torch.tensor(PROBABILITIES).logit()


def walk(probabilities: list[list[float]], expected: float, search: PseudoLabelSearch) -> float | None:
    """KRT's search as it is written; `None` where it raises an error."""
    threshold = search.start
    for _ in range(search.max_moves + 1):
        positives = sum(q > threshold for row in probabilities for q in row) / len(probabilities)
        if abs(positives - expected) <= search.tolerance:
            return threshold
        threshold += search.step if positives > expected else -search.step
    return None


@pytest.mark.parametrize("expected", [0.25, 0.5, 0.75, 1.0, 1.5, 1.75, 2.0])
def test_threshold_is_that_of_the_literal_walk(expected: float) -> None:
    search = PseudoLabelSearch()
    literal = walk(PROBABILITIES, expected, search)
    assert literal is not None
    threshold, positives = search.find(search.counts(LOGITS), len(LOGITS), expected)
    assert threshold == pytest.approx(literal, abs=1e-9)
    labels = pseudo_labels(LOGITS, threshold)
    assert labels.sum().item() / len(LOGITS) == positives
    assert abs(positives - expected) <= search.tolerance


def test_counts_of_parts_add_up_and_are_those_of_a_loop() -> None:
    search = PseudoLabelSearch(start=0.5, step=0.03, max_moves=20)
    logits = 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    candidates = search.candidates()
    assert candidates.min() > 0
    assert candidates.max() < 1
    loop = [int((logits.sigmoid() > c.float()).sum()) for c in candidates]
    assert search.counts(logits).tolist() == loop
    assert torch.equal(search.counts(logits[:20]) + search.counts(logits[20:]), search.counts(logits))


def test_band_that_is_not_met_gives_the_closest_threshold() -> None:
    # Every probability is .9: the walk finds 1 above 2 expected and 0 below, for ever, and KRT raises an error.
    logits = torch.full((4, 1), 0.9).logit()
    search = PseudoLabelSearch()
    assert walk([[0.9]] * 4, 0.4, search) is None
    threshold, positives = search.find(search.counts(logits), 4, 0.4)
    assert positives == 0
    assert threshold == pytest.approx(0.9, abs=0.005 + 1e-6)
    threshold, positives = search.find(search.counts(logits), 4, 0.7)
    assert positives == 1
    assert 0.8 <= threshold < 0.9


@pytest.mark.parametrize(("expected", "positives"), [(9.0, 2.0), (0.0, 0.5)])
def test_walk_ends_at_its_last_move(expected: float, positives: float) -> None:
    search = PseudoLabelSearch(max_moves=20)  # .7 to .9
    logits = torch.tensor([[0.95, 0.75, 0.65], [0.88, 0.72, 0.3]]).logit()
    threshold, found = search.find(search.counts(logits), 2, expected)
    assert 0.7 - 1e-9 <= threshold <= 0.9 + 1e-9
    assert found == positives


@pytest.mark.parametrize("options", [{"start": 1.0}, {"step": 0.0}, {"tolerance": -0.1}, {"max_moves": -1}])
def test_bad_input_is_named(options) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"`{name}={options[name]}`"):
        PseudoLabelSearch(**options)
