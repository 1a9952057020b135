"""Columns of samples from all ranks, the same on every rank."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn


def gather_columns(trainer: Trainer, parts: Sequence[tuple[Tensor, ...]], shared: bool = True) -> list[Tensor]:
    """Join all batches of all ranks.

    Args:
        trainer: Gives the process group.
        parts: This rank's batches, each a tuple of columns `[B, …]`, the sample's index first.
        shared: Whether the ranks have shares of the samples; `False`: each has all of them.

    Returns:
        The columns on the CPU, sorted by index; none if no process has a batch.
    """
    own = [torch.cat(column).cpu() for column in zip(*parts, strict=True)]
    gathered: list[Any] = [own]
    if trainer.world_size > 1 and shared:
        gathered = [None] * trainer.world_size
        torch.distributed.all_gather_object(gathered, own)
    columns = [torch.cat(column) for column in zip(*(g for g in gathered if g), strict=True)]
    if not columns:
        return []
    order = columns[0].argsort(stable=True)
    return [column[order] for column in columns]


def equalise_buffers(trainer: Trainer, module: nn.Module) -> None:
    """Give all ranks rank 0's buffers. A collective.

    DDP sends rank 0's BatchNorm statistics before each step, so that ranks differ after the last one.
    """
    if trainer.world_size > 1:
        for buffer in module.buffers():
            values = buffer.contiguous()
            torch.distributed.broadcast(values, src=0)
            if values is not buffer:
                buffer.copy_(values)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        ctx.size = len(part)
        parts = [torch.empty_like(part) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        torch.distributed.all_reduce(total)
        start = torch.distributed.get_rank() * ctx.size
        return total[start : start + ctx.size]


def gather_batch(trainer: Trainer, part: Tensor) -> Tensor:
    """The rows of all ranks in order, with gradients, for losses that compare samples with one another.

    If every rank computes the loss of the whole batch, the mean of the ranks' gradients is that of one process.

    Args:
        trainer: Gives the process group.
        part: float or long `[B, …]`, as many rows on every rank.

    Returns:
        `[ranks * B, …]`.
    """
    if trainer.world_size == 1:
        return part
    gathered: Tensor = _Gather.apply(part)  # type: ignore[no-untyped-call]
    return gathered
