"""Which stored rows go into a replay batch.

No equation: uniform draws, as replay papers have them. A draw is a function of (seed, step), so that it needs no saved
generator, is alike on every rank, and a resumed run draws what the uninterrupted one would have.
"""

import torch
from torch import Tensor

from lightning_cil._random import permutation

__all__ = ["draw_rows"]

_SHUFFLE = -1
"""Further word of the permutation that mixes repeated rows."""


def draw_rows(num_stored: int, num_drawn: int, *words: int) -> Tensor:
    """Draw the rows of one replay batch.

    Without replacement as long as there are enough rows; otherwise each row comes ⌊num_drawn / num_stored⌋ times and a
    random choice of them once more. The order is random in both cases, so that any slice is a fair part of the batch.

    Args:
        num_stored: Rows in the buffer, at least 0.
        num_drawn: Size of the (global) replay batch, at least 0.
        words: Integers that select the draw, such as seed and step; for two independent draws in one step add a third.

    Returns:
        long `[num_drawn]` on the CPU, in 0..num_stored-1.

    Raises:
        ValueError: If a count is negative, or rows are asked of an empty buffer.

    Example:
        >>> draw_rows(3, 3, 0, 1).sort().values
        tensor([0, 1, 2])
        >>> draw_rows(2, 5, 0, 1).bincount().sort().values
        tensor([2, 3])
    """
    if min(num_stored, num_drawn) < 0 or (num_stored == 0 and num_drawn > 0):
        raise ValueError(
            f"Got `num_stored={num_stored}`, `num_drawn={num_drawn}`, expected counts of at least 0 and at least one "
            "stored row to draw from. Skip the replay term while the buffer is empty."
        )
    if num_drawn <= num_stored:
        return permutation(num_stored, *words)[:num_drawn].clone()
    rest = num_drawn % num_stored
    full = torch.arange(num_drawn - rest) % num_stored
    rows = torch.cat([full, permutation(num_stored, *words)[:rest]])
    return rows[permutation(num_drawn, *words, _SHUFFLE)]
