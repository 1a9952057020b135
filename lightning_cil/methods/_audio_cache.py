"""`AudioCache`: what a frozen audio tower makes of every clip, computed once."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_cil.callbacks.gather import gather_columns
from lightning_cil.networks import evaluating
from lightning_cil.networks.audioclip import AudioCLIP

_CLIPS = 32
"""That go through the tower at once."""


class AudioCache:
    """Features of all clips of a data set, by the numbers that batches have under `clip`.

    Not saved: a resumed run computes them again, from the same weights in the same order. Copies of a module share it.

    Attributes:
        table: float `[clips, audio_dim]`; `None`: nothing is kept.
        clip_of: long `[samples]`: the clip of each training sample, where the table is.
    """

    def __init__(self) -> None:
        self.table: Tensor | None = None
        self.clip_of = torch.empty(0, dtype=torch.int64)

    def clear(self) -> None:
        """Forget the features: the tower has changed, or will."""
        self.table = None

    def fill(self, trainer: Trainer, towers: AudioCLIP) -> None:
        """Compute the features of all clips, each rank its share, if they are not there. A collective."""
        if self.table is not None:
            return
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        clips = datamodule.clips()
        device = towers.logit_scale.device
        parts: list[tuple[Tensor, ...]] = []
        chunks = torch.split(torch.arange(len(clips)), _CLIPS)
        with torch.inference_mode(False), evaluating(towers), trainer.precision_plugin.forward_context():
            for number in range(trainer.global_rank, len(chunks), trainer.world_size):
                wave = datamodule.transform_audio(clips.load(chunks[number]).to(device))
                parts.append((chunks[number], towers.encode_audio(wave).float().cpu()))
            empty = (torch.empty(0, dtype=torch.int64), torch.empty(0, towers.audio_dim))
            _, table = gather_columns(trainer, parts or [empty])
            self.table = table.to(device)
            self.clip_of = datamodule.split("train").sounds.index.to(device)

    def __deepcopy__(self, memo: dict[int, Any]) -> "AudioCache":
        return self
