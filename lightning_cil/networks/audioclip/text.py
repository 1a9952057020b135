"""CLIP's text tower: a causal transformer whose state at the end-of-text token is the feature.

Source: Radford et al. 2021, section 2.4, https://arxiv.org/abs/2103.00020; names as in https://github.com/openai/CLIP.
"""

import torch
from torch import Tensor, nn

from lightning_cil.networks.audioclip.transformer import Activation, Transformer


class TextTower(nn.Module):
    """Tokens to features.

    Args:
        embed_dim: Width of the feature.
        width: Of a token's state.
        blocks: Of the transformer.
        heads: Of its attention.
        context_length: Most tokens of a text, start and end included.
        vocab_size: The end-of-text token is the last, `vocab_size - 1`.
        activation: See `MLP`.
    """

    def __init__(
        self,
        embed_dim: int = 512,
        *,
        width: int = 512,
        blocks: int = 12,
        heads: int = 8,
        context_length: int = 77,
        vocab_size: int = 49_408,
        activation: Activation = "quick_gelu",
    ) -> None:
        super().__init__()
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.transformer = Transformer(width, blocks, heads, causal=True, activation=activation)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map long `[N, L]` to features `[N, embed_dim]`.

        The feature is read at the first end-of-text token, which has the highest id, so that padding with zeros
        (OpenAI) and with end-of-text tokens (Hugging Face) give the same. What comes after it has no influence:
        columns that are padding in every row may be cut off, which saves their time.

        Raises:
            ValueError: If `tokens` is no `[N, L]` of integers with 1 ≤ L ≤ `context_length`.
        """
        if tokens.ndim != 2 or tokens.is_floating_point() or not 1 <= tokens.shape[1] <= self.context_length:
            raise ValueError(
                f"TextTower got {tokens.dtype} {list(tokens.shape)}, expected token ids, long "
                f"[texts, at most {self.context_length}], as `tokenizer.encode(texts)` gives them."
            )
        end = tokens.argmax(dim=1)
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = self.transformer(x, end)
        x = self.ln_final(x[torch.arange(len(x), device=x.device), end])
        return torch.matmul(x, self.text_projection)
