"""The losses of multimodal learning against slow references, and what their readings have in common."""

import doctest
import math

import pytest
import torch

from lightning_cil.losses import crossmodal, crossmodal_terms, info_nce, similarity_weighted_cross_entropy
from tests.losses import reference as slow

TARGET = [0, 3, 0, 2]


def weights_of(visual) -> list[list[float]]:
    return [[(c + 1) / 2 for c in row] for row in slow.cosines(visual, visual)]


def errors_of(logits) -> list[float]:
    return [-math.log(slow.softmax(z)[y]) for z, y in zip(logits, TARGET, strict=True)]


def weighted(logits, visual) -> float:
    """Reading A: each sample's error times the mean of its row."""
    return slow.mean([slow.mean(w) * e for w, e in zip(weights_of(visual), errors_of(logits), strict=True)])


def weighted_within_classes(logits, visual) -> float:
    """Reading C: each sample's row over its class, adding up to 1, times the errors of its columns."""
    errors, total = errors_of(logits), 0.0
    for i, row in enumerate(weights_of(visual)):
        mates = [j for j in range(len(row)) if TARGET[j] == TARGET[i]]
        total += sum(row[j] * errors[j] for j in mates) / sum(row[j] for j in mates)
    return total / len(errors)


def weighted_pairs(logits, visual) -> float:
    """Reading B: the error of every sample with every other's label."""
    total = 0.0
    for z, row in zip(logits, weights_of(visual), strict=True):
        total += slow.mean([w * -math.log(slow.softmax(z)[y]) for w, y in zip(row, TARGET, strict=True)])
    return total / len(logits)


@pytest.mark.parametrize(
    ("reading", "expected"), [("A", weighted), ("B", weighted_pairs), ("C", weighted_within_classes)]
)
def test_weighted_cross_entropy_equals_the_reference(reading, expected):
    logits = slow.random_matrix(4, 5, 0).requires_grad_()
    visual = slow.random_matrix(4, 3, 1)

    def reference(v):
        return expected(v["logits"].tolist(), visual.tolist())

    loss = similarity_weighted_cross_entropy(logits, torch.tensor(TARGET), visual, reading)
    assert loss.item() == pytest.approx(reference({"logits": logits}), rel=1e-12)
    slow.check_gradients(loss, {"logits": logits}, reference)


@pytest.mark.parametrize("reading", ["A", "B", "C"])
def test_weights_are_constants(reading):
    visual = slow.random_matrix(4, 3, 1).requires_grad_()
    logits = slow.random_matrix(4, 5, 0).requires_grad_()
    similarity_weighted_cross_entropy(logits, torch.tensor(TARGET), visual, reading).backward()
    assert visual.grad is None
    assert logits.grad.any()


@pytest.mark.parametrize("reading", ["A", "C"])
def test_unit_weights_and_alpha_of_1_give_the_plain_cross_entropy(reading):
    logits, alike = slow.random_matrix(4, 5, 0), torch.ones(4, 3, dtype=torch.float64)
    terms = crossmodal_terms(logits, torch.tensor(TARGET), alike, torch.tensor(5.0), alpha=1.0, reading=reading)
    assert sum(terms.values()).item() == pytest.approx(slow.cross_entropy(logits.tolist(), TARGET, 0, 5), rel=1e-12)


@pytest.mark.parametrize("reading", ["A", "B", "C"])
def test_one_sample_has_weight_1(reading):
    logits = slow.random_matrix(1, 5, 0)
    loss = similarity_weighted_cross_entropy(logits, torch.tensor([3]), slow.random_matrix(1, 3, 1), reading)
    assert loss.item() == pytest.approx(slow.cross_entropy(logits.tolist(), [3], 0, 5), rel=1e-12)


def test_information_is_maximised_and_may_make_the_loss_negative():
    information = torch.tensor(50.0, requires_grad=True)
    loss = sum(crossmodal_terms(torch.zeros(2, 3), torch.tensor([0, 1]), torch.ones(2, 2), information).values())
    assert loss.item() < 0
    loss.backward()
    assert information.grad.item() == pytest.approx(-0.3)


def slow_info_nce(x, y, temperature, classes=None) -> float:
    scores = [[c / temperature for c in row] for row in slow.cosines(x, y)]
    total = 0.0
    for table in (scores, list(zip(*scores, strict=True))):
        for i, row in enumerate(table):
            kept = [j for j in range(len(row)) if classes is None or j == i or classes[j] != classes[i]]
            total += math.log(slow.softmax([row[j] for j in kept])[kept.index(i)])
    return math.log(len(x)) + total / (2 * len(x))


@pytest.mark.parametrize("classes", [None, TARGET])
def test_info_nce_equals_the_reference(classes):
    leaves = {name: slow.random_matrix(4, 3, seed).requires_grad_() for seed, name in enumerate("xy")}

    def reference(v):
        return slow_info_nce(v["x"].tolist(), v["y"].tolist(), 0.5, classes)

    bound = info_nce(*leaves.values(), temperature=0.5, target=None if classes is None else torch.tensor(classes))
    assert bound.item() == pytest.approx(reference(leaves), rel=1e-12)
    slow.check_gradients(bound, leaves, reference)


def test_info_nce_is_at_most_the_logarithm_of_the_batch():
    x = torch.eye(6)
    assert info_nce(x, x, temperature=1e-3).item() == pytest.approx(math.log(6))
    assert info_nce(x, x.roll(1, dims=0), temperature=0.07).item() < 0


@pytest.mark.parametrize("size", [0, 1])
def test_info_nce_of_fewer_than_two_samples_is_0_with_a_graph(size):
    x = torch.randn(size, 3, requires_grad=True)
    bound = info_nce(x, torch.randn(size, 3))
    bound.backward()
    assert bound.item() == 0
    assert not x.grad.any()


def test_features_of_zeros_stay_finite():
    x = torch.zeros(3, 2, requires_grad=True)
    (info_nce(x, torch.randn(3, 2)) + similarity_weighted_cross_entropy(x, torch.tensor([0, 1, 1]), x)).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: info_nce(torch.eye(2), torch.eye(2), temperature=0.0), "temperature=0.0"),
        (lambda: crossmodal_terms(torch.eye(2), torch.arange(2), torch.eye(2), torch.ones(()), alpha=1.5), "alpha=1.5"),
    ],
)
def test_values_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_examples_in_the_docstrings():
    assert doctest.testmod(crossmodal).failed == 0
