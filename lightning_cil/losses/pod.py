"""Pooled outputs distillation: maps of the new body stay near the old one's, after pooling.

Douillard et al., PODNet: Pooled Outputs Distillation for Small-Tasks Incremental Learning, 2020,
https://arxiv.org/abs/2004.13513 (no equation is cited), in the multi-label form of the code of Dong et al., Knowledge
Restore and Transfer, 2023, https://arxiv.org/abs/2302.13334. KRT keeps its tokens' embeddings by `cosine_preservation`,
too.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightning_cil._precision import wide
from lightning_cil.losses._columns import batch_mean

__all__ = ["cosine_preservation", "growth_factor", "pod_spatial"]


def pod_spatial(old_maps: Sequence[Tensor], new_maps: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Distance of the squared maps, summed over their width and over their height, averaged over the stages.

    ```text
    Σ_b ‖ n(h_old) - n(h_new) ‖ / B,   h = [Σ_w a², Σ_h a²],   n(v) = v / ‖v‖
    ```

    Source: PODNet ("POD-spatial"), https://arxiv.org/abs/2004.13513, whose code squares the maps and takes the
    distance, not its square.

    Args:
        old_maps: Of the old body, float `[batch, channels, height, width]` for each stage. No gradient flows into them.
        new_maps: Of the body in training, the same shapes.

    Returns:
        Scalar in [0, √2]; its gradient is 0 where both are equal.

    Raises:
        ValueError: If there is no stage, or numbers or shapes differ.

    Example:
        >>> import torch
        >>> old, new = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
        >>> round(pod_spatial([old], [new]).item(), 6)  # [1, 1, 0] and [1, 0, 1], each / √2
        1.0
    """
    if not old_maps or [m.shape for m in old_maps] != [m.shape for m in new_maps]:
        raise ValueError(
            f"Got `old_maps` of shapes {[list(m.shape) for m in old_maps]} and `new_maps` of shapes "
            f"{[list(m.shape) for m in new_maps]}, expected the same for at least one stage."
        )
    distances = [
        batch_mean(torch.linalg.vector_norm(_profile(old.detach()) - _profile(new), dim=1))
        for old, new in zip(old_maps, new_maps, strict=True)
    ]
    return torch.stack(distances).mean()


def cosine_preservation(
    old_features: Float[Tensor, "batch dim"], new_features: Float[Tensor, "batch dim"]
) -> Float[Tensor, ""]:
    """Mean over the batch of 1 - cos(old, new): POD-flat.

    Source: PODNet ("POD-flat"), https://arxiv.org/abs/2004.13513, in the form of KRT's code.

    Args:
        old_features: Of the old network. No gradient flows into them.
        new_features: Of the network in training.

    Returns:
        Scalar in [0, 2].

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch
        >>> round(cosine_preservation(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 3.0]])).item(), 6)  # 1 - 1/√2
        0.292893
    """
    if old_features.shape != new_features.shape:
        raise ValueError(
            f"Got `old_features` of shape {list(old_features.shape)} and `new_features` of shape "
            f"{list(new_features.shape)}, expected the same [batch, dim]. Cut the new ones to what the old network has."
        )
    return batch_mean(1 - F.cosine_similarity(wide(old_features.detach()), wide(new_features), dim=1))


def growth_factor(num_seen: int, num_new: int) -> float:
    """√(N_t / |C_t|): old knowledge weighs the more, the more of it there is.

    Source: PODNet, https://arxiv.org/abs/2004.13513.

    Args:
        num_seen: Classes of all tasks so far, N_t.
        num_new: Classes of the current task, |C_t|.

    Raises:
        ValueError: If not 1 ≤ `num_new` ≤ `num_seen`.

    Example:
        >>> growth_factor(8, 2)
        2.0
    """
    if not 1 <= num_new <= num_seen:
        raise ValueError(f"Got `num_seen={num_seen}`, `num_new={num_new}`; expected 1 ≤ `num_new` ≤ `num_seen`.")
    return math.sqrt(num_seen / num_new)


def _profile(maps: Tensor) -> Tensor:
    """Unit vectors `[batch, channels · (height + width)]`."""
    energy = wide(maps) ** 2
    profile = torch.cat([energy.sum(dim=3).flatten(1), energy.sum(dim=2).flatten(1)], dim=1)
    return F.normalize(profile, dim=1)
