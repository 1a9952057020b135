"""What the losses share: which columns belong to whom, and a mean that an empty batch does not turn into NaN."""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "sum"]
"""Over classes, before the mean over the batch."""


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


def class_reduction(per_class: Tensor, reduction: str) -> Tensor:
    """Mean or sum over classes, then the mean over the batch.

    Args:
        per_class: `[batch, classes]`.
        reduction: "mean": over classes and batch; "sum": over classes, mean over the batch.

    Returns:
        Scalar; 0 with a graph if there is no sample or no class.

    Raises:
        ValueError: If the reduction is unknown.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(
            f"Got `reduction={reduction!r}`, expected 'mean' (over classes and batch) or 'sum' (over classes, then "
            "mean over the batch). Choose one of the two."
        )
    per_sample = per_class.sum(dim=1)
    return batch_mean(per_sample / max(per_class.shape[1], 1) if reduction == "mean" else per_sample)


def known_reduction(per_class: Tensor, known: Tensor, reduction: str) -> Tensor:
    """Mean or sum over each sample's known classes, then the mean over the batch.

    Args:
        per_class: `[batch, classes]`.
        known: bool `[batch, classes]`: what counts.
        reduction: As in `class_reduction`.

    Returns:
        Scalar; a sample without known classes counts as 0.

    Raises:
        ValueError: If the reduction is unknown.
    """
    loss = per_class.masked_fill(~known, 0.0)
    if reduction == "mean":  # `class_reduction` divides by all classes
        loss = loss * (known.shape[1] / known.sum(dim=1, keepdim=True).clamp(min=1).to(loss.dtype))
    return class_reduction(loss, reduction)
