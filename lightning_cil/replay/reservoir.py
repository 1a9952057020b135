"""Reservoir sampling: a buffer of fixed size in which every example offered so far is equally likely to be.

Vitter, Random Sampling with a Reservoir, ACM TOMS 11(1), 1985, https://doi.org/10.1145/3147.3165, Algorithm R (no
equation number). The n-th draw is a hash of (n, seed): nothing but the count of offers has to be saved, every rank
draws alike, and it does not matter how the stream of offers is cut into calls.
"""

import torch
from torch import Tensor

from lightning_cil._random import counter_uniform

__all__ = ["last_writers", "reservoir_slots"]


def reservoir_slots(num_seen: int, num_offered: int, capacity: int, seed: int) -> Tensor:
    """Choose a slot for each of the next offered examples.

    ```text
    slot(n) = n                       if n < K           n-th offer of all, from 0
    slot(n) = r,  r ~ U{0, …, n}      if r < K ≤ n
    slot(n) = none                    otherwise
    ```

    | symbol | argument | range |
    |---|---|---|
    | n | `num_seen`, …, `num_seen + num_offered - 1` | at least 0 |
    | K | `capacity` | at least 0 |

    After N ≥ K offers each of them is in the buffer with probability K / N. A slot may occur more than once in one
    call; the later offer then stays, see `last_writers`.

    Source: Vitter 1985, Algorithm R (no equation number), https://doi.org/10.1145/3147.3165.

    Args:
        num_seen: Number of examples offered in all earlier calls, kept or not.
        num_offered: Number of examples that are offered now.
        capacity: Number of slots.
        seed: Selects the sequence of draws; the same in every call.

    Returns:
        long `[num_offered]` on the CPU: the slot of each offered example in 0..capacity-1, or -1 if it is dropped.

    Raises:
        ValueError: If a count is negative.

    Example:
        >>> reservoir_slots(num_seen=0, num_offered=3, capacity=3, seed=0)
        tensor([0, 1, 2])
        >>> whole = reservoir_slots(num_seen=3, num_offered=10, capacity=3, seed=0)
        >>> parts = [reservoir_slots(3, 4, 3, seed=0), reservoir_slots(7, 6, 3, seed=0)]
        >>> bool((torch.cat(parts) == whole).all())
        True
    """
    if min(num_seen, num_offered, capacity) < 0:
        raise ValueError(
            f"Got `num_seen={num_seen}`, `num_offered={num_offered}`, `capacity={capacity}`, expected counts of "
            "at least 0. Pass the number of earlier offers, the length of the batch and the size of the buffer."
        )
    n = torch.arange(num_seen, num_seen + num_offered)
    drawn = (counter_uniform(n, seed) * (n + 1)).to(torch.int64)  # at most n: u ≤ 1 - 2⁻⁵³ and n < 2⁵³
    slot = torch.where(n < capacity, n, drawn)
    return torch.where(slot < capacity, slot, -1)


def last_writers(slots: Tensor) -> tuple[Tensor, Tensor]:
    """Find the offers that are left if all are written one after the other, later over earlier.

    Args:
        slots: long `[num_offered]`: the slot of each offer, or a negative number for none.

    Returns:
        rows: long `[written]`: the positions of the offers that stay.
        slots: long `[written]`: their slots, each once, ascending.

    Raises:
        ValueError: If `slots` is not a vector.

    Example:
        >>> last_writers(torch.tensor([0, 1, -1, 0]))
        (tensor([3, 1]), tensor([0, 1]))
    """
    if slots.ndim != 1:
        raise ValueError(f"Got `slots` of shape {list(slots.shape)}, expected [num_offered]. Flatten it first.")
    order = slots.argsort(stable=True)  # later offers of a slot stand after earlier ones
    ordered = slots[order]
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    last &= ordered >= 0
    return order[last], ordered[last]
