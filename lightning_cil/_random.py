"""Counter-based randomness: every draw is a pure function of (seed, counter), so nothing needs saving or sharing.

Generators have a state that workers, ranks and resumed runs must agree on; a hash has none. The mixer is
SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014,
https://doi.org/10.1145/2660193.2660195, figure 15), in int64 arithmetic that wraps alike on CPU and GPU.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = x + _GAMMA
    x = (x ^ _shift_right(x, 30)) * _MIX1
    x = (x ^ _shift_right(x, 27)) * _MIX2
    return x ^ _shift_right(x, 31)


def counter_hash(counter: Tensor, *words: int) -> Tensor:
    """Hash integers into 64 well-mixed bits.

    Args:
        counter: long tensor of any shape.
        words: Further integers (seed, epoch, stream …) that select another, independent sequence.

    Returns:
        long tensor of `counter`'s shape, uniform over all int64 values.
    """
    x = _mix(counter.to(torch.int64))
    for word in words:
        x = _mix(x ^ _signed(fold_seed(word)))
    return x


def counter_uniform(counter: Tensor, *words: int) -> Tensor:
    """Uniform numbers in [0, 1), a function of the integers only.

    Args:
        counter: long tensor of any shape.
        words: As in `counter_hash`.

    Returns:
        float64 tensor of `counter`'s shape, with 53 random bits (float32 with the first 24 of them on MPS, which has no
        float64).
    """
    return _uniform(counter_hash(counter, *words))


def counter_uniforms(counter: Tensor, streams: Sequence[int]) -> Tensor:
    """What `counter_uniform(counter, stream)` gives for each of several streams, hashed at once.

    Args:
        counter: long tensor of any shape.
        streams: Integers, one for each stream.

    Returns:
        float64 tensor `[streams, *counter's shape]`.
    """
    words = _stream_words(tuple(streams), counter.device).view(-1, *[1] * counter.ndim)
    return _uniform(_mix(_mix(counter.to(torch.int64)) ^ words))


def uniform(*words: int) -> float:
    """A uniform number in [0, 1), a function of the integers only, without a tensor."""
    return (fold_seed(*words) >> 10) * 2.0**-53


def _uniform(bits: Tensor) -> Tensor:
    if bits.device.type == "mps":  # has no float64
        return _shift_right(bits, 40).to(torch.float32) * 2.0**-24
    return _shift_right(bits, 11).to(torch.float64) * 2.0**-53


@lru_cache(maxsize=64)
def _stream_words(streams: tuple[int, ...], device: torch.device) -> Tensor:
    """The streams' words where the counters are: a copy from the host in every step would wait for the device."""
    with torch.inference_mode(False):
        return torch.tensor([_signed(fold_seed(s)) for s in streams], dtype=torch.int64).to(device)


def fold_seed(*words: int) -> int:
    """Mix integers into one seed.

    Returns:
        An integer in [0, 2**63): what `torch.Generator.manual_seed` takes.
    """
    state = 0
    for word in words:
        state = (state ^ (word & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


def permutation(size: int, *words: int) -> Tensor:
    """A random order of `range(size)`.

    Args:
        size: How many items, at least 0.
        words: Seed, epoch and so on.

    Returns:
        long tensor `[size]`, the same on every rank and in every process.
    """
    generator = torch.Generator().manual_seed(fold_seed(*words))
    return torch.randperm(size, generator=generator)
