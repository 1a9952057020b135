"""M1 and M2: unit cases, ranges, the ingredients against loops, and what is written beside the numbers."""

import doctest
import json
import random

import pytest
import torch
from torch.nn.functional import cosine_similarity

from lightning_cil.metrics import (
    cluster_agreement,
    label_agreement,
    m1,
    m2,
    multimodal,
    multimodal_scores,
    stage_accuracy,
    stage_backward,
    stage_forgetting,
    stage_forward,
    task_similarity,
)

PRESETS = list(multimodal.M2_COEFFICIENTS)


def draw_matrix(rng: random.Random, size: int) -> list[list[float]]:
    return [[rng.random() for _ in range(size)] for _ in range(size)]


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_m1_of_a_perfect_stream_of_unlike_tasks(tasks):
    assert m1(1.0, [0.0] * tasks, [1.0] + [0.0] * (tasks - 1)) == pytest.approx(50 + 50 * (tasks - 1) / tasks)


def test_m1_of_a_stream_that_learns_nothing_and_does_not_forget_is_0_where_tasks_are_alike():
    assert m1(0.0, [0.0] * 5, [1.0] * 5) == 0


def test_m1_weighs_each_task_by_how_unlike_it_is():
    assert m1([0.2, 0.6], torch.tensor([0.0, 0.25]), [1.0, 0.5]) == pytest.approx(50 * 0.4 + 50 * (0 + 0.5 * 0.75) / 2)


@pytest.mark.parametrize("preset", PRESETS)
def test_m2_of_a_perfect_stream_is_1_and_of_the_worst_0(preset):
    assert m2(1.0, [1.0] * 3, [1.0] * 3, 1.0, 1.0, preset) == pytest.approx(1)
    assert m2(0.0, [0.0] * 3, [0.0] * 3, 0.0, 0.0, preset) == 0


@pytest.mark.parametrize(
    ("preset", "expected"), [("fifths", 1.9 / 5), ("thirds", 0.5 / 3 + 1.4 / 6), ("half", 0.25 + 1.4 / 8)]
)
def test_m2_presets(preset, expected):
    assert m2(0.5, [0.2, 0.4], [0.5, 0.1], 0.7, 0.1, preset) == pytest.approx(expected)


def test_m2_takes_coefficients_that_keep_its_range():
    assert m2(0.5, 1.0, 1.0, 0.0, 0.0, coefficients=[0.5, 0.25, 0.0]) == pytest.approx(0.75)
    with pytest.raises(ValueError, match=r"c_A \+ 2 c_B \+ 2 c_N = 1"):
        m2(0.5, 1.0, 1.0, 0.0, 0.0, coefficients=[0.5, 0.25, 0.5])
    with pytest.raises(ValueError, match="'sixths'"):
        m2(0.5, 1.0, 1.0, 0.0, 0.0, "sixths")


@pytest.mark.parametrize("backward", ["shifted", "halved"])
@pytest.mark.parametrize("forward", ["learned", "gem"])
def test_random_streams_stay_in_the_range(backward, forward):
    rng = random.Random(0)
    for _ in range(20):
        size = rng.randint(1, 6)
        similarity, ahead, zero_shot = ([rng.random() for _ in range(size)] for _ in range(3))
        scores = multimodal_scores(
            draw_matrix(rng, size),
            [rng.randint(1, 9) for _ in range(size)],
            similarity=similarity,
            frozen_similarity=similarity[::-1],
            nmi_visual=rng.random(),
            nmi_audio=rng.random(),
            preset=rng.choice(PRESETS),
            backward=backward,
            forward=forward,
            ahead=ahead,
            zero_shot=zero_shot,
        )
        assert 0 <= scores["M1"] <= 100
        assert 0 <= scores["M1_frozen"] <= 100
        assert 0 <= scores["M2"] <= 1
        for name in ("accuracy", "forgetting", "backward", "forward"):
            assert len(scores[name]) == size
            assert all(0 <= value <= 1 for value in scores[name])


def test_ingredients_against_loops():
    rng = random.Random(1)
    for size in (1, 2, 5):
        a = draw_matrix(rng, size)
        counts = [rng.randint(1, 9) for _ in range(size)]
        lost, drift, accuracy = [0.0], [0.0], []
        for t in range(size):
            accuracy.append(sum(a[t][j] * counts[j] for j in range(t + 1)) / sum(counts[: t + 1]))
            if t:
                best = [max(a[i][j] for i in range(j, t)) for j in range(t)]
                lost.append(sum(max(0.0, best[j] - a[t][j]) for j in range(t)) / t)
                drift.append(sum(a[t][j] - a[j][j] for j in range(t)) / t)
        assert stage_forgetting(a) == pytest.approx(lost)
        assert stage_backward(a) == pytest.approx([min(1.0, 1 + d) for d in drift])
        assert stage_backward(a, "halved") == pytest.approx([(1 + d) / 2 for d in drift])
        assert stage_forward(a) == pytest.approx([a[t][t] for t in range(size)])
        assert stage_accuracy(a, counts) == pytest.approx(accuracy)


