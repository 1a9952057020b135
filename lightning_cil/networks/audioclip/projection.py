"""The frozen linear map P from audio features to the width of image and text features.

Source: Chen et al., Leveraging Pre-Trained Models for Multimodal Class-Incremental Learning under Adaptive Fusion,
2025, section on the audio encoder, https://arxiv.org/abs/2506.09999. The paper does not say where P's values come from.
"""

import torch
from torch import Tensor


def semi_orthogonal(out_features: int, in_features: int, seed: int = 0) -> Tensor:
    """Random float `[out_features, in_features]` whose rows, or columns if there are fewer, are orthonormal.

    The values depend on the seed alone, not on the global random state.
    """
    generator = torch.Generator().manual_seed(seed)
    tall, wide = max(out_features, in_features), min(out_features, in_features)
    normal = torch.randn(tall, wide, generator=generator, device="cpu", dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    q = q * r.diagonal().sign()  # unique, and uniform over all such matrices
    matrix: Tensor = q if out_features >= in_features else q.T
    return matrix.to(torch.float32).contiguous()


def procrustes(source: Tensor, target: Tensor, *, orthogonal: bool = False) -> Tensor:
    """The map that takes one set of features nearest to another, for P without any data.

    Audio and text features of AudioCLIP are comparable; so a map from AudioCLIP's text features to another tower's, of
    the same texts, is one for its audio features, too.

    Args:
        source: Float `[N, in_features]`: of each text, by the text tower that the audio tower was trained with.
        target: Float `[N, out_features]`: of the same texts, by the tower to be matched.
        orthogonal: Whether the map's rows must be orthonormal (out_features at most in_features).

    Returns:
        Float `[out_features, in_features]`: W that minimises ‖source Wᵀ - target‖, of minimal norm where texts are
        fewer than `in_features`; or the semi-orthogonal W with the largest tr(W sourceᵀ target).

    Raises:
        ValueError: If the features are not of the same texts, or no such orthogonal map exists.
    """
    if source.ndim != 2 or target.ndim != 2 or len(source) != len(target) or not len(source):
        raise ValueError(
            f"procrustes got `source` {list(source.shape)} and `target` {list(target.shape)}, expected features of the "
            "same texts, [N, in_features] and [N, out_features] with N ≥ 1."
        )
    if orthogonal and target.shape[1] > source.shape[1]:
        raise ValueError(
            f"procrustes got `orthogonal=True` for {source.shape[1]} → {target.shape[1]} features, expected a target "
            "that is not wider than the source. Leave out `orthogonal`."
        )
    source64, target64 = source.detach().double().cpu(), target.detach().double().cpu()
    weight: Tensor
    if orthogonal:
        u, _, vt = torch.linalg.svd(target64.T @ source64, full_matrices=False)
        weight = u @ vt
    else:
        weight = torch.linalg.lstsq(source64, target64, driver="gelsd").solution.T
    return weight.to(torch.float32).contiguous()
