"""What the losses share: which columns belong to whom, and a mean that an empty batch does not turn into NaN."""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def task_of_column(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Index of the task of each column, kept on the device: a copy in every step would wait for it.

    Args:
        sizes: Classes of each task.
        device: Where the logits are.

    Returns:
        long `[sum(sizes)]`. Shared: not to be written to.
    """
    with torch.inference_mode(False):  # autograd must be able to save it, whoever asks first
        return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64)).to(device)


def num_old(logits: Tensor, teacher_logits: Tensor) -> int:
    """Number of old classes: the teacher's columns, which are the first of the student's.

    Args:
        logits: Of all classes, `[batch, classes]`.
        teacher_logits: Of the old classes, `[batch, old]`.

    Returns:
        `old`.

    Raises:
        ValueError: If the teacher has more columns than the student.
    """
    old = teacher_logits.shape[1]
    if old > logits.shape[1]:
        raise ValueError(
            f"Got `logits` with {logits.shape[1]} columns and a teacher with {old}, expected all classes so far, the "
            "teacher's first. Pass the logits of all heads side by side, in task order."
        )
    return old


def batch_mean(per_sample: Tensor) -> Tensor:
    """Mean over the batch; 0 with a graph for an empty one, where the mean would be NaN.

    Args:
        per_sample: `[batch]`.

    Returns:
        Scalar.
    """
    return per_sample.mean() if len(per_sample) else per_sample.sum()
