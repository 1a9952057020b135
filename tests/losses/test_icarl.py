"""iCaRL's two forms against golden values and slow references."""

import math

import pytest
import torch
from torch import Tensor

from lightning_cil.losses import icarl_binary_terms, icarl_softmax_terms
from tests.losses import reference as slow

TARGET = torch.tensor([0, 2, 3, 1])  # two old classes, two new ones


def leaves(classes: int = 4, old: int = 2) -> dict[str, Tensor]:
    widths = {"logits": classes, "teacher": old}
    return {
        name: slow.random_matrix(4, width, seed).requires_grad_() for seed, (name, width) in enumerate(widths.items())
    }


def slow_binary(logits: list[list[float]], teacher: list[list[float]], target: list[int]) -> float:
    total, old, classes = 0.0, len(teacher[0]), len(logits[0])
    for z, h, y in zip(logits, teacher, target, strict=True):
        for c in range(classes):
            q = slow.sigmoid(h[c]) if c < old else float(c == y)
            p = slow.sigmoid(z[c])
            total -= q * math.log(p) + (1 - q) * math.log(1 - p)
    return total / (len(logits) * classes)


def test_golden_values() -> None:
    logits, teacher, label = torch.tensor([[1.0, -1.0, 0.5]]), torch.tensor([[2.0, 0.0]]), torch.tensor([2])
    assert sum(icarl_binary_terms(logits, teacher, label).values()).item() == pytest.approx(0.573268, abs=1e-6)
    assert sum(icarl_softmax_terms(logits, teacher, label).values()).item() == pytest.approx(1.637160, abs=1e-6)


@pytest.mark.parametrize(("classes", "old"), [(4, 2), (4, 0), (4, 4), (7, 2)])
def test_binary_form_equals_the_reference(classes: int, old: int) -> None:
    """With 7 columns, three belong to classes that are still to come: negatives."""
    t = leaves(classes, old)

    def reference(v: dict[str, Tensor]) -> float:
        return slow_binary(v["logits"].tolist(), t["teacher"].tolist(), TARGET.tolist())

    loss = sum(icarl_binary_terms(t["logits"], t["teacher"], TARGET).values())
    assert loss.item() == pytest.approx(reference(t), rel=1e-12)
    slow.check_gradients(loss, t, reference)


def test_softmax_form_equals_the_reference() -> None:
    t = leaves()

    def reference(v: dict[str, Tensor]) -> float:
        kd = slow.distillation(v["logits"][:, :2].tolist(), t["teacher"].tolist(), 3.0)
        return 0.4 * kd + slow.cross_entropy(v["logits"].tolist(), TARGET.tolist(), 0, 4)

    terms = icarl_softmax_terms(t["logits"], t["teacher"], TARGET, distillation_weight=0.4, temperature=3.0)
    loss = sum(terms.values())
    assert loss.item() == pytest.approx(reference(t), rel=1e-12)
    slow.check_gradients(loss, t, reference)


def test_an_exemplar_is_a_negative_of_all_new_classes() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    loss = sum(icarl_binary_terms(logits, torch.zeros(1, 1), torch.tensor([0])).values())
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.5, 0.5]]) / 3)


@pytest.mark.parametrize("form", [icarl_binary_terms, icarl_softmax_terms])
def test_teacher_wider_than_the_student_is_refused(form) -> None:
    with pytest.raises(ValueError, match="Got `logits` with 2 columns and a teacher with 3"):
        form(torch.zeros(1, 2), torch.zeros(1, 3), torch.tensor([0]))
