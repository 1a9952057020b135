"""What the factors Γ minimise that correct the old model's logits in NFL+.

Vahedifar and Zhang, No Forgetting Learning, 2025, Eq. 18-20 and 22, https://arxiv.org/abs/2503.04638v2. The factors
themselves are `networks.BiasCorrection`.

Two facts that the paper does not mention. Eq. 20 alone has the trivial minimum w = 0, b = 1: then Γ is 1 and H' = H.
Trained through the distillation, Γ only sharpens its target: KD(γ·H, O) falls as γ grows wherever O ranks the classes
as H does, and the identity penalty is the only brake. A true bias correction would need samples of old classes.
"""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from lightning_cil.losses._columns import batch_mean
from lightning_cil.losses.distillation import old_class_distillation

__all__ = ["gamma_terms", "identity_penalty"]

GammaObjective = Literal["identity", "kd"]


def identity_penalty(gamma: Float[Tensor, "batch factors"]) -> Float[Tensor, ""]:
    """Squared distance of the factors from 1: sum over factors, mean over the batch.

    ```text
    ‖Γ(x) - 1‖²         NFL, Eq. 20
    ```

    | symbol | argument | range |
    |---|---|---|
    | Γ(x) | `gamma` | any real number |

    Source: No Forgetting Learning, Eq. 20, https://arxiv.org/abs/2503.04638v2.

    Args:
        gamma: One factor a sample, or one for each old class or task.

    Returns:
        Scalar. 0 with a graph for an empty batch or without factors.

    Example:
        >>> import torch
        >>> identity_penalty(torch.tensor([[1.0, 3.0], [1.0, 1.0]])).item()
        2.0
    """
    return batch_mean((gamma - 1).square().sum(dim=1))


def gamma_terms(
    gamma: Float[Tensor, "batch factors"],
    corrected_logits: Float[Tensor, "batch old"],
    student_logits: Float[Tensor, "batch old"],
    *,
    objective: GammaObjective = "identity",
    tau: float | int = 0.1,
    eta: float | int = 0.5,
    temperature: float | int = 2.0,
    old_sizes: Sequence[int] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """What Γ minimises on the held-out split, with everything else frozen.

    ```text
    identity:   ‖Γ(x) - 1‖²                            Eq. 20
    kd:         τ ‖Γ(x) - 1‖² + η KD(H', O)            the terms of Eq. 22 that Γ takes part in
    ```

    | symbol | argument | range |
    |---|---|---|
    | Γ(x) | `gamma` | any real number |
    | H' | `corrected_logits`: Γ(x)·H, Eq. 19 | any real number |
    | O | `student_logits` | any real number |
    | τ, η | `tau`, `eta` | at least 0; as in Eq. 22, defaults are ours |

    Source: No Forgetting Learning, Eq. 20 and 22, https://arxiv.org/abs/2503.04638v2.

    Args:
        gamma: As in `identity_penalty`.
        corrected_logits: The gradient reaches Γ through them.
        student_logits: No gradient flows into them.
        objective: `identity` as printed, or `kd`.
        tau: Weight of the identity penalty in `kd`.
        eta: Weight of the distillation in `kd`.
        temperature: p of the distillation.
        old_sizes: Classes of each old head for one softmax a head; `None`: one softmax over all old classes.

    Returns:
        Scalars `identity` and, for `kd`, `distillation`; their sum is the loss. 0 with a graph for an empty batch.

    Raises:
        ValueError: If the objective is unknown, or as in `soft_cross_entropy`.

    Example:
        >>> import torch
        >>> teacher, student = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[1.0, 1.0, 0.0]])
        >>> terms = gamma_terms(torch.ones(1, 1), teacher, student, objective="kd", eta=1.0)
        >>> {name: round(term.item(), 6) for name, term in terms.items()}
        {'identity': 0.0, 'distillation': 1.028142}
    """
    if objective not in ("identity", "kd"):
        raise ValueError(
            f"Got `objective={objective!r}`, expected 'identity' (Eq. 20) or 'kd' (with the distillation)."
        )
    if objective == "identity":
        return {"identity": identity_penalty(gamma)}
    student = student_logits.detach()
    distillation = old_class_distillation(student, corrected_logits, old_sizes, temperature, detach_teacher=False)
    return {"identity": tau * identity_penalty(gamma), "distillation": eta * distillation}
