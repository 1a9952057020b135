"""What Γ minimises: references, and the two facts about it that the paper does not state."""

import inspect

import pytest
import torch
from torch import Tensor

from lightning_cil.losses import gamma_terms, identity_penalty, soft_cross_entropy
from tests.losses import reference as slow


def test_identity_equals_the_reference() -> None:
    gamma = slow.random_matrix(4, 3, 0).requires_grad_()

    def reference(v: dict[str, Tensor]) -> float:
        return slow.squared_distance(v["gamma"].tolist(), [[1.0] * 3] * 4)

    loss = identity_penalty(gamma)
    assert loss.item() == pytest.approx(reference({"gamma": gamma}), rel=1e-12)
    slow.check_gradients(loss, {"gamma": gamma}, reference)


@pytest.mark.parametrize("sizes", [None, [1, 2]])
@pytest.mark.parametrize("factors", [1, 3])
def test_distillation_form_equals_the_reference(factors: int, sizes) -> None:
    teacher = slow.random_matrix(4, 3, 1)
    leaves = {
        "gamma": slow.random_matrix(4, factors, 0).requires_grad_(),
        "student": slow.random_matrix(4, 3, 2).requires_grad_(),
    }
    gamma, student = leaves["gamma"], leaves["student"]
    terms = gamma_terms(gamma, gamma * teacher, student, objective="kd", tau=0.2, eta=0.6, old_sizes=sizes)

    def reference(v: dict[str, Tensor]) -> float:
        kd = slow.distillation(student.tolist(), (v["gamma"] * teacher).tolist(), 2.0, sizes)
        return 0.2 * slow.squared_distance(v["gamma"].tolist(), [[1.0] * factors] * 4) + 0.6 * kd

    loss = sum(terms.values())
    assert loss.item() == pytest.approx(reference(leaves), rel=1e-12)
    slow.check_gradients(loss, leaves, reference)


def test_identity_form_is_unweighted_and_alone() -> None:
    gamma, logits = torch.full((2, 1), 3.0), torch.zeros(2, 4)
    terms = gamma_terms(gamma, logits, logits, tau=0.2, eta=0.6)
    assert {name: term.item() for name, term in terms.items()} == {"identity": 4.0}


def test_distillation_falls_as_gamma_sharpens_its_target() -> None:
    """A student that ranks as the teacher does: the larger γ, the smaller KD; only the penalty holds it."""
    teacher = torch.tensor([[2.0, 0.5, -1.0, 0.0]], dtype=torch.float64)
    student = torch.tensor([[1.5, 0.3, -0.5, 0.2]], dtype=torch.float64)
    factors = (0.5, 1.0, 2.0, 4.0, 8.0)
    values = [soft_cross_entropy(student, factor * teacher).item() for factor in factors]
    assert values == sorted(values, reverse=True)
    assert values[0] - values[-1] > 0.2
    log_best = slow.softmax(student[0].tolist(), 2.0)[0]
    assert values[-1] == pytest.approx(-torch.tensor(log_best).log().item(), abs=1e-2)  # all mass on the best class


def test_unknown_objective_is_refused() -> None:
    logits = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="Got `objective='bic'`, expected 'identity'"):
        inspect.unwrap(gamma_terms)(logits, logits, logits, objective="bic")
