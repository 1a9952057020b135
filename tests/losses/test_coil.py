"""Coil's terms against slow references."""

import pytest
import torch
from torch import Tensor

from lightning_cil.losses import coil_terms, prospective_term, retrospective_term
from tests.losses import reference as slow


def test_terms_equal_the_reference() -> None:
    leaves = {name: slow.random_matrix(3, n, n).requires_grad_() for name, n in {"logits": 5, "teacher": 2}.items()}
    target = torch.tensor([0, 4, 2])

    def reference(v: dict[str, Tensor]) -> float:
        kd = slow.distillation(v["logits"][:, :2].tolist(), leaves["teacher"].tolist(), 3.0)
        return 0.6 * slow.cross_entropy(v["logits"].tolist(), target.tolist(), 0, 5) + 0.4 * kd

    loss = sum(coil_terms(leaves["logits"], leaves["teacher"], target, temperature=3.0).values())
    assert loss.item() == pytest.approx(reference(leaves), rel=1e-12)
    slow.check_gradients(loss, leaves, reference)


def test_first_task_is_plain_cross_entropy() -> None:
    logits, target = slow.random_matrix(3, 4, 0), torch.tensor([0, 3, 2])
    terms = coil_terms(logits, logits[:, :0], target)
    assert terms["distillation"].item() == 0
    expected = slow.cross_entropy(logits.tolist(), target.tolist(), 0, 4)
    assert terms["cross_entropy"].item() == pytest.approx(expected)


def test_prospective_term_equals_the_reference() -> None:
    """Only the new outputs learn: the target made of features and rows is a constant."""
    shapes = {"new": (3, 4), "features": (3, 6), "rows": (4, 6)}
    leaves = {
        name: slow.random_matrix(*shape, seed).requires_grad_() for seed, (name, shape) in enumerate(shapes.items())
    }
    cosines = slow.cosines(leaves["features"].tolist(), leaves["rows"].tolist())

    def reference(v: dict[str, Tensor]) -> float:
        return 0.3 * slow.distillation(v["new"].tolist(), cosines, 3.0)

    loss = prospective_term(*leaves.values(), weight=0.3, temperature=3.0)
    assert loss.item() == pytest.approx(reference(leaves), rel=1e-12)
    slow.check_gradients(loss, leaves, reference)


def test_retrospective_term_equals_the_reference() -> None:
    shapes = {"teacher": (3, 4), "features": (3, 6), "rows": (4, 6)}
    leaves = {
        name: slow.random_matrix(*shape, seed).requires_grad_() for seed, (name, shape) in enumerate(shapes.items())
    }
    teacher = leaves["teacher"].tolist()

    def reference(v: dict[str, Tensor]) -> float:
        student = slow.cosines(v["features"].tolist(), v["rows"].tolist())
        return 0.3 * 0.25**2 * slow.distillation(student, teacher, 3.0)

    loss = retrospective_term(*leaves.values(), progress=0.25, weight=0.3, temperature=3.0)
    assert loss.item() == pytest.approx(reference(leaves), rel=1e-12)
    slow.check_gradients(loss, leaves, reference)


def test_default_weights_are_those_of_the_authors() -> None:
    ones, rows = torch.ones(2, 3), torch.eye(3)
    kd = slow.distillation(ones.tolist(), slow.cosines(ones.tolist(), rows.tolist()), 2.0)
    assert prospective_term(ones, ones, rows).item() == pytest.approx(1e-3 * kd)
    assert retrospective_term(ones, ones, rows, progress=1.0).item() == pytest.approx(1e-3 * kd)


def test_features_of_zeros_stay_finite() -> None:
    features = torch.zeros(2, 3, requires_grad=True)
    loss = retrospective_term(torch.randn(2, 2), features, torch.randn(2, 3), progress=1.0, weight=1.0)
    loss.backward()
    assert features.grad.isfinite().all()
