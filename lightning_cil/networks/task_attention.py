"""Incremental cross-attention (KRT): a token of each task asks the image's patches, a shared one carries over.

Dong et al., Knowledge Restore and Transfer for Multi-Label Class-Incremental Learning, 2023,
https://arxiv.org/abs/2302.13334, whose attention is that of CaiT and whose classifiers are those of DyTox.

With X the map, projected to E channels plus a learned position for each of its P positions, u the shared transfer token
and r_i the retention token of task i:

| symbol | formula |
|---|---|
| sequence of task i | [u, r_i, X], each normalised |
| attention | query u; keys and values the whole sequence |
| e_i, the task's embedding | a + MLP(norm(a)), a = u + attention |
| logits of the task's classes | Linear_i(norm_i(e_i)) |

Keys and values of u and X are the same for all tasks and are computed once; a task adds one key and one value.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_cil.networks.growing_network import GrowingNetwork

_TOKEN_STD = 0.02


class TaskAttention(GrowingNetwork):
    """KRT's head, from maps `[B, in_channels, H, W]` to logits; starts without tasks.

    Parameters of task i are named `tasks.<i>.*`, so that patterns such as `head.tasks.0.*` freeze them.

    Args:
        in_channels: Of the maps.
        positions: H·W, 49 for images of 224 pixels.
        width: E, a multiple of `num_heads` (KRT: 384 for COCO, 768 for VOC).
        num_heads: Of the attention (KRT: 8).
        mlp_ratio: Width of the MLP's middle layer as a multiple of E (KRT: 4).
        weight_std: Of the first weights, normal (KRT: 0.01; narrow tokens learn faster from larger ones).
        seed: Of new values.

    Raises:
        ValueError: If a width is below 1 or E is no multiple of the heads.
    """

    def __init__(
        self,
        in_channels: int,
        positions: int = 49,
        width: int = 384,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        weight_std: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if min(positions, width, num_heads) < 1 or width % num_heads or min(mlp_ratio, weight_std) <= 0:
            raise ValueError(
                f"TaskAttention got `positions={positions}`, `width={width}`, `num_heads={num_heads}`, "
                f"`mlp_ratio={mlp_ratio}`, `weight_std={weight_std}`; expected numbers of at least 1, a width that is "
                "a multiple of the heads, and the last two above 0."
            )
        self.width = width
        self.num_heads = num_heads
        self.weight_std = weight_std
        self.project = nn.Linear(in_channels, width)
        self.position = nn.Parameter(torch.empty(positions, width))
        self.transfer = nn.Parameter(torch.empty(width))
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.tasks = nn.ModuleList()
        for token in (self.position, self.transfer):
            nn.init.trunc_normal_(token, std=_TOKEN_STD)
        for linear in (self.query, self.key, self.value, self.out, self.mlp[0], self.mlp[2]):
            _draw_linear(linear, weight_std, None)

    def forward(self, maps: Tensor, with_embeddings: bool = False) -> Any:
        """Compute the logits of all classes.

        Args:
            maps: float `[B, in_channels, H, W]`.
            with_embeddings: Whether the tasks' embeddings are given, too.

        Returns:
            Logits `[B, classes]`; with embeddings a pair of them and e, `[B, tasks, E]`.

        Raises:
            ValueError: If the map has another number of positions.
        """
        if not self.num_classes:
            logits = maps.new_zeros(len(maps), 0)
            return (logits, maps.new_zeros(len(maps), 0, self.width)) if with_embeddings else logits
        embeddings = self._embeddings(maps)
        parts = [task(e) for task, e in zip(self.tasks, embeddings.unbind(dim=1), strict=True)]
        logits = torch.cat(parts, dim=1)
        return (logits, embeddings) if with_embeddings else logits

    def _embeddings(self, maps: Tensor) -> Tensor:
        """e, `[B, tasks, E]`."""
        x = self.project(maps.flatten(2).transpose(1, 2))
        if x.shape[1] != len(self.position):
            raise ValueError(
                f"The feature maps have {x.shape[1]} positions ({maps.shape[2]}×{maps.shape[3]}), and the attention "
                f"was made for {len(self.position)}. Give `model.positions={x.shape[1]}`."
            )
        x = x + self.position
        shared = torch.cat([self.transfer.expand(len(x), 1, -1), x], dim=1)
        retention = torch.stack([_token(task) for task in self.tasks])
        shared, retention = self.norm(shared), self.norm(retention)
        query = self._heads(self.query(shared[:1, 0])).squeeze(0) * (self.width // self.num_heads) ** -0.5
        scores = torch.einsum("hd,bphd->bhp", query, self._heads(self.key(shared)))
        own = torch.einsum("hd,thd->th", query, self._heads(self.key(retention)))
        tasks = len(own)
        weights = torch.cat(
            [scores.unsqueeze(1).expand(-1, tasks, -1, -1), own.expand(len(x), -1, -1).unsqueeze(3)], dim=3
        ).softmax(dim=3)
        attention = torch.einsum("bthp,bphd->bthd", weights[..., :-1], self._heads(self.value(shared)))
        attention = attention + weights[..., -1:] * self._heads(self.value(retention))
        a = self.transfer + self.out(attention.flatten(2))
        out: Tensor = a + self.mlp(self.mlp_norm(a))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.num_heads, -1)

    def _grow(self, task: int, num_new: int) -> None:
        part = _TaskPart(self.width, num_new, self.weight_std, self.generator(task))
        self.tasks.append(part.to(self.transfer).train(self.training))

    def _shrink(self) -> None:
        self.tasks = nn.ModuleList()


class _TaskPart(nn.Module):
    """What a task has of its own: its retention token, and the classifier of its embedding.

    Args:
        width: E.
        num_classes: Of the task.
        weight_std: Of the classifier's first weights.
        generator: For the first values.
    """

    def __init__(self, width: int, num_classes: int, weight_std: float, generator: torch.Generator) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(width, device="cpu"))
        self.norm = nn.LayerNorm(width, device="cpu")
        self.linear = nn.Linear(width, num_classes, device="meta").to_empty(device="cpu")  # draws no random numbers
        nn.init.trunc_normal_(self.token, std=_TOKEN_STD, generator=generator)
        _draw_linear(self.linear, weight_std, generator)

    def forward(self, embedding: Tensor) -> Tensor:
        """Map `[B, E]` to the logits of the task's classes."""
        out: Tensor = self.linear(self.norm(embedding))
        return out


def _token(task: nn.Module) -> Tensor:
    assert isinstance(task, _TaskPart)
    return task.token


def _draw_linear(linear: nn.Module, std: float, generator: torch.Generator | None) -> None:
    """N(0, std²) for weights, 0 for biases."""
    assert isinstance(linear, nn.Linear)
    nn.init.normal_(linear.weight, std=std, generator=generator)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
