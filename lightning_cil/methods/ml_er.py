"""`MLER`: experience replay with multi-label exemplars.

Source: the "ER" rows of Du et al., Rebalancing Multi-Label Class-Incremental Learning (RebLL),
https://arxiv.org/abs/2408.12161, tables 1 and 2, after Chaudhry et al., https://arxiv.org/abs/1902.10486; its loss is
RebLL's Eq. 1. Memory: a reservoir of 2 exemplars for each class of the stream by default (RebLL on VOC; 5 on COCO).

| equation | function |
|---|---|
| Eq. 1 on current images and exemplars together, over the labels that each one's own task annotated | `known_bce` |

Departure from the online form: samples are offered to the reservoir once, at the end of their task.
"""

import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_cil.callbacks import ReplayBuffer
from lightning_cil.losses import known_bce
from lightning_cil.methods._multilabel import EXEMPLARS_PER_CLASS, MultiLabelModule
from lightning_cil.types import Batch


class MLER(MultiLabelModule):
    """Experience replay with the labels that are known (ER row of RebLL's table 1, Eq. 1, https://arxiv.org/abs/2408.12161); needs `ReplayBuffer`.

    Its arguments are those of `MultiLabelModule`.
    """  # noqa: E501

    def required_callbacks(self) -> list[Callback]:
        """The memory."""
        return [ReplayBuffer(per_class=EXEMPLARS_PER_CLASS, repeat=False)]

    def terms(self, batch: Batch, logits: Tensor, replay_logits: Tensor | None) -> dict[str, Tensor]:
        """Binary cross-entropy on new images and exemplars together."""
        if replay_logits is None:
            return {"bce": self.known_bce(batch, logits)}
        seen = logits.shape[1]
        target = torch.cat([batch["target"], batch["replay_target"]])[:, :seen]
        known = torch.cat([batch["known"], batch["replay_known"]])[:, :seen]
        return {"bce": known_bce(torch.cat([logits, replay_logits]), target, known, reduction=self.reduction)}
