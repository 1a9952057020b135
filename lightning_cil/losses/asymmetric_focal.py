"""The asymmetric loss (ASL) of multi-label classification: easy negatives weigh next to nothing.

Ridnik et al., Asymmetric Loss For Multi-Label Classification, 2021, https://arxiv.org/abs/2009.14119 (no equation
is cited). PODNet and KRT are trained with it in Dong et al., Knowledge Restore and Transfer for Multi-Label
Class-Incremental Learning, 2023, https://arxiv.org/abs/2302.13334.

Departure: logarithms come from logits, so that nothing is clamped at 1e-8.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_cil._precision import wide
from lightning_cil.losses._columns import Reduction, class_reduction, known_reduction

__all__ = ["asymmetric_focal_loss"]

_TINY = 1e-12
"""Below this a probability counts as this: the gradient of x^γ at 0 is infinite for γ < 1."""


def asymmetric_focal_loss(
    logits: Float[Tensor, "batch classes"],
    target: Float[Tensor, "batch classes"],
    *,
    known: Bool[Tensor, "batch classes"] | None = None,
    gamma_negative: float | int = 4.0,
    gamma_positive: float | int = 0.0,
    clip: float | int = 0.05,
    reduction: Reduction = "sum",
    detach_focal: bool = True,
) -> Float[Tensor, ""]:
    """Binary cross-entropy whose terms are weighted by how wrong they are, negatives more steeply than positives.

    ```text
    L = Σ_c -y_c (1 - p_c)^γ+ ln p_c - (1 - y_c) p_m^γ- ln(1 - p_m),   p_m = max(p_c - m, 0)
    ```

    | symbol | argument | range |
    |---|---|---|
    | p = sigmoid(z) | `logits` | any real number |
    | y | `target` | in [0, 1] |
    | γ-, γ+ | `gamma_negative`, `gamma_positive` | at least 0 |
    | m | `clip` | in [0, 1); a negative below it costs nothing |

    Args:
        logits: Of the classes that are trained.
        target: 1 where the class is in the image.
        known: Which entries count; `None`: all.
        gamma_negative: Exponent of negatives (KRT: 4).
        gamma_positive: Exponent of positives (KRT: 0, plain cross-entropy).
        clip: Shift of the negatives' probability (KRT: 0.05).
        reduction: `sum`: sum over classes, mean over the batch; `mean`: mean over known classes, mean over the batch.
            The authors' code also sums over the batch, which makes the step depend on its size.
        detach_focal: Whether the weights (1 - p)^γ+ and p_m^γ- are constants (the authors' code).

    Returns:
        Scalar, at least 0. 0 with a graph if there is no sample or no class.

    Raises:
        ValueError: If shapes differ, an exponent is negative, `clip` is not in [0, 1) or the reduction is unknown.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.0, 0.0]])
        >>> round(asymmetric_focal_loss(logits, torch.tensor([[1.0, 0.0]])).item(), 6)  # ln 2 + .45⁴ · -ln .55
        0.717662
    """
    if logits.shape != target.shape or (known is not None and known.shape != target.shape):
        raise ValueError(
            f"Got `logits` of shape {list(logits.shape)}, `target` of {list(target.shape)} and `known` of "
            f"{None if known is None else list(known.shape)}, expected the same [batch, classes]. Cut all to the "
            "classes that are trained."
        )
    if min(gamma_negative, gamma_positive) < 0 or not 0 <= clip < 1:
        raise ValueError(
            f"Got `gamma_negative={gamma_negative}`, `gamma_positive={gamma_positive}`, `clip={clip}`; expected "
            "exponents of at least 0 and a clip in [0, 1)."
        )
    logits = wide(logits)
    log_positive = F.logsigmoid(logits)  # ln p
    if clip:
        shifted = (logits.sigmoid() - clip).clamp(min=0)  # p_m
        log_negative = torch.log1p(-shifted)
    else:
        shifted, log_negative = logits.sigmoid(), F.logsigmoid(-logits)
    positive_weight = logits.neg().sigmoid().clamp(min=_TINY) ** gamma_positive
    negative_weight = shifted.clamp(min=_TINY) ** gamma_negative
    if detach_focal:
        positive_weight, negative_weight = positive_weight.detach(), negative_weight.detach()
    loss = -target * positive_weight * log_positive - (1 - target) * negative_weight * log_negative
    return class_reduction(loss, reduction) if known is None else known_reduction(loss, known, reduction)
