"""Labels of exemplars that nobody annotated: filled in from a model's scores, never over an annotation.

Du et al., Rebalancing Multi-Label Class-Incremental Learning (RebLL), 2025, section "OR for Label Rebalance" (no
equation number), https://arxiv.org/abs/2408.12161. The cut-off n is not in the paper; a fixed probability, or a share
of positives as in the pseudo labels of KRT, https://github.com/witdsl/KRT-MLCIL.
"""

import math

import torch
from torch import Tensor

__all__ = ["fill_unknown", "label_blocks", "quota_cutoff"]


def fill_unknown(target: Tensor, known: Tensor, logits: Tensor, where: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """Label what is unknown: 1 where the logit is above the cut-off, else 0.

    ```text
    y'_i = 1 if p_i > n else 0,   for labels i that are unknown
    ```

    Args:
        target: float `[N, C]`; labels.
        known: bool `[N, C]`; those that are known stay as they are.
        logits: `[N, C]`; of the model that is asked.
        where: bool `[N, C]`; the labels that it is asked for.
        cutoff: On the logit: logit(n).

    Returns:
        The new labels, and which of them are known now.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> target, known = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[True, False, False]])
        >>> where = torch.tensor([[True, True, False]])
        >>> fill_unknown(target, known, torch.tensor([[-5.0, 2.0, 2.0]]), where, 0.0)
        (tensor([[1., 1., 0.]]), tensor([[ True,  True, False]]))
    """
    if not target.shape == known.shape == logits.shape == where.shape:
        shapes = [list(x.shape) for x in (target, known, logits, where)]
        raise ValueError(f"Got labels, mask, logits and places of shapes {shapes}, expected the same [rows, classes].")
    filled = where & ~known
    return torch.where(filled, (logits > cutoff).to(target.dtype), target), known | filled


def quota_cutoff(logits: Tensor, share: float) -> float:
    """The cut-off above which a given share of the scores lies.

    Args:
        logits: Any shape; the scores of all labels to be filled in.
        share: Of positives among them, in [0, 1].

    Returns:
        A number that `round(share · n)` of the n scores are above; fewer where scores are equal at that place.

    Raises:
        ValueError: For a share outside [0, 1].

    Example:
        >>> quota_cutoff(torch.tensor([3.0, 1.0, 2.0, 0.0]), 0.5)
        1.0
    """
    if not 0 <= share <= 1:
        raise ValueError(f"Got `share={share}`, expected a share of positive labels in [0, 1].")
    scores = logits.flatten().sort(descending=True).values
    positives = round(share * len(scores))
    return float(scores[positives]) if positives < len(scores) else -math.inf


def label_blocks(mask: Tensor, task_of_row: Tensor, task_of_class: Tensor, num_tasks: int) -> Tensor:
    """Count labels by the task of their sample and the task of their class.

    Args:
        mask: bool `[N, C]`; the labels that are counted.
        task_of_row: long `[N]`.
        task_of_class: long `[C]`.
        num_tasks: T.

    Returns:
        long `[T, T]`: row: the sample's task, column: the class's.

    Example:
        >>> label_blocks(torch.tensor([[True, False], [True, True]]), torch.tensor([0, 1]), torch.tensor([0, 1]), 2)
        tensor([[1, 0],
                [1, 1]])
    """
    block = task_of_row.unsqueeze(1) * num_tasks + task_of_class
    return block[mask].bincount(minlength=num_tasks**2).view(num_tasks, num_tasks)
