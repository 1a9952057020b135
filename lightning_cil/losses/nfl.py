"""No Forgetting Learning: what its steps 3 to 5 minimise, and NFL+'s final step, each as a sum of named terms.

Vahedifar and Zhang, No Forgetting Learning: Memory-free Continual Learning, 2025, Eq. 7, 12, 15 and 22,
https://arxiv.org/abs/2503.04638v2. Step 2 is `cross_entropy_over` (Eq. 5).

Every function returns the weighted terms by name. The loss is their sum, `sum(terms.values())`.

| term | what it keeps or learns |
|---|---|
| `distillation` | the old classes: KD to the old model's logits |
| `distillation_recomputed` | the old classes: KD to the logits recomputed on the tuned body |
| `cross_entropy` | the new classes |
| `code` | the features that matter to old tasks (NFL+) |
| `identity` | Γ near 1 (NFL+); constant unless Γ is trained |

Departures. The paper does not say which classes share a softmax: `old_sizes` gives KD one softmax for each old head
(Task-IL), `None` one for all old classes (Class-IL); `ce_scope="new"` is its text (the new head's output alone),
`"seen"` an option. Its weights have no printed values; the defaults are ours.
"""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from lightning_cil.losses._columns import num_old
from lightning_cil.losses.autoencoder import code_preservation
from lightning_cil.losses.bias_correction import identity_penalty
from lightning_cil.losses.classification import cross_entropy_over
from lightning_cil.losses.distillation import old_class_distillation

__all__ = ["nfl_final_terms", "nfl_plus_final_terms", "nfl_step_terms"]

CeScope = Literal["new", "seen"]


def nfl_step_terms(
    logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch old"],
    target: Int[Tensor, " batch"],
    *,
    ce_weight: float | int = 1.0,
    temperature: float | int = 2.0,
    old_sizes: Sequence[int] | None = None,
    ce_scope: CeScope = "new",
) -> dict[str, Float[Tensor, ""]]:
    """Terms of step 3 (`ce_weight` is λ) and of step 4 (ω), which differ in what is trained only.

    ```text
    L_3 = KD(H, O_old) + λ CE(Y, O_new)         Eq. 7: trains the body and the old heads
    L_4 = KD(H, O_old) + ω CE(Y, O_new)         Eq. 12: trains the body and the new head
    ```

    | symbol | argument | range |
    |---|---|---|
    | O_old, O_new | first `old` and other columns of `logits` | any real number |
    | H | `teacher_logits` | any real number |
    | Y | `target` | a new class; with `ce_scope="seen"` any class |
    | λ, ω | `ce_weight` | at least 0; default 1 is ours |
    | p | `temperature` | > 0; default 2 is LwF's |

    Source: No Forgetting Learning, Eq. 7 and 12, https://arxiv.org/abs/2503.04638v2.

    Args:
        logits: The trained network's logits of all classes so far, old ones first.
        teacher_logits: H, the old model's logits for the same samples. No gradient flows into them.
        target: long; incremental labels, counted over all classes.
        ce_weight: Weight of the cross-entropy.
        temperature: Of the distillation, in student and teacher.
        old_sizes: Classes of each old head for one softmax a head; `None`: one softmax over all old classes.
        ce_scope: Classes in the cross-entropy's softmax: `new` or all `seen`.

    Returns:
        Scalars `distillation` and `cross_entropy`, weighted, mean over the batch. 0 with a graph for an empty batch;
        `distillation` is 0 without old classes.

    Raises:
        ValueError: If the teacher has more columns than the student, `ce_scope` is unknown, or as in
            `soft_cross_entropy` and `cross_entropy_over`.

    Example:
        >>> import torch
        >>> logits, teacher = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]]), torch.tensor([[2.0, 0.0, -1.0]])
        >>> terms = nfl_step_terms(logits, teacher, torch.tensor([4]), ce_weight=0.5)
        >>> [round(term.item(), 6) for term in terms.values()]  # the KD of soft_cross_entropy's example, ln(2) / 2
        [1.028142, 0.346574]
    """
    old = num_old(logits, teacher_logits)
    return {
        "distillation": old_class_distillation(logits[:, :old], teacher_logits, old_sizes, temperature),
        "cross_entropy": ce_weight * _cross_entropy(logits, target, old, ce_scope),
    }


