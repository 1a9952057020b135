"""`L2P`: learning to prompt, for multi-label streams. A frozen vision transformer, a pool of prompts, a head.

Paper: Wang, Zhang, Lee, Zhang, Sun, Ren, Su, Perot, Dy, Pfister, Learning to Prompt for Continual Learning, CVPR 2022,
https://arxiv.org/abs/2112.08654, from https://github.com/JH-LEE-KR/l2p-pytorch; no equation is cited. Memory: none.

| term | function |
|---|---|
| query, nearest keys, prompts in front of the patches | `PromptedTransformer` |
| loss of the labels, minus the cosines of the chosen keys | `terms` |

Departures: binary cross-entropy over the current task's classes in place of the softmax, 20 epochs with batch 64 (the
row of RebLL's table 3; the paper: 5 with batch 16); each image chooses its prompts for itself, also in training.
"""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil.losses import Reduction
from lightning_cil.methods._multilabel import MultiLabelModule, precise
from lightning_cil.networks import Backbone, PromptedTransformer, PromptPool, transformer_width
from lightning_cil.types import Batch, Stage, Task


class L2P(MultiLabelModule):
    """A prompt pool before a frozen transformer (Wang et al. 2022, no equation, https://arxiv.org/abs/2112.08654); no exemplars.

    Args:
        backbone: One of timm's vision transformers with a class token; it stays as it is. Give it weights. Default:
            ViT-B/16.
        epochs: See `MultiLabelModule`. Default: 20.
        optimizer: See `MultiLabelModule`. Default: Adam, lr 0.0075 (0.03 · 64/256), no weight decay.
        lr_scheduler: See `MultiLabelModule`.
        increment_lr: See `MultiLabelModule`.
        one_cycle: See `MultiLabelModule`.
        reduction: `mean`: over classes and batch; `sum`: over classes, then the mean over the batch.
        pool_size: Prompts in the pool (L2P: 10).
        prompt_length: Tokens of a prompt (L2P: 5).
        top_k: Prompts of an image, at most `pool_size` (L2P: 5).
        key_weight: Weight of the cosines, summed over the chosen keys, at least 0 (L2P: 0.1).

    Raises:
        ValueError: For a number out of range.
        TypeError: For another kind of backbone.
    """  # noqa: E501

    uses_exemplars = False

    def __init__(
        self,
        *,
        backbone: str | Backbone | nn.Module = "vit_base_patch16_224",
        epochs: int = 20,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=0.0075),
        lr_scheduler: LRSchedulerCallable | None = None,
        increment_lr: float | None = None,
        one_cycle: bool = False,
        reduction: Reduction = "mean",
        pool_size: int = 10,
        prompt_length: int = 5,
        top_k: int = 5,
        key_weight: float = 0.1,
    ) -> None:
        super().__init__(
            backbone=backbone,
            epochs=epochs,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            increment_lr=increment_lr,
            one_cycle=one_cycle,
            reduction=reduction,
        )
        if key_weight < 0:
            raise ValueError(f"`key_weight={key_weight}`: expected at least 0.")
        pool = PromptPool(transformer_width(self.backbone), pool_size, prompt_length, top_k)
        self.backbone = PromptedTransformer(self.backbone, pool)
        self.key_weight = key_weight

    def stages(self, task: Task) -> list[Stage]:
        """One stage on the pool and the head."""
        return [self.stage_of(task, "train", train=["backbone.pool.*", "head.*"])]

    def logits_together(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Logits of the images; the cosines of their keys join the batch."""
        features, cosines = self.through_backbone(batch["image"], with_cosines=True)
        extended: Any = batch
        extended["cosines"] = cosines
        return precise(self.head(features)), None

    def terms(self, batch: Batch, logits: Tensor, replay_logits: Tensor | None) -> dict[str, Tensor]:
        """BCE - key_weight Σ cos."""
        extended: Any = batch
        return {
            "bce": self.known_bce(batch, logits),
            "keys": -self.key_weight * precise(extended["cosines"]).sum(dim=1).mean(),
        }
