"""Knowledge distillation from the old model: the student's old columns are pulled to the teacher's logits.

`soft_cross_entropy`, `per_head_soft_cross_entropy`
    Vahedifar and Zhang, No Forgetting Learning, 2025, Eq. 8-10, https://arxiv.org/abs/2503.04638; before it Li and
    Hoiem, Learning without Forgetting, 2016, section 3 (distillation loss), https://arxiv.org/abs/1606.09282.
`binary_distillation`
    Du et al., Rebalancing Multi-Label Class-Incremental Learning, 2025, Eq. 2, https://arxiv.org/abs/2408.12161;
    before it Rebuffi et al., iCaRL, 2017, Algorithm 3 (no equation number), https://arxiv.org/abs/1611.07725.

Departures: NFL's Eq. 8 prints a minus sign before an entropy that its own right-hand side does not have; the sum is
what is minimised. None of these papers multiplies by the squared temperature (Hinton et al.,
https://arxiv.org/abs/1503.02531, section 2, does), so neither do we: weigh the term yourself.

All functions take raw logits, compute in float32 or wider, treat the teacher as a constant unless told otherwise, and
return a differentiable zero, never NaN, for an empty batch or without old classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightning_cil._precision import wide
from lightning_cil.losses._columns import Reduction, batch_mean, class_reduction, task_of_column

__all__ = ["binary_distillation", "old_class_distillation", "per_head_soft_cross_entropy", "soft_cross_entropy"]


def soft_cross_entropy(
    student_logits: Float[Tensor, "batch old"],
    teacher_logits: Float[Tensor, "batch old"],
    temperature: float | int = 2.0,
    detach_teacher: bool = True,
) -> Float[Tensor, ""]:
    """Cross-entropy of the teacher's softened softmax against the student's, over all given columns.

    ```text
    KD(H, O) = -(1/B) Σ_b Σ_i h'_bi · log o'_bi        NFL, Eq. 8
    h' = softmax(H / p),   o' = softmax(O / p)         NFL, Eq. 9-10
    ```

    | symbol | argument | range |
    |---|---|---|
    | O | `student_logits` | any real number |
    | H | `teacher_logits` | any real number |
    | p | `temperature` | > 0; the papers use 2 |

    The equations soften *probabilities*, q^(1/p) renormalised; for q = softmax(z) that is softmax(z / p). The minimum
    over O is the entropy of h', not 0; there the gradient, (o' - h') / (p·B), is 0.

    Source: No Forgetting Learning, Eq. 8-10, https://arxiv.org/abs/2503.04638; the same loss as in Learning without
    Forgetting, section 3, https://arxiv.org/abs/1606.09282. Without a factor p².

    Args:
        student_logits: The trained model's logits, cut to the old columns.
        teacher_logits: The old model's logits for the same samples.
        temperature: Above 1 flattens both distributions, so that unlikely classes count too.
        detach_teacher: Whether no gradient flows into the teacher's logits. False trains what corrects them, such as
            NFL+'s Γ.

    Returns:
        Scalar: sum over classes, mean over the batch. 0 with a graph if there is no sample or no old class.

    Raises:
        ValueError: If the shapes differ or the temperature is not positive.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[2.0, 0.0, -1.0]])
        >>> round(soft_cross_entropy(student, teacher, temperature=2.0).item(), 6)
        1.028142
        >>> round(soft_cross_entropy(teacher, teacher, temperature=2.0).item(), 6)  # the floor: the teacher's entropy
        0.905959
    """
    _check_shapes(student_logits, teacher_logits)
    _check_temperature(temperature)
    teacher = teacher_logits.detach() if detach_teacher else teacher_logits
    target = F.softmax(_softened(teacher, temperature), dim=1)  # Eq. 9
    log_student = F.log_softmax(_softened(student_logits, temperature), dim=1)  # log of Eq. 10
    return batch_mean(-(target * log_student).sum(dim=1))  # Eq. 8


def per_head_soft_cross_entropy(
    student_logits: Float[Tensor, "batch old"],
    teacher_logits: Float[Tensor, "batch old"],
    sizes: Sequence[int],
    temperature: float | int = 2.0,
    detach_teacher: bool = True,
) -> Float[Tensor, ""]:
    r"""The sum over the old heads of `soft_cross_entropy`, with one softmax for each head.

    ```text
    Σ_k KD(H_k, O_k),   H_k, O_k the columns of head k         NFL, Eq. 8-10 for every old task
    ```

    | symbol | argument | range |
    |---|---|---|
    | O, H | `student_logits`, `teacher_logits` | any real number |
    | \|C_k\| | `sizes[k]` | at least 1; they add up to the number of columns |
    | p | `temperature` | > 0 |

    Source: No Forgetting Learning, Eq. 8-10, https://arxiv.org/abs/2503.04638, whose sum runs over the labels of one
    task; the multi-head form for Task-IL. All heads are computed at once, with memory for batch × heads × old numbers.

    Args:
        student_logits: The trained model's logits, cut to the old columns; heads side by side in task order.
        teacher_logits: The old model's logits for the same samples.
        sizes: Number of classes of each old head.
        temperature: As in `soft_cross_entropy`.
        detach_teacher: As in `soft_cross_entropy`.

    Returns:
        Scalar: sum over classes and heads, mean over the batch. 0 with a graph if there is no sample or no old head.

    Raises:
        ValueError: If the shapes differ, the temperature is not positive or the sizes do not fit the columns.

    Example:
        >>> import torch
        >>> zeros = torch.zeros(1, 5)
        >>> round(per_head_soft_cross_entropy(zeros, zeros, sizes=[2, 3]).item(), 4)  # ln 2 + ln 3
        1.7918
        >>> round(soft_cross_entropy(zeros, zeros).item(), 4)  # one softmax over all columns: ln 5
        1.6094
    """
    _check_shapes(student_logits, teacher_logits)
    _check_temperature(temperature)
    if sum(sizes) != student_logits.shape[1] or min(sizes, default=1) < 1:
        raise ValueError(
            f"Got `sizes={list(sizes)}` for logits with {student_logits.shape[1]} columns, expected the sizes of the "
            "old heads, each at least 1, adding up to the number of columns. Cut both logits to the old columns."
        )
    if len(sizes) < 2:
        return soft_cross_entropy(student_logits, teacher_logits, temperature, detach_teacher)
    # ours: one copy of the columns for each head, the other heads' at -inf, which the softmax maps to 0
    device = student_logits.device
    outside = task_of_column(tuple(sizes), device) != torch.arange(len(sizes), device=device).unsqueeze(
        1
    )  # [heads, old]
    teacher = teacher_logits.detach() if detach_teacher else teacher_logits
    teacher = _softened(teacher, temperature).unsqueeze(1).masked_fill(outside, float("-inf"))
    student = _softened(student_logits, temperature).unsqueeze(1).masked_fill(outside, float("-inf"))
    target = F.softmax(teacher, dim=2)  # Eq. 9
    log_student = F.log_softmax(student, dim=2).masked_fill(outside, 0.0)  # log of Eq. 10; 0 · 0, not 0 · -inf
    return batch_mean(-(target * log_student).sum(dim=(1, 2)))  # Eq. 8, summed over heads


def old_class_distillation(
    student_logits: Float[Tensor, "batch old"],
    teacher_logits: Float[Tensor, "batch old"],
    sizes: Sequence[int] | None = None,
    temperature: float | int = 2.0,
    detach_teacher: bool = True,
) -> Float[Tensor, ""]:
    """`soft_cross_entropy` or, with `sizes`, `per_head_soft_cross_entropy`: which classes share a softmax.

    Source: No Forgetting Learning, Eq. 8-10, https://arxiv.org/abs/2503.04638, which leaves the choice open.

    Args:
        student_logits: The trained model's logits, cut to the old columns; heads side by side in task order.
        teacher_logits: The old model's logits for the same samples.
        sizes: Number of classes of each old head; `None`: one softmax over all old classes.
        temperature: As in `soft_cross_entropy`.
        detach_teacher: As in `soft_cross_entropy`.

    Returns:
        As the two functions.

    Raises:
        ValueError: As the two functions.
    """
    if sizes is None:
        return soft_cross_entropy(student_logits, teacher_logits, temperature, detach_teacher)
    return per_head_soft_cross_entropy(student_logits, teacher_logits, sizes, temperature, detach_teacher)


def binary_distillation(
    student_logits: Float[Tensor, "batch old"],
    teacher_logits: Float[Tensor, "batch old"],
    reduction: Reduction = "mean",
) -> Float[Tensor, ""]:
    """Binary cross-entropy with the teacher's sigmoids as soft targets, for every class on its own.

    ```text
    L_kd = Σ_c -q_c · log p_c - (1 - q_c) · log(1 - p_c),   p = sigmoid(O), q = sigmoid(H)         RebLL, Eq. 2
    ```

    | symbol | argument | range |
    |---|---|---|
    | O | `student_logits` | any real number |
    | H | `teacher_logits` | any real number |

    The minimum over O is the entropy of q, not 0; there the gradient is 0.

    Source: Rebalancing Multi-Label Class-Incremental Learning, Eq. 2, https://arxiv.org/abs/2408.12161; also the
    distillation sum of iCaRL, Algorithm 3 (no equation number), https://arxiv.org/abs/1611.07725.

    Args:
        student_logits: The trained model's logits, cut to the old columns.
        teacher_logits: The old model's logits for the same samples. No gradient flows into them.
        reduction: "mean": mean over classes and batch; "sum": sum over classes (Eq. 2 as printed), mean over the batch.

    Returns:
        Scalar. 0 with a graph if there is no sample or no old class.

    Raises:
        ValueError: If the shapes differ or the reduction is unknown.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, -1.0]])
        >>> round(binary_distillation(student, teacher).item(), 6)  # ln 2 for each class
        0.693147
        >>> round(binary_distillation(student, teacher, reduction="sum").item(), 6)
        1.386294
    """
    _check_shapes(student_logits, teacher_logits)
    target = wide(teacher_logits.detach()).sigmoid()
    # the summand of Eq. 2, stable
    loss = F.binary_cross_entropy_with_logits(wide(student_logits), target, reduction="none")
    return class_reduction(loss, reduction)


def _softened(logits: Tensor, temperature: float | int) -> Tensor:
    return wide(logits) / temperature


def _check_shapes(student_logits: Tensor, teacher_logits: Tensor) -> None:
    if student_logits.shape != teacher_logits.shape or student_logits.ndim != 2:
        raise ValueError(
            f"Got `student_logits` of shape {list(student_logits.shape)} and `teacher_logits` of shape "
            f"{list(teacher_logits.shape)}, expected the same [batch, old]. Cut the student to the old columns first: "
            "`student_logits[:, :num_old]`."
        )


def _check_temperature(temperature: float | int) -> None:
    if not temperature > 0:
        raise ValueError(
            f"Got `temperature={temperature}`, expected a positive number. Use 2 as the papers do, or 1 for the plain "
            "softmax."
        )
