"""Nearest class means against golden values and the definition, with classes that have no exemplar."""

import math

import pytest
import torch
from torch import Tensor

from lightning_cil.replay import class_means, herding, nearest_mean_scores


def unit_vectors(*degrees: float) -> Tensor:
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def random_features(n: int, dim: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(row: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def slow_mean(rows: list[list[float]]) -> list[float]:
    units = [unit(row) for row in rows]
    return unit([sum(column) / len(units) for column in zip(*units, strict=True)])


def test_golden_mean_of_two_exemplars() -> None:
    """Herding takes 40° and 80° first: their mean points to 60°."""
    features = unit_vectors(0, 40, 80, 100, 20)
    exemplars = 3 * features[herding(features, 2)]
    means = class_means(exemplars, torch.zeros(2, dtype=torch.long), num_classes=1).means
    torch.testing.assert_close(means, torch.tensor([[0.5, 0.866025]], dtype=torch.float64), atol=1e-6, rtol=0)


def test_means_and_scores_are_the_definition() -> None:
    features, target = random_features(20), torch.arange(20) % 4
    found = class_means(features, target, num_classes=4)
    expected = [slow_mean(features[target == c].tolist()) for c in range(4)]
    torch.testing.assert_close(found.means, torch.tensor(expected, dtype=torch.float64))
    assert found.known.all()
    assert not found.stored.any()
    queries = random_features(5, seed=1)
    distances = [
        [-sum((x - m) ** 2 for x, m in zip(unit(row), mean, strict=True)) for mean in expected]
        for row in queries.tolist()
    ]
    scores = nearest_mean_scores(queries, found.means, found.known)
    torch.testing.assert_close(scores, torch.tensor(distances, dtype=torch.float64))


def test_nearest_is_the_largest_cosine() -> None:
    means, queries = class_means(random_features(30), torch.arange(30) % 6, 6).means, random_features(50, seed=1)
    cosine = torch.nn.functional.cosine_similarity(queries.unsqueeze(1), means.unsqueeze(0), dim=2)
    assert torch.equal(nearest_mean_scores(queries, means).argmax(dim=1), cosine.argmax(dim=1))


def test_length_of_a_feature_does_not_matter() -> None:
    features, target, queries = random_features(12), torch.arange(12) % 3, random_features(4, seed=1)
    scale = torch.linspace(0.1, 9.0, 12).unsqueeze(1)
    torch.testing.assert_close(class_means(features * scale, target, 3).means, class_means(features, target, 3).means)
    means = class_means(features, target, 3).means
    torch.testing.assert_close(nearest_mean_scores(7 * queries, means), nearest_mean_scores(queries, means))


def test_views_are_averaged_by_giving_both() -> None:
    """The authors' script: the mean of the image's mean and of its mirror's mean."""
    features, flipped, target = random_features(12), random_features(12, seed=1), torch.arange(12) % 3
    both = class_means(torch.cat([features, flipped]), target.repeat(2), 3).means
    halves = torch.nn.functional.normalize(features), torch.nn.functional.normalize(flipped)
    average = (halves[0] + halves[1]) / 2
    expected = torch.nn.functional.normalize(torch.stack([average[target == c].mean(dim=0) for c in range(3)]))
    torch.testing.assert_close(both, expected)


class TestClassesWithoutExemplars:
    features, target = random_features(4), torch.tensor([0, 0, 2, 2])

    def test_are_never_predicted_without_a_stored_mean(self) -> None:
        found = class_means(self.features, self.target, num_classes=5)
        assert found.known.tolist() == [True, False, True, False, False]
        assert found.means.isfinite().all()
        scores = nearest_mean_scores(random_features(50, seed=1), found.means, found.known)
        assert not scores.isnan().any()
        assert set(scores.argmax(dim=1).tolist()) == {0, 2}
        assert (scores[:, [1, 3, 4]] == -math.inf).all()

    def test_fall_back_to_the_stored_mean_and_say_so(self) -> None:
        stored = 2 * random_features(4, seed=2)
        stored[3] = 0  # none for class 3 either
        found = class_means(self.features, self.target, num_classes=5, stored=stored)
        assert found.known.tolist() == [True, True, True, False, False]
        assert found.stored.tolist() == [False, True, False, False, False]
        fresh = class_means(self.features, self.target, num_classes=5)
        assert torch.equal(found.means[[0, 2]], fresh.means[[0, 2]])  # exemplars go first
        torch.testing.assert_close(found.means[1], stored[1] / stored[1].norm())

    def test_no_exemplar_at_all(self) -> None:
        none = self.features[:0], self.target[:0]
        assert not class_means(*none, num_classes=2).known.any()
        found = class_means(*none, num_classes=2, stored=random_features(2))
        assert found.stored.all()
        assert found.means.norm(dim=1).allclose(torch.ones(2, dtype=torch.float64))
        assert class_means(*none, num_classes=0).means.shape == (0, 6)


def test_a_dead_body_gives_no_nan() -> None:
    found = class_means(torch.zeros(3, 4), torch.tensor([0, 0, 1]), num_classes=2)
    scores = nearest_mean_scores(torch.zeros(2, 4), found.means, found.known)
    assert scores.tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_is_widened_and_nothing_is_tracked(dtype: torch.dtype) -> None:
    features = random_features(6).to(dtype).requires_grad_()
    found = class_means(features, torch.arange(6) % 2, 2)
    wide = torch.promote_types(dtype, torch.float32)
    assert found.means.dtype == wide
    assert not found.means.requires_grad
    assert nearest_mean_scores(features, found.means).dtype == wide


def test_scores_are_never_above_zero() -> None:
    features = random_features(200, dim=64).float()
    assert nearest_mean_scores(features, torch.nn.functional.normalize(features)).max() <= 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_diverged_features_are_refused(value: float) -> None:
    features = torch.ones(2, 3)
    features[1, 2] = value
    with pytest.raises(ValueError, match="NaN or infinite values, expected finite ones"):
        class_means(features, torch.tensor([0, 1]), 2)


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_are_checked(label: int) -> None:
    with pytest.raises(ValueError, match="expected labels from 0 to 1 with `num_classes=2`"):
        class_means(torch.ones(2, 3), torch.tensor([0, label]), 2)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"Got `features` of shape \[2, 3\] and `target` of shape \[3\]"):
        class_means(torch.ones(2, 3), torch.zeros(3, dtype=torch.long), 2)
    for shape in ((3, 3), (2, 4), (2,)):
        with pytest.raises(ValueError, match=r"Got `stored` of shape .*expected at most 2 means of width 3"):
            class_means(torch.ones(2, 3), torch.zeros(2, dtype=torch.long), 2, stored=torch.ones(shape))
