"""The class-incremental graph network of CSC (CI-GCN): a head over feature maps, one node for each class.

Du et al., Confidence Self-Calibration for Multi-Label Class-Incremental Learning, 2024,
https://arxiv.org/abs/2403.12559, after Ye et al., Attention-Driven Dynamic Graph Convolutional Network for Multi-Label
Image Recognition (ADD-GCN), 2020, https://arxiv.org/abs/2012.02994.

With X the map, `[positions, in]`, and φ a leaky ReLU:

| symbol | formula | shape |
|---|---|---|
| A, scores of each position | X W_a | `[positions, classes]` |
| s¹, first branch | max over positions of A | `[classes]` |
| V, class vectors | softmax over positions of A, times X W_v + b_v | `[classes, hidden]` |
| V¹, static graph | V + φ(φ(G V) W_s + b_s) | `[classes, hidden]` |
| D, dynamic graph | sigmoid(W_d [m; V¹] + b_d), m = φ(norm(W_m mean(V¹))) | `[classes, classes]` |
| V² | φ(φ(D V¹) W_2 + b_2) | `[classes, hidden]` |
| s², second branch | w_c · (V + V²)_c + b_c | `[classes]` |
| z, logits | (s¹ + s²) / 2 | `[classes]` |

Departures: old biases are kept when the graph grows (the authors' code draws them anew), and growing layers are
parameters of the optimizer (in their code they are not).
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cil._random import fold_seed
from lightning_cil.networks.growing_network import GrowingNetwork, grown
from lightning_cil.networks.heads import LinearHead

GraphNorm = Literal["batch", "layer"]

_SLOPE = 0.2
_PARTS = ("activation", "edges", "classifier")


class ClassGCN(GrowingNetwork):
    """CI-GCN, from maps `[B, in_channels, H, W]` to logits; starts without classes.

    Args:
        in_channels: Of the maps.
        hidden: Width of the class vectors (CSC: 1024).
        norm: Of the graph's mean vector: `batch` (CSC); `layer` does not depend on who shares the batch.
        seed: Of new values.

    Attributes:
        activation: W_a, `LinearHead` without bias.
        graph: G, `[classes, classes]`.
        edges: W_d and b_d, `LinearHead`.
        classifier: w and b, `LinearHead`.

    Raises:
        ValueError: If a width is below 1 or the norm is unknown.
    """

    def __init__(self, in_channels: int, hidden: int = 1024, norm: GraphNorm = "batch", seed: int = 0) -> None:
        super().__init__(seed)
        if hidden < 1 or norm not in ("batch", "layer"):
            raise ValueError(
                f"ClassGCN got `hidden={hidden}`, `norm={norm!r}`; expected a width of at least 1 and 'batch' or "
                "'layer'."
            )
        self.activation = LinearHead(in_channels, bias=False)
        self.vectors = nn.Linear(in_channels, hidden)
        self.graph = SquareMatrix()
        self.static = nn.Linear(hidden, hidden)
        self.mean = nn.Linear(hidden, hidden)
        self.norm = nn.BatchNorm1d(hidden) if norm == "batch" else nn.LayerNorm(hidden)
        self.edges = LinearHead(2 * hidden)
        self.dynamic = nn.Linear(hidden, hidden)
        self.classifier = LinearHead(hidden)

    def forward(self, maps: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to logits `[B, classes]`.

        Raises:
            ValueError: If one image is trained on with BatchNorm.
        """
        if not self.num_classes:
            return maps.new_zeros(len(maps), 0)
        if len(maps) == 1 and self.training and isinstance(self.norm, nn.BatchNorm1d):
            raise ValueError(
                "ClassGCN got a training batch of one image, of which BatchNorm has no statistics; expected at least "
                "2 on each process. Give a larger `batch_size` (or the task more images), or `graph_norm='layer'`."
            )
        x = maps.flatten(2).transpose(1, 2)
        scores = self.activation(x)
        attention = scores.softmax(dim=1).transpose(1, 2)
        v = attention @ self.vectors(x)
        v1 = v + F.leaky_relu(self.static(F.leaky_relu(self.graph(v), _SLOPE)), _SLOPE)
        mean = F.leaky_relu(self.norm(self.mean(v1.mean(dim=1))), _SLOPE)
        # Row j holds the weights of node j's sum.
        dynamic = self.edges(torch.cat([mean.unsqueeze(1).expand_as(v1), v1], dim=2)).sigmoid()
        v2 = F.leaky_relu(self.dynamic(F.leaky_relu(dynamic @ v1, _SLOPE)), _SLOPE)
        second = ((v + v2) * self.classifier.weight).sum(dim=2) + self.classifier.bias
        logits: Tensor = (scores.amax(dim=1) + second) / 2
        return logits

    def class_maps(self, maps: Tensor) -> Tensor:
        """A, the scores of each position: `[B, classes, H, W]`."""
        return F.linear(maps.movedim(1, -1), self.activation.weight).movedim(-1, 1)

    def _grow(self, task: int, num_new: int) -> None:
        for i, name in enumerate(_PARTS):  # two of them may be equally wide, and must not start alike
            part = self.get_submodule(name)
            assert isinstance(part, LinearHead)
            part.seed = fold_seed(self.seed, i)
            part.grow(num_new)
        self.graph.grow(num_new, self.generator(task))

    def _shrink(self) -> None:
        like = self.vectors.weight
        for name in _PARTS:
            old: Any = self.get_submodule(name)
            setattr(self, name, LinearHead(old.in_features, bias=old.bias is not None).to(like.device, like.dtype))
        self.graph = SquareMatrix().to(like.device, like.dtype)


class SquareMatrix(nn.Module):
    """A matrix of classes × classes that grows; the old block stays. `load_state_dict` takes a checkpoint's size.

    Attributes:
        weight: `[classes, classes]`; new entries U(-1/√n, 1/√n) with n the new number of classes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, 0))

    def forward(self, nodes: Tensor) -> Tensor:
        """Map `[B, classes, width]` to each node's weighted sum of nodes, of the same shape."""
        out: Tensor = self.weight @ nodes
        return out

    def grow(self, num_new: int, generator: torch.Generator) -> None:
        """Add rows and columns."""
        old = self.weight.detach()
        size = len(old) + num_new
        bound = 1 / math.sqrt(size)
        values = torch.empty(size, size, device="cpu").uniform_(-bound, bound, generator=generator)
        values = values.to(old.device, old.dtype)
        values[: len(old), : len(old)] = old
        self.weight = grown(self.weight, values)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}weight")
        if isinstance(stored, Tensor) and stored.shape != self.weight.shape:
            self.weight = grown(self.weight, torch.zeros(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)
