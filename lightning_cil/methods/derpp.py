"""`DERPlusPlus`: Dark Experience Replay++. Exemplars keep their labels and the logits they had when they were stored.

Paper: Buzzega, Boschini, Porrello, Abati, Calderara, Dark Experience for General Continual Learning: a Strong, Simple
Baseline, NeurIPS 2020, https://arxiv.org/abs/2004.07211, in the form of its code,
https://github.com/aimagelab/mammoth, `models/derpp.py`; no equation is cited by number. Memory: 2,000 exemplars in all
by default, with a logit for each class of the stream.

| term | function |
|---|---|
| CE(y, z(x)) + α ‖z(x') - z'‖² + β CE(y'', z(x'')), x' and x'' drawn independently | `derpp_terms` |
| reservoir of every batch of every epoch, offered after its step | `ReplayBuffer(update='batch', num_draws=2)` |
| z': the logits of the augmented image before the step | `ReplayBuffer(columns=['logits'])` |

As in the code, each of the three batches is a forward of its own, exemplars are stored without augmentation and
augmented anew when drawn, and the head has the outputs of all classes from the start. Departures: predictions are
among the classes seen (the code's are among all); `full_head=False` lets the head grow, and logits are compared in the
columns that existed when they were stored.
"""

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil.callbacks import ReplayBuffer
from lightning_cil.losses import cross_entropy_over, derpp_terms
from lightning_cil.methods.base import HeadKind, IncrementalModule
from lightning_cil.networks import Backbone
from lightning_cil.types import Batch, Scenario

DEFAULT_MEMORY = 2000
LOGITS = "logits"


class DERPlusPlus(IncrementalModule):
    """Dark Experience Replay++ (Buzzega et al. 2020, no equation, https://arxiv.org/abs/2004.07211); needs `ReplayBuffer`.

    Args:
        backbone: See `IncrementalModule`.
        head: See `IncrementalModule`.
        scenario: See `IncrementalModule`; DER++ trains both alike.
        epochs: Passes over each task's data. Default: 50, the authors' for CIFAR.
        optimizer: See `IncrementalModule`. Default: lr 0.03 without momentum and weight decay (the authors').
        lr_scheduler: See `IncrementalModule`. The authors divide by 10 after 35 and 45 of 50 epochs on CIFAR-100.
        alpha: α, weight of the stored logits, at least 0. Default: 0.1 (the authors' for CIFAR-100).
        beta: β, weight of the exemplars' labels, at least 0. Default: 0.5 (the authors' for CIFAR-100).
        full_head: Outputs of all the stream's classes from the first task on, each in every softmax; otherwise the head
            grows with the tasks.
    """  # noqa: E501

    def __init__(
        self,
        *,
        backbone: str | Backbone | nn.Module = "resnet32",
        head: HeadKind = "linear",
        scenario: Scenario = "class_il",
        epochs: int = 50,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.03),
        lr_scheduler: LRSchedulerCallable | None = None,
        alpha: float = 0.1,
        beta: float = 0.5,
        full_head: bool = True,
    ) -> None:
        super().__init__(
            backbone=backbone,
            head=head,
            scenario=scenario,
            epochs=epochs,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        if min(alpha, beta) < 0:
            raise ValueError(f"got `alpha={alpha}`, `beta={beta}`; expected weights of at least 0.")
        self.alpha = alpha
        self.beta = beta
        self.full_head = full_head

    def required_callbacks(self) -> list[Callback]:
        """The memory."""
        return [ReplayBuffer(total=DEFAULT_MEMORY, update="batch", columns=[LOGITS], num_draws=2)]

    def on_train_start(self) -> None:
        """Refuse a memory without logits or with one draw a step.

        Raises:
            ValueError: For such a memory.
        """
        check_memory(self)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The loss, and the logits to be stored with the batch."""
        assert self.task is not None
        logits = self(batch["image"])
        if "replay_image" in batch:
            columns = logits.shape[1]
            terms = derpp_terms(
                logits,
                batch["target"],
                self(batch["replay_image"]),
                batch["replay_logits"][:, :columns],
                self(batch["replay2_image"]),
                batch["replay2_target"],
                alpha=self.alpha,
                beta=self.beta,
                stored_width=None if self.full_head else self._end_class[batch["replay_task"]],
            )
        else:
            terms = {"cross_entropy": cross_entropy_over(logits, batch["target"], 0, logits.shape[1])}
        self.log_terms(**terms)
        loss = torch.stack(list(terms.values())).sum()
        return {"loss": loss, LOGITS: stored_rows(logits, self.tasks[-1].num_seen)}


def check_memory(module: IncrementalModule) -> None:
    """Refuse a memory without logits or with one draw a step.

    Raises:
        ValueError: For such a memory.
    """
    callbacks: list[Callback] = module.trainer.callbacks  # type: ignore[attr-defined]
    for memory in (c for c in callbacks if isinstance(c, ReplayBuffer)):
        if LOGITS not in memory.columns or memory.num_draws < 2:
            raise ValueError(
                f"`ReplayBuffer` got `update={memory.update!r}`, `columns={memory.columns}`, "
                f"`num_draws={memory.num_draws}`; {type(module).__name__} needs `update='batch'`, "
                "`columns=['logits']`, `num_draws=2`. Give these, or take the callback out, and it is added."
            )


def stored_rows(logits: Tensor, num_classes: int) -> Tensor:
    """Logits as they are stored: rows of one width, whatever the head has at the time; float32 `[B, num_classes]`."""
    return F.pad(logits.detach().float(), (0, num_classes - logits.shape[1]))
