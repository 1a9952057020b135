"""`MIFE`: mixtures of low-rank experts in every block of the image and text towers, everything else frozen.

Chen et al., Leveraging Pre-Trained Models for Multimodal Class-Incremental Learning under Adaptive Fusion, 2025,
section II-A, https://arxiv.org/abs/2506.09999 (no equation, no code). The paper says that active experts are updated
and inactive ones are frozen, and gives neither numbers nor the rule. By default "active" is chosen by the router: an
expert without samples gets a gradient of 0 (an optimizer's momentum may still move it). `freeze_after_task` and
`expand_per_task` are the two other readings.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lightning_cil._random import fold_seed
from lightning_cil.networks.counters import merge_counters
from lightning_cil.networks.moe_lora import Activation, GateToken, MoEAdapter

__all__ = ["MIFE", "Mixtures"]

RouterKind = Literal["shared", "per_task"]
Towers = Literal["both", "image", "text"]


class _Blocks(Protocol):
    """What has blocks to insert adapters into."""

    def blocks(self) -> Any:
        """Blocks by name; each has an attribute `adapter` and a LayerNorm `ln_2`."""


@dataclass(frozen=True)
class MIFE:
    """What a config says of the mixtures, and `insert` to put them into the towers.

    The defaults are ours; the paper has none. `MIFE.moe_clip()` has those of MoE-Adapters for class-incremental
    learning.

    Args:
        num_experts: Of each block, at the start.
        top_k: Experts of a sample, at most `num_experts`.
        rank: Of an expert.
        scale: What the branch is multiplied by.
        activation: Between an expert's two layers: `identity` (LoRA) or `relu`.
        bias: Whether an expert's layers have biases.
        dropout: Share of an expert's inner values that is dropped in training.
        noisy: Whether the router's scores have noise in training.
        gate_token: What the router reads: `summary`, the token of the tower's feature, or `first`, token 0.
        router: `shared`: one router goes on learning; `per_task`: each task has one, older ones are frozen, and a
            selector says which to use.
        router_std: Deviation of the router's first values; 0: zeros.
        balance_weight: Of the loss that makes experts be chosen equally often.
        freeze_after_task: So many of the experts that a task used most are not trained again; 0: none.
        expand_per_task: So many new experts for every task after the first, older ones are not trained again; 0: none.
        towers: `both`, `image` or `text`.
        seed: Of the first values.

    Raises:
        ValueError: For an unknown router or tower, or negative numbers.
    """

    num_experts: int = 4
    top_k: int = 2
    rank: int = 16
    scale: float = 0.1
    activation: Activation = "identity"
    bias: bool = False
    dropout: float = 0.1
    noisy: bool = True
    gate_token: GateToken = "summary"
    router: RouterKind = "shared"
    router_std: float = 0.0
    balance_weight: float = 0.0
    freeze_after_task: int = 0
    expand_per_task: int = 0
    towers: Towers = "both"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.router not in ("shared", "per_task") or self.towers not in ("both", "image", "text"):
            raise ValueError(
                f"MIFE got `router={self.router!r}` and `towers={self.towers!r}`, expected 'shared' or 'per_task', and "
                "'both', 'image' or 'text'."
            )
        if self.freeze_after_task < 0 or self.expand_per_task < 0:
            raise ValueError(
                f"MIFE got `freeze_after_task={self.freeze_after_task}` and `expand_per_task={self.expand_per_task}`, "
                "expected at least 0."
            )

    @classmethod
    def moe_clip(cls, **changes: Any) -> "MIFE":
        """The class-incremental set-up of MoE-Adapters: 2 experts of rank 64 with biases and ReLU, gated by token 0."""
        options: dict[str, Any] = {
            "num_experts": 2,
            "top_k": 2,
            "rank": 64,
            "activation": "relu",
            "bias": True,
            "gate_token": "first",
        }
        return cls(**{**options, **changes})

    def insert(self, model: _Blocks) -> "Mixtures":
        """Put a mixture into every block of the chosen towers; everything else of the model is frozen.

        Args:
            model: `AudioCLIP`, or any module whose `blocks()` are named `image.…` and `text.…`.

        Raises:
            ValueError: If a chosen tower has no transformer block, as CLIP's ResNets.
        """
        chosen = ("image", "text") if self.towers == "both" else (self.towers,)
        every: dict[str, nn.Module] = model.blocks()
        blocks = {name: block for name, block in every.items() if name.split(".")[0] in chosen}
        empty = [tower for tower in chosen if not any(name.split(".")[0] == tower for name in blocks)]
        if empty:
            raise ValueError(
                f"MIFE got `towers={self.towers!r}`, but the {empty[0]} tower has no transformer block (a ResNet?); "
                "expected one with blocks. Take another tower, or name the other one in `towers`."
            )
        if isinstance(model, nn.Module):
            model.requires_grad_(False)
        for number, block in enumerate(blocks.values()):
            width: int = block.ln_2.normalized_shape[0]  # type: ignore[union-attr, index, assignment]
            block.adapter = MoEAdapter(
                width,
                num_experts=self.num_experts,
                top_k=self.top_k,
                rank=self.rank,
                scale=self.scale,
                activation=self.activation,
                bias=self.bias,
                dropout=self.dropout,
                noisy=self.noisy,
                gate_token=self.gate_token,
                router_std=self.router_std,
                balance_weight=self.balance_weight,
                seed=fold_seed(self.seed, number),
            )
        return Mixtures(self, blocks)


class Mixtures:
    """All mixtures of a model; their parameters belong to the model's blocks.

    Args:
        spec: How they were made.
        blocks: The blocks that hold them, by name.
    """

    def __init__(self, spec: MIFE, blocks: dict[str, nn.Module]) -> None:
        self.spec = spec
        self._blocks = blocks

    @property
    def adapters(self) -> dict[str, MoEAdapter]:
        """The mixtures by the name of their block."""
        found = {name: block.adapter for name, block in self._blocks.items()}
        return {name: adapter for name, adapter in found.items() if isinstance(adapter, MoEAdapter)}

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of all mixtures, frozen ones included."""
        for adapter in self.adapters.values():
            yield from adapter.parameters()

    def start_task(self, index: int) -> None:
        """Have the experts and routers of task `index`; a second call for it changes nothing.

        Args:
            index: Position in the stream, from 0.
        """
        experts = self.spec.num_experts + self.spec.expand_per_task * index
        routers = index + 1 if self.spec.router == "per_task" else 1
        for adapter in self.adapters.values():
            if adapter.num_experts < experts:
                adapter.frozen.fill_(True)
                adapter.add_experts(experts - adapter.num_experts, known=self.spec.router == "shared")
            while len(adapter.routers) < routers:
                adapter.add_router()

    def apply_freezing(self) -> None:
        """Take the gradients of what is frozen; call it after other code has set `requires_grad`."""
        for adapter in self.adapters.values():
            adapter.apply_freezing()

    def end_task(self) -> None:
        """Freeze the most used experts, if that is asked for, and count anew."""
        for adapter in self.adapters.values():
            adapter.freeze_most_used(self.spec.freeze_after_task)
            adapter.counter.reset()

    def select_router(self, router: int | Tensor | None, tower: Towers = "both") -> None:
        """Say which router the following forward passes take.

        Args:
            router: Its index, which is its task's; or long `[B]`, one for each sample, -1 for the tower without the
                mixtures; or `None`: the last.
            tower: Where; texts are no samples, so that the text tower takes no `[B]` of the images.
        """
        for name, adapter in self.adapters.items():
            if tower in ("both", name.split(".")[0]):
                adapter.selected = router

    def merge_counts(self, reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        """Add up what all processes counted in a step, with one collective; see `merge_counters`."""
        merge_counters(nn.ModuleList(self.adapters.values()), reduce)

    def balance(self) -> Tensor | None:
        """The balance loss of all forward passes in training since the last call; `None` without a weight."""
        losses = [adapter.balance for adapter in self.adapters.values() if adapter.balance is not None]
        for adapter in self.adapters.values():
            adapter.balance = None
        return torch.stack(losses).sum() if losses else None

    def usage(self) -> dict[str, Tensor]:
        """Share of the samples of this task that chose each expert, float `[num_experts]` for each block."""
        return {n: a.usage / a.counter.total[-1].clamp(min=1) for n, a in self.adapters.items()}

    def mean_entropy(self) -> Tensor:
        """Mean entropy of the gates over blocks and samples of this task, in nats, scalar."""
        return torch.stack([adapter.mean_entropy() for adapter in self.adapters.values()]).mean()
