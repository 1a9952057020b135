"""Which task a column of logits belongs to, kept on the device: a copy in every step would wait for it."""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def task_of_column(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Index of the task of each column.

    Args:
        sizes: Classes of each task.
        device: Where the logits are.

    Returns:
        long `[sum(sizes)]`. Shared: not to be written to.
    """
    with torch.inference_mode(False):  # autograd must be able to save it, whoever asks first
        return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64)).to(device)
