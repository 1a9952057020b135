"""`NeuralGas`: nodes that stand for the features of a class, and edges between nodes that are neighbours.

Source: Tao et al., Few-Shot Class-Incremental Learning (TOPIC), 2020, https://arxiv.org/abs/2004.10956; neural gas with
competitive Hebbian learning by Martinetz and Schulten, 1991. The released code, https://github.com/xyutao/fscil, lacks
these files.

```text
for each f:   m_{r_i} += η exp(-i / α) (f - m_{r_i})          r_0, r_1, …: the nodes by their distance from f
              edge of the two nearest: age 0; other edges of the nearest: age + 1, gone past the lifetime
```
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_cil._random import permutation

__all__ = ["NeuralGas", "Precision", "Ranking"]

Precision = Literal["relative", "inverse", "threshold", "equal"]
Ranking = Literal["class", "all"]

_NO_EDGE = -1
_TINY = 1e-6


class NeuralGas(nn.Module):
    """A graph over features, in the order in which tasks bring nodes; starts without any.

    Args:
        dim: Width of the features.
        rate: η in (0, 1] (TOPIC: 0.02).
        neighbourhood: α > 0: how fast the pull falls with a node's rank.
        lifetime: Age in samples past which an edge is gone, at least 1 (TOPIC: 200).
        passes: How often `fit` goes over the samples, at least 1.
        ranking: Among which nodes a sample's ranks are counted. `class`: those of its own class, so that every class
            keeps its nodes. `all`: all that may move (TOPIC's letter); a node then takes the label of the sample
            nearest to it, and a class may end without nodes.

    Attributes:
        centroids: float `[nodes, dim]`, of the nodes at rest (buffer, as the next ones).
        variances: float `[nodes, dim]`, of the samples nearest to a node.
        labels: long `[all]`, class of each node, of those in training, too.
        samples: long `[nodes]`, index of the training sample nearest to each.
        sample_features: float `[nodes, dim]`, features of these samples, where somebody has noted them; else empty.
        ages: long `[all, all]`, of the edges, symmetric; -1: none.
        fresh: Parameter `[new, dim]`, centroids of the nodes in training; they come after those at rest.

    Raises:
        ValueError: For a number out of range or an unknown ranking.
    """

    centroids: Tensor
    variances: Tensor
    labels: Tensor
    samples: Tensor
    sample_features: Tensor
    ages: Tensor
    fresh: nn.Parameter

    def __init__(
        self,
        dim: int,
        *,
        rate: float = 0.02,
        neighbourhood: float = 1.0,
        lifetime: int = 200,
        passes: int = 5,
        ranking: Ranking = "class",
    ) -> None:
        super().__init__()
        if not 0 < rate <= 1 or not neighbourhood > 0 or lifetime < 1 or passes < 1:
            raise ValueError(
                f"NeuralGas got `rate={rate}`, `neighbourhood={neighbourhood}`, `lifetime={lifetime}`, "
                f"`passes={passes}`; expected a rate in (0, 1], a positive number, and two of at least 1."
            )
        if ranking not in ("class", "all"):
            raise ValueError(f"NeuralGas got `ranking={ranking!r}`, expected 'class' or 'all'.")
        self.dim = dim
        self.rate = rate
        self.neighbourhood = neighbourhood
        self.lifetime = lifetime
        self.passes = passes
        self.ranking: Ranking = ranking
        for name in ("centroids", "variances", "sample_features"):
            self.register_buffer(name, torch.empty(0, dim))
        for name in ("labels", "samples"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64))
        self.register_buffer("ages", torch.empty(0, 0, dtype=torch.int64))
        self.fresh = nn.Parameter(torch.empty(0, dim))

    def clear(self) -> None:
        """Forget all nodes."""
        self.keep(0)

    def keep(self, num_nodes: int) -> None:
        """Forget all nodes but the first, those in training among them."""
        for name in ("centroids", "variances", "labels", "samples", "sample_features"):
            setattr(self, name, getattr(self, name)[:num_nodes])
        self.ages = self.ages[:num_nodes, :num_nodes]
        self._set_fresh(self.fresh[:0])

    @property
    def num_nodes(self) -> int:
        """Nodes at rest."""
        return len(self.centroids)

    @property
    def linked(self) -> Tensor:
        """Which nodes have an edge, bool `[all, all]`."""
        return self.ages != _NO_EDGE

    def positions(self) -> Tensor:
        """Centroids of all nodes, `[all, dim]`, those in training with a gradient."""
        return torch.cat([self.centroids, self.fresh])

    def precision(self, kind: Precision, floor: float) -> Tensor:
        """Λ⁻¹ of the nodes at rest, `[nodes, dim]`.

        Args:
            kind: `inverse`: 1 over the variance. `relative`: the same, scaled so that its mean over the coordinates is
                1. `threshold`: 0.9 where the variance is more than half the node's largest, else 1 (the numbers of the
                released code, whose file is missing). `equal`: 1.
            floor: Added to the variances, at least 0.

        Raises:
            ValueError: For an unknown kind.
        """
        if kind == "equal":
            return torch.ones_like(self.variances)
        if kind == "threshold":
            largest = self.variances.amax(dim=1, keepdim=True)
            return torch.where(self.variances > 0.5 * largest, 0.9, 1.0)
        inverse = 1 / (self.variances + floor).clamp(min=_TINY)
        if kind == "inverse":
            return inverse
        if kind == "relative":
            return inverse / inverse.mean(dim=1, keepdim=True)
        raise ValueError(f"`precision={kind!r}` is unknown; expected 'relative', 'inverse', 'threshold' or 'equal'.")

    # ------------------------------------------------------------------ growing

    @torch.no_grad()
    def insert(self, features: Tensor, target: Tensor, num_nodes: int, seed: int) -> None:
        """Have new nodes in training: at samples of all classes in turn, then moved by `fit`.

        Args:
            features: float `[n, dim]`.
            target: long `[n]`, classes of the samples.
            num_nodes: How many nodes, at most n.
            seed: Selects samples and their order.
        """
        self.keep(self.num_nodes)
        order = permutation(len(target), seed).to(target.device)
        of = target[order]
        classes, number = torch.unique(of, return_inverse=True)
        turn = torch.nn.functional.one_hot(number, len(classes)).cumsum(0).gather(1, number.unsqueeze(1)).squeeze(1)
        chosen = order[(turn * len(classes) + number).argsort()[:num_nodes]]
        device = self.centroids.device
        self._set_fresh(features[chosen].to(self.fresh))
        self.labels = torch.cat([self.labels, target[chosen].to(device)])
        ages = torch.full((len(self.labels), len(self.labels)), _NO_EDGE, device=device)
        ages[: self.num_nodes, : self.num_nodes] = self.ages
        self.ages = ages
        self.fit(features, target, seed)

    @torch.no_grad()
    def fit(self, features: Tensor, target: Tensor, seed: int) -> None:
        """Move the nodes in training by the samples, one after another, and renew the edges of all nodes.

        Args:
            features: float `[n, dim]`.
            target: long `[n]`.
            seed: Selects the order of the samples.
        """
        features, target = features.float().cpu(), target.cpu()
        nodes, ages, labels = self.positions().float().cpu(), self.ages.cpu(), self.labels.cpu()
        first = self.num_nodes
        movable = nodes[first:]  # a view
        for turn in range(self.passes):
            for i in permutation(len(features), seed, turn).tolist():
                feature = features[i]
                distance = (nodes - feature).square().sum(dim=1)
                self._renew_edges(ages, distance)
                own = labels[first:] == target[i] if self.ranking == "class" else torch.ones(len(movable)).bool()
                rank = distance[first:].masked_fill(~own, torch.inf).argsort(stable=True).argsort()
                step = self.rate * torch.exp(-rank / self.neighbourhood) * own
                movable += step.unsqueeze(1) * (feature - movable)
        device = self.centroids.device
        self.ages = ages.to(device)
        self._set_fresh(movable.to(self.fresh))
        if self.ranking == "all" and len(movable):
            nearest = torch.cdist(movable, features).argmin(dim=1)
            self.labels = torch.cat([labels[:first], target[nearest]]).to(device)

    def _renew_edges(self, ages: Tensor, distance: Tensor) -> None:
        if len(distance) < 2:
            return
        winner, second = distance.topk(2, largest=False).indices.tolist()
        row = ages[winner] + (ages[winner] != _NO_EDGE)
        row[second] = 0
        row[row > self.lifetime] = _NO_EDGE
        ages[winner] = ages[:, winner] = row

    @torch.no_grad()
    def rest(self, features: Tensor, target: Tensor, index: Tensor) -> None:
        """End the training of the new nodes: note their variances and samples.

        Args:
            features: float `[n, dim]`, of the samples that the nodes stand for.
            target: long `[n]`.
            index: long `[n]`, their indices in the training set.
        """
        features, target, index = features.float().cpu(), target.cpu(), index.cpu()
        nodes, labels = self.fresh.detach().float().cpu(), self.labels[self.num_nodes :].cpu()
        distance = torch.cdist(features, nodes).masked_fill(target.unsqueeze(1) != labels, torch.inf)
        nearest, sample = distance.argmin(dim=1), distance.argmin(dim=0)
        squares = (features - nodes[nearest]).square() * (target == labels[nearest]).unsqueeze(1)
        count = torch.zeros(len(nodes)).index_add_(0, nearest, (target == labels[nearest]).float())
        variances = torch.zeros_like(nodes).index_add_(0, nearest, squares) / count.clamp(min=1).unsqueeze(1)
        pooled = squares.mean(dim=0)  # of a node with one sample or none, nothing is known
        variances = torch.where((count < 2).unsqueeze(1), pooled, variances)
        device = self.centroids.device
        self.centroids = torch.cat([self.centroids, self.fresh.detach()])
        self.variances = torch.cat([self.variances, variances.to(self.variances)])
        self.samples = torch.cat([self.samples, index[sample].to(device)])
        self._set_fresh(self.fresh[:0])

    # ------------------------------------------------------------------ state

    def _set_fresh(self, values: Tensor) -> None:
        self.fresh = nn.Parameter(values.detach().clone(), requires_grad=self.fresh.requires_grad)

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *rest: Any) -> None:
        for name in ("centroids", "variances", "labels", "samples", "sample_features", "ages"):
            if (stored := state_dict.get(f"{prefix}{name}")) is not None:
                setattr(self, name, torch.empty_like(stored, device=self.centroids.device))
        if (stored := state_dict.get(f"{prefix}fresh")) is not None:
            self._set_fresh(torch.empty_like(stored, device=self.fresh.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