def nfl_final_terms(
    logits: Float[Tensor, "batch classes"],
    frozen_head_logits: Float[Tensor, "batch old"],
    teacher_logits: Float[Tensor, "batch old"],
    recomputed_logits: Float[Tensor, "batch old"],
    target: Int[Tensor, " batch"],
    *,
    alpha: float | int = 0.5,
    beta: float | int = 1.0,
    temperature: float | int = 2.0,
    old_sizes: Sequence[int] | None = None,
    ce_scope: CeScope = "new",
    detach_teacher: bool = True,
) -> dict[str, Float[Tensor, ""]]:
    """Terms of step 5, which trains everything but the frozen copy of the old heads.

    ```text
    L_5 = α KD(H, O) + (1 - α) KD(H~, O') + β CE(Y, O_new)         Eq. 15
    ```

    | symbol | argument | range |
    |---|---|---|
    | O | `frozen_head_logits`: the original old heads on the trained body | any real number |
    | O', O_new | `logits`: the trained old heads, the new head | any real number |
    | H | `teacher_logits`: the old model | any real number |
    | H~ | `recomputed_logits`: the original old heads on the body that step 4 left | any real number |
    | Y | `target` | a new class; with `ce_scope="seen"` any class |
    | α | `alpha` | 0 to 1; default 0.5 is ours |
    | β | `beta` | at least 0; default 1 is ours |
    | p | `temperature` | > 0; default 2 is LwF's |

    Source: No Forgetting Learning, Eq. 15, https://arxiv.org/abs/2503.04638v2.

    Args:
        logits: As in `nfl_step_terms`; its old columns are O'.
        frozen_head_logits: O. The gradient reaches the body through them.
        teacher_logits: H. No gradient flows into them, unless `detach_teacher` is off.
        recomputed_logits: H~. No gradient flows into them.
        target: As in `nfl_step_terms`.
        alpha: Share of H against H~.
        beta: Weight of the cross-entropy.
        temperature: As in `nfl_step_terms`.
        old_sizes: As in `nfl_step_terms`.
        ce_scope: As in `nfl_step_terms`.
        detach_teacher: Whether H is a constant.

    Returns:
        Scalars `distillation`, `distillation_recomputed` and `cross_entropy`, weighted; zeros as in `nfl_step_terms`.

    Raises:
        ValueError: If `alpha` is outside of 0 to 1, or as in `nfl_step_terms`.

    Example:
        With H~ = H and O' = O the two distillations are one:

        >>> import torch
        >>> logits, teacher = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]]), torch.tensor([[2.0, 0.0, -1.0]])
        >>> terms = nfl_final_terms(logits, logits[:, :3], teacher, teacher, torch.tensor([4]), alpha=0.25)
        >>> [round(term.item(), 4) for term in terms.values()]  # 1.028142 / 4, 1.028142 · 3 / 4, ln 2
        [0.257, 0.7711, 0.6931]
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"Got `alpha={alpha}`, expected a share from 0 to 1: 0.5 weighs both targets alike.")
    old = num_old(logits, teacher_logits)
    original = old_class_distillation(frozen_head_logits, teacher_logits, old_sizes, temperature, detach_teacher)
    recomputed = old_class_distillation(logits[:, :old], recomputed_logits, old_sizes, temperature)
    return {
        "distillation": alpha * original,
        "distillation_recomputed": (1 - alpha) * recomputed,
        "cross_entropy": beta * _cross_entropy(logits, target, old, ce_scope),
    }


def nfl_plus_final_terms(
    logits: Float[Tensor, "batch classes"],
    frozen_head_logits: Float[Tensor, "batch old"],
    corrected_logits: Float[Tensor, "batch old"],
    recomputed_logits: Float[Tensor, "batch old"],
    target: Int[Tensor, " batch"],
    *,
    code: Float[Tensor, "batch units"],
    teacher_code: Float[Tensor, "batch units"],
    gamma: Float[Tensor, "batch factors"],
    eta: float | int = 0.5,
    phi: float | int = 1.0,
    rho: float | int = 0.05,
    tau: float | int = 0.1,
    temperature: float | int = 2.0,
    old_sizes: Sequence[int] | None = None,
    ce_scope: CeScope = "new",
    train_gamma: bool = False,
) -> dict[str, Float[Tensor, ""]]:
    """Terms of NFL+'s final step.

    ```text
    L'_5 = η KD(H', O) + (1 - η) KD(H~, O') + φ CE(Y, O_new)
           + ρ ‖σ(W_enc f(x)) - σ(W_enc f_old(x))‖² + τ ‖Γ(x) - 1‖²         Eq. 22
    ```

    | symbol | argument | range |
    |---|---|---|
    | O, O', O_new, H~, Y, p | as in `nfl_final_terms` | |
    | H' | `corrected_logits`: Γ(x)·H, Eq. 19 | any real number |
    | σ(W_enc f(x)) | `code`: of the trained body's features | any real number |
    | σ(W_enc f_old(x)) | `teacher_code`: of the old body's features | any real number |
    | Γ(x) | `gamma` | any real number |
    | η | `eta` | 0 to 1; default 0.5 is ours |
    | φ, ρ, τ | `phi`, `rho`, `tau` | at least 0; defaults 1, 0.05, 0.1 are ours |

    ρ = 0.05 is the weight 0.1 of Encoder Based Lifelong Learning, which halves the sum of squares.

    Source: No Forgetting Learning, Eq. 22, https://arxiv.org/abs/2503.04638v2.

    Args:
        logits: As in `nfl_final_terms`.
        frozen_head_logits: As in `nfl_final_terms`.
        corrected_logits: H'. A constant, unless `train_gamma` is on.
        recomputed_logits: As in `nfl_final_terms`.
        target: As in `nfl_final_terms`.
        code: Codes of one encoder, or those of several side by side, which adds up their terms.
        teacher_code: No gradient flows into it.
        gamma: The factors that made H'.
        eta: Share of H' against H~.
        phi: Weight of the cross-entropy.
        rho: Weight of feature preservation.
        tau: Weight of Γ's distance from 1. With a frozen Γ the term is a constant.
        temperature: As in `nfl_step_terms`.
        old_sizes: As in `nfl_step_terms`.
        ce_scope: As in `nfl_step_terms`.
        train_gamma: Whether Γ is trained with everything else, through H' and its own term.

    Returns:
        The scalars of `nfl_final_terms`, `code` and `identity`, weighted; zeros as there.

    Raises:
        ValueError: As in `nfl_final_terms`, and if the codes' shapes differ.

    Example:
        >>> import torch
        >>> logits, teacher = torch.zeros(1, 4), torch.zeros(1, 2)
        >>> code, gamma = torch.ones(1, 3), torch.full((1, 1), 2.0)
        >>> terms = nfl_plus_final_terms(logits, logits[:, :2], teacher, teacher, torch.tensor([3]),
        ...                              code=code, teacher_code=0 * code, gamma=gamma)
        >>> [round(term.item(), 4) for term in terms.values()]  # ln(2) / 2 twice, ln 2, 0.05 · 3, 0.1 · 1
        [0.3466, 0.3466, 0.6931, 0.15, 0.1]
    """
    terms = nfl_final_terms(
        logits,
        frozen_head_logits,
        corrected_logits,
        recomputed_logits,
        target,
        alpha=eta,
        beta=phi,
        temperature=temperature,
        old_sizes=old_sizes,
        ce_scope=ce_scope,
        detach_teacher=not train_gamma,
    )
    gamma = gamma if train_gamma else gamma.detach()
    terms["code"] = rho * code_preservation(code, teacher_code)  # Eq. 21
    terms["identity"] = tau * identity_penalty(gamma)  # Eq. 20
    return terms


def _cross_entropy(logits: Tensor, target: Tensor, old: int, scope: str) -> Tensor:
    if scope not in ("new", "seen"):
        raise ValueError(
            f"Got `ce_scope={scope!r}`, expected 'new' (the new head alone) or 'seen' (all classes so far)."
        )
    return cross_entropy_over(logits, target, old if scope == "new" else 0, logits.shape[1])
