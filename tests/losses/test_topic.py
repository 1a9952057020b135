"""TOPIC's losses against literal sums over nodes, samples and edges."""

import math

import pytest
import torch

from lightning_cil.losses import anchor_loss, min_max_terms


def test_the_anchor_loss_is_a_sum_of_quadratic_forms() -> None:
    generator = torch.Generator().manual_seed(0)
    features, centroids, precision = (torch.rand(4, 3, generator=generator) for _ in range(3))
    expected = sum(
        float((f - m) @ torch.diag(w) @ (f - m)) for f, m, w in zip(features, centroids, precision, strict=True)
    )
    assert float(anchor_loss(features, centroids, precision)) == pytest.approx(expected, rel=1e-5)


def distance(a: list[float], b: list[float]) -> float:
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.5])
def test_the_min_max_loss_is_the_sum_over_samples_and_their_nodes_edges(margin: float) -> None:
    generator = torch.Generator().manual_seed(1)
    features, nodes = torch.rand(6, 2, generator=generator), torch.rand(5, 2, generator=generator)
    target, labels = torch.tensor([0, 1, 2, 2, 3, 0]), torch.tensor([0, 1, 1, 2, 0])  # class 3 has no node
    linked = torch.zeros(5, 5, dtype=torch.bool)
    for i, j in ((0, 1), (0, 4), (1, 3), (2, 3)):
        linked[i, j] = linked[j, i] = True
    pull = push = 0.0
    for f, y in zip(features.tolist(), target.tolist(), strict=True):
        own = [j for j in range(5) if labels[j] == y]
        if not own:
            continue
        j = min(own, key=lambda j: distance(f, nodes[j].tolist()))
        pull += distance(f, nodes[j].tolist())
        for i in range(5):
            if linked[i, j] and labels[i] != y:
                push -= min(0.0, distance(nodes[i].tolist(), nodes[j].tolist()) - margin)
    terms = min_max_terms(features, target, nodes, labels, linked, margin=margin)
    assert float(terms["pull"]) == pytest.approx(pull, rel=1e-5)
    assert float(terms["push"]) == pytest.approx(push, rel=1e-5, abs=1e-7)
    assert (push > 0) == (margin > 0)


def test_samples_move_to_nodes_and_nodes_of_other_classes_apart() -> None:
    feature = torch.tensor([[0.1, 0.0]], requires_grad=True)
    nodes = torch.tensor([[0.0, 0.0], [0.3, 0.0]], requires_grad=True)
    linked = torch.tensor([[False, True], [True, False]])
    terms = min_max_terms(feature, torch.tensor([0]), nodes, torch.tensor([0, 1]), linked, margin=0.5)
    terms["pull"].backward(retain_graph=True)
    assert feature.grad is not None
    assert feature.grad.tolist() == [[1.0, 0.0]]  # down the gradient: towards its node
    nodes.grad = None
    terms["push"].backward()
    assert nodes.grad is not None
    assert nodes.grad.tolist() == [[1.0, 0.0], [-1.0, 0.0]]


def test_without_nodes_the_loss_is_0_with_a_graph() -> None:
    features = torch.rand(2, 3, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    terms = min_max_terms(features, torch.tensor([0, 1]), torch.zeros(0, 3), none, torch.zeros(0, 0).bool())
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    assert total.item() == 0
    assert not features.grad.any()
