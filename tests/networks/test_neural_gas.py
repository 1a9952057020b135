"""`NeuralGas`: its rule against a literal loop, its labels and samples, its state."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_cil._random import permutation
from lightning_cil.networks import NeuralGas

LIFETIME = 3


def data(seed: int = 0, size: int = 24) -> tuple[Tensor, Tensor]:
    """Samples around one corner for each of three classes."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(size) % 3
    return torch.eye(3)[target] + 0.1 * torch.randn(size, 3, generator=generator), target


def squared(a: list[float], b: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def slow(
    nodes: list[list[float]], labels: list[int], first: int, edges: dict[frozenset[int], int], ranking: str, seed: int
) -> None:
    """The rule as it is written, on lists."""
    features, target = (part.tolist() for part in data())
    for i in permutation(len(features), seed, 0).tolist():
        f = features[i]
        by_distance = sorted(range(len(nodes)), key=lambda j: squared(nodes[j], f))
        a, b = by_distance[:2]
        for edge in [e for e in edges if a in e]:
            edges[edge] += 1
            if edges[edge] > LIFETIME:
                del edges[edge]
        edges[frozenset((a, b))] = 0
        ranked = [j for j in by_distance if j >= first and (ranking == "all" or labels[j] == target[i])]
        for rank, j in enumerate(ranked):
            step = 0.1 * math.exp(-rank / 2.0)
            nodes[j] = [m + step * (x - m) for m, x in zip(nodes[j], f, strict=True)]


@pytest.mark.parametrize("ranking", ["class", "all"])
@pytest.mark.parametrize("at_rest", [0, 4])
def test_nodes_and_edges_follow_the_rule(ranking: Any, at_rest: int) -> None:
    gas = NeuralGas(3, rate=0.1, neighbourhood=2.0, lifetime=LIFETIME, passes=1, ranking=ranking)
    features, target = data()
    if at_rest:
        gas.insert(*data(seed=7), at_rest, seed=9)
        gas.rest(*data(seed=7), torch.arange(24))
    before = gas.centroids.clone()
    pairs = gas.linked.nonzero().tolist()
    edges = {frozenset((i, j)): int(gas.ages[i, j]) for i, j in pairs}
    gas.insert(features, target, 6, seed=5)  # the same once without moving, to know where nodes start
    still = NeuralGas(3, rate=1e-12, passes=1, ranking="class")
    still.insert(features, target, 6, seed=5)
    assert still.labels.bincount().tolist() == [2, 2, 2]
    nodes = [*before.tolist(), *still.fresh.tolist()]
    labels = [*gas.labels[:at_rest].tolist(), *still.labels.tolist()]
    slow(nodes, labels, at_rest, edges, ranking, seed=5)
    torch.testing.assert_close(gas.positions().detach(), torch.tensor(nodes), atol=1e-5, rtol=0)
    assert torch.equal(gas.centroids, before)  # what is at rest stays
    found = {frozenset((i, j)): int(gas.ages[i, j]) for i, j in gas.linked.nonzero().tolist()}
    assert found == edges
    assert torch.equal(gas.ages, gas.ages.T)


@pytest.mark.parametrize("ranking", ["class", "all"])
def test_a_node_at_rest_knows_its_class_its_sample_and_their_spread(ranking: Any) -> None:
    gas = NeuralGas(3, ranking=ranking)
    features, target = data()
    gas.insert(features, target, 6, seed=1)
    nodes, labels = gas.fresh.detach().clone(), gas.labels.clone()
    gas.rest(features, target, torch.arange(100, 124))
    assert gas.num_nodes == 6
    assert len(gas.fresh) == 0
    assigned: list[list[int]] = [[] for _ in nodes]
    for i, (f, y) in enumerate(zip(features, target, strict=True)):
        own = [j for j in range(6) if labels[j] == y]
        assigned[min(own, key=lambda j: float((nodes[j] - f).norm()))].append(i)
    squares = [(features[i] - nodes[j]).square() for j in range(6) for i in assigned[j]]
    assert {len(samples) < 2 for samples in assigned} == {False, True}  # both kinds of nodes
    for j in range(6):
        own_samples = [i for i in range(24) if target[i] == labels[j]]
        nearest = min(own_samples, key=lambda i: float((nodes[j] - features[i]).norm()))
        assert int(gas.samples[j]) == 100 + nearest
        own_squares = (features[assigned[j]] - nodes[j]).square()
        expected = own_squares.mean(dim=0) if len(own_squares) > 1 else torch.stack(squares).mean(dim=0)
        torch.testing.assert_close(gas.variances[j], expected)
    assert set(labels.tolist()) == {0, 1, 2}


def test_weights_of_coordinates() -> None:
    gas = NeuralGas(2)
    gas.variances = torch.tensor([[0.1, 0.4], [0.2, 0.2]])
    expected = {
        "equal": [[1.0, 1.0], [1.0, 1.0]],
        "inverse": [[10.0, 2.5], [5.0, 5.0]],
        "relative": [[1.6, 0.4], [1.0, 1.0]],
        "threshold": [[1.0, 0.9], [0.9, 0.9]],
    }
    for kind, values in expected.items():
        torch.testing.assert_close(gas.precision(kind, 0.0), torch.tensor(values), msg=kind)
    assert gas.precision("inverse", 0.1)[0].tolist() == pytest.approx([5.0, 2.0])


def test_state_of_another_size_is_loaded() -> None:
    gas, other = NeuralGas(3), NeuralGas(3)
    gas.insert(*data(), 6, seed=1)
    gas.rest(*data(), torch.arange(24))
    gas.insert(*data(seed=2), 4, seed=2)
    other.fresh.requires_grad_(True)
    other.load_state_dict(gas.state_dict())
    assert other.fresh.requires_grad
    for name, value in gas.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    other.clear()
    assert all(not part.numel() for part in other.state_dict().values())


@pytest.mark.parametrize("options", [{"rate": 0.0}, {"lifetime": 0}, {"ranking": "best"}, {"neighbourhood": 0.0}])
def test_bad_options(options: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        NeuralGas(3, **options)
    with pytest.raises(ValueError, match="precision='best'"):
        NeuralGas(3).precision("best", 0.0)
