"""iCaRL: classification and distillation in one loss, in the authors' form and in the one of PyCIL.

Rebuffi, Kolesnikov, Sperl, Lampert, iCaRL: Incremental Classifier and Representation Learning, 2017, Algorithm 3 (no
equation number), https://arxiv.org/abs/1611.07725. The second form is PyCIL's, https://github.com/LAMDA-CL/PyCIL, whose
authors found it to score better.

Both return named terms whose sum is the loss.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lightning_cil.losses._columns import num_old
from lightning_cil.losses.classification import cross_entropy_over
from lightning_cil.losses.distillation import binary_distillation, soft_cross_entropy

__all__ = ["icarl_binary_terms", "icarl_softmax_terms"]


def icarl_binary_terms(
    logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch old"],
    target: Int[Tensor, " batch"],
) -> dict[str, Float[Tensor, ""]]:
    """Binary cross-entropy: the old model's sigmoids are the targets of the old classes, the label of the others.

    ```text
    (1/C) Σ_{c<old} BCE(o_c, sigmoid(h_c)) + (1/C) Σ_{c≥old} BCE(o_c, [c = y])         iCaRL, Algorithm 3
    ```

    | symbol | argument | range |
    |---|---|---|
    | o | `logits` | any real number |
    | h | `teacher_logits` | any real number |
    | y | `target` | 0 ≤ y < C |

    An exemplar's label is an old class: all its other targets are 0. Columns of classes that are still to come, as in
    the authors' script, are negatives.

    Source: iCaRL, Algorithm 3 (no equation number), https://arxiv.org/abs/1611.07725. The mean over classes is the
    script's (`main_cifar_100_theano.py`, https://github.com/srebuffi/iCaRL); the paper has a sum.

    Args:
        logits: Of the trained model, of all classes.
        teacher_logits: Of the old model, for the same samples; `[batch, 0]` in the first task.
        target: long; incremental labels, counted over all classes.

    Returns:
        Scalars `distillation` and `classification`, mean over classes and batch. 0 with a graph for an empty batch.

    Raises:
        ValueError: If the teacher has more columns than the student.

    Example:
        >>> import torch
        >>> logits, teacher = torch.tensor([[1.0, -1.0, 0.5]]), torch.tensor([[2.0, 0.0]])
        >>> round(sum(icarl_binary_terms(logits, teacher, torch.tensor([2])).values()).item(), 6)
        0.573268
    """
    old, classes = num_old(logits, teacher_logits), logits.shape[1]
    one_hot = target.unsqueeze(1) == torch.arange(old, classes, device=target.device)
    bce = F.binary_cross_entropy_with_logits(logits[:, old:], one_hot.to(logits.dtype), reduction="sum")
    return {
        "distillation": binary_distillation(logits[:, :old], teacher_logits, reduction="sum") / max(classes, 1),
        "classification": bce / max(classes * len(target), 1),
    }


def icarl_softmax_terms(
    logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch old"],
    target: Int[Tensor, " batch"],
    *,
    distillation_weight: float | int = 1.0,
    temperature: float | int = 2.0,
) -> dict[str, Float[Tensor, ""]]:
    """Cross-entropy over all classes plus distillation over the old ones.

    ```text
    CE(Y, O) + w·KD(H, O_old)         no equation; PyCIL, models/icarl.py
    ```

    | symbol | argument | range |
    |---|---|---|
    | O | `logits` | any real number |
    | H | `teacher_logits` | any real number |
    | Y | `target` | 0 ≤ y < C |
    | w | `distillation_weight` | at least 0; PyCIL: 1 |
    | T | `temperature` | > 0; PyCIL: 2 |

    Source: https://github.com/LAMDA-CL/PyCIL, `models/icarl.py`; no equation.

    Args:
        logits: As in `icarl_binary_terms`.
        teacher_logits: As in `icarl_binary_terms`.
        target: As in `icarl_binary_terms`.
        distillation_weight: Weight of the distillation.
        temperature: Of the distillation, in student and teacher.

    Returns:
        Scalars `distillation` (weighted) and `classification`, mean over the batch. 0 with a graph for an empty batch;
        `distillation` is 0 without old classes.

    Raises:
        ValueError: If the teacher has more columns than the student, or as in `cross_entropy_over`.

    Example:
        >>> import torch
        >>> logits, teacher = torch.tensor([[1.0, -1.0, 0.5]]), torch.tensor([[2.0, 0.0]])
        >>> round(sum(icarl_softmax_terms(logits, teacher, torch.tensor([2])).values()).item(), 5)
        1.63716
    """
    old = num_old(logits, teacher_logits)
    distillation = soft_cross_entropy(logits[:, :old], teacher_logits, temperature)
    return {
        "distillation": distillation_weight * distillation,
        "classification": cross_entropy_over(logits, target, 0, logits.shape[1]),
    }
