"""AGCN's matrix by hand, against literal loops, and the classifiers that the graph makes."""

import math

import pytest
import torch

from lightning_cil.networks import CorrelationRule, LabelGraph
from lightning_cil.networks.label_correlation import augmented_matrix, correlation_counts

WIDTH, VECTOR, HIDDEN = 5, 4, 3


def make(*sizes, seed=0):
    torch.manual_seed(1)
    graph = LabelGraph(WIDTH, VECTOR, HIDDEN, seed=seed)
    for size in sizes:
        graph.grow(size)
    return graph


def literal(old_block, targets, soft, rule):
    """The rule in loops over images and pairs of classes."""
    old, new = len(old_block), len(targets[0])
    images = range(len(targets))
    size = old + new
    matrix = [[0.0] * size for _ in range(size)]

    def fill(rows, columns, probability, threshold):
        for j in columns:
            edges = [i for i in rows if probability(i, j) >= threshold]
            for i in edges:
                matrix[i][j] = rule.scale / len(edges)

    def label(b, c):
        return targets[b][c - old]

    def among(i, j):
        given = sum(label(b, j) for b in images)
        return 0 if i == j or not given else sum(label(b, i) * label(b, j) for b in images) / given

    def forwards(i, j):
        given = sum(label(b, j) for b in images)
        return sum(soft[b][i] * label(b, j) for b in images) / given if given else 0

    def backwards(i, j):
        bayes = forwards(j, i) * sum(label(b, i) for b in images) / len(targets)
        return bayes / (sum(s[j] for s in soft) / len(targets))

    o, n = range(old), range(old, size)
    fill(n, n, among, rule.threshold)
    for i in n:
        matrix[i][i] += 1
    degree = {i: sum(matrix[i][j] for j in n) for i in n}
    for i in n:
        for j in n:
            matrix[i][j] /= math.sqrt(degree[i] * degree[j])
    fill(o, n, forwards, rule.cross_threshold)
    fill(n, o, backwards, rule.cross_threshold)
    for i in o:
        for j in o:
            matrix[i][j] = old_block[i][j]
    return matrix


def test_golden_matrix_of_a_first_task():
    # Three classes: 0 and 1 come together in 2 of 4 images, 2 with 0 once. N = 4, 2, 1; P(0 given 1) = 1,
    # P(1 given 0) = .5, P(0 given 2) = 1, P(2 given 0) = .25.
    target = torch.tensor([[1.0, 1, 0], [1, 1, 0], [1, 0, 1], [1, 0, 0]])
    counts = correlation_counts(target, torch.zeros(4, 0))
    assert counts.tolist() == [[4, 2, 1, 4], [2, 2, 0, 2], [1, 0, 1, 1]]
    matrix = augmented_matrix(torch.zeros(0, 0, dtype=torch.float64), counts, CorrelationRule())
    a, b, c = 1.5**-0.5, 1.25**-0.5, 1.0
    expected = [[a * a, 0.25 * a * b, 0.25 * a * c], [0.25 * a * b, b * b, 0.0], [0.0, 0.0, c]]
    torch.testing.assert_close(matrix, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(5))
def test_matrix_is_that_of_the_loops(seed):
    generator = torch.Generator().manual_seed(seed)
    old_block = torch.rand(3, 3, generator=generator, dtype=torch.float64)
    target = (torch.rand(12, 4, generator=generator) < 0.45).float()
    target[:, 3] *= float(seed != 0)  # once without a class
    logits = 2 * torch.randn(12, 3, generator=generator)
    counts = sum(correlation_counts(target[i : i + 4], logits[i : i + 4]) for i in (0, 4, 8))
    rule = CorrelationRule(cross_threshold=0.2)
    expected = literal(old_block.tolist(), target.tolist(), logits.double().softmax(1).tolist(), rule)
    matrix = augmented_matrix(old_block, counts, rule)
    torch.testing.assert_close(matrix, torch.tensor(expected, dtype=torch.float64))
    assert matrix[:3, 3:].any()
    assert matrix[3:, :3].any()


def test_counts_do_not_depend_on_order_or_parts():
    target = (torch.rand(30, 3) < 0.5).float()
    logits = torch.randn(30, 4)
    whole = correlation_counts(target, logits)
    order = torch.randperm(30)
    parts = [correlation_counts(target[i], logits[i]) for i in order.split(7)]
    assert torch.equal(torch.stack(parts).sum(0), whole)


def test_classifiers_are_those_of_the_equation():
    graph = make(2, 3).double()
    graph.count(graph.batch_counts((torch.rand(9, 3) < 0.6).double(), torch.randn(9, 2)))
    a, e = graph.matrix, graph.vectors
    hidden = a @ e @ graph.weight1
    expected = a @ torch.where(hidden > 0, hidden, 0.2 * hidden) @ graph.weight2
    torch.testing.assert_close(graph.classifiers(), expected)
    features = torch.randn(4, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(graph(features), features @ expected.T)


def test_task_keeps_the_old_block_and_what_the_old_classifiers_were():
    graph = make(2)
    graph.count(graph.batch_counts(torch.tensor([[1.0, 1.0], [1.0, 0.0]]), None))
    before, classifiers = graph.matrix.clone(), graph.classifiers().detach().clone()
    assert before[0, 1] > 0
    graph.grow(3)
    assert torch.equal(graph.previous, classifiers)
    for _ in range(2):
        graph.count(graph.batch_counts((torch.rand(9, 3) < 0.6).float(), torch.randn(9, 2)))
        assert torch.equal(graph.matrix[:2, :2], before)
    assert torch.equal(graph.previous, classifiers)
    assert graph.counts[0, -1] <= 18


def test_half_precision_does_not_cap_the_counts():
    graph = make(2).bfloat16()
    for _ in range(300):
        graph.count(graph.batch_counts(torch.ones(4, 2), None))
    assert graph.counts.tolist() == [[1200, 1200, 1200]] * 2


@pytest.mark.parametrize("sizes", [(), (2,), (1, 1, 1), (2, 3, 1)])
def test_checkpoint_brings_its_own_sizes(sizes):
    stored, graph = make(*sizes), make(2, 3, seed=5)
    if sizes:
        old = torch.randn(6, sum(sizes[:-1])) if sizes[1:] else None
        stored.count(stored.batch_counts((torch.rand(6, sizes[-1]) < 0.7).float(), old))
    graph.load_state_dict(stored.state_dict())
    assert all(torch.equal(value, stored.state_dict()[name]) for name, value in graph.state_dict().items())
    assert torch.equal(graph(torch.ones(2, WIDTH)), stored(torch.ones(2, WIDTH)))


def test_vectors_of_a_file_take_the_place_of_drawn_ones():
    graph = make(2)
    drawn = graph.vectors.clone()
    graph.grow(1)
    graph.set_vectors(1, torch.full((1, VECTOR), 7.0))
    assert torch.equal(graph.vectors, torch.cat([drawn, torch.full((1, VECTOR), 7.0)]))
    with pytest.raises(ValueError, match=r"shape \[2, 4\], expected \[1, 4\]"):
        graph.set_vectors(1, torch.zeros(2, VECTOR))


@pytest.mark.parametrize("options", [{"threshold": 0.0}, {"cross_threshold": 1.5}, {"scale": 0.0}])
def test_bad_input_is_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"`{name}={options[name]}`"):
        CorrelationRule(**options)
