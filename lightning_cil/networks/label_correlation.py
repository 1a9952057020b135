"""The augmented correlation matrix of AGCN: which classes come together, of old and new ones, seen online.

Du et al., AGCN: Augmented Graph Convolutional Network for Lifelong Multi-label Image Recognition, 2022,
https://arxiv.org/abs/2203.05534, with the thresholds of its code, after Chen et al., Multi-Label Image Recognition with
Graph Convolutional Networks (ML-GCN), 2019, https://arxiv.org/abs/1904.03582.

Entry (i, j) is P(i | j), made into a weight. y are labels of the new classes, s the softmax of the old model's logits.

| block | P(i given j) | threshold | weights |
|---|---|---|---|
| old, old | that of the task before, as it is | | |
| new, new | Σ y_i y_j / Σ y_j, diagonal 0 | 0.4 | columns scaled to 0.25, + I, D^-½ A D^-½ |
| old, new | Σ s_i y_j / Σ y_j | 0.3 | columns scaled to 0.25 |
| new, old | Σ y_i s_j / Σ s_j (Bayes) | 0.3 | columns scaled to 0.25 |

Departures: the first task follows the same rule (in the authors' code a variable shadows the threshold by 0, with other
constants); the reverse block is not halved; no block is transposed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_UNIT = 1 << 24
"""Soft counts are whole numbers of 1/2²⁴: sums do not depend on their order, nor on the precision of the weights."""


@dataclass(frozen=True)
class CorrelationRule:
    """What makes probabilities weights.

    Args:
        threshold: Of new classes among each other, in (0, 1] (AGCN: 0.4).
        cross_threshold: Between old and new classes, in (0, 1] (AGCN: 0.3).
        scale: What a column adds up to, positive (AGCN: 0.25).

    Raises:
        ValueError: For a value out of its range.
    """

    threshold: float = 0.4
    cross_threshold: float = 0.3
    scale: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1 or not 0 < self.cross_threshold <= 1 or self.scale <= 0:
            raise ValueError(
                f"Got `threshold={self.threshold}`, `cross_threshold={self.cross_threshold}`, `scale={self.scale}`; "
                "expected thresholds in (0, 1] and a positive scale."
            )


def correlation_counts(target: Tensor, teacher_logits: Tensor) -> Tensor:
    """What a batch adds to the counts; sums over batches and ranks add up.

    Args:
        target: float `[B, new]`, 0 or 1.
        teacher_logits: float `[B, old]` of the old model; without columns in the first task.

    Returns:
        long `[new + old, new + 1]`. Rows of new classes: Σ y_i y_j, last column Σ y_i. Rows of old classes: Σ s_i y_j,
        last column Σ s_i, in units of 2^-24.
    """
    hard = target > 0.5
    soft = (teacher_logits.detach().double().softmax(dim=1) * _UNIT).round()
    ones = torch.cat([hard, torch.ones_like(hard[:, :1])], dim=1).double()  # whole numbers up to 2^53 are exact
    return torch.cat([hard.double().T @ ones, soft.T @ ones]).long()


def augmented_matrix(old_block: Tensor, counts: Tensor, rule: CorrelationRule) -> Tensor:
    """The matrix of all classes so far.

    Args:
        old_block: float `[old, old]`, the matrix of the task before.
        counts: Sums of `correlation_counts` over the task so far; all 0: new classes know only themselves.
        rule: Thresholds and scale.

    Returns:
        `[old + new, old + new]`, in `old_block`'s dtype.
    """
    new, old = counts.shape[1] - 1, len(old_block)
    hard, soft = counts[:new].double(), counts[new:].double() / _UNIT
    together, positives = hard[:, :new], hard[:, new]
    among = _ratio(together, positives) * (1 - torch.eye(new, dtype=torch.float64, device=counts.device))
    block = _weights(among, rule.threshold, rule.scale) + torch.eye(new, dtype=torch.float64, device=counts.device)
    degree = block.sum(dim=1) ** -0.5
    matrix = counts.new_zeros(old + new, old + new, dtype=torch.float64)
    matrix[:old, :old] = old_block
    matrix[old:, old:] = degree.unsqueeze(1) * block * degree
    matrix[:old, old:] = _weights(_ratio(soft[:, :new], positives), rule.cross_threshold, rule.scale)
    matrix[old:, :old] = _weights(_ratio(soft[:, :new].T, soft[:, new]), rule.cross_threshold, rule.scale)
    return matrix.to(old_block.dtype)


def _ratio(joint: Tensor, given: Tensor) -> Tensor:
    """P(row | column), 0 for a column that was not seen."""
    return torch.where(given > 0, joint / given.clamp(min=1 / _UNIT), 0.0)


def _weights(probability: Tensor, threshold: float, scale: float) -> Tensor:
    edges = (probability >= threshold).double()
    return edges * scale / edges.sum(dim=0).clamp(min=1)
