"""Frozen copies of parts of a network that a method needs beside it, such as the body or the head of a moment ago."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cil.networks.sharding import unsharded


class FrozenCopies:
    """Copies of modules by name, in eval mode, without gradients.

    No `nn.Module`: what it holds is neither trained nor moved, wrapped or saved with the module that keeps it, and a
    copy of that module starts with none. `state_dict` gives their tensors to a checkpoint.
    """

    def __init__(self) -> None:
        self._parts: dict[str, nn.Module] = {}
        self._stored: dict[str, Mapping[str, Tensor]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._parts or name in self._stored

    def take(self, name: str, part: nn.Module) -> None:
        """Copy a part as it is now. A collective when it is sharded."""
        self._stored.pop(name, None)
        whole = unsharded(part)
        whole = copy.deepcopy(whole) if whole is part else whole
        self._parts[name] = whole.eval().requires_grad_(False)

    def __getitem__(self, name: str) -> nn.Module:
        return self._parts[name]

    def restore(self, device: torch.device, **like: nn.Module) -> None:
        """Build the copies that a checkpoint brought, and move all to a device.

        Args:
            device: Where they are used.
            like: For each name that a checkpoint may have brought a part of the same structure; a head may have other
                sizes. A collective when it is sharded.
        """
        for name, part in like.items():
            if name in self._stored:
                stored = self._stored[name]
                self.take(name, part)
                self._parts[name].load_state_dict(stored)
        for part in self._parts.values():
            part.to(device)

    def drop(self, *names: str) -> None:
        """Forget copies; names without one do nothing."""
        for name in names:
            self._parts.pop(name, None)
            self._stored.pop(name, None)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of every copy."""
        held = {name: dict(part.state_dict()) for name, part in self._parts.items()}
        return {**held, **{name: dict(stored) for name, stored in self._stored.items()}}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over a `state_dict`; copies that it lacks are forgotten."""
        self._parts, self._stored = {}, dict(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenCopies":
        return FrozenCopies()
