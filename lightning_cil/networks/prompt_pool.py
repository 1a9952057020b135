"""Prompts of a pool, chosen by the image, in front of a frozen vision transformer (L2P).

Wang et al., Learning to Prompt for Continual Learning, 2022, https://arxiv.org/abs/2112.08654; details as in
https://github.com/JH-LEE-KR/l2p-pytorch.

| symbol | meaning |
|---|---|
| q(x) | class token of the frozen transformer, without prompts |
| P_i, k_i | prompt i, `[length, dim]`, and its key; both U(-1, 1) |
| chosen | the `top_k` keys with the largest cosine to q(x) |
| sequence | [class, chosen prompts, patches]; prompts have the class token's position |
| features | mean over the prompts' outputs |

Departure: each image chooses for itself. The authors' code lets a batch vote by default, which couples test images.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PromptPool(nn.Module):
    """Prompts with keys.

    Args:
        dim: Width of the transformer's tokens.
        size: Prompts in the pool (L2P: 10).
        length: Tokens of a prompt (L2P: 5).
        top_k: Prompts that an image gets, at most `size` (L2P: 5).

    Attributes:
        prompts: `[size, length, dim]`.
        keys: `[size, dim]`.

    Raises:
        ValueError: If a number is below 1 or `top_k` above `size`.
    """

    def __init__(self, dim: int, size: int = 10, length: int = 5, top_k: int = 5) -> None:
        super().__init__()
        if min(size, length, top_k) < 1 or top_k > size:
            raise ValueError(
                f"PromptPool got `size={size}`, `length={length}`, `top_k={top_k}`; expected numbers of at least 1, "
                "and no more prompts chosen than there are."
            )
        self.top_k = top_k
        self.prompts = nn.Parameter(torch.empty(size, length, dim).uniform_(-1, 1))
        self.keys = nn.Parameter(torch.empty(size, dim).uniform_(-1, 1))

    def forward(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Choose prompts for queries `[B, dim]`.

        Returns:
            The prompts' tokens `[B, top_k · length, dim]`, nearest first, and the cosines of the chosen keys
            `[B, top_k]`.
        """
        cosines = F.normalize(query, dim=1) @ F.normalize(self.keys, dim=1).T
        near, chosen = cosines.topk(self.top_k, dim=1)
        return self.prompts[chosen].flatten(1, 2), near


class PromptedTransformer(nn.Module):
    """A frozen timm vision transformer with a prompt pool; trains `pool.*` only.

    Args:
        transformer: timm's `VisionTransformer` with a class token, from `create_backbone`. Used, not copied.
        pool: Of the transformer's width.

    Attributes:
        num_features: Width of the output.
        weights_sha256: The transformer's, see `create_backbone`.

    Raises:
        TypeError: For another kind of backbone.
    """

    def __init__(self, transformer: nn.Module, pool: PromptPool) -> None:
        super().__init__()
        transformer_width(transformer)
        self.transformer = transformer.requires_grad_(False)
        self.pool = pool
        self.num_features = int(pool.prompts.shape[2])
        self.weights_sha256: str | None = getattr(transformer, "weights_sha256", None)

    def forward(self, image: Tensor, with_cosines: bool = False) -> Any:
        """Map images to features.

        Args:
            image: float `[B, C, H, W]`.
            with_cosines: Whether the cosines of the chosen keys are given, too.

        Returns:
            `[B, num_features]`; with cosines a pair of this and `[B, top_k]`.
        """
        vit: Any = self.transformer
        with torch.no_grad():  # the same tokens serve the query and the prompted pass
            tokens = vit._pos_embed(vit.patch_embed(image))
            query = self._outputs(tokens)[:, 0]
        prompts, cosines = self.pool(query)
        if vit.pos_embed is not None and not vit.no_embed_class:
            prompts = prompts + vit.pos_embed[:, :1]
        x = torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], dim=1)
        features = self._outputs(x)[:, 1 : 1 + prompts.shape[1]].mean(dim=1)
        return (features, cosines) if with_cosines else features

    def _outputs(self, tokens: Tensor) -> Tensor:
        """The transformer's outputs `[B, tokens, dim]`, normalised."""
        vit: Any = self.transformer
        out: Tensor = vit.fc_norm(vit.norm(vit.blocks(vit.norm_pre(tokens))))  # one of the two norms is the identity
        return out


def transformer_width(backbone: nn.Module) -> int:
    """The width of a transformer that prompts can be put into.

    Raises:
        TypeError: For another kind of backbone.
    """
    import timm

    transformer: Any = backbone
    plain = isinstance(backbone, timm.models.VisionTransformer) and backbone.num_prefix_tokens == 1
    if not plain or transformer.cls_token is None:
        raise TypeError(
            f"The backbone {type(backbone).__name__} takes no prompts, expected one of timm's vision transformers with "
            "a class token and no other: take 'vit_base_patch16_224.orig_in21k'."
        )
    return int(transformer.embed_dim)
