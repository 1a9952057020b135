"""Herding against golden orders and against both rules written out as loops."""

import time

import pytest
import torch
from torch import Tensor

from lightning_cil.replay import herding, herding_inner_product
from lightning_cil.replay.herding import _nearest_to_mean

RULES = [herding, herding_inner_product]


def random_features(n: int = 40, dim: int = 6, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (
        torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        .relu()
        .add(0.01)
        .to(dtype)
    )


def unit_vectors(*degrees: float) -> Tensor:
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def slow_herding(features: Tensor, num_exemplars: int) -> list[int]:
    """Algorithm 4: the whole mean of the exemplars at every step, for every candidate."""
    vectors = [row / row.norm() if row.any() else row for row in features.double()]
    mean = sum(vectors) / len(vectors)
    chosen: list[int] = []
    for k in range(1, num_exemplars + 1):
        distances = {
            i: (mean - (vector + sum(vectors[j] for j in chosen)) / k).norm().item()
            for i, vector in enumerate(vectors)
            if i not in chosen
        }
        chosen.append(min(distances, key=distances.__getitem__))
    return chosen


def slow_inner_product(features: Tensor, num_exemplars: int, limit: int = 1000) -> list[int]:
    """The loop of iCaRL's script: a choice that repeats moves w, but takes no place."""
    vectors = [row / row.norm() for row in features.double()]
    mean = sum(vectors) / len(vectors)
    w, chosen = mean, []
    for _ in range(limit):
        products = [torch.dot(w, vector).item() for vector in vectors]
        best = products.index(max(products))
        if best not in chosen:
            chosen.append(best)
        w = w + mean - vectors[best]
        if len(chosen) == num_exemplars:
            break
    return chosen


def test_golden_orders() -> None:
    features = unit_vectors(0, 40, 80, 100, 20)
    assert herding(features, 5).tolist() == [1, 2, 4, 3, 0]
    assert herding_inner_product(features, 5).tolist() == [1, 2, 4, 0, 3]


def test_golden_class_mean_of_two_exemplars() -> None:
    features = unit_vectors(0, 40, 80, 100, 20)
    mean = features[herding(features, 2)].mean(dim=0)
    torch.testing.assert_close(
        mean / mean.norm(), torch.tensor([0.5, 0.866025], dtype=torch.float64), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("zeros", [[], [4], [0, 7, 39]])
def test_herding_equals_the_loop(seed: int, zeros: list[int]) -> None:
    features = random_features(seed=seed)
    features[zeros] = 0.0
    assert herding(features, 25).tolist() == slow_herding(features, 25)


@pytest.mark.parametrize("seed", range(5))
def test_inner_product_equals_the_scripts_loop(seed: int) -> None:
    features = random_features(seed=seed)
    expected = slow_inner_product(features, 25)
    assert len(expected) == 25
    assert herding_inner_product(features, 25).tolist() == expected


def test_the_script_may_choose_again_and_the_paper_may_not() -> None:
    """What the script chooses on the golden vectors, repeats included; they are what sets it apart."""
    features = unit_vectors(0, 40, 80, 100, 20)
    mean, w, choices = features.mean(dim=0), features.mean(dim=0), []
    for _ in range(7):
        choices.append(int((features @ w).argmax()))
        w = w + mean - features[choices[-1]]
    assert choices == [1, 1, 2, 4, 2, 0, 3]
    assert herding_inner_product(features, 5).tolist() == list(dict.fromkeys(choices))


@pytest.mark.parametrize("rule", RULES)
def test_fewer_is_a_prefix_of_more(rule) -> None:
    features = random_features(n=20)
    order = rule(features, 20)
    for count in range(21):
        assert torch.equal(rule(features, count), order[:count])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [12, 13, 500])
def test_more_than_there_are_gives_all_in_order(rule, count: int) -> None:
    order = rule(random_features(n=12), count)
    assert sorted(order.tolist()) == list(range(12))


@pytest.mark.parametrize("rule", RULES)
def test_length_of_a_feature_does_not_matter(rule) -> None:
    features = random_features()
    scale = torch.linspace(0.1, 9.0, len(features)).unsqueeze(1)
    assert torch.equal(rule(features, 10), rule(features * scale, 10))


def test_the_mean_is_not_normalised_again() -> None:
    """With μ stretched to length 1 the order here would be 2, 3, 1, 0."""
    assert herding(unit_vectors(-80, 80, 0, 20), 4).tolist() == [2, 1, 0, 3]


@pytest.mark.parametrize("rule", RULES)
def test_the_mean_of_the_exemplars_is_nearer_than_that_of_random_ones(rule) -> None:
    features = torch.nn.functional.normalize(random_features(n=300, dim=16, dtype=torch.float64))
    distance = (features[rule(features, 10)].mean(dim=0) - features.mean(dim=0)).norm()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = features[torch.randperm(300, generator=generator)[:10]].mean(dim=0)
        assert distance < (other - features.mean(dim=0)).norm()


@pytest.mark.parametrize("rule", RULES)
def test_equal_features_are_still_chosen_once_each(rule) -> None:
    """The script's rule never gets past the first of two equal features by itself."""
    order = rule(torch.ones(9, 3), 6).tolist()
    assert len(order) == len(set(order)) == 6


@pytest.mark.parametrize("rule", RULES)
def test_zero_features_are_allowed(rule) -> None:
    """A dead ReLU body: no direction, no NaN."""
    features = torch.cat([random_features(n=5), torch.zeros(3, 6)])
    assert sorted(rule(features, 8).tolist()) == list(range(8))


def test_zero_feature_counts_with_its_true_distance() -> None:
    """Of (1, 0), (-1, 0) and the zero vector, that one lies on the mean; with four times (1, 0) it is the farther."""
    right, left, zero = [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]
    assert herding(torch.tensor([right, left, zero]), 1).tolist() == [2]
    assert herding(torch.tensor([zero, right, right, right, right]), 2).tolist() == [1, 2]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_input_is_neither_changed_nor_tracked(rule, dtype: torch.dtype) -> None:
    features = random_features(dtype=dtype).requires_grad_()
    before = features.detach().clone()
    order = rule(features, 10)
    assert torch.equal(features, before)
    assert order.dtype == torch.int64
    assert order.tolist() == rule(before.double(), 10).tolist()


@pytest.mark.parametrize("rule", RULES)
def test_float32_chooses_alike_without_near_ties(rule) -> None:
    features = random_features(n=60, dim=32)
    assert torch.equal(rule(features, 8, dtype=torch.float32), rule(features, 8))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [0, 3])
