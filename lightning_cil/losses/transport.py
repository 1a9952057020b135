"""Optimal transport between classes: classifier rows of one set of classes, made from those of another.

Zhou, Ye, Zhan, Co-Transport for Class-Incremental Learning (Coil), 2021, https://arxiv.org/abs/2107.12654, as its
code has it, https://github.com/LAMDA-CL/PyCIL, `models/coil.py`. The solver is Sinkhorn's: Cuturi, Sinkhorn Distances,
2013, Algorithm 1 (no equation number), https://arxiv.org/abs/1306.0895, in the log domain.

Departure: the code gives every target class the mass 1/n_source. Unless both sets are of one size the masses then
differ and no plan exists; here both sides are uniform and sum to 1.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["prospective_rows", "retrospective_rows", "sinkhorn", "transport_cost"]

_CHECK_EVERY = 50
"""Iterations between two looks at the error, each of which waits for the device."""


def transport_cost(
    source_means: Float[Tensor, "source dim"],
    target_means: Float[Tensor, "target dim"],
    norm: float | int = 3.0,
) -> Float[Tensor, "source target"]:
    """Distance of each source class from each target class, between class means of unit length.

    ```text
    Q_ij = ‖ μ_i / ‖μ_i‖_2 - μ_j / ‖μ_j‖_2 ‖_q
    ```

    | symbol | argument | range |
    |---|---|---|
    | μ_i, μ_j | `source_means`, `target_means` | any real number; made unit length here |
    | q | `norm` | at least 1; the authors' code: 3 |

    Source: https://github.com/LAMDA-CL/PyCIL, `models/coil.py`; https://arxiv.org/abs/2107.12654 (no equation number).

    Args:
        source_means: Mean of the normalised features of each source class.
        target_means: The same of each target class.
        norm: Order of the norm.

    Returns:
        float64, at least 0.

    Example:
        >>> import torch
        >>> transport_cost(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 1.0], [5.0, 0.0]]), norm=1)
        tensor([[2., 0.]], dtype=torch.float64)
    """
    source, target = F.normalize(source_means.double(), dim=1), F.normalize(target_means.double(), dim=1)
    return torch.cdist(source, target, p=float(norm), compute_mode="donot_use_mm_for_euclid_dist")


@torch.no_grad()
def sinkhorn(
    cost: Float[Tensor, "source target"],
    source_mass: Float[Tensor, " source"] | None = None,
    target_mass: Float[Tensor, " target"] | None = None,
    *,
    regularisation: float | int = 0.464,
    tolerance: float = 1e-9,
    max_iterations: int = 10_000,
) -> Float[Tensor, "source target"]:
    """The transport plan of least cost, smoothed by its entropy.

    ```text
    min_P Σ_ij P_ij Q_ij + ε Σ_ij P_ij (log P_ij - 1),   Σ_j P_ij = a_i,   Σ_i P_ij = b_j
    P_ij = exp(-Q_ij / ε + f_i + g_j)
    ```

    | symbol | argument | range |
    |---|---|---|
    | Q | `cost` | finite |
    | a, b | `source_mass`, `target_mass` | positive, with equal sums; default: uniform, sum 1 |
    | ε | `regularisation` | > 0; 0.464 is the authors' |

    Source: Sinkhorn Distances, Algorithm 1 (no equation number), https://arxiv.org/abs/1306.0895. Rows
    and columns are scaled in turn, through logarithms: no cost underflows.

    Args:
        cost: Cost of moving one unit of mass.
        source_mass: Mass of each source.
        target_mass: Mass of each target.
        regularisation: Small values come near the unsmoothed plan and take more iterations.
        tolerance: Largest error of a row sum, as a share of the whole mass.
        max_iterations: Iterations until it gives up.

    Returns:
        float64, without gradient.

    Raises:
        ValueError: If there is no source or no target, the masses' sums differ or a mass is not positive, the cost is
            not finite, the regularisation is not positive, or the tolerance is not reached.

    Example:
        >>> import torch
        >>> sinkhorn(torch.zeros(2, 4, dtype=torch.float64))  # nothing to choose
        tensor([[0.1250, 0.1250, 0.1250, 0.1250],
                [0.1250, 0.1250, 0.1250, 0.1250]], dtype=torch.float64)
    """
    source, target = _masses(cost, source_mass, target_mass)
    if not regularisation > 0 or not cost.isfinite().all():
        raise ValueError(
            f"Got `regularisation={regularisation}` and a cost with {int((~cost.isfinite()).sum())} numbers that are "
            "not finite, expected a positive number (Coil: 0.464) and finite costs. Class means with NaN come from a "
            "training that diverged."
        )
    log_kernel = -cost.double() / regularisation
    log_source, log_target = source.log().unsqueeze(1), target.log().unsqueeze(0)
    g = torch.zeros_like(log_target)
    for iteration in range(1, max_iterations + 1):
        f = log_source - torch.logsumexp(log_kernel + g, dim=1, keepdim=True)
        g = log_target - torch.logsumexp(log_kernel + f, dim=0, keepdim=True)
        if iteration % _CHECK_EVERY == 0 or iteration == max_iterations:
            plan = (log_kernel + f + g).exp()  # its columns are exact
            if bool((plan.sum(dim=1) - source).abs().max() <= tolerance * source.sum()):
                return plan
    raise ValueError(
        f"`sinkhorn` did not reach `tolerance={tolerance}` in {max_iterations} iterations with "
        f"`regularisation={regularisation}`, expected to. Raise `regularisation` or `max_iterations`."
    )


def prospective_rows(plan: Float[Tensor, "old new"], old_weight: Float[Tensor, "old dim"]) -> Float[Tensor, "new dim"]:
    """Rows for new classes from those of old ones, with the old rows' mean length: what new rows start from.

    ```text
    Ŵ = γ·n·Pᵀ W̄,   W̄_i = w_i / ‖w_i‖,   γ = mean_i ‖w_i‖ / mean_j ‖(n·Pᵀ W̄)_j‖
    ```

    | symbol | argument | range |
    |---|---|---|
    | P | `plan` | at least 0; columns of mass 1/n |
    | w | `old_weight` | any real number |
    | n | number of new classes | so that each row is a convex mix of unit rows |

    Source: https://github.com/LAMDA-CL/PyCIL, `models/coil.py`; prospective transport in
    https://arxiv.org/abs/2107.12654 (no equation number).

    Args:
        plan: From the old to the new classes, see `sinkhorn`.
        old_weight: The old classes' rows.

    Returns:
        As `old_weight`. Rows of zeros stay zeros.

    Example:
        >>> import torch
        >>> plan = torch.tensor([[0.5, 0.0], [0.0, 0.5]], dtype=torch.float64)
        >>> prospective_rows(plan, torch.tensor([[1.0, 0.0], [0.0, 3.0]]))  # lengths 1 and 3: 2 in the mean
        tensor([[2., 0.],
                [0., 2.]])
    """
    mixed = _mixed_rows(plan, old_weight)
    length = torch.linalg.vector_norm(old_weight.double(), dim=1).mean()
    mixed_length = torch.linalg.vector_norm(mixed, dim=1).mean()
    factor: Tensor = length / mixed_length.clamp_min(torch.finfo(mixed.dtype).tiny)  # γ
    return (mixed * factor).to(old_weight.dtype)


def retrospective_rows(
    plan: Float[Tensor, "new old"], new_weight: Float[Tensor, "new dim"]
) -> Float[Tensor, "old dim"]:
    """Rows for old classes from those of new ones: what the old model teaches through.

    ```text
    Ŵ = n·Pᵀ W̄,   W̄_j = w_j / ‖w_j‖
    ```

    | symbol | argument | range |
    |---|---|---|
    | P | `plan` | at least 0; columns of mass 1/n |
    | w | `new_weight` | any real number |
    | n | number of old classes | |

    No length is restored: the rows are used in a cosine.

    Source: https://github.com/LAMDA-CL/PyCIL, `models/coil.py`; retrospective transport in
    https://arxiv.org/abs/2107.12654 (no equation number).

    Args:
        plan: From the new to the old classes, see `sinkhorn`.
        new_weight: The new classes' rows. Differentiable; detach them for the authors' code.

    Returns:
        As `new_weight`.

    Example:
        >>> import torch
        >>> retrospective_rows(torch.tensor([[0.5, 0.5]], dtype=torch.float64), torch.tensor([[0.0, 4.0]]))
        tensor([[0., 1.],
                [0., 1.]])
    """
    return _mixed_rows(plan, new_weight).to(new_weight.dtype)


def _mixed_rows(plan: Tensor, weight: Tensor) -> Tensor:
    """n·Pᵀ W̄ in float64."""
    return plan.shape[1] * plan.double().T @ F.normalize(weight.double(), dim=1)


def _masses(cost: Tensor, source: Tensor | None, target: Tensor | None) -> tuple[Tensor, Tensor]:
    num_source, num_target = cost.shape
    if not num_source or not num_target:
        raise ValueError(
            f"Got a cost of shape {list(cost.shape)}, expected at least one source and one target class. In the first "
            "task there is nothing to transport."
        )
    uniform = cost.new_ones((), dtype=torch.float64)
    masses = (
        uniform.expand(num_source) / num_source if source is None else source.double(),
        uniform.expand(num_target) / num_target if target is None else target.double(),
    )
    totals = [float(mass.sum()) for mass in masses]
    if min(float(mass.min()) for mass in masses) <= 0 or abs(totals[0] - totals[1]) > 1e-6 * totals[0]:
        raise ValueError(
            f"Got masses with the sums {totals[0]:g} (source) and {totals[1]:g} (target), expected positive masses "
            "with one sum: without it no plan exists. Leave both out for uniform ones."
        )
    return masses
