"""`RandomState`: the generators of all ranks, so that a resumed run draws what the uninterrupted one would."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_cil._random import fold_seed
from lightning_cil.callbacks.base import StreamCallback
from lightning_cil.callbacks.stream_state import stream_state
from lightning_cil.types import Stage, Task


class RandomState(StreamCallback):
    """Saves Python's, NumPy's, torch's and CUDA's generator states in every checkpoint.

    | hook | effect |
    |---|---|
    | `state_dict` | gathers the states of all ranks (a collective, as Lightning calls it on every rank) |
    | `on_train_start` | puts this rank's state back, once; a rank that the run did not have before is seeded anew |
    | `on_stage_start` | drops a state that no stage took up |
    """

    def __init__(self) -> None:
        self._pending: list[dict[str, Any]] | None = None

    @property
    def state_key(self) -> str:
        """One per trainer."""
        return "RandomState"

    def state_dict(self) -> dict[str, Any]:
        """States by rank, weights_only-safe."""
        version, internal, gauss = random.getstate()
        _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        own = {
            "python": [version, list(internal), gauss],
            "numpy": [
                torch.from_numpy(np.asarray(keys).astype(np.int64)),
                int(position),
                int(has_gauss),
                float(cached),
            ],
            "torch": torch.get_rng_state(),
            "cuda": [s.cpu() for s in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
        }
        states: list[Any] = [own]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            states = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, own)
        return {"ranks": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts."""
        self._pending = state_dict["ranks"]

    def on_stage_start(self, trainer: Trainer, module: LightningModule, task: Task, stage: Stage) -> None:
        """A checkpoint from the end of a stage left its state here; this stage has been seeded anew."""
        self._pending = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore this rank's generators."""
        states, self._pending = self._pending, None
        if states is None:
            return
        if trainer.global_rank >= len(states):
            state = stream_state(trainer)
            words = (state.seed, 2, state.task, state.stage) if state is not None else (0, 2)
            seed_generators(fold_seed(*words, trainer.global_rank, trainer.global_step))
            return
        saved = states[trainer.global_rank]
        version, internal, gauss = saved["python"]
        random.setstate((version, tuple(internal), gauss))
        keys, position, has_gauss, cached = saved["numpy"]
        np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
        torch.set_rng_state(saved["torch"])
        if saved["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(saved["cuda"][: torch.cuda.device_count()])


def seed_generators(seed: int) -> None:
    """Seed Python, NumPy, torch and CUDA."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
