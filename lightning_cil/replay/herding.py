"""Herding: exemplars whose mean stays close to the class mean, in order of importance.

Rebuffi et al., iCaRL, 2017, Algorithm 4 (no equation number), https://arxiv.org/abs/1611.07725, and the rule of the
authors' script `main_cifar_100_theano.py`, https://github.com/srebuffi/iCaRL.

With r_k = k·μ - Σ chosen, both rules look for the vector that points most along r_k: for unit vectors,
‖μ - (v + Σ chosen) / k‖² = (‖r_k‖² - 2⟨r_k, v⟩ + 1) / k². They differ in one point. The script may choose an example
again, which moves r but ranks nothing; Algorithm 4, as implemented here and in PyCIL, chooses each example once.
"""

import torch
from torch import Tensor

__all__ = ["herding", "herding_inner_product"]

_SCRIPT_STEPS = 1000
"""The script's limit of steps, repeated choices included."""


def herding(features: Tensor, num_exemplars: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Choose exemplars of one class, one by one, so that their mean stays as near to the class mean as it can.

    ```text
    v_i = φ_i / ‖φ_i‖,   μ = (1/n) Σ_i v_i                              μ is not normalised again
    p_k = argmin_i ‖ μ - (v_i + Σ_{j<k} v_{p_j}) / k ‖,   k = 1, …, m   each i once
    ```

    | symbol | argument | range |
    |---|---|---|
    | φ | `features`, `[n, dim]` | finite; a zero vector stays zero |
    | m | `num_exemplars` | at least 0; more than n: all n, in order |

    Source: iCaRL, Algorithm 4 (no equation number), https://arxiv.org/abs/1611.07725.

    Args:
        features: Features of the class's training samples, without augmentation; not normalised, it happens here.
        num_exemplars: How many to choose.
        dtype: What to compute in. float64 makes near ties come out alike on every device; float32 halves the memory,
            which is one copy of the features.

    Returns:
        long `[min(num_exemplars, n)]` on the features' device: rows of `features`, the most important first.

    Raises:
        ValueError: If `features` is not a matrix of finite numbers or `num_exemplars` is negative.

    Example:
        >>> angle = torch.tensor([0.0, 40.0, 80.0, 100.0, 20.0]).deg2rad()
        >>> herding(torch.stack([angle.cos(), angle.sin()], dim=1), num_exemplars=5)
        tensor([1, 2, 4, 3, 0])
    """
    unit = _unit_rows(features, num_exemplars, dtype)
    return _nearest_to_mean(unit, min(num_exemplars, len(unit)))


def herding_inner_product(features: Tensor, num_exemplars: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Choose exemplars of one class by the rule of iCaRL's script.

    ```text
    w_1 = μ,   i_s = argmax_i ⟨w_s, v_i⟩,   w_{s+1} = w_s + μ - v_{i_s}
    ```

    with v and μ as in `herding`. An example may be chosen again; the exemplars are the i_s in order of their first
    choice.

    Source: https://github.com/srebuffi/iCaRL, `main_cifar_100_theano.py`; no equation. Departures: the script stops
    after 1000 steps, even with too few exemplars. Here the limit is max(1000, 2m) steps, and the places that are then
    still open go to the unchosen examples with the largest ⟨w, v⟩, so that every class fills its quota.

    Args:
        features: As in `herding`.
        num_exemplars: As in `herding`.
        dtype: As in `herding`.

    Returns:
        long `[min(num_exemplars, n)]` on the features' device: rows of `features`, the most important first.

    Raises:
        ValueError: If `features` is not a matrix of finite numbers or `num_exemplars` is negative.

    Example:
        >>> angle = torch.tensor([0.0, 40.0, 80.0, 100.0, 20.0]).deg2rad()
        >>> herding_inner_product(torch.stack([angle.cos(), angle.sin()], dim=1), num_exemplars=5)
        tensor([1, 2, 4, 0, 3])
    """
    unit = _unit_rows(features, num_exemplars, dtype)
    num_exemplars = min(num_exemplars, len(unit))
    mean = unit.mean(dim=0)
    direction = mean.clone()
    chosen: list[int] = []
    steps, limit = 0, max(_SCRIPT_STEPS, 2 * num_exemplars)
    while len(chosen) < num_exemplars and steps < limit:
        # so many steps at most lead to the next look at the choices: one transfer to the host for all of them
        block = min(num_exemplars - len(chosen), limit - steps)
        picks = torch.empty(block, dtype=torch.int64, device=unit.device)
        for step in range(block):
            pick = (unit @ direction).argmax(dim=0, keepdim=True)
            direction += mean - unit.index_select(0, pick).squeeze(0)
            picks[step : step + 1] = pick
        chosen = list(dict.fromkeys(chosen + picks.tolist()))
        steps += block
    exemplars = torch.tensor(chosen, dtype=torch.int64, device=unit.device)
    score = (unit @ direction).index_fill(0, exemplars, -torch.inf)
    rest = score.argsort(descending=True, stable=True)[: num_exemplars - len(chosen)]
    return torch.cat([exemplars, rest])


def _nearest_to_mean(unit: Tensor, num_exemplars: int) -> Tensor:
    """The loop of `herding`; it never waits for the device."""
    mean = unit.mean(dim=0)
    offset = torch.linalg.vector_norm(unit, dim=1).square_()  # ‖v‖²: 1, or 0 for a zero vector; +inf once chosen
    residual = torch.zeros_like(mean)  # k·μ - Σ chosen
    chosen = torch.empty(num_exemplars, dtype=torch.int64, device=unit.device)
    for k in range(num_exemplars):
        residual += mean
        pick = torch.addmv(offset, unit, residual, alpha=-2).argmin(dim=0, keepdim=True)  # k²‖…‖² - ‖residual‖²
        residual -= unit.index_select(0, pick).squeeze(0)
        offset.index_fill_(0, pick, torch.inf)
        chosen[k : k + 1] = pick
    return chosen


def _unit_rows(features: Tensor, num_exemplars: int, dtype: torch.dtype) -> Tensor:
    if features.ndim != 2 or num_exemplars < 0:
        raise ValueError(
            f"Got `features` of shape {list(features.shape)} and `num_exemplars={num_exemplars}`, expected [n, dim] "
            "and a number of at least 0. Call once for each class, with pooled features."
        )
    unit = features.detach().to(dtype, copy=True)
    norm = torch.linalg.vector_norm(unit, dim=1, keepdim=True)
    if not norm.isfinite().all():
        raise ValueError(
            "Got `features` with NaN or infinite values, expected finite ones. The training has diverged before the "
            "exemplars were chosen: lower the learning rate or clip gradients."
        )
    return unit.div_(norm.clamp_min_(torch.finfo(dtype).tiny))
