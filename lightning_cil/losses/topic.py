"""TOPIC: samples of old nodes stay at their nodes, new samples go to theirs, and linked nodes of other classes apart.

Tao et al., Few-Shot Class-Incremental Learning, 2020, the AL and the MML loss, https://arxiv.org/abs/2004.10956; the
released code, https://github.com/xyutao/fscil, has neither file. No equation number was at hand.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["anchor_loss", "min_max_terms"]


def anchor_loss(
    features: Float[Tensor, "anchors dim"],
    centroids: Float[Tensor, "anchors dim"],
    precision: Float[Tensor, "anchors dim"],
) -> Float[Tensor, ""]:
    """Distance of each node's sample from its centroid, weighted by coordinate.

    ```text
    L_AL = Σ_j (f(z_j) - m_j)ᵀ Λ_j⁻¹ (f(z_j) - m_j)
    ```

    | symbol | argument | range |
    |---|---|---|
    | f(z_j) | `features`, of the sample that stands for node j | any real number |
    | m_j | `centroids` | any real number |
    | Λ_j⁻¹ | `precision`, its diagonal | at least 0 |

    Source: TOPIC, AL loss, https://arxiv.org/abs/2004.10956.

    Args:
        features: By the model in training.
        centroids: Of the old nodes.
        precision: Of the old nodes.

    Returns:
        Scalar, the sum over nodes; 0 with a graph without any.

    Example:
        >>> import torch
        >>> anchor_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.5]]))
        tensor(3.)
    """
    return (precision * (features - centroids).square()).sum()


def min_max_terms(
    features: Float[Tensor, "batch dim"],
    target: Int[Tensor, " batch"],
    centroids: Float[Tensor, "nodes dim"],
    labels: Int[Tensor, " nodes"],
    linked: Bool[Tensor, "nodes nodes"],
    *,
    margin: float | int = 0.5,
) -> dict[str, Float[Tensor, ""]]:
    """Each sample goes to the nearest node of its class; nodes of other classes that are linked with it keep off.

    ```text
    L_MML = Σ_(x,y) ( d(f(x), m_j) - Σ_{i: e_ij, c_i ≠ y} min(0, d(m_i, m_j) - ξ) )
    ```

    | symbol | argument | range |
    |---|---|---|
    | f(x), y | `features`, `target` | |
    | m_i, c_i | `centroids`, `labels` | |
    | j | the node nearest to f(x) of those with c_j = y | |
    | e_ij | `linked` | symmetric |
    | d | Euclidean distance | |
    | ξ | `margin` | at least 0; the released code: 0.5 |

    Source: TOPIC, MML loss, https://arxiv.org/abs/2004.10956.

    Args:
        features: Of the new samples.
        target: long.
        centroids: Of all nodes, those in training with a gradient.
        labels: long, classes of the nodes.
        linked: Which nodes have an edge.
        margin: Distance from which on nodes do not mind each other.

    Returns:
        Scalars `pull` and `push`, sums over the batch. Samples of classes without a node count for nothing.

    Example:
        >>> import torch
        >>> nodes, linked = torch.tensor([[0.0], [0.3], [5.0]]), torch.tensor([[0, 1, 1], [1, 0, 0], [1, 0, 0]]).bool()
        >>> terms = min_max_terms(torch.tensor([[0.1]]), torch.tensor([0]), nodes, torch.tensor([0, 1, 1]), linked)
        >>> [round(float(term), 6) for term in terms.values()]
        [0.1, 0.2]
    """
    own = target.unsqueeze(1) == labels
    has_node = own.any(dim=1)
    if not len(labels):
        return {"pull": features.sum() * 0, "push": features.sum() * 0}
    distance = torch.cdist(features, centroids)
    nearest = distance.masked_fill(~own, torch.inf).argmin(dim=1)
    pull = distance.gather(1, nearest.unsqueeze(1)).squeeze(1) * has_node
    too_near = (margin - torch.cdist(centroids, centroids)).clamp(min=0)  # -min(0, d - ξ)
    foes = linked & (labels.unsqueeze(1) != labels)
    push = (too_near * foes).sum(dim=1)[nearest] * has_node
    return {"pull": pull.sum(), "push": push.sum()}
