"""A mixture of low-rank experts beside the MLP of a transformer block.

Yu et al., Boosting Continual Learning of Vision-Language Models via Mixture-of-Experts Adapters, 2024,
https://arxiv.org/abs/2403.11549, and its code, https://github.com/JiazuoYu/MoE-Adapters4CL: one gate vector for each
sample and block, the k largest scores kept, noise on the scores in training. Chen et al. 2025,
https://arxiv.org/abs/2506.09999, make the experts LoRA pairs: Hu et al. 2021, https://arxiv.org/abs/2106.09685.
The noise and the balance loss are those of Shazeer et al. 2017, Eq. 3 to 10, https://arxiv.org/abs/1701.06538.

All experts are computed and the gates of those that were not chosen are 0: the low ranks make that cheap, and every
expert gets a gradient, 0 if need be, without which DDP would wait for it.

Departures from the code: noise in training only (there a test is noisy, too); counters are part of a checkpoint; the
balance loss, which there is computed and never used, counts if it has a weight.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cil._random import fold_seed
from lightning_cil.networks.counters import StepCounter
from lightning_cil.networks.growing_list import GrowingList

__all__ = ["Expert", "MoEAdapter", "Router"]

Activation = Literal["identity", "relu"]
GateToken = Literal["summary", "first"]

_MICRO = 1e6
"""Entropy is counted in whole micronats: sums over processes are exact then."""


class Expert(nn.Module):
    """Down to `rank` and up again; the upper matrix starts at zero.

    Args:
        width: Of a token.
        rank: Of the product, at least 1.
        bias: Whether both layers have biases.
        seed: Of the lower matrix, Kaiming-uniform with a = √5 as in LoRA.
    """

    def __init__(self, width: int, rank: int, bias: bool, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # nn.Linear's own first values are not used
            self.lora_A = nn.Linear(width, rank, bias=bias)
            self.lora_B = nn.Linear(rank, width, bias=bias)
        generator = torch.Generator().manual_seed(fold_seed(seed))
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5), generator=generator)
        for parameter in (self.lora_A.bias, self.lora_B.weight, self.lora_B.bias):
            if parameter is not None:
                nn.init.zeros_(parameter)


class Router(nn.Module):
    """Scores of the experts from a token, and how noisy they are.

    Args:
        width: Of the token.
        num_experts: How many.
        noisy: Whether the scores have noise in training.
        std: Of the first values, normal; 0: zeros, with which all samples score all experts alike.
        seed: Of the first values.
    """

    def __init__(self, width: int, num_experts: int, noisy: bool, std: float, seed: int) -> None:
        super().__init__()
        self.std = std
        self.seed = seed
        self.gate = nn.Parameter(torch.empty(0, width))
        self.register_parameter("noise", nn.Parameter(torch.empty(0, width)) if noisy else None)
        self.widen(num_experts)

    noise: nn.Parameter | None

    @torch.no_grad()
    def widen(self, num_experts: int) -> None:
        """Score further experts."""
        for stream, name in enumerate(("gate", "noise")):
            weight = getattr(self, name)
            if weight is None:
                continue
            generator = torch.Generator().manual_seed(fold_seed(self.seed, stream, len(weight)))
            new = self.std * torch.randn(num_experts - len(weight), weight.shape[1], generator=generator, device="cpu")
            grown = nn.Parameter(torch.cat([weight, new.to(weight)]), requires_grad=weight.requires_grad)
            setattr(self, name, grown)


class MoEAdapter(nn.Module):
    """The branch: gates of a sample's experts times what the experts make of each of its tokens.

    ```text
    branch(h) = s Σ_e g_e (B_e drop(act(A_e h + a_e)) + b_e)
    g = softmax over the k largest of x W_g + ε (softplus(x W_n) + 0.01),   ε ~ N(0, 1), 0 in evaluation
    ```

    Args:
        width: Of a token.
        num_experts: At the start, at least 1.
        top_k: Experts of a sample, at most `num_experts`.
        rank: Of an expert.
        scale: s.
        activation: act; with `identity` and no bias an expert is a LoRA pair.
        bias: Whether the experts have the biases a and b.
        dropout: Share of an expert's inner values that is dropped in training.
        noisy: Whether the scores have noise in training.
        gate_token: x: `summary` is the token that the tower reads its feature from (image: class token; text: end of
            text), `first` is token 0, which in a causal text tower is the same for all texts.
        router_std: See `Router`.
        balance_weight: Of the balance loss, see `balance`.
        seed: Of the first values.

    Attributes:
        counter: `StepCounter`: how often each expert was chosen, then the sum of the gates' entropies in micronats, and
            the number of samples; of the running task.
        frozen: bool `[num_experts]`: experts that are not trained any more (a buffer).

    Raises:
        ValueError: For numbers out of range or unknown options.
    """

    frozen: Tensor

    def __init__(
        self,
        width: int,
        *,
        num_experts: int = 4,
        top_k: int = 2,
        rank: int = 16,
        scale: float = 0.1,
        activation: Activation = "identity",
        bias: bool = False,
        dropout: float = 0.1,
        noisy: bool = True,
        gate_token: GateToken = "summary",
        router_std: float = 0.0,
        balance_weight: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"MoEAdapter got `top_k={top_k}`, expected 1 to `num_experts={num_experts}`.")
        if not 1 <= rank <= width:
            raise ValueError(f"MoEAdapter got `rank={rank}` for tokens of width {width}, expected 1 to {width}.")
        if not 0 <= dropout < 1 or router_std < 0 or balance_weight < 0:
            raise ValueError(
                f"MoEAdapter got `dropout={dropout}`, `router_std={router_std}` and `balance_weight={balance_weight}`, "
                "expected a dropout in [0, 1) and the others at least 0."
            )
        if activation not in ("identity", "relu") or gate_token not in ("summary", "first"):
            raise ValueError(
                f"MoEAdapter got `activation={activation!r}` and `gate_token={gate_token!r}`, expected 'identity' or "
                "'relu', and 'summary' or 'first'."
            )
        self.width = width
        self.top_k = top_k
        self.rank = rank
        self.scale = scale
        self.activation = activation
        self.bias = bias
        self.dropout = dropout
        self.noisy = noisy
        self.gate_token = gate_token
        self.router_std = router_std
        self.balance_weight = balance_weight
        self.seed = seed
        self.selected: int | Tensor | None = None
        self.balance: Tensor | None = None
        """The balance loss of the forward passes in training since it was last set to `None`, weighted."""
        self.experts = GrowingList(self._stored_expert)
        self.routers = GrowingList(self._stored_router)
        self.register_buffer("frozen", torch.zeros(0, dtype=torch.bool))
        self.register_load_state_dict_post_hook(_freeze_as_loaded)  # type: ignore[no-untyped-call]
        self.counter = StepCounter(2)
        self.add_experts(num_experts)
        self.add_router()

    # ------------------------------------------------------------------ growth and freezing

    @property
    def num_experts(self) -> int:
        """Experts so far."""
        return len(self.experts)

    def add_experts(self, count: int, known: bool = True) -> None:
        """Have further experts; counts start anew.

        Args:
            count: How many.
            known: Whether the routers that there are score them; else only later routers do.
        """
        self.experts.extend(self._expert(len(self.experts) + i).to(self._like()) for i in range(count))
        self.frozen = torch.cat([self.frozen, self.frozen.new_zeros(count)])
        self.counter.widen(self.num_experts + 2)
        self.counter.reset()
        for router in self.routers if known else ():
            router.widen(self.num_experts)  # type: ignore[operator]

    def add_router(self) -> None:
        """Have a further router, which is the one in use unless `selected` says otherwise."""
        self.routers.append(self._router(len(self.routers), self.num_experts).to(self._like()))

    def freeze_most_used(self, count: int) -> None:
        """The experts that were chosen most often in this task are never trained again; those already frozen count."""
        most = self.usage.argsort(descending=True, stable=True)[:count]
        self.frozen[most] = True

    def apply_freezing(self) -> None:
        """Take the gradients of frozen experts and of all routers but the last."""
        for expert, frozen in zip(self.experts, self.frozen.tolist(), strict=True):
            if frozen:
                expert.requires_grad_(False)
        for router in list(self.routers)[:-1]:
            router.requires_grad_(False)

    @property
    def usage(self) -> Tensor:
        """How many samples chose each expert in this task, long `[num_experts]`."""
        return self.counter.total[: self.num_experts]

    def mean_entropy(self) -> Tensor:
        """Mean entropy of the gates in this task, in nats, scalar in [0, ln k]; 0 without samples."""
        return self.counter.total[-2] / _MICRO / self.counter.total[-1].clamp(min=1)

    # ------------------------------------------------------------------ forward

    def forward(self, h: Tensor, gate_token: Tensor) -> Tensor:
        """The branch of a batch.

        Args:
            h: Tokens before the MLP's LayerNorm, float `[B, L, width]`.
            gate_token: The token that stands for the sequence, float `[B, width]`.

        Returns:
            float `[B, L, width]`, to be added.
        """
        gates = self.gates(gate_token if self.gate_token == "summary" else h[:, 0])
        experts = [expert for expert in self.experts if isinstance(expert, Expert)]
        lower, upper = [expert.lora_A for expert in experts], [expert.lora_B for expert in experts]
        inner = F.linear(h, torch.cat([a.weight for a in lower]), self._cat([a.bias for a in lower]))
        inner = F.relu(inner) if self.activation == "relu" else inner
        inner = F.dropout(inner, self.dropout, self.training)
        inner = inner * gates.repeat_interleave(self.rank, dim=1).unsqueeze(1)  # [B, L, experts * rank]
        branch = F.linear(inner, torch.cat([b.weight for b in upper], dim=1))
        if self.bias:
            branch = branch + (gates @ torch.stack([b.bias for b in upper])).unsqueeze(1)
        return self.scale * branch

    def gates(self, token: Tensor) -> Tensor:
        """Weights of the experts, float `[B, num_experts]`: k positive ones that add up to 1; zeros for router -1."""
        scores = noisy = self._scores(token, "gate")
        deviation = None
        if self.noisy and self.training:
            deviation = F.softplus(self._scores(token, "noise")) + 1e-2
            noisy = scores + torch.randn_like(scores) * deviation
        kept = torch.zeros_like(noisy, dtype=torch.bool).scatter(1, noisy.topk(self.top_k, dim=1).indices, True)
        gates = noisy.masked_fill(~kept, float("-inf")).softmax(dim=1)
        if self.selected is not None:
            routed = torch.as_tensor(self.selected, device=token.device) >= 0
            kept = kept & routed.view(-1, 1)
            gates = gates * kept
        if self.training:
            entropy = torch.special.entr(gates.detach().float()).sum() * _MICRO
            samples = kept.any(dim=1).sum()
            self.counter.add(torch.cat([kept.sum(dim=0), torch.stack([entropy.round().long(), samples])]))
            if self.balance_weight:
                loss = self.balance_weight * self._imbalance(gates, kept, scores, noisy, deviation)
                self.balance = loss if self.balance is None else self.balance + loss
        return gates

    def _imbalance(
        self, gates: Tensor, kept: Tensor, scores: Tensor, noisy: Tensor, deviation: Tensor | None
    ) -> Tensor:
        """CV² of the gates' sums and of how many samples each expert is expected to get."""
        load = kept.sum(dim=0).to(gates.dtype)
        if deviation is not None and self.top_k < self.num_experts:
            best = noisy.topk(self.top_k + 1, dim=1).values
            bar = torch.where(kept, best[:, -1:], best[:, -2:-1])  # to be among the k, given the others' noise
            load = torch.special.ndtr((scores - bar) / deviation).sum(dim=0)
        return _squared_variation(gates.sum(dim=0)) + _squared_variation(load)

    # ------------------------------------------------------------------ private

    def _scores(self, token: Tensor, name: Literal["gate", "noise"]) -> Tensor:
        """`[B, num_experts]` from the router in use, or from each sample's own."""
        if isinstance(self.selected, Tensor):
            every = torch.stack([self._scores_of(router, token, name) for router in self.routers])
            return every[self.selected.clamp(min=0), torch.arange(len(token), device=token.device)]
        return self._scores_of(self.routers[-1 if self.selected is None else self.selected], token, name)

    def _scores_of(self, router: nn.Module, token: Tensor, name: Literal["gate", "noise"]) -> Tensor:
        """Minus infinity for experts that the router does not know."""
        weight: Tensor = getattr(router, name)
        return F.pad(F.linear(token, weight), (0, self.num_experts - len(weight)), value=float("-inf"))

    def _stored_expert(self, stored: Mapping[str, Tensor]) -> Expert:
        return self._expert(0)

    def _stored_router(self, stored: Mapping[str, Tensor]) -> Router:
        return self._router(0, len(stored["gate"]))

    def _expert(self, index: int) -> Expert:
        return Expert(self.width, self.rank, self.bias, fold_seed(self.seed, 0, index))

    def _router(self, index: int, num_experts: int) -> Router:
        return Router(self.width, num_experts, self.noisy, self.router_std, fold_seed(self.seed, 1, index))

    def _like(self) -> Tensor:
        """A tensor with the device and type that new parts take."""
        return next((p.detach() for p in self.parameters()), torch.empty(0))

    def _cat(self, biases: list[Any]) -> Tensor | None:
        return torch.cat(biases) if self.bias else None

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        stored = state_dict.get(f"{prefix}frozen")
        if isinstance(stored, Tensor) and len(stored) != len(self.frozen):
            self.frozen = torch.zeros(len(stored), dtype=torch.bool, device=self.frozen.device)
            self.counter.total = self.counter.total.new_zeros(len(stored) + 2)
            self.counter.pending = self.counter.pending.new_zeros(len(stored) + 2)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _freeze_as_loaded(adapter: MoEAdapter, _: object) -> None:
    """A run that goes on inside a task: before the optimizer takes what is trained."""
    adapter.apply_freezing()


def _squared_variation(x: Tensor) -> Tensor:
    """Squared coefficient of variation; 0 for one number."""
    return x.var(unbiased=len(x) > 1) / (x.mean() ** 2 + 1e-10)
