"""DER++ against a slow reference, full and growing heads."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cil.losses import derpp_terms, logit_matching
from tests.losses import reference as slow


def test_terms_equal_the_reference() -> None:
    rows = {"logits": 3, "first": 4, "stored": 4, "second": 2}
    leaves = {
        name: slow.random_matrix(count, 5, seed).requires_grad_() for seed, (name, count) in enumerate(rows.items())
    }
    target, second_target = torch.tensor([4, 3, 4]), torch.tensor([0, 2])
    stored = leaves["stored"].detach()
    terms = derpp_terms(
        leaves["logits"],
        target,
        leaves["first"],
        leaves["stored"],
        leaves["second"],
        second_target,
        alpha=0.3,
        beta=0.7,
    )

    def reference(v: dict[str, Tensor]) -> float:
        total = slow.cross_entropy(v["logits"].tolist(), target.tolist(), 0, 5)
        total += 0.3 * slow.squared_distance(v["first"].tolist(), stored.tolist()) / 5
        return total + 0.7 * slow.cross_entropy(v["second"].tolist(), second_target.tolist(), 0, 5)

    loss = sum(terms.values())
    assert loss.item() == pytest.approx(reference(leaves), rel=1e-12)
    slow.check_gradients(loss, leaves, reference)


def test_full_head_is_the_plain_mean_squared_error() -> None:
    logits, stored = slow.random_matrix(4, 5, 0), slow.random_matrix(4, 5, 1)
    expected = F.mse_loss(logits, stored)
    torch.testing.assert_close(logit_matching(logits, stored), expected)
    torch.testing.assert_close(logit_matching(logits, stored, torch.full((4,), 5)), expected)


def test_grown_head_is_compared_where_it_existed() -> None:
    logits, stored = slow.random_matrix(3, 6, 0).requires_grad_(), slow.random_matrix(3, 4, 1)
    width = torch.tensor([2, 4, 0])
    stored[0, 2:] = float("nan")
    stored[2] = float("nan")
    pairs = zip(logits.tolist(), stored.tolist(), width.tolist(), strict=True)
    means = [sum((z[c] - h[c]) ** 2 for c in range(count)) / max(count, 1) for z, h, count in pairs]
    loss = logit_matching(logits, stored, width)
    assert loss.item() == pytest.approx(slow.mean(means))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()
    compared = torch.zeros(3, 6, dtype=torch.bool)
    compared[0, :2] = compared[1, :4] = True
    assert torch.equal(gradient != 0, compared)


def test_shares_of_a_batch_average_to_the_whole() -> None:
    logits, stored, width = slow.random_matrix(4, 6, 0), slow.random_matrix(4, 4, 1), torch.tensor([1, 4, 2, 3])
    whole = logit_matching(logits, stored, width)
    shares = [logit_matching(logits[i : i + 2], stored[i : i + 2], width[i : i + 2]) for i in (0, 2)]
    torch.testing.assert_close(sum(shares) / 2, whole)


def test_narrow_rows_without_widths_are_compared_whole() -> None:
    logits, stored = slow.random_matrix(3, 6, 0), slow.random_matrix(3, 4, 1)
    torch.testing.assert_close(logit_matching(logits, stored), F.mse_loss(logits[:, :4], stored))


def test_empty_buffer_leaves_the_cross_entropy() -> None:
    logits, empty = torch.zeros(2, 3, requires_grad=True), torch.zeros(0, 3)
    none = torch.zeros(0, dtype=torch.long)
    terms = derpp_terms(logits, torch.tensor([0, 1]), empty, empty, empty, none, stored_width=none)
    assert {name: round(term.item(), 6) for name, term in terms.items()} == {
        "cross_entropy": 1.098612,
        "logits": 0.0,
        "replay_cross_entropy": 0.0,
    }


def test_a_head_does_not_shrink() -> None:
    with pytest.raises(ValueError, match="Got `stored_logits` with 4 columns for logits with 3"):
        logit_matching(torch.zeros(1, 3), torch.zeros(1, 4))
