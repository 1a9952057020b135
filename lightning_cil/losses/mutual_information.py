"""Estimators of the mutual information of two sets of features, to be maximised: InfoNCE, MINE, Gaussian.

Chen et al., Leveraging Pre-Trained Models for Multimodal Class-Incremental Learning under Adaptive Fusion, 2025,
Eq. 6-8, https://arxiv.org/abs/2506.09999, maximise I(fused; visual) and I(fused; audio) and do not say how. Each
estimator here is a module: what it learns is trained with the network, saved with it and not used to predict.
All give nats, one scalar for a batch. On several ranks gather the batch first, with gradients.
"""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cil._precision import wide
from lightning_cil.losses.crossmodal import info_nce

__all__ = ["MINE", "GaussianInformation", "InfoNCE", "MIEstimator", "make_mi_estimator"]


class MIEstimator(nn.Module, ABC):
    """Estimates the mutual information of two kinds of features from a batch of pairs."""

    @abstractmethod
    def forward(self, x: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
        """Estimate I(X; Y).

        Args:
            x: float `[B, x_dim]`.
            y: float `[B, y_dim]`; row i belongs to row i of `x`.
            target: long `[B]`, for estimators that treat samples of one class alike.

        Returns:
            Scalar in nats, differentiable. 0 with a graph for fewer than two samples.
        """


class InfoNCE(MIEstimator):
    """InfoNCE of two linear heads without bias, one for each kind of features.

    Source: van den Oord et al. 2018, https://arxiv.org/abs/1807.03748. At most ln B.

    Args:
        x_dim: Width of the first features.
        y_dim: Width of the second.
        dim: Width of the common space.
        temperature: Of the softmax, above 0.
        mask_same_class: Whether samples of a sample's own class are no negatives of it.
    """

    def __init__(
        self, x_dim: int, y_dim: int, *, dim: int = 128, temperature: float = 0.07, mask_same_class: bool = False
    ) -> None:
        super().__init__()
        self.x_head = nn.Linear(x_dim, dim, bias=False)
        self.y_head = nn.Linear(y_dim, dim, bias=False)
        self.temperature = temperature
        self.mask_same_class = mask_same_class

    def forward(self, x: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
        """See `MIEstimator.forward`.

        Raises:
            ValueError: If `mask_same_class` is set and there is no `target`.
        """
        if self.mask_same_class and target is None:
            raise ValueError("`InfoNCE(mask_same_class=True)` needs the labels: pass `target`.")
        classes = target if self.mask_same_class else None
        return info_nce(self.x_head(x), self.y_head(y), self.temperature, classes)


class MINE(MIEstimator):
    """The Donsker-Varadhan bound with a trained network T; all other pairs of the batch are the marginal samples.

    ```text
    I = E_joint T - log E_marginal exp T
    ```

    The gradient of the logarithm divides by a moving average of E exp T, since a batch's own mean biases it. High
    variance in small batches.

    Source: Belghazi et al., Mutual Information Neural Estimation, 2018, section 3, https://arxiv.org/abs/1801.04062.

    Args:
        x_dim: Width of the first features.
        y_dim: Width of the second.
        hidden: Width of T's only hidden layer.
        decay: How much of the moving average a batch leaves as it is, in [0, 1).
    """

    log_average: Tensor
    """Scalar: logarithm of the moving average of E exp T (a buffer)."""
    started: Tensor
    """bool scalar: whether there is one (a buffer)."""

    def __init__(self, x_dim: int, y_dim: int, *, hidden: int = 128, decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"`decay={decay}`: expected a number in [0, 1), for example 0.99.")
        self.from_x = nn.Linear(x_dim, hidden)
        self.from_y = nn.Linear(y_dim, hidden, bias=False)
        self.out = nn.Linear(hidden, 1)
        self.decay = decay
        self.register_buffer("log_average", torch.zeros(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
        """See `MIEstimator.forward`; the moving average takes part in training mode only."""
        size = len(x)
        if size < 2:
            return (x.sum() + y.sum()) * 0
        # the first layer of an MLP on [x; y] is a sum, so that it is computed for B rows instead of B x B
        hidden = F.relu(self.from_x(x).unsqueeze(1) + self.from_y(y).unsqueeze(0))
        scores = self.out(hidden).squeeze(2).float()  # T(x_i, y_j), [B, B]
        others = scores.masked_fill(torch.eye(size, dtype=torch.bool, device=x.device), float("-inf"))
        log_mean = others.flatten().logsumexp(0) - math.log(size * (size - 1))
        if self.training:
            average = self._average(log_mean.detach())
            ratio = (log_mean - average).exp()  # its gradient is that of E exp T, over the average
            log_mean = log_mean.detach() + ratio - ratio.detach()
        estimate: Tensor = scores.diagonal().mean() - log_mean
        return estimate

    @torch.no_grad()
    def _average(self, log_mean: Tensor) -> Tensor:
        if self.decay:
            mixed = torch.logaddexp(self.log_average + math.log(self.decay), log_mean + math.log1p(-self.decay))
            log_mean = torch.where(self.started, mixed, log_mean)
        self.log_average.copy_(log_mean)
        self.started.fill_(True)
        return log_mean


class GaussianInformation(MIEstimator):
    """The mutual information of jointly normal features, from their correlations; nothing to train.

    ```text
    I = 1/2 (log det R_xx + log det R_yy - log det R) = -1/2 Σ_k log(1 - ρ_k²)
    ```

    R is the correlation matrix of [x; y], pulled to the identity by the shrinkage: (1 - λ) R + λ 1; ρ_k are the
    canonical correlations. For two numbers with correlation ρ it is -1/2 log(1 - ρ²).

    Source: the closed form for normal variables (Cover and Thomas, Elements of Information Theory); the shrinkage is
    ours.

    Args:
        shrinkage: λ in [0, 1). 0 is unbiased and needs more samples than there are columns in `x` and `y` together.
    """

    def __init__(self, shrinkage: float = 0.1) -> None:
        super().__init__()
        if not 0 <= shrinkage < 1:
            raise ValueError(f"`shrinkage={shrinkage}`: expected a share in [0, 1), for example 0.1.")
        self.shrinkage = shrinkage

    def forward(self, x: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
        """See `MIEstimator.forward`.

        Raises:
            ValueError: Without shrinkage, if there are not more samples than columns.
        """
        if len(x) < 2:
            return (x.sum() + y.sum()) * 0
        columns = x.shape[1] + y.shape[1]
        if not self.shrinkage and len(x) <= columns:
            raise ValueError(
                f"`GaussianInformation(shrinkage=0)` got {len(x)} samples of {columns} columns; expected more samples "
                "than columns, or a shrinkage above 0, for example 0.1."
            )
        with torch.autocast(x.device.type, enabled=False):
            correlation = self._correlation(wide(torch.cat([x, y], dim=1)))
            first, rest = correlation[: x.shape[1], : x.shape[1]], correlation[x.shape[1] :, x.shape[1] :]
            return (_log_det(first) + _log_det(rest) - _log_det(correlation)) / 2

    def _correlation(self, both: Tensor) -> Tensor:
        unit = F.normalize(both - both.mean(dim=0), dim=0)  # a constant column becomes one of zeros
        identity = torch.eye(both.shape[1], dtype=both.dtype, device=both.device)
        correlation = (1 - self.shrinkage) * (unit.T @ unit)
        return correlation - torch.diag(correlation.diagonal()) + identity


def _log_det(matrix: Tensor) -> Tensor:
    """Of a symmetric, positive matrix, without a look at the result: that would wait for the device."""
    factor, _ = torch.linalg.cholesky_ex(matrix)
    result: Tensor = 2 * factor.diagonal().log().sum()
    return result


def make_mi_estimator(kind: str, x_dim: int, y_dim: int, **options: float | int | bool) -> MIEstimator:
    """Make an estimator by name.

    Args:
        kind: `info_nce`, `mine` or `gaussian`.
        x_dim: Width of the first features.
        y_dim: Width of the second.
        options: Further arguments of the estimator's class.

    Raises:
        ValueError: For an unknown name.
    """
    if kind == "gaussian":
        return GaussianInformation(**options)
    if kind not in ("info_nce", "mine"):
        raise ValueError(f"`mi_estimator={kind!r}` is unknown; expected 'info_nce', 'mine' or 'gaussian'.")
    make = InfoNCE if kind == "info_nce" else MINE
    return make(x_dim, y_dim, **options)  # type: ignore[arg-type]
