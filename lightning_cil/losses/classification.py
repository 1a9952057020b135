"""Cross-entropy over a part of the output space: which softmax runs over which classes.

A class-incremental head puts the tasks' outputs side by side. Methods differ in the columns that compete for a sample:
only the new task's (`cross_entropy_over`), or each sample's own task's (`task_masked_cross_entropy`). For all seen
classes call `torch.nn.functional.cross_entropy` itself.

Source: the standard cross-entropy; over the new task's outputs alone as in No Forgetting Learning, Eq. 2,
https://arxiv.org/abs/2503.04638; over the own task's outputs for Task-IL there is no equation.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lightning_cil.losses._columns import task_of_column

__all__ = ["cross_entropy_over", "task_masked_cross_entropy"]

NO_IGNORED_LABEL = torch.iinfo(torch.int64).min
"""Ours: torch skips label -100 in silence, which a shifted label (old class 0, `first=100`) can be by accident."""


def cross_entropy_over(
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    first: int,
    last: int,
) -> Float[Tensor, ""]:
    """Cross-entropy whose softmax runs over the columns `first` to `last` (exclusive) only.

    ```text
    CE(Y, O) = -(1/B) Σ_b log softmax(O[b, first:last])[y_b - first]
    ```

    | symbol | argument | range |
    |---|---|---|
    | O | `logits` | any real number |
    | y | `target` | first ≤ y < last |

    Source: No Forgetting Learning, Eq. 2 and 5, https://arxiv.org/abs/2503.04638, where O is the new head's output.

    Args:
        logits: Raw logits of all classes. Columns outside of the range get no gradient.
        target: long; incremental labels, counted over all classes, not shifted.
        first: First column that takes part, from 0.
        last: Column after the last one that takes part.

    Returns:
        Scalar: mean over the batch. 0 with a graph for an empty batch.

    Raises:
        ValueError: If the range is empty or leaves the columns, or a label is not inside it. Labels are checked on the
            CPU only (elsewhere a check would stall the device, whose own assertion stops the run).

    Example:
        >>> import torch
        >>> logits = torch.tensor([[9.0, 0.0, 0.0]])
        >>> round(cross_entropy_over(logits, torch.tensor([2]), first=1, last=3).item(), 4)  # ln 2, without column 0
        0.6931
    """
    if not 0 <= first < last <= logits.shape[1]:
        raise ValueError(
            f"Got `first={first}`, `last={last}` for logits with {logits.shape[1]} columns, expected "
            f"0 <= first < last <= {logits.shape[1]}. For a task take `task.first_class` and `task.num_seen`."
        )
    if target.device.type == "cpu" and ((target < first) | (target >= last)).any():
        raise ValueError(
            f"Got `target` with labels from {int(target.min())} to {int(target.max())}, expected labels from {first} "
            f"to {last - 1}. Widen the range of columns or leave samples of other classes out of the batch."
        )
    return _mean_cross_entropy(logits[:, first:last], target - first)


def task_masked_cross_entropy(
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    task: Int[Tensor, " batch"],
    sizes: Sequence[int],
) -> Float[Tensor, ""]:
    r"""Cross-entropy whose softmax runs, for every sample, over the columns of the sample's own task only.

    ```text
    CE = -(1/B) Σ_b log( exp O[b, y_b] / Σ_{c in C_k(b)} exp O[b, c] )
    ```

    | symbol | argument | range |
    |---|---|---|
    | O | `logits` | any real number |
    | y | `target` | a class of the sample's task |
    | k | `task` | 0 ≤ k < len(sizes) |
    | \|C_k\| | `sizes[k]` | at least 1; they add up to the number of columns |

    Source: no equation; the multi-head loss of Task-IL for a batch that mixes tasks (new samples and exemplars).

    Args:
        logits: Raw logits of all classes, tasks side by side. Columns of other tasks get a gradient of exactly 0.
        target: long; incremental labels, counted over all classes, not shifted.
        task: long; index of the task that each sample's class belongs to.
        sizes: Number of classes of each task.

    Returns:
        Scalar: mean over the batch. 0 with a graph for an empty batch.

    Raises:
        ValueError: If the sizes do not fit the columns, or a label is no class of its sample's task (checked on the CPU
            only, as in `cross_entropy_over`; elsewhere the loss is then infinite or NaN).

    Example:
        >>> import torch
        >>> logits, target, task = torch.zeros(2, 5), torch.tensor([0, 4]), torch.tensor([0, 1])
        >>> loss = task_masked_cross_entropy(logits, target, task, sizes=[2, 3])
        >>> round(loss.item(), 4)  # (ln 2 + ln 3) / 2
        0.8959
    """
    if sum(sizes) != logits.shape[1] or min(sizes, default=1) < 1:
        raise ValueError(
            f"Got `sizes={list(sizes)}` for logits with {logits.shape[1]} columns, expected the sizes of the tasks, "
            "each at least 1, adding up to the number of columns. Pass the head's sizes, `head.sizes.tolist()`."
        )
    other = task_of_column(tuple(sizes), logits.device) != task.unsqueeze(1)  # [batch, classes]
    if target.device.type == "cpu":
        _check_labels_of_task(target, task, other)
    return _mean_cross_entropy(logits.masked_fill(other, float("-inf")), target)


def _mean_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the batch; 0 with a graph for an empty one, where the mean would be NaN."""
    reduction = "mean" if len(target) else "sum"
    return F.cross_entropy(logits, target, ignore_index=NO_IGNORED_LABEL, reduction=reduction)


def _check_labels_of_task(target: Tensor, task: Tensor, other: Tensor) -> None:
    inside = (target >= 0) & (target < other.shape[1])
    wrong = ~inside | other.gather(1, torch.where(inside, target, 0).unsqueeze(1)).squeeze(1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"Got `target[{row}]={int(target[row])}` with `task[{row}]={int(task[row])}`, expected a class of that "
            "task. Pass incremental labels (positions in the class order) and the index of each label's own task."
        )
