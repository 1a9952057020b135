"""Coil: distillation with a weight that grows with the old classes, and two terms through transported rows.

Zhou, Ye, Zhan, Co-Transport for Class-Incremental Learning (Coil), 2021,
https://arxiv.org/abs/2107.12654, as its code has it, https://github.com/LAMDA-CL/PyCIL, `models/coil.py`; no equation
is cited by number.

The transported rows come from `losses.transport`. Both terms use plain cosines between -1 and 1, without the
classifier's scale. Departure: the code lets the gradient into the target of the prospective term; here, a target is a
constant.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lightning_cil._precision import wide
from lightning_cil.losses._columns import num_old
from lightning_cil.losses.classification import cross_entropy_over
from lightning_cil.losses.distillation import soft_cross_entropy

__all__ = ["coil_terms", "prospective_term", "retrospective_term"]


def coil_terms(
    logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch old"],
    target: Int[Tensor, " batch"],
    *,
    temperature: float | int = 2.0,
) -> dict[str, Float[Tensor, ""]]:
    """Cross-entropy and distillation, weighed by the share of old classes.

    ```text
    (1 - λ) CE(Y, O) + λ KD(H, O_old),   λ = old / classes
    ```

    | symbol | argument | range |
    |---|---|---|
    | O | `logits` | any real number |
    | H | `teacher_logits` | any real number |
    | Y | `target` | any class |
    | T | `temperature` | > 0; the authors' code: 2 |

    Source: https://github.com/LAMDA-CL/PyCIL, `models/coil.py`; https://arxiv.org/abs/2107.12654.

    Args:
        logits: Of all classes so far.
        teacher_logits: Of the old model; `[batch, 0]` in the first task, where the loss is the cross-entropy.
        target: long; incremental labels.
        temperature: Of the distillation, in student and teacher.

    Returns:
        Scalars `cross_entropy` and `distillation`, weighted. 0 with a graph for an empty batch.

    Raises:
        ValueError: If the teacher has more columns than the student, or as in `cross_entropy_over`.

    Example:
        >>> import torch
        >>> zeros = torch.zeros(1, 4)
        >>> terms = coil_terms(zeros, zeros[:, :2], torch.tensor([3]))
        >>> {name: round(term.item(), 4) for name, term in terms.items()}  # ln(4) / 2, ln(2) / 2
        {'cross_entropy': 0.6931, 'distillation': 0.3466}
    """
    old, classes = num_old(logits, teacher_logits), logits.shape[1]
    share = old / max(classes, 1)
    return {
        "cross_entropy": (1 - share) * cross_entropy_over(logits, target, 0, classes),
        "distillation": share * soft_cross_entropy(logits[:, :old], teacher_logits, temperature),
    }


def prospective_term(
    new_logits: Float[Tensor, "batch new"],
    features: Float[Tensor, "batch dim"],
    rows: Float[Tensor, "new dim"],
    *,
    weight: float | int = 1e-3,
    temperature: float | int = 2.0,
) -> Float[Tensor, ""]:
    """Keep the new outputs near those that old knowledge suggests, in a task's first epoch.

    ```text
    w·KD(cos(u, Ŵ), O_new)
    ```

    | symbol | argument | range |
    |---|---|---|
    | O_new | `new_logits` | any real number |
    | u | `features` | any real number |
    | Ŵ | `rows`: `prospective_rows` | any real number |
    | w | `weight` | at least 0; the authors' code: 0.001 |
    | T | `temperature` | > 0; the authors' code: 2 |

    Source: https://github.com/LAMDA-CL/PyCIL, `models/coil.py`; https://arxiv.org/abs/2107.12654.

    Args:
        new_logits: The trained model's logits, cut to the new classes.
        features: Of the same samples. No gradient flows into them here.
        rows: Transported rows. No gradient flows into them.
        weight: Weight of the term.
        temperature: Of student and target.

    Returns:
        Scalar. 0 with a graph for an empty batch.

    Raises:
        ValueError: If there are not as many rows as new classes.

    Example:
        >>> import torch
        >>> rows = torch.eye(2)
        >>> round(prospective_term(torch.zeros(1, 2), torch.ones(1, 2), rows, weight=1.0).item(), 4)  # ln 2
        0.6931
    """
    return weight * soft_cross_entropy(new_logits, _cosines(features, rows), temperature)


def retrospective_term(
    teacher_logits: Float[Tensor, "batch old"],
    features: Float[Tensor, "batch dim"],
    rows: Float[Tensor, "old dim"],
    *,
    progress: float | int,
    weight: float | int = 1e-3,
    temperature: float | int = 2.0,
) -> Float[Tensor, ""]:
    """Let rows made of new classes repeat what the old model says, from a task's second epoch on.

    ```text
    w·(e / E)²·KD(H, cos(u, Ŵ))
    ```

    | symbol | argument | range |
    |---|---|---|
    | H | `teacher_logits` | any real number |
    | u | `features` | any real number |
    | Ŵ | `rows`: `retrospective_rows` | any real number |
    | e / E | `progress`: the epoch, from 0, over the task's epochs | 0 to 1 |
    | w | `weight` | at least 0; the authors' code: 0.001 |
    | T | `temperature` | > 0; the authors' code: 2 |

    Source: https://github.com/LAMDA-CL/PyCIL, `models/coil.py`, the ramp (e / E)² included;
    https://arxiv.org/abs/2107.12654.

    Args:
        teacher_logits: Of the old model. No gradient flows into them.
        features: Of the same samples, by the trained model.
        rows: Transported rows.
        progress: How much of the task's training is over.
        weight: Weight of the term at the end.
        temperature: Of student and target.

    Returns:
        Scalar. 0 with a graph for an empty batch.

    Raises:
        ValueError: If there are not as many rows as old classes.

    Example:
        >>> import torch
        >>> rows, features, teacher = torch.eye(2), torch.ones(1, 2), torch.zeros(1, 2)
        >>> round(retrospective_term(teacher, features, rows, progress=0.5, weight=1.0).item(), 4)  # ln(2) / 4
        0.1733
    """
    return weight * progress**2 * soft_cross_entropy(_cosines(features, rows), teacher_logits, temperature)


def _cosines(features: Tensor, rows: Tensor) -> Tensor:
    return F.linear(F.normalize(wide(features), dim=1), F.normalize(wide(rows), dim=1))
