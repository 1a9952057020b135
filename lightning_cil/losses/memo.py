"""MEMO: cross-entropy over all classes, and an auxiliary one that makes the newest block tell new classes from old.

Zhou, Wang, Ye, Zhan, A Model or 603 Exemplars: Towards Memory-Efficient Class-Incremental Learning, 2023,
https://arxiv.org/abs/2205.13218, as its code has it, https://github.com/wangkiw/ICLR23-MEMO; no equation is cited by
number. The auxiliary classes are those of DER (Yan, Xie, He, 2021, https://arxiv.org/abs/2103.16788).
"""

from jaxtyping import Float, Int
from torch import Tensor

from lightning_cil.losses.classification import cross_entropy_over

__all__ = ["auxiliary_target", "memo_terms"]


def auxiliary_target(target: Int[Tensor, " batch"], num_old: int) -> Int[Tensor, " batch"]:
    """Labels of the auxiliary head: 0 for any old class, 1, 2, … for the new ones.

    ```text
    max(y - old + 1, 0)
    ```

    | symbol | argument | range |
    |---|---|---|
    | y | `target` | at least 0 |
    | old | `num_old` | at least 0 |

    Source: https://github.com/wangkiw/ICLR23-MEMO; https://arxiv.org/abs/2103.16788 (no equation number).

    Args:
        target: long; incremental labels, counted over all classes.
        num_old: Number of old classes.

    Returns:
        long; labels from 0 to the number of new classes.

    Example:
        >>> import torch
        >>> auxiliary_target(torch.tensor([1, 4, 6]), num_old=4)
        tensor([0, 1, 3])
    """
    return (target - num_old + 1).clamp(min=0)


def memo_terms(
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    auxiliary_logits: Float[Tensor, "batch auxiliary"] | None = None,
    *,
    num_old: int = 0,
    auxiliary_weight: float | int = 1.0,
) -> dict[str, Float[Tensor, ""]]:
    """Cross-entropy of the head and of the auxiliary head.

    ```text
    CE(Y, O) + α CE(Y_aux, O_aux)
    ```

    | symbol | argument | range |
    |---|---|---|
    | O | `logits` | any real number |
    | Y | `target` | any class |
    | O_aux | `auxiliary_logits`: on the newest block's features | any real number |
    | Y_aux | `auxiliary_target` of Y | |
    | α | `auxiliary_weight` | at least 0; the authors' code: 1 |

    Source: https://github.com/wangkiw/ICLR23-MEMO; https://arxiv.org/abs/2205.13218 (no equation number).

    Args:
        logits: Of all classes so far.
        target: long; incremental labels.
        auxiliary_logits: `[batch, new + 1]`; `None` in the first task, where there is no such head.
        num_old: Number of old classes.
        auxiliary_weight: Weight of the auxiliary term.

    Returns:
        Scalars `cross_entropy` and, with an auxiliary head, `auxiliary` (weighted). 0 with a graph for an empty batch.

    Raises:
        ValueError: If the auxiliary head has not one output more than there are new classes, or as in
            `cross_entropy_over`.

    Example:
        >>> import torch
        >>> terms = memo_terms(torch.zeros(1, 6), torch.tensor([4]), torch.zeros(1, 3), num_old=4)
        >>> {name: round(term.item(), 4) for name, term in terms.items()}  # ln 6, ln 3
        {'cross_entropy': 1.7918, 'auxiliary': 1.0986}
    """
    classes = logits.shape[1]
    terms = {"cross_entropy": cross_entropy_over(logits, target, 0, classes)}
    if auxiliary_logits is None:
        return terms
    outputs = auxiliary_logits.shape[1]
    if outputs != classes - num_old + 1:
        raise ValueError(
            f"Got `auxiliary_logits` with {outputs} columns for {classes - num_old} new classes, expected one "
            "more than new classes: the first stands for all old ones."
        )
    auxiliary = cross_entropy_over(auxiliary_logits, auxiliary_target(target, num_old), 0, outputs)
    terms["auxiliary"] = auxiliary_weight * auxiliary
    return terms
