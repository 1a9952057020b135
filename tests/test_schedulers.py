"""Schedules in fractions of a stage, against tables made by hand and against torch's own."""

import io
import math
import warnings

import pytest
import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from lightning_cil.schedulers import FractionCosineLR, FractionStepLR
from lightning_cil.types import StageLength


def make_optimizer(*rates: float) -> SGD:
    return SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates or (1.0,)])


def rates_of(optimizer: Optimizer, scheduler: LRScheduler, num_epochs: int, start: int = 0) -> list[list[float]]:
    """The groups' learning rates in each epoch of a training loop."""
    history = []
    for _ in range(start, num_epochs):
        history.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return history


def first_group(make, num_epochs: int) -> list[float]:
    optimizer = make_optimizer()
    scheduler = make(optimizer)
    scheduler.set_num_epochs(num_epochs)
    return [rates[0] for rates in rates_of(optimizer, scheduler, num_epochs)]


@pytest.mark.parametrize(
    ("num_epochs", "expected"),
    [
        (1, [1]),
        (2, [1, 0.1]),
        (3, [1, 1, 0.1]),  # 2.25 is not reached by epoch 2
        (4, [1, 1, 0.1, 0.01]),
        (5, [1, 1, 1, 0.1, 0.01]),
        (8, [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
    ],
)
def test_steps_by_hand(num_epochs: int, expected: list[float]) -> None:
    assert first_group(FractionStepLR, num_epochs) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("warmup", "floor", "num_epochs", "expected"),
    [
        (0.0, 0.0, 1, [1]),
        (0.0, 0.0, 2, [1, 0.5]),
        (0.0, 0.0, 4, [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        (0.0, 0.2, 2, [1, 0.6]),
        (0.5, 0.0, 4, [1 / 3, 2 / 3, 1, 0.5]),
        (0.25, 0.5, 4, [0.5, 1, 0.875, 0.625]),
        (0.1, 0.0, 5, [1] + [(1 + math.cos(math.pi * e / 5)) / 2 for e in range(1, 5)]),  # half an epoch: none
        (0.99, 0.0, 1, [1]),
        (0.99, 0.0, 3, [1 / 3, 2 / 3, 1]),
        (1 - 1e-12, 0.0, 3, [1 / 3, 2 / 3, 1]),
        (0.3, 1.0, 10, [0.25, 0.5, 0.75] + [1] * 7),
    ],
)
def test_cosine_by_hand(warmup: float, floor: float, num_epochs: int, expected: list[float]) -> None:
    rates = first_group(lambda optimizer: FractionCosineLR(optimizer, warmup, floor), num_epochs)
    assert rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_epochs", [1, 7, 30, 170])
@pytest.mark.parametrize("at", [(0.5, 0.75), (0.1,), (0.3, 0.3), (), (0.7, 0.2, 0.9)])
def test_steps_equal_multistep(num_epochs: int, at: tuple[float, ...]) -> None:
    ours, theirs = make_optimizer(0.1, 2.0), make_optimizer(0.1, 2.0)
    scheduler = FractionStepLR(ours, at=at, factor=0.2)
    scheduler.set_num_epochs(num_epochs)
    milestones = sorted(math.ceil(round(fraction * num_epochs, 6)) for fraction in at)
    expected = rates_of(theirs, MultiStepLR(theirs, milestones, gamma=0.2), num_epochs)
    torch.testing.assert_close(torch.tensor(rates_of(ours, scheduler, num_epochs)), torch.tensor(expected))


@pytest.mark.parametrize("num_epochs", [1, 7, 170])
@pytest.mark.parametrize("floor", [0.0, 0.01])
def test_cosine_equals_cosine_annealing(num_epochs: int, floor: float) -> None:
    ours, theirs = make_optimizer(0.1), make_optimizer(0.1)
    scheduler = FractionCosineLR(ours, floor=floor)
    scheduler.set_num_epochs(num_epochs)
    expected = rates_of(theirs, CosineAnnealingLR(theirs, T_max=num_epochs, eta_min=0.1 * floor), num_epochs)
    torch.testing.assert_close(torch.tensor(rates_of(ours, scheduler, num_epochs)), torch.tensor(expected))


def test_fraction_that_is_a_whole_epoch_is_not_missed_by_rounding() -> None:
    """0.07 · 100 is 7.000000000000001 and 0.29 · 100 is 28.999999999999996 in floating point."""
    assert first_group(lambda o: FractionStepLR(o, at=(0.07,), factor=0.5), 100) == [1.0] * 7 + [0.5] * 93
    warm = first_group(lambda o: FractionCosineLR(o, warmup=0.29), 100)
    assert warm.index(1.0) == 29


@pytest.mark.parametrize("make", [FractionStepLR, lambda o: FractionCosineLR(o, warmup=0.3, floor=0.1)])
def test_rate_stays_where_it_ended_after_the_stage(make) -> None:
    optimizer = make_optimizer()
    scheduler = make(optimizer)
    scheduler.set_num_epochs(4)
    rates_of(optimizer, scheduler, 4)
    end = optimizer.param_groups[0]["lr"]
    assert end == pytest.approx(0.01 if make is FractionStepLR else 0.1)
    rates_of(optimizer, scheduler, 3)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(end)


SCHEDULERS = [
    pytest.param(lambda o: FractionStepLR(o, at=[0.25, 0.5], factor=0.3), id="step"),
    pytest.param(lambda o: FractionCosineLR(o, warmup=0.2, floor=0.05), id="cosine"),
]


@pytest.mark.parametrize("make", SCHEDULERS)
@pytest.mark.parametrize("told_first", [True, False])
@pytest.mark.parametrize("stop", [0, 1, 4, 9])
def test_resumed_schedule_equals_the_uninterrupted_one(make, told_first: bool, stop: int) -> None:
    straight = make_optimizer(1.0, 0.2)
    scheduler = make(straight)
    scheduler.set_num_epochs(10)
    expected = rates_of(straight, scheduler, 10)

    optimizer = make_optimizer(1.0, 0.2)
    scheduler = make(optimizer)
    scheduler.set_num_epochs(10)
    history = rates_of(optimizer, scheduler, stop)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)

    optimizer = make_optimizer(1.0, 0.2)
    scheduler = make(optimizer)
    if told_first:
        scheduler.set_num_epochs(10)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    if not told_first:
        scheduler.set_num_epochs(10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history += rates_of(optimizer, scheduler, 10, start=stop)
    assert history == expected


@pytest.mark.parametrize("make", SCHEDULERS)
def test_last_rate_is_that_of_the_optimizer(make) -> None:
    optimizer = make_optimizer(1.0, 0.2)
    scheduler = make(optimizer)
    assert scheduler.get_last_lr() == [1.0, 0.2]
    scheduler.set_num_epochs(10)
    for _ in range(10):
        assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("make", SCHEDULERS)
def test_tensor_rates_stay_tensors(make) -> None:
    rate = torch.tensor(2.0)
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    scheduler = make(optimizer)
    scheduler.set_num_epochs(10)
    group = optimizer.param_groups[0]
    values = [history[0] for history in rates_of(optimizer, scheduler, 10)]
    assert group["lr"] is rate  # changed in place, as captured CUDA graphs need it
    assert values == pytest.approx([2 * value for value in first_group(make, 10)], rel=1e-6)


@pytest.mark.parametrize("make", SCHEDULERS)
def test_stepping_without_the_length_is_refused(make) -> None:
    optimizer = make_optimizer()
    scheduler = make(optimizer)
    assert isinstance(scheduler, StageLength)
    optimizer.step()
    with pytest.raises(
        RuntimeError, match=r"Got a step of Fraction\w+LR without .*expected a call of `set_num_epochs`"
    ):
        scheduler.step()
    scheduler.set_num_epochs(3)
    scheduler.step()


@pytest.mark.parametrize("num_epochs", [0, -3])
def test_a_stage_has_at_least_one_epoch(num_epochs: int) -> None:
    with pytest.raises(ValueError, match=f"Got `num_epochs={num_epochs}`, expected at least 1"):
        FractionStepLR(make_optimizer()).set_num_epochs(num_epochs)


@pytest.mark.parametrize("at", [(0.5, 1.0), (0.0,), (-0.1,), (60,), (float("nan"),)])
def test_fractions_must_be_inside_the_stage(at: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"Got `at=\[.*expected fractions of the stage above 0 and below 1"):
        FractionStepLR(make_optimizer(), at=at)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), float("nan")])
def test_factor_must_be_positive(factor: float) -> None:
    with pytest.raises(ValueError, match=r"Got `factor=.*expected a positive number"):
        FractionStepLR(make_optimizer(), factor=factor)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_warmup_and_floor_must_be_fractions(value: float) -> None:
    with pytest.raises(ValueError, match=r"Got `warmup=.*expected a fraction of the stage"):
        FractionCosineLR(make_optimizer(), warmup=value)
    with pytest.raises(ValueError, match=r"Got `floor=.*expected a fraction of the initial learning rate"):
        FractionCosineLR(make_optimizer(), floor=value)
    with pytest.raises(ValueError, match=r"Got `warmup=1"):
        FractionCosineLR(make_optimizer(), warmup=1.0)
