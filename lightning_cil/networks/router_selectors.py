"""Which task's router a test sample takes, when each task has one and the task is not known.

`last`: the newest. `nearest`: that of the task whose mean frozen feature is nearest. `ddas`: that of the task whose
autoencoder reconstructs the frozen features best, and none where no one does: the distribution-discriminative
auto-selector of Yu et al., Boosting Continual Learning of Vision-Language Models via Mixture-of-Experts Adapters, 2024,
https://arxiv.org/abs/2403.11549.

Departures from the code of `ddas`: each sample is decided on its own (there a test batch is, as a whole), on features
of the frozen tower (there of an AlexNet), without the reference set's autoencoder.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cil._random import fold_seed
from lightning_cil.networks.autoencoder import Autoencoder
from lightning_cil.networks.growing_list import GrowingList

__all__ = ["LastRouter", "NearestTask", "ReconstructionSelector", "RouterSelector", "make_router_selector"]

SelectorKind = Literal["last", "nearest", "ddas"]


class RouterSelector(nn.Module, ABC):
    """Chooses a router for each sample from its frozen features."""

    @abstractmethod
    def learn(self, task: int, features: Tensor) -> None:
        """Remember a task; a second call for it replaces the first.

        Args:
            task: Position in the stream, from 0; the earlier ones are known.
            features: Of the task's training samples by the frozen tower, float `[N, dim]`.
        """

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Choose.

        Args:
            features: float `[B, dim]`.

        Returns:
            long `[B]`: index of a task, or -1: no router.
        """


class LastRouter(RouterSelector):
    """The newest router for every sample."""

    newest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("newest", torch.tensor(0))

    def learn(self, task: int, features: Tensor) -> None:
        """See `RouterSelector.learn`."""
        self.newest.fill_(task)

    def forward(self, features: Tensor) -> Tensor:
        """See `RouterSelector.forward`."""
        return self.newest.expand(len(features))


class NearestTask(RouterSelector):
    """The task whose mean feature has the largest cosine with a sample's.

    Attributes:
        means: float `[tasks, dim]`, means of unit features (a buffer).
    """

    means: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("means", torch.empty(0, 0))

    def learn(self, task: int, features: Tensor) -> None:
        """See `RouterSelector.learn`."""
        mean = F.normalize(features.detach().float(), dim=1).mean(dim=0, keepdim=True)
        earlier = self.means[:task].reshape(-1, mean.shape[1])
        self.means = torch.cat([earlier, mean.to(earlier)])

    def forward(self, features: Tensor) -> Tensor:
        """See `RouterSelector.forward`; 0 before anything was learned."""
        if not len(self.means):
            return torch.zeros(len(features), dtype=torch.int64, device=features.device)
        return (F.normalize(features.float(), dim=1) @ F.normalize(self.means, dim=1).T).argmax(dim=1)

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *rest: Any) -> None:
        stored = state_dict.get(f"{prefix}means")
        if stored is not None:
            self.means = torch.empty_like(stored, device=self.means.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class ReconstructionSelector(RouterSelector):
    """The task whose autoencoder reconstructs a sample's features with the least error.

    Args:
        dim: Width of the features.
        code: Width of the autoencoders' codes; the code of MoE-Adapters has 100 of 43,264.
        threshold: Mean squared error above which a sample gets no router; `None`: every sample gets one. It depends on
            the features: the code's 0.0655 is for its own.
        iterations: Steps of Adam on all features of a task; the code's 300.
        lr: Of these steps.
        seed: Of the first values.

    Raises:
        ValueError: For a number out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        code: int = 100,
        threshold: float | None = None,
        iterations: int = 300,
        lr: float = 0.003,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if code < 1 or iterations < 1 or not lr > 0:
            raise ValueError(
                f"ReconstructionSelector got `code={code}`, `iterations={iterations}`, `lr={lr}`; expected two of at "
                "least 1, and a positive number."
            )
        self.dim = dim
        self.code = min(code, dim - 1)
        self.threshold = threshold
        self.iterations = iterations
        self.lr = lr
        self.seed = seed
        self.autoencoders = GrowingList(self._stored)

    def learn(self, task: int, features: Tensor) -> None:
        """See `RouterSelector.learn`; the same on all ranks where the features are."""
        features = F.normalize(features.detach().float(), dim=1)
        del self.autoencoders[task:]
        autoencoder = self._make(task).to(features.device)
        self.autoencoders.append(autoencoder)
        optimizer = torch.optim.Adam(autoencoder.parameters(), lr=self.lr, weight_decay=1e-4)
        with torch.inference_mode(False), torch.enable_grad():
            for _ in range(self.iterations):
                optimizer.zero_grad()
                F.mse_loss(autoencoder(features), features).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        autoencoder.requires_grad_(False)

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """See `RouterSelector.forward`; 0 before anything was learned."""
        if not len(self.autoencoders):
            return torch.zeros(len(features), dtype=torch.int64, device=features.device)
        features = F.normalize(features.float(), dim=1)
        errors = torch.stack([(part(features) - features).square().mean(dim=1) for part in self.autoencoders])
        best = errors.min(dim=0)
        if self.threshold is None:
            return best.indices
        return torch.where(best.values <= self.threshold, best.indices, -1)

    def _make(self, task: int) -> Autoencoder:
        return Autoencoder(self.dim, self.code, bias=True, seed=fold_seed(self.seed, task))

    def _stored(self, stored: Mapping[str, Tensor]) -> Autoencoder:
        return self._make(0).requires_grad_(False)


def make_router_selector(kind: SelectorKind, dim: int, seed: int = 0, **options: Any) -> RouterSelector:
    """Make a selector by name.

    Args:
        kind: `last`, `nearest` or `ddas`.
        dim: Width of the features.
        seed: Of what it learns.
        options: Of `ddas`: arguments of `ReconstructionSelector`.

    Raises:
        ValueError: For an unknown name, or options that it does not have.
    """
    known = ("code", "threshold", "iterations", "lr") if kind == "ddas" else ()
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(
            f"`router_options` has {unknown} for `router_selector={kind!r}`; expected {list(known) or 'none'}."
        )
    if kind == "last":
        return LastRouter()
    if kind == "nearest":
        return NearestTask()
    if kind == "ddas":
        return ReconstructionSelector(dim, seed=seed, **options)
    raise ValueError(f"`router_selector={kind!r}` is unknown; expected 'last', 'nearest' or 'ddas'.")
