"""What heads share that are networks of their own: task sizes, seeds, and how a checkpoint's sizes are taken."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cil._random import fold_seed
from lightning_cil.networks.heads import slices_of


class GrowingNetwork(nn.Module, ABC):
    """Base of heads that grow in several places at once.

    A subclass makes what does not grow in its `__init__`, and draws whatever a task adds from `generator(task)`. New
    values are then a function of the seed and the task only, as those of `LinearHead` are. Growing replaces parameters,
    so optimizers are built afterwards.

    `load_state_dict` takes the task sizes of the checkpoint.

    Args:
        seed: Of new values.

    Attributes:
        sizes: long `[tasks]`, classes of each task (buffer).
    """

    sizes: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._task_sizes: list[int] = []  # the buffer's values, which on a GPU would cost a synchronisation to read
        self.register_buffer("sizes", torch.zeros(0, dtype=torch.long))

    @property
    def seed(self) -> int:
        """Of new values; set by a stream before its first task."""
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._seed = seed

    @property
    def num_classes(self) -> int:
        """Outputs of all tasks so far."""
        return sum(self._task_sizes)

    def task_slices(self) -> list[slice]:
        """The columns of each task in the logits, in task order."""
        return slices_of(self._task_sizes)

    def grow(self, num_new: int) -> None:
        """Add the outputs of one more task; what belongs to earlier ones stays bit for bit.

        Args:
            num_new: Classes of the task, at least 1.

        Raises:
            ValueError: If `num_new` is below 1.
        """
        if num_new < 1:
            raise ValueError(
                f"{type(self).__name__} got {num_new} classes for task {len(self._task_sizes)}, expected at least 1: "
                "a task without classes is left out of the stream."
            )
        self._grow(len(self._task_sizes), num_new)
        self._task_sizes.append(num_new)
        self.sizes = torch.tensor(self._task_sizes, dtype=torch.long, device=self.sizes.device)

    def preview(self, features: Tensor, sizes: Sequence[int]) -> Tensor:
        """Refuse: outputs to come depend on the classes that are there."""
        raise NotImplementedError(f"{type(self).__name__} has no outputs for tasks to come.")

    def generator(self, task: int) -> torch.Generator:
        """For what `task` adds; on the CPU, apart from the global random state."""
        stream = int.from_bytes(type(self).__name__.encode()[:8], "big")
        return torch.Generator("cpu").manual_seed(fold_seed(self._seed, stream, task))

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"sizes={self._task_sizes}, seed={self._seed}"

    @abstractmethod
    def _grow(self, task: int, num_new: int) -> None:
        """Add what a task needs; device, dtype and `requires_grad` of what grows are kept."""

    @abstractmethod
    def _shrink(self) -> None:
        """Drop all outputs."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Grow to the checkpoint's sizes; what grows then takes its values."""
        stored = state_dict.get(f"{prefix}sizes")
        if isinstance(stored, Tensor) and stored.tolist() != self._task_sizes:
            sizes = stored.tolist()
            if sizes[: len(self._task_sizes)] != self._task_sizes:
                self._shrink()
                self._task_sizes = []
            for size in sizes[len(self._task_sizes) :]:
                self.grow(size)
            self.sizes = self.sizes.new_tensor(sizes)
        super()._load_from_state_dict(state_dict, prefix, *args)


def grown(old: nn.Parameter, values: Tensor) -> nn.Parameter:
    """A parameter with new values on the device, in the dtype and as trainable as the old one was."""
    return nn.Parameter(values.to(old.device, old.dtype), requires_grad=old.requires_grad)
