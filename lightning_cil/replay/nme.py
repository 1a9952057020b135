"""Classification by the nearest mean of exemplars (NME).

Rebuffi et al., iCaRL, 2017, Algorithm 1 (no equation number), https://arxiv.org/abs/1611.07725: features have unit
length, and so has every class mean. For unit vectors the nearest mean is the one of the largest cosine.

Departure: a budget below the number of classes leaves some without exemplars, which the paper does not consider. They
keep a stored mean, computed when the class was learnt, or are never predicted.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ClassMeans", "class_means", "nearest_mean_scores"]


class ClassMeans(NamedTuple):
    """Class means and where they come from."""

    means: Tensor
    """float `[classes, dim]`, of unit length; zeros for a class without any."""
    known: Tensor
    """bool `[classes]`: whether the class has a mean."""
    stored: Tensor
    """bool `[classes]`: whether it is the stored one, for want of exemplars."""


def class_means(features: Tensor, target: Tensor, num_classes: int, stored: Tensor | None = None) -> ClassMeans:
    """Mean of each class's normalised features, made unit length again.

    ```text
    μ_c = m_c / ‖m_c‖,   m_c = mean over the class of φ_i / ‖φ_i‖
    ```

    | symbol | argument | range |
    |---|---|---|
    | φ | `features`, `[n, dim]` | finite; a zero vector stays zero |
    | c | `target`, long `[n]` | 0 ≤ c < `num_classes` |

    The authors' script averages the image's and its mirror's features: give both, with the labels twice.

    Source: iCaRL, Algorithm 1 (no equation number), https://arxiv.org/abs/1611.07725.

    Args:
        features: Features of the exemplars by the current body; any floating dtype.
        target: The exemplars' classes.
        num_classes: Classes seen so far.
        stored: float `[k, dim]` with k ≤ `num_classes`: means that classes without exemplars fall back to. A row of
            zeros is none.

    Returns:
        The means in float32 or wider, without NaN, on the features' device.

    Raises:
        ValueError: If the shapes do not fit, a feature is not finite, or (checked on the CPU only) a label is outside
            of the classes.

    Example:
        >>> features = torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.0, 1.0]])
        >>> class_means(features, torch.tensor([0, 0, 2]), num_classes=3).means
        tensor([[0.7071, 0.7071],
                [0.0000, 0.0000],
                [0.0000, 1.0000]])
    """
    if features.ndim != 2 or target.shape != features.shape[:1]:
        raise ValueError(
            f"Got `features` of shape {list(features.shape)} and `target` of shape {list(target.shape)}, expected "
            "[n, dim] and [n]: one feature vector and one label for each exemplar."
        )
    if target.device.type == "cpu" and ((target < 0) | (target >= num_classes)).any():
        raise ValueError(
            f"Got `target` with labels from {int(target.min())} to {int(target.max())}, expected labels from 0 to "
            f"{num_classes - 1} with `num_classes={num_classes}`. Pass all classes seen so far."
        )
    if not features.isfinite().all():
        raise ValueError(
            "Got `features` with NaN or infinite values, expected finite ones. The training has diverged before the "
            "class means were computed: lower the learning rate or clip gradients."
        )
    unit = _unit(features)
    sums = unit.new_zeros(num_classes, features.shape[1]).index_add_(0, target, unit)
    has_exemplars = target.new_zeros(num_classes).index_add_(0, target, torch.ones_like(target)) > 0
    means = F.normalize(sums, dim=1)
    use_stored = torch.zeros_like(has_exemplars)
    if stored is not None:
        if stored.ndim != 2 or stored.shape[1] != features.shape[1] or len(stored) > num_classes:
            raise ValueError(
                f"Got `stored` of shape {list(stored.shape)}, expected at most {num_classes} means of width "
                f"{features.shape[1]}, in class order."
            )
        rest = num_classes - len(stored)
        fallback = F.pad(_unit(stored).to(means), (0, 0, 0, rest))
        use_stored = ~has_exemplars & fallback.any(dim=1)
        means = torch.where(use_stored.unsqueeze(1), fallback, means)
    return ClassMeans(means, has_exemplars | use_stored, use_stored)


def nearest_mean_scores(features: Tensor, means: Tensor, known: Tensor | None = None) -> Tensor:
    """Score of every class: minus the squared distance of its mean from the normalised feature.

    ```text
    s_bc = -‖ φ_b / ‖φ_b‖ - μ_c ‖²,   y*_b = argmax_c s_bc
    ```

    | symbol | argument | range |
    |---|---|---|
    | φ | `features`, `[B, dim]` | finite |
    | μ | `means`, `[classes, dim]` | as `class_means` gives them |

    Task-IL takes the largest score among the task's classes.

    Source: iCaRL, Algorithm 1 (no equation number), https://arxiv.org/abs/1611.07725.

    Args:
        features: Of the samples to classify.
        means: One for each class.
        known: bool `[classes]`; the others score minus infinity. Default: all are.

    Returns:
        float `[B, classes]`, at most 0, in the means' dtype.

    Example:
        >>> means = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> nearest_mean_scores(torch.tensor([[3.0, 0.0]]), means)
        tensor([[-0., -2.]])
    """
    unit = _unit(features).to(means.dtype)
    # ‖a - b‖² without the product of all pairs and dimensions; rounding may leave it a little below 0
    squares = unit.square().sum(dim=1, keepdim=True) - 2 * unit @ means.T + means.square().sum(dim=1)
    scores = -squares.clamp(min=0)
    return scores if known is None else scores.masked_fill(~known, -torch.inf)


def _unit(features: Tensor) -> Tensor:
    wide = features.detach().to(torch.promote_types(features.dtype, torch.float32))
    return F.normalize(wide, dim=1)
