"""From a set of classes to a stream of tasks: class order, task sizes, held-out split. Pure functions.

The order convention is that of iCaRL (Rebuffi et al., CVPR 2017, https://arxiv.org/abs/1611.07725) and PyCIL: one
seeded permutation of all classes, tasks are consecutive blocks of it. `seed:1993` gives theirs.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_cil._random import counter_hash
from lightning_cil.types import Task


def class_order(spec: str | Sequence[int], num_classes: int) -> list[int]:
    """Resolve a class order.

    Args:
        spec: `seed:N`: NumPy's legacy permutation for seed N (`seed:1993` is the convention of iCaRL and PyCIL);
            `sorted`: the original order; or the original class ids in the order they are to be learned.
        num_classes: Classes of the data set.

    Returns:
        Original class ids; position in the list is the incremental label.

    Raises:
        ValueError: For an unknown `spec`, a duplicate, missing or out-of-range class.

    Example:
        >>> class_order("seed:1993", 100)[:5]
        [68, 56, 78, 8, 23]
    """
    if isinstance(spec, str):
        if spec == "sorted":
            return list(range(num_classes))
        name, _, seed = spec.partition(":")
        if name == "seed" and seed.isdecimal() and int(seed) < 2**32:
            return [int(i) for i in np.random.RandomState(int(seed)).permutation(num_classes)]
        raise ValueError(
            f"`class_order={spec!r}` is unknown: expected 'sorted', 'seed:N' with 0 <= N < 2**32 "
            "(for example 'seed:1993'), or a list of class ids."
        )
    order = [int(c) for c in spec]
    seen: set[int] = set()
    duplicates = sorted({c for c in order if c in seen or seen.add(c)})  # type: ignore[func-returns-value]
    if duplicates:
        raise ValueError(
            f"`class_order` lists class {duplicates[0]} more than once; expected each of the {num_classes} classes "
            "once. Remove the duplicates" + (f" ({duplicates})." if len(duplicates) > 1 else ".")
        )
    wrong = [c for c in order if not 0 <= c < num_classes]
    if wrong:
        raise ValueError(f"`class_order` holds class {wrong[0]}; expected ids from 0 to {num_classes - 1}.")
    if len(order) != num_classes:
        missing = sorted(set(range(num_classes)) - set(order))
        raise ValueError(
            f"`class_order` lists {len(order)} classes, the data set has {num_classes}: "
            f"missing {missing[:10]}{' …' if len(missing) > 10 else ''}. List every class once."
        )
    return order


def task_sizes(
    num_classes: int,
    *,
    num_tasks: int | None = None,
    base: int | None = None,
    increment: int | None = None,
    sizes: Sequence[int] | None = None,
) -> list[int]:
    """Classes of each task, from exactly one of three descriptions.

    Args:
        num_classes: Classes of the data set.
        num_tasks: Equal tasks; must divide `num_classes`.
        base: Classes of the first task (Bx-Cy: `base=x`, `increment=y`; `base=0`: all tasks have `increment`).
        increment: Classes of every further task.
        sizes: The sizes themselves; uneven ones and ones of a single class are fine.

    Returns:
        Sizes, each at least 1, with sum `num_classes`.

    Raises:
        ValueError: When the description is ambiguous or does not add up.

    Example:
        >>> task_sizes(20, base=4, increment=2)
        [4, 2, 2, 2, 2, 2, 2, 2, 2]
    """
    given = [num_tasks is not None, base is not None or increment is not None, sizes is not None]
    if sum(given) != 1:
        raise ValueError(
            f"got `num_tasks={num_tasks}`, `base={base}`, `increment={increment}`, `sizes={sizes}`; "
            "expected exactly one of `num_tasks`, `base` with `increment`, or `sizes`. Set the others to null."
        )
    if sizes is not None:
        result = [int(s) for s in sizes]
        if not result or min(result) < 1:
            raise ValueError(f"`sizes={result}`: expected at least one task and at least 1 class in each.")
        if sum(result) != num_classes:
            raise ValueError(
                f"`sizes={result}` adds up to {sum(result)} classes, the data set has {num_classes}. "
                "Change the sizes so that they add up."
            )
        return result
    if num_tasks is not None:
        if num_tasks < 1 or num_classes % num_tasks:
            raise ValueError(
                f"`num_tasks={num_tasks}` does not divide {num_classes} classes into equal tasks. "
                "Choose a divisor, or give the uneven `sizes`."
            )
        return [num_classes // num_tasks] * num_tasks
    if base is None or increment is None or base < 0 or increment < 1:
        raise ValueError(f"got `base={base}` and `increment={increment}`; expected `base` >= 0 and `increment` >= 1.")
    rest = num_classes - base
    if rest < 0 or rest % increment:
        raise ValueError(
            f"`base={base}` and `increment={increment}` do not add up to {num_classes} classes "
            f"({rest} remain after the first task). Change them, or give the uneven `sizes`."
        )
    return [base] * (base > 0) + [increment] * (rest // increment)


def make_tasks(sizes: Sequence[int]) -> list[Task]:
    """Consecutive tasks of the given sizes.

    Args:
        sizes: Classes of each task.
    """
    tasks, first = [], 0
    for index, size in enumerate(sizes):
        tasks.append(Task(index=index, first_class=first, num_classes=size, num_tasks=len(sizes)))
        first += size
    return tasks


def near_equal_sizes(num_classes: int, num_tasks: int) -> list[int]:
    """Classes of each task where `num_tasks` need not divide them: the first tasks get one more.

    Args:
        num_classes: Classes of the data set.
        num_tasks: From 1 to `num_classes`.

    Raises:
        ValueError: When there are more tasks than classes, or none.

    Example:
        >>> near_equal_sizes(19, 3)
        [7, 6, 6]
    """
    if not 1 <= num_tasks <= num_classes:
        raise ValueError(f"`num_tasks={num_tasks}`: expected 1 to {num_classes}, the number of classes.")
    small, more = divmod(num_classes, num_tasks)
    return [small + (task < more) for task in range(num_tasks)]


def holdout(targets: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices into a training and a held-out part, the same share of every class.

    Args:
        targets: Labels, long `[N]`.
        fraction: Share that is held out, in [0, 1); at least one sample of a class of two or more is held out when
            the fraction is positive, and at least one stays.
        seed: Selects the sample; the choice inside a class does not depend on the other classes.

    Returns:
        Training and held-out indices, both sorted, long.

    Raises:
        ValueError: For a fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"`val_fraction={fraction}`: expected a share in [0, 1), for example 0.1.")
    everything = torch.arange(len(targets))
    if fraction == 0:
        return everything, everything[:0]
    held = torch.zeros(len(targets), dtype=torch.bool)
    for label in torch.unique(targets).tolist():
        members = everything[targets == label]
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held[members[counter_hash(members, seed).argsort()[:count]]] = True
    return everything[~held], everything[held]
