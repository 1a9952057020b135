"""Counts of what happened in training, exact over several processes and in checkpoints."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["StepCounter", "merge_counters"]


class StepCounter(nn.Module):
    """Whole numbers that forward passes add to.

    DDP copies the buffers of the first process to all others before each forward pass. So each process collects its own
    numbers in `pending`, and `merge_counters` adds those of all processes to `total` at the end of the step.

    Args:
        size: How many numbers.

    Attributes:
        total: long `[size]`, of all processes, up to the last merge; part of a checkpoint.
        pending: long `[size]`, of this process since then.
    """

    total: Tensor
    pending: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("pending", torch.zeros(size, dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def add(self, counts: Tensor) -> None:
        """Count in training mode; not again when gradient checkpointing repeats a forward pass.

        Args:
            counts: long `[size]`.
        """
        if self.training and torch._C._current_graph_task_id() == -1:  # -1: not within a backward pass
            self.pending += counts

    def widen(self, size: int) -> None:
        """Have more numbers, the new ones at the end and 0."""
        more = size - len(self.total)
        self.total = torch.cat([self.total, self.total.new_zeros(more)])
        self.pending = torch.cat([self.pending, self.pending.new_zeros(more)])

    def reset(self) -> None:
        """Start anew."""
        self.total.zero_()
        self.pending.zero_()


@torch.no_grad()
def merge_counters(module: nn.Module, reduce: Callable[[Tensor], Tensor] | None = None) -> None:
    """Add what is pending in every counter of a module to its total, with one collective; all processes must call it.

    Args:
        module: Holds the counters.
        reduce: Adds up a long tensor over the processes; not needed for one.
    """
    counters = [part for part in module.modules() if isinstance(part, StepCounter)]
    if not counters:
        return
    pending = torch.cat([counter.pending for counter in counters])
    everywhere = pending if reduce is None else reduce(pending)
    parts = torch.split(everywhere, [len(counter.total) for counter in counters])
    for counter, part in zip(counters, parts, strict=True):
        counter.total += part
        counter.pending.zero_()
