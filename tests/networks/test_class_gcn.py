"""CI-GCN against a slow reference of its equations, and what growing must keep."""

import math

import pytest
import torch

from lightning_cil.networks import ClassGCN

CHANNELS, HIDDEN = 6, 4


def make(*sizes, norm="batch", seed=0):
    torch.manual_seed(1)
    gcn = ClassGCN(CHANNELS, HIDDEN, norm, seed)
    for size in sizes:
        gcn.grow(size)
    return gcn


def leaky(x):
    return x if x > 0 else 0.2 * x


def affine(weight, bias, x):
    rows = weight.tolist()
    constant = [0.0] * len(rows) if bias is None else bias.tolist()
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(rows, constant, strict=True)]


def slow(gcn, maps):
    """Logits of one image in Python floats; the norm is layer normalisation."""
    positions = maps.flatten(1).T.tolist()
    scores = [affine(gcn.activation.weight, None, x) for x in positions]
    classes = range(len(scores[0]))
    nodes = []
    for c in classes:
        weights = [math.exp(s[c]) for s in scores]
        vectors = [affine(gcn.vectors.weight, gcn.vectors.bias, x) for x in positions]
        nodes.append(
            [sum(w * v[d] for w, v in zip(weights, vectors, strict=True)) / sum(weights) for d in range(HIDDEN)]
        )
    graph = gcn.graph.weight.tolist()
    v1 = []
    for c in classes:
        mixed = [leaky(sum(graph[c][k] * nodes[k][d] for k in classes)) for d in range(HIDDEN)]
        static = affine(gcn.static.weight, gcn.static.bias, mixed)
        v1.append([v + leaky(s) for v, s in zip(nodes[c], static, strict=True)])
    mean = affine(gcn.mean.weight, gcn.mean.bias, [sum(v[d] for v in v1) / len(v1) for d in range(HIDDEN)])
    centre = sum(mean) / HIDDEN
    spread = math.sqrt(sum((x - centre) ** 2 for x in mean) / HIDDEN + 1e-5)
    m = [leaky((x - centre) / spread) for x in mean]
    logits = []
    for c in classes:
        edges = [1 / (1 + math.exp(-e)) for e in affine(gcn.edges.weight, gcn.edges.bias, m + v1[c])]
        mixed = [leaky(sum(edges[k] * v1[k][d] for k in classes)) for d in range(HIDDEN)]
        v2 = [leaky(x) for x in affine(gcn.dynamic.weight, gcn.dynamic.bias, mixed)]
        both = [a + b for a, b in zip(nodes[c], v2, strict=True)]
        second = sum(w * x for w, x in zip(gcn.classifier.weight[c].tolist(), both, strict=True))
        logits.append((max(s[c] for s in scores) + second + gcn.classifier.bias[c].item()) / 2)
    return logits


def test_logits_are_those_of_the_equations():
    gcn = make(2, 3, norm="layer").double()
    maps = torch.randn(2, CHANNELS, 3, 2, dtype=torch.float64)
    expected = torch.tensor([slow(gcn, m) for m in maps], dtype=torch.float64)
    torch.testing.assert_close(gcn(maps), expected, rtol=1e-9, atol=1e-12)


def test_class_maps_are_the_scores_of_the_first_branch():
    gcn, maps = make(2), torch.randn(2, CHANNELS, 3, 2)
    expected = torch.einsum("bchw,kc->bkhw", maps, gcn.activation.weight)
    torch.testing.assert_close(gcn.class_maps(maps), expected)


def test_growing_keeps_all_old_values():
    gcn = make(2)
    old = {name: value.clone() for name, value in gcn.state_dict().items()}
    gcn.grow(3)
    new = gcn.state_dict()
    grown = {name for name in old if old[name].shape != new[name].shape} - {"sizes"}
    assert grown == {"activation.weight", "graph.weight", "edges.weight", "edges.bias", "classifier.weight",
                     "classifier.bias", "activation.sizes", "edges.sizes", "classifier.sizes"}  # fmt: skip
    for name, value in old.items():
        assert torch.equal(new[name][tuple(slice(n) for n in value.shape)], value), name
    assert gcn.task_slices() == [slice(0, 2), slice(2, 5)]


def test_new_values_depend_on_seed_and_task_only():
    once = make(2, 3)
    torch.manual_seed(7)
    random = torch.get_rng_state()
    again = ClassGCN(CHANNELS, HIDDEN)
    again.load_state_dict(make(2).state_dict())
    torch.set_rng_state(random)
    again.grow(3)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in once.state_dict().items())
    other = make(2, 3, seed=1)
    for name in ("activation.weight", "graph.weight", "edges.weight", "classifier.bias"):
        assert not torch.equal(once.state_dict()[name], other.state_dict()[name])


def test_parts_of_one_width_do_not_start_alike():
    gcn = ClassGCN(8, hidden=4)
    gcn.grow(3)
    assert gcn.activation.weight.shape == gcn.edges.weight.shape
    assert not torch.equal(gcn.activation.weight, gcn.edges.weight)


@pytest.mark.parametrize("sizes", [(), (2,), (2, 3), (1, 1, 1), (2, 3, 1)])
def test_checkpoint_brings_its_own_sizes(sizes):
    stored, gcn = make(*sizes), make(2, 3, seed=5)
    gcn.load_state_dict(stored.state_dict())
    maps = torch.randn(2, CHANNELS, 3, 2)
    assert torch.equal(gcn.eval()(maps), stored.eval()(maps))
    assert gcn.num_classes == sum(sizes)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_every_parameter_gets_a_gradient(norm):
    gcn = make(2, 3, norm=norm)
    gcn(torch.randn(4, CHANNELS, 3, 2)).square().sum().backward()
    assert all(p.grad.any() for name, p in gcn.named_parameters() if name != "mean.bias")  # BatchNorm takes it off


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="`hidden=0`, `norm='batch'`"):
        ClassGCN(4, 0)
    with pytest.raises(ValueError, match="ClassGCN got 0 classes for task 1"):
        make(2).grow(0)
    with pytest.raises(ValueError, match=r"training batch of one image.*`graph_norm='layer'`"):
        make(2).train()(torch.zeros(1, make(2).activation.in_features, 2, 2))
