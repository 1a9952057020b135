"""Filling in labels: known ones stay, the cut-off is strict, a quota takes the most likely ones."""

import math

import pytest
import torch

from lightning_cil.replay import fill_unknown, label_blocks, quota_cutoff


@pytest.mark.parametrize("seed", range(4))
def test_only_unknown_labels_that_are_asked_for_change(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 2, (9, 6), generator=generator).float()
    known, where = (torch.randint(0, 2, (9, 6), generator=generator).bool() for _ in range(2))
    logits = torch.randn(9, 6, generator=generator)
    before = target.clone()
    found, now = fill_unknown(target, known, logits, where, 0.3)
    for i in range(9):
        for c in range(6):
            filled = bool(where[i, c]) and not known[i, c]
            assert found[i, c] == (float(logits[i, c] > 0.3) if filled else before[i, c])
            assert now[i, c] == (filled or bool(known[i, c]))
    assert target.equal(before)


def test_a_score_at_the_cutoff_is_not_above_it() -> None:
    unknown = torch.zeros(1, 2, dtype=torch.bool)
    found, _ = fill_unknown(torch.zeros(1, 2), unknown, torch.tensor([[0.0, 1e-6]]), ~unknown, 0.0)
    assert found.tolist() == [[0, 1]]


@pytest.mark.parametrize(("share", "positives"), [(0.0, 0), (0.12, 1), (0.5, 5), (1.0, 10)])
def test_a_quota_takes_the_most_likely(share: float, positives: int) -> None:
    scores = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    chosen = scores > quota_cutoff(scores, share)
    assert chosen.sum() == positives
    if 0 < positives < 10:
        assert scores[chosen].min() > scores[~chosen].max()


def test_extremes_and_what_cannot_be() -> None:
    assert quota_cutoff(torch.empty(0), 0.5) == -math.inf
    with pytest.raises(ValueError, match="share"):
        quota_cutoff(torch.zeros(3), 1.5)
    with pytest.raises(ValueError, match="expected the same"):
        fill_unknown(torch.zeros(1, 2), torch.zeros(1, 3).bool(), torch.zeros(1, 2), torch.zeros(1, 2).bool(), 0.0)


def test_blocks_count_every_label_once() -> None:
    mask = torch.rand(20, 6, generator=torch.Generator().manual_seed(1)) > 0.4
    rows, classes = torch.arange(20) % 3, torch.tensor([0, 0, 1, 2, 2, 2])
    found = label_blocks(mask, rows, classes, 3)
    expected = [[int(mask[rows == i][:, classes == j].sum()) for j in range(3)] for i in range(3)]
    assert found.tolist() == expected
