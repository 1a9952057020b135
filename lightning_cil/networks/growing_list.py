"""A list of modules that differs in length and shapes from task to task."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn


class GrowingList(nn.ModuleList):
    """An `nn.ModuleList` that takes the length and the shapes of a checkpoint, as the growing heads do.

    Args:
        make: Builds an entry whose tensors have the shapes of those given, by name.
    """

    def __init__(self, make: Callable[[Mapping[str, Tensor]], nn.Module]) -> None:
        super().__init__()
        self.make = make

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        stored: dict[int, dict[str, Tensor]] = {}
        for key, value in state_dict.items():
            if key.startswith(prefix):
                index, _, name = key.removeprefix(prefix).partition(".")
                stored.setdefault(int(index), {})[name] = value
        theirs = [{name: v.shape for name, v in stored[index].items()} for index in sorted(stored)]
        if theirs != [{name: v.shape for name, v in part.state_dict().items()} for part in self]:
            del self[:]
            self.extend(self.make(stored[index]) for index in sorted(stored))
        super()._load_from_state_dict(state_dict, prefix, *rest)
