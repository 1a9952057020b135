"""The pre-norm transformer of CLIP's image and text towers, with OpenAI's parameter names.

Source: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, sections 2.4 and
2.5, https://arxiv.org/abs/2103.00020; names as in https://github.com/openai/CLIP.

Departure: every block has a place for a branch beside its MLP (`adapter`), as mixtures of experts need it (Yu et al.,
Boosting Continual Learning of Vision-Language Models via Mixture-of-Experts Adapters, 2024,
https://arxiv.org/abs/2403.11549). Sequences are batch-first.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class QuickGELU(nn.Module):
    """`z · sigmoid(1.702 z)`, the activation that the published CLIP weights were trained with."""

    def forward(self, z: Tensor) -> Tensor:
        """Same shape out as in."""
        return z * torch.sigmoid(1.702 * z)


class Attention(nn.Module):
    """Multi-head self-attention with the names of `nn.MultiheadAttention`.

    Args:
        width: Of a token.
        heads: Divide the width.
        causal: Whether a token sees only itself and those before it.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.in_proj_weight = nn.Parameter(width**-0.5 * torch.randn(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, L, width]` to the same shape."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        heads = qkv.reshape(*qkv.shape[:2], 3, self.heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind()  # each [B, heads, L, width / heads]
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


Activation = Literal["quick_gelu", "gelu"]


class MLP(nn.Module):
    """Two linear layers, the inner one four times as wide.

    Args:
        width: Of a token.
        activation: `quick_gelu` (OpenAI, AudioCLIP) or `gelu` (some of open_clip's weights).

    Raises:
        ValueError: If the activation is unknown.
    """

    def __init__(self, width: int, activation: Activation) -> None:
        super().__init__()
        if activation not in get_args(Activation):
            raise ValueError(f"CLIP got `activation={activation!r}`, expected 'quick_gelu' or 'gelu'.")
        self.c_fc = nn.Linear(width, 4 * width)
        self.gelu = QuickGELU() if activation == "quick_gelu" else nn.GELU()
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, L, width]` to the same shape."""
        out: Tensor = self.c_proj(self.gelu(self.c_fc(x)))
        return out


class Block(nn.Module):
    """`h = x + attn(ln_1(x))`, then `h + mlp(ln_2(h))`, plus `adapter(h, gate_token)` if there is an adapter.

    Args:
        width: Of a token.
        heads: Divide the width.
        causal: See `Attention`.
        activation: See `MLP`.

    Attributes:
        adapter: `None`, or a module that maps `h` `[B, L, width]` and the gate token `[B, width]` (the entry of `h`
            that stands for the whole sequence) to an addition `[B, L, width]`. It reads `h` before `ln_2`.
    """

    adapter: nn.Module | None

    def __init__(self, width: int, heads: int, causal: bool, activation: Activation = "quick_gelu") -> None:
        super().__init__()
        self.attn = Attention(width, heads, causal)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = MLP(width, activation)
        self.ln_2 = nn.LayerNorm(width)
        self.register_module("adapter", None)

    def forward(self, x: Tensor, gate_index: Tensor | None = None) -> Tensor:
        """Map `[B, L, width]` to the same shape.

        Args:
            x: Tokens.
            gate_index: Long `[B]`, where each sample's gate token is; `None` is token 0. Only an adapter needs it.
        """
        h: Tensor = x + self.attn(self.ln_1(x))
        y: Tensor = h + self.mlp(self.ln_2(h))
        if self.adapter is not None:
            gate = h[:, 0] if gate_index is None else h[torch.arange(len(h), device=h.device), gate_index]
            y = y + self.adapter(h, gate)
        return y


class Transformer(nn.Module):
    """Blocks in a row; the initial values are OpenAI's (normal, scaled by width and depth, biases 0).

    Args:
        width: Of a token.
        blocks: How many.
        heads: Divide the width.
        causal: See `Attention`.
        activation: See `MLP`.
    """

    def __init__(
        self, width: int, blocks: int, heads: int, causal: bool, activation: Activation = "quick_gelu"
    ) -> None:
        super().__init__()
        self.width = width
        self.resblocks = nn.ModuleList(Block(width, heads, causal, activation) for _ in range(blocks))
        out_std = width**-0.5 * (2 * blocks) ** -0.5
        for block in self.blocks():
            nn.init.normal_(block.attn.out_proj.weight, std=out_std)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=out_std)
            for linear in (block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj):
                nn.init.zeros_(linear.bias)

    def blocks(self) -> list[Block]:
        """The blocks, first to last."""
        return [block for block in self.resblocks if isinstance(block, Block)]

    def forward(self, x: Tensor, gate_index: Tensor | None = None) -> Tensor:
        """Map `[B, L, width]` to the same shape; see `Block.forward`."""
        for block in self.resblocks:
            x = block(x, gate_index)
        return x
