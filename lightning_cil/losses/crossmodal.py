"""Multimodal class-incremental learning on AudioCLIP: weighted cross-entropy, InfoNCE, and the sum of the loss.

Chen et al., Leveraging Pre-Trained Models for Multimodal Class-Incremental Learning under Adaptive Fusion, 2025, Eq. 4,
5 and 9, https://arxiv.org/abs/2506.09999 (no code). InfoNCE is that of van den Oord et al., Representation Learning
with Contrastive Predictive Coding, 2018, section 2.3, https://arxiv.org/abs/1807.03748.

Eq. 5 prints `L_CW = 1/n Σ_i 1/n Σ_j w_ij L_CE` without saying whose cross-entropy L_CE is. Readings:

- `A` (default): that of sample i. Visually typical samples weigh more. By the column, j, it is the same, w being
  symmetric.
- `C`: that of sample j, over the pairs of one class only, each row of weights adding up to 1.
- `B`: CE(p_i, y_j) over all pairs. Pairs of different classes weigh 0.5 to 0.9 too, so that it pulls every sample to
  every class of the batch; for comparison only.

In all of them the weights are constants: else the loss falls by making the features of a batch dissimilar.
Everything here sees the batch that it is given. On several ranks gather the batch first, with gradients.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lightning_cil._precision import wide
from lightning_cil.losses._columns import batch_mean
from lightning_cil.losses.classification import NO_IGNORED_LABEL

__all__ = ["Reading", "crossmodal_terms", "info_nce", "similarity_weighted_cross_entropy", "similarity_weights"]

Reading = Literal["A", "B", "C"]
"""Of Eq. 5, see above."""


def similarity_weights(visual: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch batch"]:
    """How alike two samples of a batch look.

    ```text
    w_ij = 1/2 cos(v_i, v_j) + 1/2        Eq. 4
    ```

    | symbol | argument | range |
    |---|---|---|
    | v | `visual` | any real number |

    Source: Chen et al. 2025, Eq. 4, https://arxiv.org/abs/2506.09999.

    Args:
        visual: Visual features.

    Returns:
        Symmetric, in [0, 1], 1 on the diagonal; features of zeros give 0.5, also on the diagonal.

    Example:
        >>> import torch
        >>> similarity_weights(torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]))
        tensor([[1.0000, 0.5000, 0.0000],
                [0.5000, 1.0000, 0.5000],
                [0.0000, 0.5000, 1.0000]])
    """
    unit = F.normalize(wide(visual), dim=1)
    return ((unit @ unit.T + 1) / 2).clamp(0, 1)


def similarity_weighted_cross_entropy(
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    visual: Float[Tensor, "batch dim"],
    reading: Reading = "A",
) -> Float[Tensor, ""]:
    """Cross-entropy in which samples that look like others of the batch weigh more.

    ```text
    A:  L_CW = 1/n Σ_i (1/n Σ_j w_ij) CE_i                                   Eq. 5
    B:  L_CW = 1/n Σ_i 1/n Σ_j w_ij CE(p_i, y_j)
    C:  L_CW = 1/n Σ_i Σ_{j: y_j = y_i} (w_ij / Σ_{k: y_k = y_i} w_ik) CE_j
    ```

    | symbol | argument | range |
    |---|---|---|
    | CE | of `logits` and `target` | at least 0 |
    | w | `similarity_weights(visual)`, a constant | 0 to 1 |
    | n | samples of the batch | at least 0 |

    With all w equal to 1 A and C are the plain cross-entropy, above which A never is.

    Source: Chen et al. 2025, Eq. 5, https://arxiv.org/abs/2506.09999; the readings are explained above.

    Args:
        logits: Raw logits of the classes that take part.
        target: long; column of each sample's class.
        visual: Visual features. No gradient flows into them here.
        reading: `A`, `B` or `C`, see above.

    Returns:
        Scalar. 0 with a graph for an empty batch.

    Raises:
        ValueError: For an unknown reading.

    Example:
        >>> import torch
        >>> opposite = torch.tensor([[1.0], [-1.0]])
        >>> loss = similarity_weighted_cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1]), opposite)
        >>> round(loss.item(), 4)  # ln(2) / 2: each weighs (1 + 0) / 2
        0.3466
    """
    if reading not in ("A", "B", "C"):
        raise ValueError(f"Got `reading={reading!r}`, expected 'A', 'B' (all pairs) or 'C' (pairs of one class).")
    errors = F.cross_entropy(logits, target, ignore_index=NO_IGNORED_LABEL, reduction="none")
    weights = similarity_weights(visual.detach())
    if reading == "A":
        return batch_mean(weights.sum(dim=1) / max(len(target), 1) * errors)
    if reading == "B":
        of_pairs = -logits.log_softmax(dim=1).index_select(1, target)  # [i, j]: the error of i with j's label
        return batch_mean((weights * of_pairs).sum(dim=1) / max(len(target), 1))
    weights = weights * (target.unsqueeze(0) == target.unsqueeze(1))
    return batch_mean((weights / weights.sum(dim=1, keepdim=True) * errors).sum(dim=1))


def info_nce(
    x: Float[Tensor, "batch dim"],
    y: Float[Tensor, "batch dim"],
    temperature: float | int = 0.07,
    target: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """InfoNCE: a lower bound of the mutual information of two views, in nats, to be maximised.

    ```text
    I = ln B + 1/2 (1/B Σ_i log softmax_j(cos(x_i, y_j) / τ)_i + 1/B Σ_i log softmax_j(cos(x_j, y_i) / τ)_i)
    ```

    | symbol | argument | range |
    |---|---|---|
    | x, y | `x`, `y`: row i of both belongs to sample i | any real number |
    | τ | `temperature` | > 0; Chen et al. do not say |

    Source: van den Oord et al. 2018, section 2.3, https://arxiv.org/abs/1807.03748, in both directions.

    Args:
        x: Features of one view, already projected to the common space; made unit length here.
        y: Features of the other view.
        temperature: Of the softmax.
        target: long; when given, other samples of a sample's own class are not counted as its negatives. The bound then
            no longer is one; ln B stays, so that the gradient alone differs.

    Returns:
        Scalar, at most ln B. 0 with a graph for fewer than two samples, which have nothing to be told apart from.

    Raises:
        ValueError: If the temperature is not positive.

    Example:
        >>> import torch
        >>> round(info_nce(torch.eye(3), torch.eye(3)).item(), 4)  # nearly ln 3
        1.0986
        >>> round(info_nce(torch.ones(3, 2), torch.eye(3, 2)[[0, 1, 0]], temperature=1.0).item(), 4)
        0.0
    """
    if not temperature > 0:
        raise ValueError(f"Got `temperature={temperature}`, expected a positive number such as 0.07.")
    if len(x) < 2:
        return (x.sum() + y.sum()) * 0
    scores = wide(F.normalize(wide(x), dim=1) @ F.normalize(wide(y), dim=1).T) / temperature
    if target is not None:
        others = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
        scores = scores.masked_fill((target.unsqueeze(0) == target.unsqueeze(1)) & others, float("-inf"))
    pairs = F.log_softmax(scores, dim=1).diagonal() + F.log_softmax(scores, dim=0).diagonal()
    return pairs.mean() / 2 + math.log(len(x))


def crossmodal_terms(
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    visual: Float[Tensor, "batch dim"],
    information: Float[Tensor, ""],
    *,
    alpha: float | int = 0.7,
    reading: Reading = "A",
) -> dict[str, Float[Tensor, ""]]:
    """Weighted cross-entropy and mutual information.

    ```text
    L = α L_CW + (1 - α) L_MI        Eq. 9
    L_MI = -I(f; v) - I(f; a)        Eq. 6-8
    ```

    | symbol | argument | range |
    |---|---|---|
    | α | `alpha` | 0 to 1; the paper: 0.7 |
    | I(f; v) + I(f; a) | `information` | any real number, in nats |

    Source: Chen et al. 2025, Eq. 5-9, https://arxiv.org/abs/2506.09999.

    Args:
        logits: Scaled cosines of fused features and text prototypes, of the classes that take part.
        target: long; column of each sample's class.
        visual: Visual features, see `similarity_weighted_cross_entropy`.
        information: What an estimator of `losses.mutual_information` gives for both pairs, added up.
        alpha: Weight of the cross-entropy; at 1 the information counts for nothing.
        reading: See `similarity_weighted_cross_entropy`.

    Returns:
        Scalars `weighted_cross_entropy` and `mutual_information`, weighted. The second is negative where there is
        information: do not stop training on the sign of the loss.

    Raises:
        ValueError: If `alpha` is outside [0, 1], or for an unknown reading.

    Example:
        >>> import torch
        >>> terms = crossmodal_terms(torch.zeros(1, 2), torch.tensor([1]), torch.ones(1, 3), torch.tensor(2.0))
        >>> {name: round(term.item(), 4) for name, term in terms.items()}  # 0.7 ln 2, -0.3 * 2
        {'weighted_cross_entropy': 0.4852, 'mutual_information': -0.6}
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"Got `alpha={alpha}`, expected a weight in [0, 1]; the paper has 0.7.")
    return {
        "weighted_cross_entropy": alpha * similarity_weighted_cross_entropy(logits, target, visual, reading),
        "mutual_information": (alpha - 1) * information,
    }
