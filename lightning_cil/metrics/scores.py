"""Scores of a stream of tasks: pure functions of the accuracy matrix.

Notation, used in every docstring below (0-based; the papers count from 1):

- `T`: number of tasks.
- `A[i, j]`: score on the test set of task `j` after training on task `i`, a fraction in [0, 1]. Usually accuracy, but
  any fraction that is better when higher fits, such as mean average precision.
- `b[j]`: score on task `j` of the untrained model (same seed, same heads).

`A` is the argument `matrix`: `T×T`, nested lists in which `None` marks an entry that was not evaluated, or a tensor of
any float type in which NaN does. A score that reads such an entry is undefined, and so is one that needs two tasks when
there is one: the function returns `None`, never NaN, an infinity or 0. `summarise` also says why. For a stream still
under way give the leading block of the rows that are there, `matrix[:t, :t]`.

Entries above the diagonal (`j > i`) are read by FWT and PS (`A[j-1, j]`) and by AF (all of them). In Class-IL a class
that was not yet learned cannot be predicted: they are 0 by construction, and are to be given as 0, not as `None`.

Sources:

- NFL: Vahedifar and Zhang, "No Forgetting Learning: Memory-free Continual Learning", 2025, Eq. 23-29,
  https://arxiv.org/abs/2503.04638v2
- GEM: Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning", 2017, https://arxiv.org/abs/1706.08840
- RWalk: Chaudhry et al., "Riemannian Walk for Incremental Learning", 2018, https://arxiv.org/abs/1801.10112
- iCaRL: Rebuffi et al., "iCaRL: Incremental Classifier and Representation Learning", 2017,
  https://arxiv.org/abs/1611.07725
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

# `int` is spelled out: beartype, unlike mypy, does not take it for a `float`.
Score: TypeAlias = float | int | None
Matrix: TypeAlias = Sequence[Sequence[Score]] | Tensor
Baseline: TypeAlias = Sequence[Score] | Tensor

FORMULAS: dict[str, str] = {
    "ACC": "mean_j A[T-1,j]",
    "AIA": "mean_i mean_{j<=i} A[i,j]",
    "FWT": "1/(T-1) sum_{j=1..T-1} (A[j-1,j] - b[j])",
    "BWT": "1/(T-1) sum_{j=0..T-2} (A[T-1,j] - A[j,j])",
    "AF": "1/(T-1) sum_{j=0..T-2} (max_{i=0..T-2} A[i,j] - A[T-1,j])",
    "I": "a* - A[T-1,T-1]",
    "PS": "1/(T-1) sum_{j=1..T-1} (A[j,j] - A[j-1,j]) / |sum_{j=0..T-2} (A[T-1,j] - A[j,j])|",
}
"""One line for each score, as reports and `results.json` print it, in the order of the tables. Tasks count from 0."""

_RANGE_TOLERANCE = 1e-6
_ZERO_DENOMINATOR = 1e-12


def average_accuracy(matrix: Matrix) -> float | None:
    """Average accuracy (ACC): mean over all tasks after the last one. Higher is better.

    ACC = mean_j A[T-1, j], NFL Eq. 23, GEM. The mean is over tasks: with tasks of unequal size it differs from the
    accuracy over samples, for which see `lightning_cil.metrics.sample_weighted_accuracy`.

    Args:
        matrix: `T×T` fractions in [0, 1], T ≥ 1; `None` or NaN where not evaluated.

    Returns:
        A fraction in [0, 1]; `None` if an entry of the last row was not evaluated.

    Raises:
        ValueError: If `matrix` is not square or holds a value outside [0, 1].

    Example:
        >>> average_accuracy([[0.75, 0.0], [0.25, 1.0]])
        0.625
    """
    return _or_none(_table(matrix)[-1].mean())


def average_incremental_accuracy(matrix: Matrix) -> float | None:
    """Average incremental accuracy (AIA): mean over the stream of the mean over the seen tasks. Higher is better.

    AIA = mean_i mean_{j≤i} A[i, j], iCaRL section 4. NFL has no formula for it, but the numbers that its Tables 4-7
    head "ACC" agree with this one for the baselines, not with its Eq. 23. iCaRL's inner mean is over the samples of the
    seen tasks: the same for tasks of equal size.

    Args:
        matrix: `T×T` fractions in [0, 1], T ≥ 1; `None` or NaN where not evaluated.

    Returns:
        A fraction in [0, 1]; `None` if an entry on or below the diagonal was not evaluated.

    Raises:
        ValueError: If `matrix` is not square or holds a value outside [0, 1].

    Example:
        Means of 0.75 after the first task and of 0.625 after the second:

        >>> average_incremental_accuracy([[0.75, None], [0.25, 1.0]])
        0.6875
    """
    table = _table(matrix)
    num_seen = torch.arange(1, len(table) + 1)
    return _or_none((table.tril().sum(dim=1) / num_seen).mean())


def forward_transfer(matrix: Matrix, baseline: Baseline | None) -> float | None:
    """Forward transfer (FWT): what earlier tasks do for a task that is not yet learned. Higher is better.

    FWT = 1/(T-1) Σ_{j=1..T-1} (A[j-1, j] - b[j]), NFL Eq. 24, GEM. Both terms take the untrained head of task j, which
    must therefore exist from the start. In Class-IL, where A[j-1, j] is 0 by construction, the score says nothing and
    is not reported; give no baseline there.

    Args:
        matrix: `T×T` fractions in [0, 1]; `None` or NaN where not evaluated.
        baseline: b, `[T]` fractions in [0, 1]: the untrained model's score on each task. `b[0]` is not read. `None`:
            there is none.

    Returns:
        A fraction in [-mean b, 1]; `None` with fewer than two tasks, without a baseline, or if an entry `A[j-1, j]` or
        `b[j]` was not evaluated.

    Raises:
        ValueError: If `matrix` is not square, `baseline` has not one value for each task, or a value is outside [0, 1].

    Example:
        >>> forward_transfer([[0.75, 0.5], [0.25, 1.0]], baseline=[0.5, 0.25])
        0.25
    """
    table = _table(matrix)
    if baseline is None:
        return None
    return _or_none((table.diagonal(offset=1) - _vector(baseline, len(table))[1:]).mean())


def backward_transfer(matrix: Matrix) -> float | None:
    """Backward transfer (BWT): what later tasks do to a task already learned. Higher is better.

    BWT = 1/(T-1) Σ_{j=0..T-2} (A[T-1, j] - A[j, j]), NFL Eq. 25, GEM. Negative when the model forgets. GEM's code
    divides by T; the paper, as here, by T-1.

    Args:
        matrix: `T×T` fractions in [0, 1]; `None` or NaN where not evaluated.

    Returns:
        A fraction in [-1, 1]; `None` with fewer than two tasks or if an entry of the last row or of the diagonal, save
        A[T-1, T-1], was not evaluated.

    Raises:
        ValueError: If `matrix` is not square or holds a value outside [0, 1].

    Example:
        >>> backward_transfer([[0.75, None], [0.25, 1.0]])
        -0.5
    """
    return _or_none(_drifts(_table(matrix)).mean())


def average_forgetting(matrix: Matrix) -> float | None:
    """Average forgetting (AF): how far each task fell below its best score. Lower is better.

    AF = 1/(T-1) Σ_{j=0..T-2} (max_{i=0..T-2} A[i, j] - A[T-1, j]), NFL Eq. 26-27, RWalk. The maximum runs over all rows
    but the last: over those before task j was learned as well, which matters only if the zero-shot score beats all
    later ones, and not over the last, so that AF is negative where the last task brought an earlier one to its best.
    AF ≥ -BWT.

    Args:
        matrix: `T×T` fractions in [0, 1]; `None` or NaN where not evaluated.

    Returns:
        A fraction in [-1, 1]; `None` with fewer than two tasks or if an entry of any row, save the last column, was not
        evaluated.

    Raises:
        ValueError: If `matrix` is not square or holds a value outside [0, 1].

    Example:
        >>> average_forgetting([[0.75, 0.0], [0.25, 1.0]])
        0.5
        >>> average_forgetting([[0.5, 0.0], [0.75, 1.0]])
        -0.25
    """
    table = _table(matrix)
    if len(table) < 2:
        return None
    best = table[:-1, :-1].amax(dim=0)
    return _or_none((best - table[-1, :-1]).mean())


def intransigence(matrix: Matrix, joint_accuracy: Score) -> float | None:
    """Intransigence (I): how much better joint training does on the last task. Lower is better.

    I = a* - A[T-1, T-1], NFL Eq. 28, RWalk. Negative: better than joint training.

    Args:
        matrix: `T×T` fractions in [0, 1], T ≥ 1; `None` or NaN where not evaluated.
        joint_accuracy: a*, a fraction in [0, 1]: score on the *last* task of a model trained on all tasks' data at
            once, same scenario and protocol. `None`: there is none.

    Returns:
        A fraction in [-1, 1]; `None` without `joint_accuracy` or if A[T-1, T-1] was not evaluated.

    Raises:
        ValueError: If `matrix` is not square or a value is outside [0, 1].

    Example:
        >>> intransigence([[0.75, 0.0], [0.25, 0.75]], joint_accuracy=0.875)
        0.125
    """
    table = _table(matrix)
    if joint_accuracy is None:
        return None
    joint = torch.tensor(joint_accuracy, dtype=torch.float64)
    _check_fractions("joint_accuracy", joint)
    return _or_none(joint - table[-1, -1])


def plasticity_stability(matrix: Matrix) -> float | None:
    """Plasticity-stability ratio (PS): what was learned over what was lost. Higher is better.

    PS = 1/(T-1) · Σ_{j=1..T-1} (A[j, j] - A[j-1, j]) / |Σ_{j=0..T-2} (A[T-1, j] - A[j, j])|, NFL Eq. 29; the same as
    P / ((T-1)·|BWT|) with P = `plasticity(matrix)`.

    It has no unit and no upper bound: it is huge for tiny |BWT|, whatever its sign, and because of the extra 1/(T-1)
    values for different T do not compare.

    Args:
        matrix: `T×T` fractions in [0, 1]; `None` or NaN where not evaluated.

    Returns:
        A number; `None` with fewer than two tasks, if an entry of the diagonal, of the one above it or of the last row
        was not evaluated, or if the denominator is 0: (T-1)·|Σ| below 1e-12, or within the rounding error of a `matrix`
        tensor of lower precision.

    Raises:
        ValueError: If `matrix` is not square or holds a value outside [0, 1].

    Example:
        1.0 was learned on the second task, 0.5 lost on the first; then nothing is lost:

        >>> plasticity_stability([[0.75, 0.0], [0.25, 1.0]])
        2.0
        >>> plasticity_stability([[0.75, 0.0], [0.75, 1.0]])
    """
    table = _table(matrix)
    denominator = (len(table) - 1) * _drifts(table).sum().abs()
    if denominator < _zero_denominator(matrix):
        return None
    return _or_none(_gains(table).sum() / denominator)


def plasticity(matrix: Matrix) -> float | None:
    """Plasticity (P): how much training on a task adds to its score. Higher is better.

    P = 1/(T-1) Σ_{j=1..T-1} (A[j, j] - A[j-1, j]): the numerator of NFL Eq. 29 as a mean.

    Args:
        matrix: `T×T` fractions in [0, 1]; `None` or NaN where not evaluated.

    Returns:
        A fraction in [-1, 1]; `None` with fewer than two tasks or if an entry of the diagonal, save A[0, 0], or of the
        one above it was not evaluated.

    Raises:
        ValueError: If `matrix` is not square or holds a value outside [0, 1].

    Example:
        >>> plasticity([[0.75, 0.25], [0.25, 1.0]])
        0.75
    """
    return _or_none(_gains(_table(matrix)).mean())


def summarise(
    matrix: Matrix,
    *,
    baseline: Baseline | None = None,
    joint_accuracy: Score = None,
    no_baseline_reason: str = "needs the accuracy of the untrained model on each task (b)",
) -> tuple[dict[str, float | None], dict[str, str]]:
    """All scores, and for each that is undefined the reason.

    Args:
        matrix: `T×T` fractions in [0, 1], T ≥ 1; `None` or NaN where not evaluated.
        baseline: See `forward_transfer`.
        joint_accuracy: See `intransigence`.
        no_baseline_reason: Why there is no baseline, if there is none and at least two tasks.

    Returns:
        The scores, keys in the order of `FORMULAS`, and the reasons, one for each score that is `None`.

    Raises:
        ValueError: If `matrix` is not square, `baseline` has not one value for each task, or a value is outside [0, 1].

    Example:
        >>> values, reasons = summarise([[0.75, 0.0], [0.75, 1.0]])
        >>> values
        {'ACC': 0.875, 'AIA': 0.8125, 'FWT': None, 'BWT': 0.0, 'AF': 0.0, 'I': None, 'PS': None}
        >>> for name, reason in reasons.items():
        ...     print(name, reason)
        FWT needs the accuracy of the untrained model on each task (b)
        I needs the accuracy of a Joint run (I)
        PS the denominator is 0: no net forgetting (+inf)
    """
    values = {
        "ACC": average_accuracy(matrix),
        "AIA": average_incremental_accuracy(matrix),
        "FWT": forward_transfer(matrix, baseline),
        "BWT": backward_transfer(matrix),
        "AF": average_forgetting(matrix),
        "I": intransigence(matrix, joint_accuracy),
        "PS": plasticity_stability(matrix),
    }
    table = _table(matrix)
    reasons = {}
    for name in (name for name, value in values.items() if value is None):
        if name in ("FWT", "BWT", "AF", "PS") and len(table) < 2:
            reasons[name] = "needs at least 2 tasks"
        elif name == "FWT" and baseline is None:
            reasons[name] = no_baseline_reason
        elif name == "I" and joint_accuracy is None:
            reasons[name] = "needs the accuracy of a Joint run (I)"
        elif (missing := table.isnan() & _entries_read(name, len(table))).any():
            reasons[name] = _name_first(missing, table)
        elif name == "FWT" and baseline is not None:
            first = _vector(baseline, len(table))[1:].isnan().nonzero()[0].item() + 1
            reasons[name] = f"the untrained model was not evaluated on task {first}"
        elif name == "I":
            reasons[name] = "the accuracy of the Joint run is not a number"
        else:
            reasons[name] = f"the denominator is 0: no net forgetting ({_limit(_gains(table).sum().item())})"
    return values, reasons


def _gains(table: Tensor) -> Tensor:
    """A[j, j] - A[j-1, j] for j = 1..T-1: `[T-1]`."""
    return table.diagonal()[1:] - table.diagonal(offset=1)


def _drifts(table: Tensor) -> Tensor:
    """A[T-1, j] - A[j, j] for j = 0..T-2: `[T-1]`."""
    return (table[-1] - table.diagonal())[:-1]


def _zero_denominator(matrix: Matrix) -> float:
    """Below this PS's denominator (T-1)·|Σ| counts as 0: its rounding error, at least 1e-12.

    Σ adds 2(T-1) entries, each off by at most eps/2 of the type that the matrix came in. Without this a float32 matrix
    whose terms cancel would get a PS of about 1e7.
    """
    dtype = matrix.dtype if isinstance(matrix, Tensor) and matrix.is_floating_point() else torch.float64
    eps = torch.finfo(dtype).eps
    return max(_ZERO_DENOMINATOR, (len(matrix) - 1) ** 2 * eps)


def _limit(numerator: float) -> str:
    """What PS tends to as its denominator goes to 0."""
    if abs(numerator) < _ZERO_DENOMINATOR:
        return "nan"
    return "+inf" if numerator > 0 else "-inf"


def _entries_read(name: str, num_tasks: int) -> Tensor:
    """Which entries of the matrix a score reads: bool `[T, T]`."""
    every = torch.ones(num_tasks, num_tasks, dtype=torch.bool)
    diagonal = torch.eye(num_tasks, dtype=torch.bool)
    above = diagonal.roll(1, dims=1).triu()
    last_row = diagonal[:, -1:].expand_as(every)
    earlier_tasks = ~last_row.T
    return {
        "ACC": last_row,
        "AIA": every.tril(),
        "FWT": above,
        "BWT": (last_row | diagonal) & earlier_tasks,
        "AF": earlier_tasks,
        "I": last_row & diagonal,
        "PS": (last_row & earlier_tasks) | diagonal | above,
    }[name]


def _name_first(missing: Tensor, table: Tensor) -> str:
    """Say which entry or row stands in the way: the first of `missing`, bool `[T, T]` with at least one True."""
    after, task = (int(index) for index in missing.nonzero()[0])
    if table[after].isnan().all():
        return f"row {after} was not evaluated"
    return f"A[{after},{task}] was not evaluated: the score on task {task} after task {after}"


def _or_none(score: Tensor) -> float | None:
    """A float, or `None` for NaN: an entry that is missing, or a mean over no task (T = 1)."""
    value = score.item()
    return None if math.isnan(value) else value


def _table(matrix: Matrix) -> Tensor:
    """Check the matrix and give it as float64 `[T, T]` on the CPU, NaN where not evaluated."""
    table = _to_float64("matrix", matrix)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or len(table) == 0:
        raise ValueError(
            f"`matrix` has shape {tuple(table.shape)}, expected (T, T) with T >= 1. Give one row and one column "
            "for each task; None or NaN marks entries that were not evaluated. For a stream under way give its leading "
            "block."
        )
    _check_fractions("matrix", table)
    return table


def _vector(baseline: Baseline, num_tasks: int) -> Tensor:
    """Check the baseline and give it as float64 `[T]` on the CPU, NaN where not evaluated."""
    vector = _to_float64("baseline", baseline)
    if vector.shape != (num_tasks,):
        raise ValueError(
            f"`baseline` has shape {tuple(vector.shape)}, expected ({num_tasks},). Give the untrained model's score on "
            "each task; the first is never read and may be None."
        )
    _check_fractions("baseline", vector)
    return vector


def _to_float64(name: str, values: Matrix | Baseline) -> Tensor:
    """Give numbers as float64 on the CPU, NaN for `None`."""
    if isinstance(values, Tensor):
        return values.detach().cpu().double()  # in this order: MPS has no float64
    try:
        return torch.tensor([_nan_for_none(value) for value in values], dtype=torch.float64)
    except (TypeError, ValueError) as error:  # torch's own words for ragged rows and for entries that are no numbers
        raise ValueError(
            f"`{name}` cannot be read as numbers ({error}), expected rows of equal length that hold numbers or None. "
            "Write None for entries that were not evaluated."
        ) from error


def _nan_for_none(value: Sequence[Score] | Score) -> Sequence[float | int] | float | int:
    """Replace `None`, in a row or alone."""
    if value is None:
        return math.nan
    return value if isinstance(value, (int, float)) else [math.nan if entry is None else entry for entry in value]


def _check_fractions(name: str, values: Tensor) -> None:
    """Refuse values outside [0, 1]; NaN passes."""
    outside = (values < -_RANGE_TOLERANCE) | (values > 1 + _RANGE_TOLERANCE)
    if outside.any():
        raise ValueError(
            f"`{name}` holds {values[outside][0].item():.9g}, expected fractions in [0, 1]. Divide percentages by 100."
        )
