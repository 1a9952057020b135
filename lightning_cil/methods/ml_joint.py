"""`MLJoint`: train on all images with all labels at once. The upper bound of multi-label streams.

Source: the "Joint" rows of Du et al., Rebalancing Multi-Label Class-Incremental Learning (RebLL),
https://arxiv.org/abs/2408.12161, tables 1 and 2; its loss is Eq. 1. Memory: all data.

One training, when the last task has come, on every image once with the labels of all classes; the matrix has only its
last row, averages over tasks are undefined.

| equation | function |
|---|---|
| Eq. 1: binary cross-entropy over all classes | `known_bce` |
"""

from torch import Tensor

from lightning_cil.methods._multilabel import MultiLabelModule
from lightning_cil.types import Batch, Stage, Task


class MLJoint(MultiLabelModule):
    """One multi-label training on all data, the upper bound (Joint row of RebLL's table 1, Eq. 1, https://arxiv.org/abs/2408.12161).

    Its arguments are those of `MultiLabelModule`.
    """

    uses_exemplars = False

    def stages(self, task: Task) -> list[Stage]:
        """One stage on all data, when the last task has come."""
        return [self.stage_of(task, "joint", data="seen")] if task.is_last else []

    def terms(self, batch: Batch, logits: Tensor, replay_logits: Tensor | None) -> dict[str, Tensor]:
        """Binary cross-entropy over all classes."""
        return {"bce": self.known_bce(batch, logits)}  # Eq. 1
