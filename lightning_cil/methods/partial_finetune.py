"""`PartialFineTune`: trains a part of AudioCLIP's towers on each task in turn. The paper's partial fine-tuning row.

Source: the "Partial fine-tuning" rows of Chen et al., Leveraging Pre-Trained Models for Multimodal Class-Incremental
Learning under Adaptive Fusion, 2025, tables I and III, https://arxiv.org/abs/2506.09999; no equation, no settings:
which part, the learning rate and the epochs are our choices. Memory: none.

| term | function |
|---|---|
| cross-entropy over the classes seen | `MultimodalModule.cross_entropy` |
| AudioCLIP's term for the wavelets, where they are trained | `FBSP.norm_loss` |
"""

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_cil.methods._multimodal import ONE_TEMPLATE, CeScope, MultimodalModule, Predict, Scope, ScoreOptions
from lightning_cil.networks import MIFE
from lightning_cil.networks.audioclip import Prompts, Towers
from lightning_cil.types import Batch, Scenario


def _one_pair(rank: int, scale: float) -> MIFE:
    """A mixture of one LoRA expert, whose gate is 1."""
    if rank < 1 or not scale > 0:
        raise ValueError(f"got `lora_rank={rank}`, `lora_scale={scale}`; expected at least 1, and a positive number.")
    return MIFE(num_experts=1, top_k=1, rank=rank, scale=scale, noisy=False, dropout=0.0)


class PartialFineTune(MultimodalModule):
    """Trains the last layers of AudioCLIP's towers (rows of Chen et al. 2025, no equation, https://arxiv.org/abs/2506.09999).

    Args:
        towers: See `MultimodalModule`.
        prompts: See `MultimodalModule`. Default: the bare name.
        predict: See `MultimodalModule`.
        scenario: See `IncrementalModule`.
        epochs: Passes over each task's data.
        optimizer: See `IncrementalModule`.
        lr_scheduler: See `IncrementalModule`.
        scope: What is trained: `last_block`: the last block and the projection of image and text tower, the audio
            tower's last layer; `audio`: the audio tower, as AudioCLIP's own partial training; `image`; `text`; `all`;
            or patterns of the towers' parameter names.
        first_task_scope: The same in the first task; for towers that start from random values.
        lora_rank: Rank of a LoRA pair beside every MLP of image and text tower, trained as well; `None`: there is none.
            `scope: none` trains nothing else. `save_peft(module.mixtures, folder)` writes them in PEFT's format.
        lora_scale: Factor of the pairs' outputs, above 0.
        filter_norm_weight: Of the squared distance of the front end's wavelets from norm 1 while they are trained, at
            least 0; AudioCLIP adds it with weight 1.
        ce_scope: Classes of the softmax: `seen`: all so far; `new`: the current task's.
        cache_audio: See `MultimodalModule`.
        scores: See `MultimodalModule`.

    Raises:
        ValueError: For a negative weight, or a rank or factor that is not positive.
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
        lora_rank: int | None = None,
        lora_scale: float = 1.0,
        filter_norm_weight: float = 1.0,
        ce_scope: CeScope = "seen",
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
            mife=_one_pair(lora_rank, lora_scale) if lora_rank is not None else None,
            ce_scope=ce_scope,
            cache_audio=cache_audio,
            scores=scores,
        )
        if filter_norm_weight < 0:
            raise ValueError(f"`filter_norm_weight={filter_norm_weight}`: expected at least 0; AudioCLIP has 1.")
        self.filter_norm_weight = filter_norm_weight

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy on the current task."""
        loss = self.cross_entropy(batch)
        fbsp = self.backbone.audio.fbsp if self.backbone.audio.front_end == "fbsp" else None
        if self.filter_norm_weight and fbsp is not None and any(p.requires_grad for p in fbsp.parameters()):
            loss = loss + self.filter_norm_weight * fbsp.norm_loss()
        self.log_terms(loss=loss)
        return loss
