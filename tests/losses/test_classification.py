"""Cross-entropy over parts of the output space."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cil.losses import cross_entropy_over, task_masked_cross_entropy
from lightning_cil.losses.classification import _mean_cross_entropy

SIZES = [2, 1, 4]
TASK_OF_CLASS = [0, 0, 1, 2, 2, 2, 2]


def random_batch(seed: int = 0, batch: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, 7, generator=generator, dtype=torch.float64)
    target = torch.randint(7, (batch,), generator=generator)
    return logits.requires_grad_(), target, torch.tensor(TASK_OF_CLASS)[target]


def slow_cross_entropy(logits: list[list[float]], target: list[int], columns: list[range]) -> float:
    """Mean over samples of -log of the label's share among the sample's own columns, in Python floats."""
    total = 0.0
    for row, label, allowed in zip(logits, target, columns, strict=True):
        total -= math.log(math.exp(row[label]) / sum(math.exp(row[c]) for c in allowed))
    return total / len(target)


@pytest.mark.parametrize(("first", "last"), [(0, 7), (0, 3), (2, 3), (3, 7)])
def test_cross_entropy_over_equals_literal_reference(first: int, last: int) -> None:
    logits, target, _ = random_batch()
    target = target % (last - first) + first
    expected = slow_cross_entropy(logits.tolist(), target.tolist(), [range(first, last)] * 9)
    assert cross_entropy_over(logits, target, first, last).item() == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_cross_entropy_over_all_columns_is_the_plain_one() -> None:
    logits, target, _ = random_batch()
    torch.testing.assert_close(cross_entropy_over(logits, target, 0, 7), F.cross_entropy(logits, target))


def test_cross_entropy_over_one_column_is_zero() -> None:
    logits, _, _ = random_batch()
    assert cross_entropy_over(logits, torch.full((9,), 2), 2, 3).item() == 0.0


def test_columns_outside_the_range_get_no_gradient() -> None:
    logits, target, _ = random_batch()
    cross_entropy_over(logits, target % 3 + 2, 2, 5).backward()
    assert logits.grad is not None
    assert (logits.grad[:, [0, 1, 5, 6]] == 0).all()
    assert (logits.grad[:, 2:5] != 0).all()


def test_label_that_shifts_to_torchs_ignored_index_is_refused() -> None:
    """Old class 0 among new classes from 100 on becomes -100, which torch would leave out of the mean in silence."""
    logits, target = torch.zeros(2, 110), torch.tensor([0, 105])
    with pytest.raises(ValueError, match="Got `target` with labels from 0 to 105, expected labels from 100 to 109"):
        cross_entropy_over(logits, target, 100, 110)
    with pytest.raises(ValueError, match="expected labels from 0 to 109"):
        cross_entropy_over(logits, torch.tensor([-100, 0]), 0, 110)
    with pytest.raises(IndexError):  # what is left of the check on other devices: torch's own
        _mean_cross_entropy(logits, torch.tensor([-100, 0]))


@pytest.mark.parametrize("label", [1, 5])
def test_label_outside_of_the_range_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match="expected labels from 2 to 4"):
        cross_entropy_over(torch.zeros(1, 7), torch.tensor([label]), 2, 5)


@pytest.mark.parametrize(("first", "last"), [(3, 3), (4, 3), (-1, 3), (0, 8)])
def test_range_must_lie_inside_the_columns(first: int, last: int) -> None:
    with pytest.raises(ValueError, match=f"Got `first={first}`, `last={last}` for logits with 7 columns"):
        cross_entropy_over(torch.zeros(1, 7), torch.tensor([2]), first, last)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_task_masked_equals_literal_reference(seed: int) -> None:
    logits, target, task = random_batch(seed)
    blocks = [range(0, 2), range(2, 3), range(3, 7)]
    expected = slow_cross_entropy(logits.tolist(), target.tolist(), [blocks[t] for t in task.tolist()])
    assert task_masked_cross_entropy(logits, target, task, SIZES).item() == pytest.approx(expected, rel=1e-12)


def test_task_masked_gradient_is_that_of_the_tasks_own_cross_entropy() -> None:
    logits, target, task = random_batch()
    (gradient,) = torch.autograd.grad(task_masked_cross_entropy(logits, target, task, SIZES), logits)
    expected = torch.zeros_like(gradient)
    for row in range(9):
        own = torch.tensor(TASK_OF_CLASS) == task[row]
        share = torch.where(own, logits[row].exp(), 0.0).detach()
        expected[row] = (share / share.sum() - F.one_hot(target[row], 7)) / 9
    torch.testing.assert_close(gradient, expected)
    assert (gradient[torch.tensor(TASK_OF_CLASS).unsqueeze(0) != task.unsqueeze(1)] == 0).all()


def test_task_masked_for_one_task_is_cross_entropy_over_its_columns() -> None:
    logits, target, _ = random_batch()
    target, task = target % 4 + 3, torch.full((9,), 2)
    masked, over = task_masked_cross_entropy(logits, target, task, SIZES), cross_entropy_over(logits, target, 3, 7)
    torch.testing.assert_close(masked, over)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 1e4, -1e4], [1e4, -1e4, -1e4, 1e4]], dtype=dtype, requires_grad=True)
    target, task = torch.tensor([1, 2]), torch.tensor([0, 1])
    for value in (task_masked_cross_entropy(logits, target, task, [2, 2]), cross_entropy_over(logits, target, 1, 4)):
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.isfinite()
        assert value > 0
        assert gradient.isfinite().all()


def test_gradcheck() -> None:
    logits, target, task = random_batch()
    assert torch.autograd.gradcheck(lambda z: task_masked_cross_entropy(z, target, task, SIZES), (logits,))
    assert torch.autograd.gradcheck(lambda z: cross_entropy_over(z, target % 4 + 1, 1, 5), (logits,))


def test_empty_batch_gives_zero_with_a_graph() -> None:
    logits, none = torch.zeros(0, 7, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    for value in (task_masked_cross_entropy(logits, none, none, SIZES), cross_entropy_over(logits, none, 2, 5)):
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.item() == 0.0
        assert gradient.shape == (0, 7)


@pytest.mark.parametrize(
    ("label", "task"),
    [
        pytest.param(0, 1, id="class of another task"),
        pytest.param(0, 3, id="no such task"),
        pytest.param(0, -1, id="negative task"),
        pytest.param(7, 2, id="no such class"),
        pytest.param(-100, 0, id="torch's ignored label"),
    ],
)
def test_label_must_be_a_class_of_its_task(label: int, task: int) -> None:
    target, tasks = torch.tensor([3, label]), torch.tensor([2, task])
    with pytest.raises(ValueError, match=rf"Got `target\[1\]={label}` with `task\[1\]={task}`"):
        task_masked_cross_entropy(torch.zeros(2, 7), target, tasks, SIZES)


@pytest.mark.parametrize("sizes", [[2, 1], [2, 1, 5], [7, 0], [], [8, -1]])
def test_sizes_must_fit_the_columns(sizes: list[int]) -> None:
    zero = torch.tensor([0])
    with pytest.raises(ValueError, match=r"Got `sizes=.*with 7 columns"):
        task_masked_cross_entropy(torch.zeros(1, 7), zero, zero, sizes)


def test_nothing_is_read_back_from_another_device() -> None:
    """On the meta device there is nothing to read; the checks of the labels would stall a GPU at every step."""
    logits, labels = torch.zeros(4, 7, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta")
    assert task_masked_cross_entropy(logits, labels, labels, SIZES).shape == ()
    assert cross_entropy_over(logits, labels, 2, 5).shape == ()