def test_no_sample_or_no_exemplar(rule, count: int) -> None:
    assert rule(torch.zeros(0, 6), count).shape == (0,)
    assert rule(random_features(), 0).shape == (0,)


def test_the_loop_reads_nothing_back_from_the_device() -> None:
    """On the meta device there is nothing to read: any `.item()` or data-dependent branch would fail."""
    assert _nearest_to_mean(torch.empty(50, 8, device="meta"), 10).shape == (10,)


def test_large_classes_are_fast() -> None:
    """20 passes over 50 000 x 512 numbers; the naive loop makes 20 x 50 000 means of vectors."""
    features = torch.randn(50_000, 512, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    order = herding(features, 20)
    assert time.perf_counter() - start < 30  # about a second on two cores
    assert len(order.unique()) == 20


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_diverged_features_are_refused(rule, value: float) -> None:
    features = random_features()
    features[3, 2] = value
    with pytest.raises(ValueError, match="NaN or infinite values, expected finite ones"):
        rule(features, 3)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("shape", "count"), [((4,), 1), ((2, 3, 4), 1), ((4, 3), -1)])
def test_bad_arguments_are_refused(rule, shape: tuple[int, ...], count: int) -> None:
    with pytest.raises(ValueError, match=r"Got `features` of shape .*expected \[n, dim\]"):
        rule(torch.zeros(shape), count)
