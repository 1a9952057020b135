"""`ZeroShotAudioCLIP`: the towers as they are, nothing is trained.

Source: the "Zero-shot" rows of Chen et al., Leveraging Pre-Trained Models for Multimodal Class-Incremental Learning
under Adaptive Fusion, 2025, table I, https://arxiv.org/abs/2506.09999; no equation. The score is that of Guzhov et al.,
AudioCLIP, 2021, https://arxiv.org/abs/2106.13043. Memory: none.
"""

import torch
from torch import Tensor

from lightning_cil.methods._multimodal import ONE_TEMPLATE, MultimodalModule, Predict, ScoreOptions
from lightning_cil.networks.audioclip import Prompts, Towers
from lightning_cil.types import Batch, Scenario, Stage, Task


class ZeroShotAudioCLIP(MultimodalModule):
    """AudioCLIP without training (rows of Chen et al. 2025, no equation, https://arxiv.org/abs/2506.09999).

    Args:
        towers: See `MultimodalModule`.
        prompts: See `MultimodalModule`. Default: the bare name.
        predict: See `MultimodalModule`; each of the three is a row worth reporting, as P need not align sounds.
        scenario: See `IncrementalModule`.
        cache_audio: See `MultimodalModule`.
        scores: See `MultimodalModule`.
    """

    always_evaluated = True

    def __init__(
        self,
        *,
        towers: str | Towers = "vit_b16",
        prompts: Prompts = ONE_TEMPLATE,
        predict: Predict = "sum",
        scenario: Scenario = "class_il",
        cache_audio: bool = True,
        scores: ScoreOptions | None = None,
    ) -> None:
        super().__init__(
            towers=towers,
            prompts=prompts,
            predict=predict,
            scenario=scenario,
            epochs=1,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
            lr_scheduler=None,
            cache_audio=cache_audio,
            scores=scores,
        )

    def stages(self, task: Task) -> list[Stage]:
        """None."""
        return []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Not called."""
        raise NotImplementedError("ZeroShotAudioCLIP trains nothing.")
