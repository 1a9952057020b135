"""MEMO's auxiliary labels and loss."""

import pytest
import torch
from torch import Tensor

from lightning_cil.losses import auxiliary_target, memo_terms
from tests.losses import reference as slow


def test_golden_auxiliary_labels() -> None:
    assert auxiliary_target(torch.tensor([1, 4, 6]), num_old=4).tolist() == [0, 1, 3]
    assert auxiliary_target(torch.tensor([0, 1, 2]), num_old=0).tolist() == [1, 2, 3]


def test_terms_equal_the_reference() -> None:
    widths = {"logits": 6, "auxiliary": 4}
    leaves = {name: slow.random_matrix(3, width, width).requires_grad_() for name, width in widths.items()}
    target = torch.tensor([1, 3, 5])  # old classes 0 to 2

    def reference(v: dict[str, Tensor]) -> float:
        total = slow.cross_entropy(v["logits"].tolist(), target.tolist(), 0, 6)
        return total + 0.4 * slow.cross_entropy(v["auxiliary"].tolist(), [0, 1, 3], 0, 4)

    loss = sum(memo_terms(leaves["logits"], target, leaves["auxiliary"], num_old=3, auxiliary_weight=0.4).values())
    assert loss.item() == pytest.approx(reference(leaves), rel=1e-12)
    slow.check_gradients(loss, leaves, reference)


def test_first_task_is_plain_cross_entropy() -> None:
    terms = memo_terms(torch.zeros(2, 4), torch.tensor([0, 3]))
    assert list(terms) == ["cross_entropy"]
    assert terms["cross_entropy"].item() == pytest.approx(1.386294, abs=1e-6)


@pytest.mark.parametrize("columns", [2, 4])
def test_auxiliary_head_has_one_output_more(columns: int) -> None:
    with pytest.raises(ValueError, match=f"`auxiliary_logits` with {columns} columns for 2 new classes, expected one"):
        memo_terms(torch.zeros(1, 6), torch.tensor([5]), torch.zeros(1, columns), num_old=4)
