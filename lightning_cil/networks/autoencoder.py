"""An under-complete autoencoder on a backbone's features: its code keeps what the task needs.

Vahedifar and Zhang, No Forgetting Learning, 2025, Eq. 16, https://arxiv.org/abs/2503.04638v2, after Rannen et al.,
Encoder Based Lifelong Learning, 2017, https://arxiv.org/abs/1704.01920. What it minimises is
`losses.autoencoder_terms`.

Departures. Eq. 16 writes the input as the image; Eq. 17 and the text show that it is the features. The paper names no
activation and no width: the sigmoid is the older paper's; three quarters of the features (384 of 512) without biases
give the paper's 11.56 million parameters with ResNet-18.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_cil._random import fold_seed

_STREAM = int.from_bytes(b"autoenc", "big")

Activation = Literal["sigmoid", "tanh", "relu"]

_ACTIVATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}


class Autoencoder(nn.Module):
    """R(u) = W_dec σ(W_enc u).

    Args:
        in_features: Width of the features, at least 2.
        code_features: Width of the code, at least 1 and below `in_features`. Default: three quarters of it.
        bias: Whether both layers have biases.
        activation: σ: `sigmoid`, `tanh` or `relu`.
        seed: Of the first values, U(-1/√n, 1/√n) with n inputs as `nn.Linear` has them.

    Attributes:
        encoder: `nn.Linear`; its `weight` `[code_features, in_features]` is W_enc.
        decoder: `nn.Linear`; needed while the autoencoder is trained only.

    Raises:
        ValueError: If the code is not narrower than the features, or the activation is unknown.
    """

    def __init__(
        self,
        in_features: int,
        code_features: int | None = None,
        bias: bool = False,
        activation: Activation = "sigmoid",
        seed: int = 0,
    ) -> None:
        super().__init__()
        width = 3 * in_features // 4 if code_features is None else code_features
        if not 1 <= width < in_features:
            raise ValueError(
                f"Autoencoder got `code_features={code_features}` for features of width {in_features}, expected at "
                f"least 1 and at most {in_features - 1}: a code as wide as the features could keep everything. Leave "
                "it out for three quarters of the width."
            )
        if activation not in _ACTIVATIONS:
            raise ValueError(f"Autoencoder got `activation={activation!r}`, expected one of {', '.join(_ACTIVATIONS)}.")
        self.activation = activation
        generator = torch.Generator("cpu").manual_seed(fold_seed(seed, _STREAM))
        self.encoder = _linear(in_features, width, bias, generator)
        self.decoder = _linear(width, in_features, bias, generator)

    def encode(self, features: Tensor) -> Tensor:
        """Map features `[B, in_features]` to codes `[B, code_features]`, in (0, 1) with the sigmoid."""
        return _ACTIVATIONS[self.activation](self.encoder(features))

    def forward(self, features: Tensor) -> Tensor:
        """Map features `[B, in_features]` to their reconstruction of the same shape."""
        reconstruction: Tensor = self.decoder(self.encode(features))
        return reconstruction


def _linear(in_features: int, out_features: int, bias: bool, generator: torch.Generator) -> nn.Linear:
    """`nn.Linear` with its usual first values, drawn from a generator of ours."""
    with torch.random.fork_rng(devices=[]):  # the meta device would do too, but takes seconds to load
        layer = nn.Linear(in_features, out_features, bias, device="cpu")
    bound = 1 / math.sqrt(in_features)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer.to(torch.get_default_device())
