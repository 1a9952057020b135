"""CSC's term against confident wrong answers.

Du et al., Confidence Self-Calibration for Multi-Label Class-Incremental Learning, 2024,
https://arxiv.org/abs/2403.12559, as its code has it (no equation).
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightning_cil._precision import wide
from lightning_cil.losses._columns import batch_mean

__all__ = ["negative_entropy"]


def negative_entropy(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Σ_c p ln p, which is smallest where all probabilities are 1/e; unlike a loss it is at most 0.

    ```text
    (1/B) Σ_b Σ_c p_bc ln p_bc,   p = sigmoid(z)         CSC's code
    ```

    It is the half of the binary entropy that the authors' code has, without their 1e-5 inside the logarithm.

    Args:
        logits: Of all classes so far.

    Returns:
        Scalar in [-classes/e, 0]: sum over classes, mean over the batch.

    Example:
        >>> import torch
        >>> round(negative_entropy(torch.zeros(1, 2)).item(), 6)  # 2 · ½ ln ½
        -0.693147
    """
    logits = wide(logits)
    return batch_mean((logits.sigmoid() * F.logsigmoid(logits)).sum(dim=1))
