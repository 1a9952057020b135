"""Against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix as reference
from sklearn.metrics import recall_score

from lightning_cil.metrics import (
    average_forgetting,
    class_forgetting,
    confusion_matrix,
    per_class_accuracy,
    recency_bias,
    task_confusion,
)

SIZES = [3, 1, 4, 2]
NUM_CLASSES = sum(SIZES)


def labels(seed: int, dtype: type = np.int16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, NUM_CLASSES, 200).astype(dtype), rng.integers(0, NUM_CLASSES, 200).astype(dtype)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_counts_and_accuracies_are_scikit_learns(dtype):
    for seed in range(5):
        target, predicted = labels(seed, dtype)
        counts = confusion_matrix(target, predicted, NUM_CLASSES)
        assert np.array_equal(counts, reference(target, predicted, labels=range(NUM_CLASSES)))
        expected = recall_score(target, predicted, labels=range(NUM_CLASSES), average=None)
        assert per_class_accuracy(target, predicted, NUM_CLASSES) == pytest.approx(expected)


def test_many_classes_do_not_overflow_the_stored_type():
    target = np.array([999, 998], dtype=np.int16)
    assert confusion_matrix(target, target, 1000)[999, 999] == 1


def test_tasks_group_classes_and_no_prediction_counts_nowhere():
    target, predicted = labels(7)
    predicted[:50] = -1
    counts = task_confusion(target, predicted, SIZES)
    task_of = [0, 0, 0, 1, 2, 2, 2, 2, 3, 3]
    expected = np.zeros((4, 4), dtype=int)
    for t, p in zip(target.tolist(), predicted.tolist(), strict=True):
        if p >= 0:
            expected[task_of[t], task_of[p]] += 1
    assert np.array_equal(counts, expected)
    assert counts.sum() == 150


def test_recency_bias_is_the_share_of_old_samples_called_new():
    target = np.array([0, 1, 2, 3, 3, 4])
    predicted = np.array([4, 1, 5, 3, 0, -1])
    assert recency_bias(target, predicted, SIZES, task=2) == 2 / 5  # 0 and 2 are called classes of task 2
    assert recency_bias(target, predicted, SIZES, task=1) == 0.0
    assert recency_bias(target, predicted, SIZES, task=0) is None
    assert recency_bias(np.array([9]), np.array([9]), SIZES, task=3) is None


def test_a_class_without_samples_has_no_accuracy():
    accuracy = per_class_accuracy(np.array([0, 0]), np.array([0, 1]), 3)
    assert accuracy[0] == 0.5
    assert np.isnan(accuracy[1:]).all()


@pytest.mark.parametrize(
    ("target", "predicted"), [([0, 10], [0, 0]), ([0, 1], [0, 10]), ([-1, 0], [0, 0]), ([0], [-2]), ([0, 1], [0])]
)
def test_labels_out_of_range_are_refused(target, predicted):
    with pytest.raises(ValueError, match="expected"):
        confusion_matrix(np.array(target), np.array(predicted), NUM_CLASSES)


def test_forgetting_by_class_is_the_mean_fall_of_each_class():
    table = np.random.default_rng(0).random((len(SIZES), NUM_CLASSES))
    falls = [max(table[i, c] for i in range(3)) - table[3, c] for c in range(8)]
    assert class_forgetting(table, SIZES) == pytest.approx(sum(falls) / 8)
    table[1, 9] = np.nan  # of the last task
    assert class_forgetting(table, SIZES) == pytest.approx(sum(falls) / 8)
    table[1, 7] = np.nan
    assert class_forgetting(table, SIZES) is None
    assert class_forgetting(table[:1], SIZES[:1]) is None


def test_forgetting_by_class_with_one_class_a_task_is_that_of_the_tasks():
    table = np.random.default_rng(1).random((4, 4))
    assert class_forgetting(table, [1, 1, 1, 1]) == pytest.approx(average_forgetting(table.tolist()))
