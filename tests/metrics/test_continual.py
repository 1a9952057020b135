"""Curves by hand and against the definitions written as loops."""

import random

import pytest

from lightning_cil.metrics import Measurement, minimum_accuracy, stability_gap, worst_case_accuracy

CURVE = [
    Measurement(0, [0.5]),
    Measurement(0, [0.9]),
    Measurement(1, [0.3, 0.2]),
    Measurement(1, [0.7, 0.8]),
    Measurement(2, [0.6, 0.1, 0.4]),
    Measurement(2, [0.65, 0.5, 0.9]),
]


def test_by_hand():
    assert minimum_accuracy(CURVE) == pytest.approx((0.3 + 0.1) / 2)
    assert worst_case_accuracy(CURVE) == pytest.approx(0.9 / 3 + 2 / 3 * 0.2)
    assert stability_gap(CURVE) == pytest.approx(((0.9 - 0.3) + (0.7 - 0.6) + (0.8 - 0.1)) / 3)


def test_one_task_has_no_score():
    for score in (minimum_accuracy, worst_case_accuracy, stability_gap):
        assert score(CURVE[:2]) is None
        assert score([]) is None


def test_an_accuracy_that_only_rises_has_no_gap():
    assert stability_gap([Measurement(0, [0.2]), Measurement(1, [0.3, 0.1]), Measurement(1, [0.4, 0.9])]) == 0.0


def test_a_task_that_was_not_measured_leaves_its_transitions_out():
    curve = [Measurement(0, [1.0]), Measurement(2, [0.0, 0.0, 0.0])]
    assert stability_gap(curve) is None
    assert minimum_accuracy(curve) == 0.0


def test_random_curves_against_loops():
    rng = random.Random(0)
    for _ in range(20):
        num_tasks = rng.randint(2, 5)
        curve = [Measurement(t, [rng.random() for _ in range(t + 1)]) for t in range(num_tasks) for _ in range(3)]
        lowest, falls = [], []
        for j in range(num_tasks - 1):
            lowest.append(min(a[j] for t, a in curve if t > j))
            for t in range(j + 1, num_tasks):
                before = [a[j] for u, a in curve if u == t - 1][-1]
                falls.append(max(0.0, before - min(a[j] for u, a in curve if u == t)))
        mean = sum(lowest) / len(lowest)
        assert minimum_accuracy(curve) == pytest.approx(mean)
        assert worst_case_accuracy(curve) == pytest.approx(
            curve[-1].accuracy[-1] / num_tasks + (num_tasks - 1) / num_tasks * mean
        )
        assert stability_gap(curve) == pytest.approx(sum(falls) / len(falls))
