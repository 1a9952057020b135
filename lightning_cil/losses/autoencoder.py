"""An autoencoder on features that finds what a task needs, and the term that keeps it while the body learns on.

Rannen, Aljundi, Blaschko, Tuytelaars, Encoder Based Lifelong Learning, 2017, https://arxiv.org/abs/1704.01920, as used
by Vahedifar and Zhang, No Forgetting Learning, 2025, Eq. 17 and 21, https://arxiv.org/abs/2503.04638v2.

Departures. Eq. 21 is labelled as the autoencoder's objective and puts a randomly started body in its first slot; both
contradict Eq. 17 and 22, so it is read as the former paper has it: the trained body against the old one, through the
frozen encoder. Eq. 17's norm is a mean over dimensions by default, so that both terms are of one size with Ω = 1.
"""

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from lightning_cil._precision import wide
from lightning_cil.losses._columns import batch_mean
from lightning_cil.losses.classification import cross_entropy_over

__all__ = ["autoencoder_terms", "code_preservation"]

Reduction = Literal["mean", "sum"]


def autoencoder_terms(
    reconstruction: Float[Tensor, "batch dim"],
    features: Float[Tensor, "batch dim"],
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    first: int,
    last: int,
    *,
    omega: float | int = 1.0,
    reduction: Reduction = "mean",
) -> dict[str, Float[Tensor, ""]]:
    """What the autoencoder minimises on the data of the task that the body has just learnt.

    ```text
    Ω ‖R(u) - u‖² + CE(g(R(u)), y)         NFL, Eq. 17
    ```

    | symbol | argument | range |
    |---|---|---|
    | u | `features`: of the frozen body | any real number |
    | R(u) | `reconstruction` | any real number |
    | g(R(u)) | `logits`: the frozen head on the reconstruction | any real number |
    | y | `target` | first ≤ y < last |
    | Ω | `omega` | at least 0; default 1 is ours |

    Source: No Forgetting Learning, Eq. 17, https://arxiv.org/abs/2503.04638v2.

    Args:
        reconstruction: The autoencoder's output.
        features: No gradient flows into them.
        logits: Logits of all classes so far; only the task's own take part.
        target: long; incremental labels.
        first: First class of the task.
        last: Class after its last one.
        omega: Weight of the reconstruction.
        reduction: Over the dimensions: "mean", or "sum", the norm as printed. Always a mean over the batch.

    Returns:
        Scalars `reconstruction` (weighted) and `cross_entropy`; their sum is the loss. 0 with a graph for an empty
        batch.

    Raises:
        ValueError: If the shapes of features and reconstruction differ, the reduction is unknown, or as in
            `cross_entropy_over`.

    Example:
        >>> import torch
        >>> features, target = torch.tensor([[1.0, 2.0]]), torch.tensor([1])
        >>> terms = autoencoder_terms(torch.zeros(1, 2), features, torch.zeros(1, 2), target, first=0, last=2)
        >>> {name: round(term.item(), 4) for name, term in terms.items()}  # (1 + 4) / 2, ln 2
        {'reconstruction': 2.5, 'cross_entropy': 0.6931}
    """
    return {
        "reconstruction": omega * _squared_distance(reconstruction, features, reduction),
        "cross_entropy": cross_entropy_over(logits, target, first, last),
    }


def code_preservation(
    code: Float[Tensor, "batch units"],
    teacher_code: Float[Tensor, "batch units"],
    reduction: Reduction = "sum",
) -> Float[Tensor, ""]:
    """Squared distance of the codes of the trained body's features from those of the old body's.

    ```text
    ‖σ(W_enc f(x)) - σ(W_enc f_old(x))‖²         NFL, Eq. 21
    ```

    | symbol | argument | range |
    |---|---|---|
    | σ(W_enc f(x)) | `code` | (0, 1) with a sigmoid |
    | σ(W_enc f_old(x)) | `teacher_code` | (0, 1) with a sigmoid |

    Source: No Forgetting Learning, Eq. 21, https://arxiv.org/abs/2503.04638v2; Encoder Based Lifelong Learning
    (no equation used), https://arxiv.org/abs/1704.01920, one encoder a past task, summed: put their codes side by side.

    Args:
        code: Through a frozen encoder, so that the gradient reaches the body only.
        teacher_code: No gradient flows into it.
        reduction: Over the units: "sum", the norm as printed, or "mean". Always a mean over the batch.

    Returns:
        Scalar. 0 with a graph for an empty batch.

    Raises:
        ValueError: If the shapes differ or the reduction is unknown.

    Example:
        >>> import torch
        >>> code_preservation(torch.tensor([[0.5, 1.0]]), torch.tensor([[0.0, 0.0]])).item()
        1.25
    """
    return _squared_distance(code, teacher_code, reduction)


def _squared_distance(value: Tensor, constant: Tensor, reduction: str) -> Tensor:
    if value.shape != constant.shape or value.ndim != 2:
        raise ValueError(
            f"Got tensors of shapes {list(value.shape)} and {list(constant.shape)}, expected the same [batch, dim]. "
            "Compare what the trained and the old body make of the same batch."
        )
    if reduction not in ("mean", "sum"):
        raise ValueError(f"Got `reduction={reduction!r}`, expected 'mean' or 'sum' over the dimensions.")
    squares = (wide(value) - wide(constant.detach())).square()
    per_sample = squares.sum(dim=1)
    if reduction == "mean":
        per_sample = per_sample / max(value.shape[1], 1)
    return batch_mean(per_sample)
