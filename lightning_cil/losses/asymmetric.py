"""Binary cross-entropies for labels of which most are unknown: masked, and with one side weighed down.

`positive_decay_bce`, `negative_decay_bce`, `decay_exponent`
    Du et al., Rebalancing Multi-Label Class-Incremental Learning (RebLL), 2025, Eq. 3-8,
    https://arxiv.org/abs/2408.12161.
`known_bce`
    The same paper, Eq. 1, over the labels that are annotated.

Departures: RebLL's Eq. 3-8 print a minus before each product and mean L₊, L'₊ and L₋ to be the non-positive log terms,
so that every term here is at least 0, and 0 at a confident correct prediction. The sums over classes are means by
default, as in the code of the same authors' CSC (https://github.com/Kaile-Du/CSC), whose weights RebLL takes over;
`reduction="sum"` is the printed form. The paper's logarithm of the number of classes is the natural one: with base 10
its adaptive exponent would never reach the fixed one that it is compared with in Table 6.

All functions take raw logits and stay finite for any of them: ln p is logsigmoid(z), ln(1 - p) is logsigmoid(-z).
"""

import math

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_cil._precision import wide
from lightning_cil.losses._columns import Reduction, class_reduction, known_reduction

__all__ = ["decay_exponent", "known_bce", "negative_decay_bce", "positive_decay_bce"]


def decay_exponent(scale: float | int, num_seen: int) -> float:
    """The adaptive exponent of a decay factor: scale · ln |C^{1:t}|.

    Source: RebLL, Eq. 4, 6 and 8, https://arxiv.org/abs/2408.12161.

    Args:
        scale: α (1.2) or β (0.7), at least 0.
        num_seen: Classes learned so far, those of the current task included; at least 1.

    Returns:
        At least 0; 0 for a single class.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> round(decay_exponent(1.2, 6), 6), round(decay_exponent(0.7, 6), 6)
        (2.150111, 1.254232)
    """
    if scale < 0 or num_seen < 1:
        raise ValueError(
            f"Got `scale={scale}`, `num_seen={num_seen}`, expected a scale of at least 0 and at least one class. RebLL "
            "uses 1.2 for positives and 0.7 for negatives."
        )
    return scale * math.log(num_seen)


def positive_decay_bce(
    logits: Float[Tensor, "batch classes"],
    target: Float[Tensor, "batch classes"],
    exponent: float | int,
    *,
    reduction: Reduction = "mean",
    detach_focal: bool = False,
) -> Float[Tensor, ""]:
    """Binary cross-entropy whose positive part is weighed down: L_cls for labels, L_akd for the old model's sigmoids.

    ```text
    L_cls = Σ_c -y_c · L₊ - (1 - y_c) · log(1 - p_c)          RebLL, Eq. 3
    L₊    = (1 - p_c)^g · log p_c                             RebLL, Eq. 4
    L_akd = Σ_c -q_c · L'₊ - (1 - q_c) · log(1 - p_c)         RebLL, Eq. 5
    L'₊   = (1 - p_c)^g · log p_c                             RebLL, Eq. 6
    ```

    | symbol | argument | range |
    |---|---|---|
    | z, p = sigmoid(z) | `logits` | any real number |
    | y, or q = sigmoid of the old model's logits | `target` | [0, 1] |
    | g | `exponent` | at least 0; `decay_exponent(1.2, num_seen)` |

    The factor is the student's own in both equations. With soft targets the minimum lies below the target: for q = 0.9
    and g = 3.6 at p = 0.59.

    Source: Rebalancing Multi-Label Class-Incremental Learning, Eq. 3-6, https://arxiv.org/abs/2408.12161.

    Args:
        logits: The trained model's logits of the classes that the sum runs over.
        target: Labels or probabilities. No gradient flows into them.
        exponent: 0 gives the plain binary cross-entropy.
        reduction: "mean": mean over classes and batch; "sum": sum over classes (as printed), mean over the batch.
        detach_focal: Whether the factor counts as a constant in the gradient.

    Returns:
        Scalar, at least 0. 0 with a graph if there is no sample or no class.

    Raises:
        ValueError: If the shapes differ, the exponent is negative or the reduction is unknown.

    Example:
        At p = 1/2 and g = 1 a positive costs half of ln 2, a negative all of it:

        >>> import torch
        >>> zero = torch.zeros(1, 1)
        >>> [round(positive_decay_bce(zero, torch.full((1, 1), y), exponent=1).item(), 4) for y in (1.0, 0.0)]
        [0.3466, 0.6931]
    """
    _check(logits, target, exponent)
    logits = wide(logits)
    log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
    decay = (exponent * log_not_p).exp()  # (1 - p)^g
    positive = (decay.detach() if detach_focal else decay) * log_p  # Eq. 4 and 6
    target = target.detach()
    return class_reduction(-target * positive - (1 - target) * log_not_p, reduction)  # Eq. 3 and 5


