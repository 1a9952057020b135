"""Γ, the factors that correct the old model's logits in NFL+.

Vahedifar and Zhang, No Forgetting Learning, 2025, Eq. 18-19, https://arxiv.org/abs/2503.04638v2: Γ(x) = w W_enc x + b
and H' = Γ(x)·H. What it minimises is `losses.gamma_terms`, where its limits are stated too.

As printed the shapes do not fit: W_enc x has as many numbers as the code, H one for each old class, and w and b are
said to have "the same dimension with W_enc". x must be the features. The readings:

| reading | w | b | factors a sample |
|---|---|---|---|
| `sample` (A, default) | `[1, code]` | `[1]` | 1: the distillation's temperature, sample by sample |
| `class` (B) | `[old, code]` | `[old]` | one for each old class |
| `task` (C) | `[tasks, code]` | `[tasks]` | one for each old task |
| `literal` (D) | `[code, dim]` | `[code, dim]` | 1: the mean of (w ⊙ W_enc) x + b, b's rows averaged |
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cil._random import fold_seed

_STREAM = int.from_bytes(b"gamma", "big")

GammaReading = Literal["sample", "class", "task", "literal"]


class BiasCorrection(nn.Module):
    """Factors for the logits of old classes, linear in the encoded features; no activation.

    Args:
        in_features: Width of the features.
        code_features: Width of the code.
        sizes: Classes of each old task, all at least 1.
        reading: Which shapes w and b have, see above.
        seed: Of w's first values, normal with variance 1/`code_features`; b starts at 0.

    Attributes:
        weight: w.
        bias: b.

    Raises:
        ValueError: If the reading is unknown, a width is below 1 or there is no old class.
    """

    column_task: Tensor

    def __init__(
        self,
        in_features: int,
        code_features: int,
        sizes: Sequence[int],
        reading: GammaReading = "sample",
        seed: int = 0,
    ) -> None:
        super().__init__()
        rows = {"sample": 1, "class": sum(sizes), "task": len(sizes), "literal": code_features}
        if reading not in rows:
            raise ValueError(f"BiasCorrection got `reading={reading!r}`, expected one of {', '.join(rows)}.")
        if min(sizes, default=0) < 1 or in_features < 1 or code_features < 1:
            raise ValueError(
                f"BiasCorrection got `sizes={list(sizes)}`, `in_features={in_features}`, "
                f"`code_features={code_features}`, expected the classes of each old task and positive widths. In the "
                "first task there is nothing to correct."
            )
        self.reading = reading
        literal = reading == "literal"
        shape = (rows[reading], in_features if literal else code_features)
        generator = torch.Generator("cpu").manual_seed(fold_seed(seed, _STREAM))
        normal = torch.randn(shape, generator=generator, device="cpu").to(torch.get_default_device())
        self.weight = nn.Parameter(normal / math.sqrt(code_features))
        self.bias = nn.Parameter(torch.zeros(shape if literal else shape[:1]))
        column_task = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        self.register_buffer("column_task", column_task, persistent=False)

    def forward(self, features: Tensor, encoder_weight: Tensor) -> Tensor:
        """Compute Γ(x).

        Args:
            features: `[B, in_features]` of the old body, whose logits are corrected.
            encoder_weight: W_enc, `[code_features, in_features]`.

        Returns:
            `[B, factors]`.
        """
        if self.reading == "literal":
            row = (self.weight * encoder_weight).mean(dim=0, keepdim=True)  # the mean over the code, taken first
            return F.linear(features, row, self.bias.mean().unsqueeze(0))
        return F.linear(F.linear(features, encoder_weight), self.weight, self.bias)  # Eq. 18

    def correct(self, gamma: Tensor, teacher_logits: Tensor) -> Tensor:
        """Compute H' = Γ(x)·H.

        Args:
            gamma: `[B, factors]` from `forward`.
            teacher_logits: H, `[B, old]`.

        Returns:
            `[B, old]`.
        """
        if self.reading == "task":
            gamma = gamma.index_select(1, self.column_task)
        return gamma * teacher_logits  # Eq. 19
