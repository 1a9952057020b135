"""Whether tensors are still what they were, so that what was computed from them can be kept."""

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook


class WeightState:
    """The tensors as they are now, to compare with later.

    In-place operations are noticed by the tensors' version counters, which `load_state_dict` and `copy_` raise; other
    tensors, moves and casts by identity, storage, device and type. Fused optimizers raise no counter, so that a step of
    any optimizer counts as a change of all tensors that require gradients. Nothing is read, so that a device is not
    waited for. Only writes through `.data` go unnoticed, unless `content` is compared.

    Args:
        tensors: Their order counts.
        content: Whether to compare a checksum of all values as well, which reads them and waits for the device.
    """

    def __init__(self, tensors: Iterable[Tensor], *, content: bool = False) -> None:
        _watch_optimizers()
        self._tensors = list(tensors)  # held, so that no other tensor can get their identity
        self._marks = [_mark(tensor) for tensor in self._tensors]
        self._checksum = _checksum(self._tensors) if content else None

    def matches(self, tensors: Iterable[Tensor]) -> bool:
        """Whether these are the same tensors with the same values."""
        tensors = list(tensors)
        same = len(tensors) == len(self._tensors) and all(
            new is old and _mark(new) == mark
            for new, old, mark in zip(tensors, self._tensors, self._marks, strict=True)
        )
        return same and (self._checksum is None or self._checksum == _checksum(tensors))


@torch.no_grad()
def _mark(tensor: Tensor) -> tuple[object, ...]:
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # a sharded tensor's part
    # Inference tensors have no counter: they never match.
    version: object = object() if local.is_inference() else (tensor._version, local._version)
    trained = tensor.requires_grad or (tensor.is_leaf and tensor.grad is not None)
    steps = _steps if trained else None
    return version, steps, local.untyped_storage().data_ptr(), tensor.device, tensor.dtype, tensor.shape


_steps = 0
"""Of all optimizers, since the first `WeightState`."""


@lru_cache(maxsize=1)
def _watch_optimizers() -> None:
    register_optimizer_step_post_hook(_count)  # type: ignore[no-untyped-call,unused-ignore]


def _count(*_: object) -> None:
    global _steps
    _steps += 1


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 20
_ODD = 0x9E3779B97F4A7C15 - (1 << 64)


@torch.no_grad()
def _checksum(tensors: Iterable[Tensor]) -> list[int]:
    """A sum of each tensor's bits weighted by position, modulo 2^64."""
    sums = []
    for tensor in tensors:
        local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        bits = local.contiguous().view(-1).view(_INTEGERS[local.element_size()])
        total = torch.zeros((), dtype=torch.int64, device=local.device)
        for start in range(0, len(bits), _CHUNK):
            part = bits[start : start + _CHUNK].long()
            weight = torch.arange(start + 1, start + 1 + len(part), device=local.device) * _ODD
            total += (part * weight).sum()
        sums.append(total)
    return [int(total) for total in sums]
