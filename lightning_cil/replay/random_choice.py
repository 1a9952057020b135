"""Exemplars by seeded chance: the baseline that herding is compared with.

No equation. The order is a hash of each example's own number, so it depends neither on the order of the rows nor on
how many are taken: taking fewer later keeps the first ones, as with herding.
"""

from torch import Tensor

from lightning_cil._random import counter_hash

__all__ = ["random_choice"]


def random_choice(index: Tensor, num_exemplars: int, *words: int) -> Tensor:
    """Choose exemplars of one class at random.

    Args:
        index: long `[n]`: a number that identifies each example, such as its position in the dataset; no two alike.
        num_exemplars: How many to choose, at least 0. More than n: all n.
        words: Integers (a seed) that select the draw.

    Returns:
        long `[min(num_exemplars, n)]`: positions in `index`, first the one to keep longest. A smaller number gives a
        prefix of a larger one's, and the same examples are chosen in whatever order they stand.

    Raises:
        ValueError: If `index` is not a vector or `num_exemplars` is negative.

    Example:
        >>> import torch
        >>> index = torch.tensor([40, 41, 42, 43])
        >>> four, two = random_choice(index, 4, 7), random_choice(index, 2, 7)
        >>> bool((four[:2] == two).all())
        True
    """
    if index.ndim != 1 or num_exemplars < 0:
        raise ValueError(
            f"Got `index` of shape {list(index.shape)} and `num_exemplars={num_exemplars}`, expected [n] and a number "
            "of at least 0. Call once for each class."
        )
    return counter_hash(index, *words).argsort(stable=True)[:num_exemplars].clone()
