"""The distillation losses against golden vectors, slow literal references and their invariances."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cil.losses import (
    binary_distillation,
    old_class_distillation,
    per_head_soft_cross_entropy,
    soft_cross_entropy,
)
from tests.losses import reference as slow

LOSSES = [
    pytest.param(lambda s, t: soft_cross_entropy(s, t), id="soft"),
    pytest.param(lambda s, t: soft_cross_entropy(s, t, temperature=0.5), id="soft-sharp"),
    pytest.param(lambda s, t: per_head_soft_cross_entropy(s, t, sizes=[1, s.shape[1] - 1]), id="per-head"),
    pytest.param(lambda s, t: binary_distillation(s, t), id="binary-mean"),
    pytest.param(lambda s, t: binary_distillation(s, t, reduction="sum"), id="binary-sum"),
]


def random_logits(batch: int = 5, old: int = 7, seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student = scale * torch.randn(batch, old, generator=generator, dtype=torch.float64)
    teacher = scale * torch.randn(batch, old, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher


def slow_soft_cross_entropy(student: list[list[float]], teacher: list[list[float]], temperature: float) -> float:
    """Eq. 8-10 as printed: softmax first, then the power 1/p and the renormalisation, in Python floats."""

    def softened(logits: list[float]) -> list[float]:
        exponentials = [math.exp(z) for z in logits]
        probabilities = [e / sum(exponentials) for e in exponentials]
        powers = [q ** (1 / temperature) for q in probabilities]
        return [r / sum(powers) for r in powers]

    total = 0.0
    for o, h in zip(student, teacher, strict=True):
        total -= sum(a * math.log(b) for a, b in zip(softened(h), softened(o), strict=True))
    return total / len(student)


def slow_binary(student: list[list[float]], teacher: list[list[float]]) -> float:
    """RebLL's Eq. 2 as printed, mean over the batch."""

    def sigmoid(z: float) -> float:
        return 1 / (1 + math.exp(-z))

    total = 0.0
    for o, h in zip(student, teacher, strict=True):
        for z, u in zip(o, h, strict=True):
            total += -sigmoid(u) * math.log(sigmoid(z)) - (1 - sigmoid(u)) * math.log(1 - sigmoid(z))
    return total / len(student)


