"""Weight aligning: new classes' rows get the mean length of the old ones'.

Zhao, Xiao, Gan, Zhang, Xia, Maintaining Discrimination and Fairness in Class Incremental Learning, 2020,
https://arxiv.org/abs/1911.07053; as in https://github.com/LAMDA-CL/PyCIL, `utils/inc_net.py`, which MEMO uses. Biases
stay as they are.
"""

from typing import cast

import torch
from torch import Tensor, nn

from lightning_cil.networks.heads import CosineHead, LinearHead, MultiHead


def alignment_factor(old_weight: Tensor, new_weight: Tensor) -> Tensor:
    """γ = mean_i ‖w_i‖ of the old rows / mean_j ‖w_j‖ of the new ones.

    Args:
        old_weight: float `[old, dim]`.
        new_weight: float `[new, dim]`.

    Returns:
        Scalar; 1 if there are no old or no new rows, or all new ones are zero.

    Example:
        >>> alignment_factor(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0]])).item()  # 3 / 2
        1.5
    """
    if not len(old_weight) or not len(new_weight):
        return new_weight.new_ones(())
    old = torch.linalg.vector_norm(old_weight, dim=1).mean()
    new = torch.linalg.vector_norm(new_weight, dim=1).mean()
    return torch.where(new > 0, old / new, 1.0)


@torch.no_grad()
def align_weights(head: LinearHead | MultiHead | CosineHead) -> Tensor:
    """Multiply the rows of a head's last task by `alignment_factor`, in place.

    Doing it again changes nothing but rounding. A cosine head's outputs do not depend on it.

    Args:
        head: With at least two tasks; otherwise nothing happens.

    Returns:
        The factor, a scalar.
    """
    slices = head.task_slices()
    if len(slices) < 2:
        return torch.ones(())
    if isinstance(head, MultiHead):
        blocks = [cast(nn.Linear, block).weight for block in head.blocks]
        old, new = torch.cat(blocks[:-1]), blocks[-1]
    else:
        old, new = head.weight[: slices[-1].start], head.weight[slices[-1]]
    factor = alignment_factor(old, new)
    new.mul_(factor)
    return factor
