"""`MoEClip`: mixtures of adapters in the image and text towers, the audio tower frozen.

Source: the "MoE-CLIP" rows of Chen et al. 2025, https://arxiv.org/abs/2506.09999, on Yu et al., Boosting Continual
Learning of Vision-Language Models via Mixture-of-Experts Adapters, 2024, https://arxiv.org/abs/2403.11549, Eq. 1-4,
with the class-incremental set-up of its code. Memory: none.

| code of MoE-Adapters (`cil/`) | here |
|---|---|
| 2 experts of rank 64, both used, one router that reads token 0, nothing is frozen later | `MIFE.moe_clip()` |
| cross-entropy over the current task's names | `ce_scope='new'` |
| "a bad photo of a {}." | `prompts` |
| 30 steps of warm-up, then half a cosine over the task's steps | `warmup_steps` |

Departure: the router's noise acts in training only.
"""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_cil.methods._multimodal import CeScope, MultimodalModule, Predict, Scope, ScoreOptions
from lightning_cil.networks import MIFE
from lightning_cil.networks.audioclip import Prompts, Towers
from lightning_cil.schedulers import FractionCosineLR
from lightning_cil.types import Batch, Scenario

_MOE_CLIP = MIFE.moe_clip()
_BAD_PHOTO = Prompts(templates=["a bad photo of a {}."])


class MoEClip(MultimodalModule):
    """Mixtures of adapters in CLIP, with sounds (Yu et al. 2024, Eq. 1-4, https://arxiv.org/abs/2403.11549).

    Args:
        towers: See `MultimodalModule`.
        prompts: See `MultimodalModule`. Default: the code's "a bad photo of a {}.".
        mife: The mixtures. Default: `MIFE.moe_clip()`.
        predict: See `MultimodalModule`.
        scenario: See `IncrementalModule`.
        epochs: Passes over each task's data (the code: 1).
        optimizer: See `IncrementalModule`. Default: AdamW, lr 1e-3, no weight decay (the code).
        lr_scheduler: See `IncrementalModule`; in place of the code's, see `warmup_steps`.
        warmup_steps: Steps of a task in which the learning rate rises, at least 0; then it falls along half a cosine,
            step by step (the code: 30). `None`: it stays, or follows `lr_scheduler`.
        first_task_scope: What of the towers is trained in the first task besides; for towers that start from random
            values.
        ce_scope: Classes of the softmax: `new`: the current task's (the code); `seen`: all so far.
        cache_audio: See `MultimodalModule`.
        scores: See `MultimodalModule`.

    Raises:
        ValueError: For a negative number of steps.
    """

    def __init__(
        self,
        *,
        towers: str | Towers = "vit_b16",
        prompts: Prompts = _BAD_PHOTO,
        mife: MIFE = _MOE_CLIP,
        predict: Predict = "sum",
        scenario: Scenario = "class_il",
        epochs: int = 1,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = None,
        warmup_steps: int | None = 30,
        first_task_scope: Scope = "none",
        ce_scope: CeScope = "new",
        cache_audio: bool = True,
        scores: ScoreOptions | None = None,
    ) -> None:
        super().__init__(
            towers=towers,
            prompts=prompts,
            predict=predict,
            scenario=scenario,
            epochs=epochs,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            first_task_scope=first_task_scope,
            mife=mife,
            ce_scope=ce_scope,
            cache_audio=cache_audio,
            scores=scores,
        )
        if warmup_steps is not None and warmup_steps < 0:
            raise ValueError(f"`warmup_steps={warmup_steps}`: expected at least 0, or null.")
        self.warmup_steps = warmup_steps

    def configure_optimizers(self) -> Any:
        """As `IncrementalModule`'s, or with the code's schedule over the steps of the stage."""
        optimizer = super().configure_optimizers()
        if self.lr_scheduler is not None or self.warmup_steps is None:
            return optimizer
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = FractionCosineLR(optimizer, warmup=min(self.warmup_steps, steps - 1) / steps)
        schedule.set_num_epochs(steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy on the current task."""
        loss = self.cross_entropy(batch)
        self.log_terms(loss=loss)
        return loss
