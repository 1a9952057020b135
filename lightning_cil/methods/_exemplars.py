"""New samples and exemplars as one batch."""

from typing import Any, Literal, cast

import torch
from torch import Tensor

from lightning_cil.methods.base import IncrementalModule
from lightning_cil.types import Batch


def joined(batch: Batch, key: Literal["image", "target", "task", "teacher_logits"]) -> Tensor:
    """A key's rows of the new samples, then those of the exemplars, if there are any."""
    values = cast(dict[str, Any], batch)
    own: Tensor = values[key]
    return torch.cat([own, values[f"replay_{key}"]]) if f"replay_{key}" in values else own


def joined_teacher_logits(batch: Batch, num_old: int, logits: Tensor) -> Tensor:
    """The old model's logits `[rows, num_old]` for `joined` images; `[rows, 0]`, as `logits` are, without a teacher."""
    if "teacher_logits" not in batch:
        return logits.new_zeros(len(logits), 0)
    return joined(batch, "teacher_logits")[:, :num_old]


def joined_inputs(module: IncrementalModule, batch: Batch) -> tuple[Tensor, ...]:
    """What `features` takes of the new samples, then of the exemplars, if there are any; see `inputs`."""
    own = module.inputs(batch)
    if "replay_image" not in batch:
        return own
    return tuple(torch.cat(parts) for parts in zip(own, module.inputs(batch, "replay_"), strict=True))
