"""DER++: replayed samples keep their labels and the logits that they had when they were stored.

Buzzega, Boschini, Porrello, Abati, Calderara, Dark Experience for General Continual Learning: a Strong, Simple
Baseline, 2020, https://arxiv.org/abs/2004.07211, as its code has it, https://github.com/aimagelab/mammoth,
`models/derpp.py`; no equation is cited by number.

Departure for heads that grow: logits stored when the head was smaller are compared in the columns that existed then.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_cil._precision import wide
from lightning_cil.losses._columns import batch_mean
from lightning_cil.losses.classification import cross_entropy_over

__all__ = ["derpp_terms", "logit_matching"]


def derpp_terms(
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    first_logits: Float[Tensor, "first classes"],
    stored_logits: Float[Tensor, "first stored"],
    second_logits: Float[Tensor, "second classes"],
    second_target: Int[Tensor, " second"],
    *,
    alpha: float | int = 0.1,
    beta: float | int = 0.5,
    stored_width: Int[Tensor, " first"] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Terms of DER++ for the current batch and two independent draws from the buffer.

    ```text
    L = CE(y, z(x)) + α ‖z(x') - z'‖² + β CE(y'', z(x''))
    ```

    | symbol | argument | range |
    |---|---|---|
    | z(x), y | `logits`, `target`: the current batch | any real number; a class |
    | z(x'), z' | `first_logits`, `stored_logits`: the first draw | any real number |
    | z(x''), y'' | `second_logits`, `second_target`: the second draw | any real number; a class |
    | α, β | `alpha`, `beta` | at least 0; 0.1 and 0.5 are the authors' for CIFAR-100 |

    Source: https://github.com/aimagelab/mammoth, `models/derpp.py`; https://arxiv.org/abs/2004.07211 (no equation
    number). The squared norm is a mean over classes, as in that code, for which α is tuned. The cross-entropies run
    over all columns, those of classes to come included.

    Args:
        logits: Of the current batch.
        target: long; incremental labels.
        first_logits: Of the first draw's samples, by the trained model.
        stored_logits: What they were when the samples were stored, see `logit_matching`.
        second_logits: Of the second draw's samples.
        second_target: long; their labels.
        alpha: Weight of the logits.
        beta: Weight of the labels.
        stored_width: See `logit_matching`.

    Returns:
        Scalars `cross_entropy`, `logits` and `replay_cross_entropy`, weighted; their sum is the loss. 0 with a graph
        for an empty batch or draw, as in the first step with an empty buffer.

    Raises:
        ValueError: As in `logit_matching` and `cross_entropy_over`.

    Example:
        >>> import torch
        >>> zeros, ones, label = torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([1])
        >>> terms = derpp_terms(zeros, label, zeros, 2 * ones, zeros, label, alpha=0.1, beta=0.5)
        >>> {name: round(term.item(), 4) for name, term in terms.items()}
        {'cross_entropy': 0.6931, 'logits': 0.4, 'replay_cross_entropy': 0.3466}
    """
    classes = logits.shape[1]
    return {
        "cross_entropy": cross_entropy_over(logits, target, 0, classes),
        "logits": alpha * logit_matching(first_logits, stored_logits, stored_width),
        "replay_cross_entropy": beta * cross_entropy_over(second_logits, second_target, 0, classes),
    }


def logit_matching(
    logits: Float[Tensor, "batch classes"],
    stored_logits: Float[Tensor, "batch stored"],
    stored_width: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared difference of logits and stored logits.

    ```text
    (1/B) Σ_b (1/W_b) Σ_{c < W_b} (z_bc - z'_bc)²
    ```

    | symbol | argument | range |
    |---|---|---|
    | z | `logits` | any real number |
    | z' | `stored_logits` | any real number; NaN is allowed in columns from W_b on |
    | W | `stored_width` | 0 ≤ W_b ≤ `stored` |

    With a head that has all classes from the start, W_b is the number of classes for every sample and this is the
    plain mean squared error. For every sample a mean of its own: several processes with a share of the batch each then
    make the same gradient as one.

    Source: as `derpp_terms`; for heads that grow there is no equation.

    Args:
        logits: Of the trained model.
        stored_logits: Rows of one width, padded at the end.
        stored_width: long: how many columns the head had when the sample was stored. `None`: all of `stored_logits`.

    Returns:
        Scalar: mean over each sample's columns, mean over the batch. A sample without columns counts as 0. 0 with a
        graph for an empty batch.

    Raises:
        ValueError: If more columns were stored than the model has.

    Example:
        Of the second sample only the first column existed:

        >>> import torch
        >>> stored = torch.tensor([[1.0, 2.0], [3.0, float("nan")]])
        >>> round(logit_matching(torch.zeros(2, 2), stored, torch.tensor([2, 1])).item(), 4)  # ((1 + 4) / 2 + 9) / 2
        5.75
    """
    stored = stored_logits.shape[1]
    if stored > logits.shape[1]:
        raise ValueError(
            f"Got `stored_logits` with {stored} columns for logits with {logits.shape[1]}, expected at most as many: a "
            "head does not shrink. Give the logits of all classes that the head has."
        )
    difference = wide(logits[:, :stored]) - wide(stored_logits.detach())
    if stored_width is None:
        return batch_mean(difference.square().sum(dim=1) / max(stored, 1))
    known = torch.arange(stored, device=logits.device) < stored_width.unsqueeze(1)
    squares = torch.where(known, difference, 0.0).square()
    return batch_mean(squares.sum(dim=1) / stored_width.clamp(min=1))
