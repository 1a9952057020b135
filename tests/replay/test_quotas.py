"""Sharing the budget, and cutting exemplar lists to their quotas."""

import pytest
import torch

from lightning_cil.replay import class_quotas, first_per_class


@pytest.mark.parametrize("budget", [0, 1, 7, 200, 2000])
@pytest.mark.parametrize("num_classes", [1, 2, 9, 100, 1000])
def test_quotas_spend_the_budget_evenly(budget: int, num_classes: int) -> None:
    quotas = class_quotas(budget, num_classes)
    assert quotas.dtype == torch.int64
    assert quotas.shape == (num_classes,)
    assert quotas.sum() == budget
    assert quotas.max() - quotas.min() <= 1
    assert (quotas[:-1] >= quotas[1:]).all()


def test_imagenet_with_200_exemplars_keeps_one_for_the_first_200_classes() -> None:
    assert class_quotas(200, 1000).tolist() == [1] * 200 + [0] * 800


@pytest.mark.parametrize(("budget", "num_classes", "share"), [(2000, 30, 66), (20, 6, 3), (200, 1000, 0), (7, 7, 1)])
def test_the_papers_share_is_rounded_down(budget: int, num_classes: int, share: int) -> None:
    assert class_quotas(budget, num_classes, remainder="unused").tolist() == [share] * num_classes


def test_an_unknown_use_of_the_remainder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`remainder='last'`: expected 'first_classes' or 'unused'"):
        class_quotas(3, 2, remainder="last")  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [7, 40, 101])
def test_no_quota_grows_when_classes_come(budget: int) -> None:
    for num_classes in range(1, 60):
        assert (class_quotas(budget, num_classes + 1)[:-1] <= class_quotas(budget, num_classes)).all()


def test_no_class_no_quota() -> None:
    assert class_quotas(5, 0).shape == (0,)


@pytest.mark.parametrize("arguments", [(-1, 2), (2, -1)])
def test_negative_numbers_are_refused(arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"Got `budget=.*expected numbers of at least 0"):
        class_quotas(*arguments)


def test_first_per_class_equals_the_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        target = torch.randint(0, 6, (40,), generator=generator)
        quotas = torch.randint(0, 9, (5,), generator=generator)  # class 5 has none
        left = [*quotas.tolist(), 0]
        expected = []
        for row, label in enumerate(target.tolist()):
            if left[label] > 0:
                left[label] -= 1
                expected.append(row)
        assert first_per_class(target, quotas).tolist() == expected


def test_cutting_twice_equals_cutting_once() -> None:
    target = torch.arange(60) % 4
    wide, narrow = class_quotas(30, 4), class_quotas(11, 4)
    rows = first_per_class(target, wide)
    assert torch.equal(rows[first_per_class(target[rows], narrow)], first_per_class(target, narrow))


def test_first_per_class_of_nothing_is_nothing() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert first_per_class(none, class_quotas(5, 3)).shape == (0,)
    assert first_per_class(torch.tensor([0, 1]), none).shape == (0,)


def test_arguments_must_be_vectors() -> None:
    with pytest.raises(ValueError, match=r"Got `target` of shape \[2, 3\]"):
        first_per_class(torch.zeros(2, 3, dtype=torch.int64), class_quotas(5, 3))
    with pytest.raises(ValueError, match=r"`quotas` of shape \[\]"):
        first_per_class(torch.zeros(2, dtype=torch.int64), torch.tensor(3))