def test_golden_value_floor_and_gradient() -> None:
    teacher = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64)
    student = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = soft_cross_entropy(student, teacher, temperature=2.0)
    loss.backward()
    assert loss.item() == pytest.approx(1.028142, abs=1e-6)
    assert soft_cross_entropy(teacher, teacher, temperature=2.0).item() == pytest.approx(0.905959, abs=1e-6)
    torch.testing.assert_close(
        student.grad, torch.tensor([[-0.122440, 0.076214, 0.046226]], dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_golden_lwf_and_icarl_forms() -> None:
    """The forms of lwf.py and icarl.py in https://github.com/LAMDA-CL/PyCIL at f3509b8; label 2, old classes 0, 1."""
    logits, old_logits, label = torch.tensor([[1.0, -1.0, 0.5]]), torch.tensor([[2.0, 0.0]]), torch.tensor([2])
    distillation = soft_cross_entropy(logits[:, :2], old_logits, temperature=2.0)
    lwf = 3 * distillation + F.cross_entropy(logits[:, 2:], label - 2)
    icarl = distillation + F.cross_entropy(logits, label)
    assert lwf.item() == pytest.approx(1.746609, abs=1e-6)
    assert icarl.item() == pytest.approx(1.637160, abs=1e-6)


def test_golden_icarl_binary_form() -> None:
    """The original iCaRL: old columns to the old model's sigmoids, new ones to the label, mean over all outputs."""
    logits, old_logits = torch.tensor([[1.0, -1.0, 0.5]]), torch.tensor([[2.0, 0.0]])
    old = binary_distillation(logits[:, :2], old_logits, reduction="sum")
    new = F.binary_cross_entropy_with_logits(logits[:, 2:], torch.ones(1, 1), reduction="sum")
    assert ((old + new) / 3).item() == pytest.approx(0.573268, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0, 20.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_soft_cross_entropy_equals_literal_reference(temperature: float, seed: int) -> None:
    student, teacher = random_logits(seed=seed)
    expected = slow_soft_cross_entropy(student.tolist(), teacher.tolist(), temperature)
    assert soft_cross_entropy(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sizes", [[7], [3, 4], [1, 1, 5], [1] * 7, (2, 5)])
def test_per_head_equals_the_sum_of_the_heads(sizes: list[int]) -> None:
    student, teacher = random_logits()
    expected, first = 0.0, 0
    for size in sizes:
        block = slice(first, first + size)
        expected += slow_soft_cross_entropy(student[:, block].tolist(), teacher[:, block].tolist(), 2.0)
        first += size
    loss = per_head_soft_cross_entropy(student, teacher, sizes)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sizes", [[3, 4], [1, 1, 5]])
def test_per_head_gradient_equals_that_of_the_heads(sizes: list[int]) -> None:
    student, teacher = random_logits()
    (gradient,) = torch.autograd.grad(per_head_soft_cross_entropy(student, teacher, sizes), student)
    heads = zip(student.split(sizes, dim=1), teacher.split(sizes, dim=1), strict=True)
    (expected,) = torch.autograd.grad(sum(soft_cross_entropy(s, t) for s, t in heads), student)
    torch.testing.assert_close(gradient, expected)


def test_one_softmax_and_one_per_head_differ() -> None:
    student, teacher = random_logits()
    joint, per_head = soft_cross_entropy(student, teacher), per_head_soft_cross_entropy(student, teacher, [3, 4])
    assert abs(joint.item() - per_head.item()) > 1e-2


@pytest.mark.parametrize("seed", [0, 1])
def test_binary_equals_literal_reference(seed: int) -> None:
    student, teacher = random_logits(seed=seed)
    expected = slow_binary(student.tolist(), teacher.tolist())
    assert binary_distillation(student, teacher, reduction="sum").item() == pytest.approx(expected, rel=1e-12)
    assert binary_distillation(student, teacher).item() == pytest.approx(expected / 7, rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_is_zero_and_value_least_at_the_teacher(loss) -> None:
    _, teacher = random_logits()
    student = teacher.clone().requires_grad_()
    floor = loss(student, teacher)
    (gradient,) = torch.autograd.grad(floor, student)
    assert gradient.abs().max() < 1e-15
    for seed in range(5):
        other, _ = random_logits(seed=seed)
        assert loss(other, teacher) > floor


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss) -> None:
    student, teacher = random_logits(batch=3, old=4)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), (student,))


@pytest.mark.parametrize("loss", LOSSES)
def test_teacher_gets_no_gradient(loss) -> None:
    student, teacher = random_logits()
    teacher.requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("sizes", [None, [3, 4]])
def test_teacher_gets_a_gradient_on_request(sizes) -> None:
    student, teacher = random_logits()
    leaves = {"student": student, "teacher": teacher.requires_grad_()}

    def reference(v: dict[str, Tensor]) -> float:
        return slow.distillation(v["student"].tolist(), v["teacher"].tolist(), 3.0, sizes)

    loss = old_class_distillation(student, teacher, sizes, 3.0, detach_teacher=False)
    assert loss.item() == pytest.approx(reference(leaves), rel=1e-12)
    slow.check_gradients(loss, leaves, reference)


def test_sizes_choose_the_softmax() -> None:
    student, teacher = random_logits()
    assert torch.equal(old_class_distillation(student, teacher), soft_cross_entropy(student, teacher))
    per_head = per_head_soft_cross_entropy(student, teacher, [3, 4], 5.0)
    assert torch.equal(old_class_distillation(student, teacher, [3, 4], 5.0), per_head)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_extreme_logits_stay_finite(loss, dtype: torch.dtype) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 1e4]], dtype=dtype)
    value = loss(student, teacher)
    value.backward()
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_logits_are_compared_in_single_precision(loss) -> None:
    student, teacher = (z.detach().bfloat16() for z in random_logits())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher)
    torch.testing.assert_close(value, loss(student.float(), teacher.float()))