def negative_decay_bce(
    logits: Float[Tensor, "batch classes"],
    target: Float[Tensor, "batch classes"],
    exponent: float | int,
    *,
    reduction: Reduction = "mean",
    detach_focal: bool = False,
) -> Float[Tensor, ""]:
    """Binary cross-entropy whose negative part is weighed down: L_er for relabelled exemplars.

    ```text
    L_er = Σ_c -y'_c · log p_c - (1 - y'_c) · L₋              RebLL, Eq. 7
    L₋   = p_c^h · log(1 - p_c)                               RebLL, Eq. 8
    ```

    | symbol | argument | range |
    |---|---|---|
    | z, p = sigmoid(z) | `logits` | any real number |
    | y' | `target` | [0, 1] |
    | h | `exponent` | at least 0; `decay_exponent(0.7, num_seen)` |

    Source: Rebalancing Multi-Label Class-Incremental Learning, Eq. 7-8, https://arxiv.org/abs/2408.12161.

    Args:
        logits: The trained model's logits of the old classes for exemplars.
        target: Their labels. No gradient flows into them.
        exponent: 0 gives the plain binary cross-entropy.
        reduction: As in `positive_decay_bce`.
        detach_focal: As in `positive_decay_bce`.

    Returns:
        Scalar, at least 0. 0 with a graph if there is no sample or no class.

    Raises:
        ValueError: As `positive_decay_bce`.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1, 1)
        >>> [round(negative_decay_bce(zero, torch.full((1, 1), y), exponent=1).item(), 4) for y in (1.0, 0.0)]
        [0.6931, 0.3466]
    """
    # the mirror image: p and 1 - p, y and 1 - y change places
    return positive_decay_bce(-logits, 1 - target, exponent, reduction=reduction, detach_focal=detach_focal)


def known_bce(
    logits: Float[Tensor, "batch classes"],
    target: Float[Tensor, "batch classes"],
    known: Bool[Tensor, "batch classes"],
    *,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""]:
    """Binary cross-entropy over the labels that are known; the others get no gradient.

    ```text
    L_bce = (1/B) Σ_b (1/|K_b|) Σ_{c in K_b} -y_bc · log p_bc - (1 - y_bc) · log(1 - p_bc)          RebLL, Eq. 1
    ```

    | symbol | argument | range |
    |---|---|---|
    | z, p = sigmoid(z) | `logits` | any real number |
    | y | `target` | [0, 1]; not read where unknown |
    | K_b | `known[b]` | any set of classes |

    Where all samples know the classes of one task, this is Eq. 1. For every sample a mean of its own: several processes
    with a share of the batch each then make the same gradient as one.

    Source: Rebalancing Multi-Label Class-Incremental Learning, Eq. 1, https://arxiv.org/abs/2408.12161.

    Args:
        logits: The trained model's logits.
        target: Labels. No gradient flows into them.
        known: bool: which of them are annotated.
        reduction: "mean": mean over each sample's known classes; "sum": sum over them; then the mean over the batch.

    Returns:
        Scalar, at least 0. A sample without known labels counts as 0; 0 with a graph for an empty batch.

    Raises:
        ValueError: If the shapes differ or the reduction is unknown.

    Example:
        >>> import torch
        >>> known = torch.tensor([[True, False]])
        >>> round(known_bce(torch.zeros(1, 2), torch.tensor([[1.0, float("nan")]]), known).item(), 4)  # ln 2
        0.6931
    """
    _check(logits, target, 0)
    if known.shape != logits.shape:
        raise ValueError(
            f"Got `known` of shape {list(known.shape)} for logits of shape {list(logits.shape)}, expected the same. "
            "Cut both to the classes that the head has."
        )
    target = target.detach().masked_fill(~known, 0.0)
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return known_reduction(loss, known, reduction)


def _check(logits: Tensor, target: Tensor, exponent: float | int) -> None:
    if logits.shape != target.shape or logits.ndim != 2:
        raise ValueError(
            f"Got `logits` of shape {list(logits.shape)} and `target` of shape {list(target.shape)}, expected the same "
            "[batch, classes]. Cut both to the classes that the term runs over."
        )
    if exponent < 0:
        raise ValueError(f"Got `exponent={exponent}`, expected at least 0. Use `decay_exponent`, or 0 for no decay.")
