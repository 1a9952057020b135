"""Scores of accuracy measured every few steps: what a matrix with one row a task cannot show.

Sources:

- De Lange, van de Ven, Tuytelaars: Continual evaluation for lifelong learning: identifying the stability gap, ICLR
  2023, https://arxiv.org/abs/2205.13452

A *curve* is a list of measurements in the order of their steps; each is the task that was being learned and the
accuracy on tasks 0 … that task. Tasks count from 0.
"""

from collections.abc import Sequence
from typing import NamedTuple

CONTINUAL_FORMULAS: dict[str, str] = {
    "min-ACC": "1/(T-1) sum_{j=0..T-2} min_{n while learning tasks > j} A_n[j]",
    "WC-ACC": "A[T-1]/T + (1 - 1/T) min-ACC",
    "gap": "mean_{t=1..T-1, j<t} max(0, last A_n[j] of task t-1 - min_{n in task t} A_n[j])",
}
"""One line for each score, as reports print it."""


class Measurement(NamedTuple):
    """Accuracy at one step.

    Args:
        task: Index of the task that was being learned.
        accuracy: Fractions in [0, 1] on tasks 0 … `task`.
    """

    task: int
    accuracy: Sequence[float]


def minimum_accuracy(curve: Sequence[Measurement]) -> float | None:
    """Average minimum accuracy (min-ACC): how low each task fell after it had been learned. Higher is better.

    De Lange et al. 2023, definition of min-ACC for the last task: the minimum over all measurements after task j's own
    training, averaged over all tasks but the last.

    Args:
        curve: Measurements in the order of their steps.

    Returns:
        A fraction; `None` while the curve has fewer than two tasks.

    Example:
        >>> minimum_accuracy([Measurement(0, [0.9]), Measurement(1, [0.2, 0.1]), Measurement(1, [0.6, 0.8])])
        0.2
    """
    last = max((m.task for m in curve), default=0)
    if last == 0:
        return None
    lowest = [min((m.accuracy[j] for m in curve if m.task > j), default=None) for j in range(last)]
    known = [value for value in lowest if value is not None]
    return sum(known) / len(known) if len(known) == last else None


def worst_case_accuracy(curve: Sequence[Measurement]) -> float | None:
    """Worst-case accuracy (WC-ACC): the last task's accuracy now with min-ACC of all others. Higher is better.

    De Lange et al. 2023: A_T / T + (1 - 1/T) · min-ACC, A_T the last measurement on the last task.

    Args:
        curve: Measurements in the order of their steps.

    Returns:
        A fraction; `None` while the curve has fewer than two tasks.

    Example:
        >>> curve = [Measurement(0, [1.0]), Measurement(1, [0.25, 0.5]), Measurement(1, [0.5, 0.75])]
        >>> worst_case_accuracy(curve)
        0.5
    """
    lowest = minimum_accuracy(curve)
    if lowest is None:
        return None
    num_tasks = curve[-1].task + 1
    return curve[-1].accuracy[-1] / num_tasks + (1 - 1 / num_tasks) * lowest


def stability_gap(curve: Sequence[Measurement]) -> float | None:
    """Stability gap: how far old tasks fall while a new one is learned, however well they recover. Lower is better.

    The phenomenon is that of De Lange et al. 2023, section 4, which shows curves and gives it no number. Here: the last
    accuracy on task j before task t minus the lowest one during task t, at least 0, averaged over all t ≥ 1 and j < t.

    Args:
        curve: Measurements in the order of their steps.

    Returns:
        A fraction; `None` while no two neighbouring tasks were measured.

    Example:
        >>> stability_gap([Measurement(0, [1.0]), Measurement(1, [0.25, 0.5]), Measurement(1, [0.5, 0.75])])
        0.75
    """
    falls = []
    for task in range(1, max((m.task for m in curve), default=0) + 1):
        before = [m for m in curve if m.task == task - 1]
        during = [m for m in curve if m.task == task]
        if before and during:
            falls += [max(0.0, before[-1].accuracy[j] - min(m.accuracy[j] for m in during)) for j in range(task)]
    return sum(falls) / len(falls) if falls else None
