"""`MMLwF`: Learning without Forgetting on AudioCLIP; the old model's scores of new samples are kept by distillation.

Paper: Li and Hoiem, Learning without Forgetting, ECCV 2016, https://arxiv.org/abs/1606.09282, Eq. 1-4; the "LwF" rows
of Chen et al. 2025, table I, https://arxiv.org/abs/2506.09999, which give no settings. Memory: none beside the old
model during a task.

| equation | function |
|---|---|
| Eq. 1, cross-entropy | `MultimodalModule.training_logits`, `cross_entropy_over` |
| Eq. 2-4, distillation over the old classes, T = 2 | T² `soft_cross_entropy` |

The factor T², without which the gradients fall with the temperature, is that of Hinton et al. 2015 and of MoE-Adapters.
"""

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_cil.callbacks import Teacher
from lightning_cil.losses import cross_entropy_over, soft_cross_entropy
from lightning_cil.methods._multimodal import ONE_TEMPLATE, MultimodalModule, Predict, Scope, ScoreOptions
from lightning_cil.networks.audioclip import Prompts, Towers
from lightning_cil.types import Batch, Scenario


class MMLwF(MultimodalModule):
    """LwF on AudioCLIP's towers (Li and Hoiem 2016, Eq. 1-4, https://arxiv.org/abs/1606.09282); no exemplars.

    Args:
        towers: See `MultimodalModule`.
        prompts: See `MultimodalModule`. Default: the bare name.
        predict: See `MultimodalModule`.
        scenario: See `IncrementalModule`.
        epochs: Passes over each task's data.
        optimizer: See `IncrementalModule`.
        lr_scheduler: See `IncrementalModule`.
        scope: What of the towers is trained, see `PartialFineTune`.
        first_task_scope: The same in the first task; for towers that start from random values.
        distillation_weight: λ, times T², at least 0 (Mammoth's α: 0.5).
        temperature: T > 0 of the distillation (the paper: 2).
        cache_audio: See `MultimodalModule`.
        scores: See `MultimodalModule`.

    Raises:
        ValueError: For a negative weight, or a temperature that is not positive.
    """

    def __init__(
        self,
        *,
        towers: str | Towers = "vit_b16",
        prompts: Prompts = ONE_TEMPLATE,
        predict: Predict = "sum",
        scenario: Scenario = "class_il",
        epochs: int = 10,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-5),
        lr_scheduler: LRSchedulerCallable | None = None,
        scope: Scope = "last_block",
        first_task_scope: Scope | None = None,
        distillation_weight: float = 0.5,
        temperature: float = 2.0,
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
            scope=scope,
            first_task_scope=first_task_scope,
            cache_audio=cache_audio,
            scores=scores,
        )
        if distillation_weight < 0 or temperature <= 0:
            raise ValueError(
                f"got `distillation_weight={distillation_weight}`, `temperature={temperature}`; expected a weight of "
                "at least 0, and a positive temperature; the paper uses 2."
            )
        self.distillation_weight = distillation_weight
        self.temperature = temperature

    def required_callbacks(self) -> list[Callback]:
        """The old model."""
        return [Teacher()]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy over all classes so far, and distillation over the old ones."""
        assert self.task is not None
        logits, _ = self.training_logits(self.features(*self.inputs(batch)))
        new_loss = cross_entropy_over(logits, batch["target"], 0, logits.shape[1])
        if "teacher_logits" not in batch:
            self.log_terms(new_loss=new_loss)
            return new_loss
        old_loss = soft_cross_entropy(logits[:, : self.task.num_old], batch["teacher_logits"], self.temperature)
        self.log_terms(new_loss=new_loss, old_loss=old_loss)
        return new_loss + self.distillation_weight * self.temperature**2 * old_loss
