"""What must not be computed in 16 bits."""

import torch
from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """In float32 or wider.

    On a GPU autocast does so by itself for norms, powers, sums, logarithms and softmax; on a CPU for few of them. In
    float16 the 1e-12 of `F.normalize` is 0, so that a vector of zeros becomes NaN, and a square overflows from 256 on.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
