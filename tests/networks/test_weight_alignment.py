import pytest
import torch

from lightning_cil.networks import CosineHead, LinearHead, MultiHead, align_weights, alignment_factor


def rows(head):
    return torch.cat([b.weight for b in head.blocks]) if isinstance(head, MultiHead) else head.weight


def grown(kind, *sizes):
    head = kind(6, seed=3)
    for size in sizes:
        head.grow(size)
    return head


def test_golden_factor():
    """Lengths 5 and 1 in the mean 3; 2 and 4 in the mean 3; then 1.5."""
    old = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert alignment_factor(old, torch.tensor([[2.0, 0.0], [0.0, 4.0]])).item() == 1.0
    assert alignment_factor(old, torch.tensor([[0.0, 2.0]])).item() == 1.5


@pytest.mark.parametrize("kind", [LinearHead, MultiHead, CosineHead])
def test_last_tasks_rows_get_the_old_mean_length(kind):
    head = grown(kind, 2, 3, 4)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(torch.linspace(1, 3, parameter.numel()).view_as(parameter))
    before = {name: value.clone() for name, value in head.state_dict().items()}
    old, new = rows(head)[:5].clone(), rows(head)[5:].clone()
    expected = sum(row.norm() for row in old) / 5 / (sum(row.norm() for row in new) / 4)
    assert align_weights(head).item() == pytest.approx(expected.item())
    assert torch.equal(rows(head)[:5], old)
    torch.testing.assert_close(rows(head)[5:], new * expected)
    changed = {name for name, value in head.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == ({"blocks.2.weight"} if kind is MultiHead else {"weight"})  # no bias
    assert align_weights(head).item() == pytest.approx(1.0)
    assert all(p.requires_grad and p.grad_fn is None for p in head.parameters())


@pytest.mark.parametrize("sizes", [(), (3,)])
def test_nothing_to_align_before_the_second_task(sizes):
    head = grown(LinearHead, *sizes)
    before = head.weight.clone()
    assert align_weights(head).item() == 1
    assert torch.equal(head.weight, before)


def test_zero_rows_stay_zero():
    head = grown(LinearHead, 2, 2)
    torch.nn.init.zeros_(head.weight)
    assert align_weights(head).isfinite()
    assert not head.weight.any()
    assert alignment_factor(torch.zeros(0, 3), torch.ones(2, 3)).item() == 1
    assert alignment_factor(torch.ones(2, 3), torch.zeros(0, 3)).item() == 1
