"""How many exemplars each class may keep, and which ones stay when the quotas shrink.

Rebuffi et al., iCaRL, 2017, Algorithms 2 and 5 (no equation number), https://arxiv.org/abs/1611.07725: the budget is
shared equally, and each class's exemplars are an ordered list that is cut from its end. Departure: iCaRL rounds the
share down, which leaves a part of the budget unused and is 0 for every class once classes outnumber the budget; here
the remainder goes to the first classes, unless `remainder='unused'`.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Remainder", "class_quotas", "first_per_class"]

Remainder = Literal["first_classes", "unused"]


def class_quotas(budget: int, num_classes: int, remainder: Remainder = "first_classes") -> Tensor:
    """Share a budget equally among the classes seen so far.

    ```text
    m_c = ⌊K / C⌋ + 1   if c < K mod C
    m_c = ⌊K / C⌋       otherwise, and for all c with remainder='unused' (iCaRL)
    ```

    | symbol | argument | range |
    |---|---|---|
    | K | `budget` | at least 0; all classes and ranks together |
    | C | `num_classes` | at least 0 |

    The quotas add up to the budget, unless the remainder stays unused; no class's quota ever grows when classes come.

    Source: iCaRL, Algorithm 2 (no equation number), https://arxiv.org/abs/1611.07725, plus the remainder (ours).

    Args:
        budget: Exemplars in total.
        num_classes: Classes seen so far.
        remainder: What becomes of K mod C.

    Returns:
        long `[num_classes]` on the CPU.

    Raises:
        ValueError: If a count is negative or `remainder` is none of the two.

    Example:
        >>> class_quotas(budget=20, num_classes=6)
        tensor([4, 4, 3, 3, 3, 3])
        >>> class_quotas(budget=2, num_classes=4)
        tensor([1, 1, 0, 0])
        >>> class_quotas(budget=20, num_classes=6, remainder="unused")
        tensor([3, 3, 3, 3, 3, 3])
    """
    if budget < 0 or num_classes < 0:
        raise ValueError(
            f"Got `budget={budget}`, `num_classes={num_classes}`, expected numbers of at least 0. "
            "A method without memory has `budget=0`."
        )
    if remainder not in ("first_classes", "unused"):
        raise ValueError(f"`remainder={remainder!r}`: expected 'first_classes' or 'unused'.")
    share, rest = divmod(budget, max(num_classes, 1))
    return share + (torch.arange(num_classes) < (rest if remainder == "first_classes" else 0)).to(torch.int64)


def first_per_class(target: Tensor, quotas: Tensor) -> Tensor:
    """Find the first rows of each class, at most as many as its quota.

    If every class's rows stand in order of priority (herding's order, say), these are the exemplars to keep.

    Args:
        target: long `[n]`: class of each row, at least 0.
        quotas: long `[classes]`: how many rows each class may keep. Rows of classes beyond the last are not kept.

    Returns:
        long `[kept]`: positions in `target`, ascending, so that the order inside each class stays.

    Raises:
        ValueError: If an argument is not a vector.

    Example:
        >>> first_per_class(torch.tensor([0, 1, 0, 0, 1]), quotas=torch.tensor([2, 1]))
        tensor([0, 1, 2])
    """
    if target.ndim != 1 or quotas.ndim != 1:
        raise ValueError(
            f"Got `target` of shape {list(target.shape)} and `quotas` of shape {list(quotas.shape)}, expected [n] and "
            "[classes]. For multi-label targets keep exemplars by reservoir instead."
        )
    order = target.argsort(stable=True)
    grouped = target[order].contiguous()
    rank = torch.arange(len(target), device=target.device) - torch.searchsorted(grouped, grouped)
    limit = F.pad(quotas.to(target.device), (0, 1))  # 0 for the classes beyond the last
    kept = rank < limit[grouped.clamp(max=len(quotas))]
    return order[kept].sort().values