def test_shifting_all_logits_of_a_sample_changes_nothing() -> None:
    student, teacher = random_logits()
    shift = torch.arange(5.0, dtype=torch.float64).unsqueeze(1)
    shifted = soft_cross_entropy(student + shift, teacher - shift)
    torch.testing.assert_close(shifted, soft_cross_entropy(student, teacher))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_doubled_batch_has_the_same_loss(loss) -> None:
    student, teacher = random_logits()
    torch.testing.assert_close(loss(student.repeat(2, 1), teacher.repeat(2, 1)), loss(student, teacher))


def test_no_squared_temperature_factor() -> None:
    """At a high temperature the loss tends to ln(old), its gradient falls with the square of the temperature."""
    student, teacher = random_logits(old=4)
    assert soft_cross_entropy(student, teacher, 1e6).item() == pytest.approx(math.log(4), abs=1e-5)
    hot, hotter = (torch.autograd.grad(soft_cross_entropy(student, teacher, p), student)[0] for p in (1e3, 2e3))
    torch.testing.assert_close(hot, 4 * hotter, rtol=2e-2, atol=0)


@pytest.mark.parametrize(
    ("batch", "old"), [pytest.param(0, 3, id="empty batch"), pytest.param(4, 0, id="no old class"), (0, 0)]
)
@pytest.mark.parametrize(
    "loss",
    [
        soft_cross_entropy,
        lambda s, t: per_head_soft_cross_entropy(s, t, sizes=[1, 2] if s.shape[1] else []),
        binary_distillation,
        lambda s, t: binary_distillation(s, t, reduction="sum"),
    ],
)
def test_loss_is_zero_with_a_graph_without_old_classes_or_samples(loss, batch: int, old: int) -> None:
    student = torch.zeros(batch, old, requires_grad=True)
    value = loss(student, torch.zeros(batch, old))
    value.backward()
    assert value.shape == ()
    assert value.item() == 0.0
    assert student.grad is not None
    assert student.grad.shape == (batch, old)


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature: float) -> None:
    student, teacher = random_logits()
    with pytest.raises(ValueError, match=r"Got `temperature=.*expected a positive number"):
        soft_cross_entropy(student, teacher, temperature)
    with pytest.raises(ValueError, match=r"Got `temperature=.*expected a positive number"):
        per_head_soft_cross_entropy(student, teacher, [3, 4], temperature)


@pytest.mark.parametrize("shape", [(5, 6), (4, 7), (5, 8), (1, 7), (7,)])
@pytest.mark.parametrize("loss", [soft_cross_entropy, binary_distillation])
def test_shapes_must_be_equal(loss, shape: tuple[int, ...]) -> None:
    student, _ = random_logits()
    raw = inspect.unwrap(loss)  # jaxtyping's test-time hook would report the shapes first
    with pytest.raises(ValueError, match=r"Got `student_logits` of shape \[5, 7\].*expected the same \[batch, old\]"):
        raw(student, torch.zeros(shape))


def test_logits_must_be_matrices() -> None:
    with pytest.raises(ValueError, match=r"shape \[7\]"):
        inspect.unwrap(soft_cross_entropy)(torch.zeros(7), torch.zeros(7))
    with pytest.raises(ValueError, match=r"shape \[7\]"):
        inspect.unwrap(per_head_soft_cross_entropy)(torch.zeros(7), torch.zeros(7), [7])


@pytest.mark.parametrize("sizes", [[3, 3], [], [7, 0], [8, -1], [4, 4]])
def test_sizes_must_fit_the_columns(sizes: list[int]) -> None:
    student, teacher = random_logits()
    with pytest.raises(ValueError, match=r"Got `sizes=.*with 7 columns"):
        per_head_soft_cross_entropy(student, teacher, sizes)


def test_unknown_reduction_is_refused() -> None:
    student, teacher = random_logits()
    with pytest.raises(ValueError, match="Got `reduction='batchmean'`, expected 'mean'"):
        inspect.unwrap(binary_distillation)(student, teacher, reduction="batchmean")


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_is_read_back_from_another_device(loss) -> None:
    logits = torch.zeros(4, 7, device="meta")
    assert loss(logits, logits).shape == ()
