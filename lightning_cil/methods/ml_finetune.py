"""`MLFineTune`: train on the current task's labels only. The lower bound of multi-label streams.

Source: the "Fine-Tuning" rows of Du et al., Rebalancing Multi-Label Class-Incremental Learning (RebLL),
https://arxiv.org/abs/2408.12161, tables 1, 2 and 4; its loss is Eq. 1. Memory: none.

| equation | function |
|---|---|
| Eq. 1: binary cross-entropy over the current task's classes | `known_bce` |
"""

from torch import Tensor

from lightning_cil.methods._multilabel import MultiLabelModule
from lightning_cil.types import Batch


class MLFineTune(MultiLabelModule):
    """Plain multi-label training on each task in turn; forgets (Fine-Tuning row of RebLL's table 1, Eq. 1, https://arxiv.org/abs/2408.12161).

    Its arguments are those of `MultiLabelModule`.
    """

    uses_exemplars = False

    def terms(self, batch: Batch, logits: Tensor, replay_logits: Tensor | None) -> dict[str, Tensor]:
        """Binary cross-entropy over the current task's classes."""
        return {"bce": self.known_bce(batch, logits)}  # Eq. 1