def test_a_task_that_gained_is_not_negative_forgetting_nor_stability_above_1():
    gained = [[0.2, 0.0], [0.9, 1.0]]
    assert stage_forgetting(gained) == [0.0, 0.0]
    assert stage_backward(gained) == [1.0, 1.0]


def test_what_is_not_known_is_none():
    a = [[1.0, None, None], [None, 1.0, None], [0.5, 0.5, 1.0]]
    assert stage_forgetting(a) == [0.0, None, None]
    assert stage_backward(a) == [1.0, None, 0.5]
    assert stage_accuracy(a, [1, 1, 1])[1] is None
    scores = multimodal_scores(a, [1, 1, 1], similarity=[1.0, 0.5, 0.5])
    assert (scores["M1"], scores["M1_frozen"], scores["M2"], scores["average_accuracy"]) == (None,) * 4
    assert m2(1.0, [1.0], [1.0], None, 0.5) is None


def test_entries_above_the_diagonal_are_not_read():
    a = [[1.0, None], [0.5, 1.0]]
    assert stage_forgetting(a) == [0.0, 0.5]
    assert stage_backward(a) == [1.0, 0.5]


def test_task_similarity_is_the_mean_of_two_cosines():
    prototypes, means = torch.randn(5, 4), torch.randn(3, 4)
    semantic = cosine_similarity(prototypes[3:].mean(0), prototypes[:3].mean(0), dim=0)
    feature = cosine_similarity(means[2], (means[0] + means[1]) / 2, dim=0)
    expected = 0.5 + 0.25 * (semantic + feature).item()
    assert task_similarity(prototypes, means, num_new=2) == pytest.approx(expected, abs=1e-6)
    assert task_similarity(prototypes, means[:1], num_new=5) == 1
    same = torch.ones(4, 3)
    assert task_similarity(same, same[:2], 2) == pytest.approx(1)
    assert task_similarity(torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [-1.0]]), 1) == 0
    with pytest.raises(ValueError, match="means of 2 tasks"):
        task_similarity(prototypes, means[:2], num_new=5)


def blobs(target: torch.Tensor, dim: int, seed: int) -> torch.Tensor:
    """Features in one tight group for each class, of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator))
    noise = 0.01 * torch.randn(len(target), dim, generator=generator)
    return (basis[target] + noise) * 100 ** torch.rand(len(target), 1, generator=generator)


def test_features_that_group_alike_agree_and_others_do_not():
    target = torch.arange(5).repeat_interleave(8)
    fused, visual = blobs(target, 8, 0), blobs(target, 6, 1)
    assert cluster_agreement(fused, visual, 5) == pytest.approx((1, 1))
    assert label_agreement(fused, target, 5) == pytest.approx((1, 1))
    noise = torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
    chance = cluster_agreement(fused, noise, 5)
    assert chance.nmi < 0.5
    assert abs(chance.ami) < 0.2
    assert chance == cluster_agreement(fused, noise, 5)
    with pytest.raises(ValueError, match="num_clusters=41"):
        cluster_agreement(fused, visual, 41)
    with pytest.raises(ValueError, match="40 and 39"):
        cluster_agreement(fused, visual[:39], 5)


def test_the_choices_stand_beside_the_numbers():
    scores = multimodal_scores(
        [[1.0, 0.0], [0.5, 1.0]], [3, 1], similarity=[1.0, 0.0], nmi_visual=0.5, nmi_audio=0.1, backward="halved"
    )
    assert scores["average_accuracy"] == pytest.approx((1 + 2.5 / 4) / 2)
    assert scores["last_accuracy"] == pytest.approx(2.5 / 4)
    assert scores["M1"] == pytest.approx(50 * scores["average_accuracy"] + 50 * (0 + 0.5) / 2)
    assert scores["M2"] == pytest.approx((scores["average_accuracy"] + (0.5 + 0.25) / 2 + 1.0 + 0.6) / 5)
    assert scores["choices"]["c_A, c_B, c_N"] == [0.2, 0.2, 0.2]
    assert scores["choices"]["BWT_t"].startswith("(1 + mean")
    assert json.loads(json.dumps(scores)) == scores


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: m1(0.5, [0.0], [1.0, 1.0]), "'forgetting': 1, 'similarity': 2"),
        (lambda: m1(50.0, [0.0], [1.0]), "Divide percentages by 100"),
        (lambda: m1(0.5, [], []), "at least one"),
        (lambda: stage_accuracy([[1.0]], [0]), "at least 1"),
        (lambda: stage_forward([[1.0]], "gem"), "`ahead` and `zero_shot`"),
        (lambda: stage_forward([[1.0]], "gem", [1.0, 1.0], [1.0, 1.0]), "'matrix': 1"),
        (lambda: stage_forward([[1.0]], "next"), "'next'"),
        (lambda: stage_backward([[1.0]], "whole"), "'whole'"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_examples_in_the_docstrings():
    assert doctest.testmod(multimodal).failed == 0
