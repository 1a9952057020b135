"""`ICaRL`: exemplars chosen by herding, distillation, and classification by the nearest mean of exemplars (NME).

Paper: Rebuffi, Kolesnikov, Sperl, Lampert, iCaRL: Incremental Classifier and Representation Learning, 2017,
https://arxiv.org/abs/1611.07725; no equation has a number. Memory: 2,000 exemplars in all, the paper's on CIFAR-100
and the Class-IL budget of NFL's tables.

| paper | function |
|---|---|
| Algorithm 3, `loss='binary'`: binary cross-entropy, the old model's sigmoids as targets | `icarl_binary_terms` |
| PyCIL's form (no equation), `loss='softmax'`: cross-entropy + distillation | `icarl_softmax_terms` |
| Algorithms 4 and 5: herding, exemplars cut to ⌊K/C⌋ a class | `ReplayBuffer(selection='herding')` |
| Algorithm 1: nearest mean of exemplars | `class_means`, `nearest_mean_scores` |

Departures. Every batch of new data is joined by exemplars (`ReplayBuffer(batch_size=…)`), while the paper shuffles
them into the task's data once. The budget's remainder goes to the first classes. A class that loses its exemplars,
with a budget below the number of classes, keeps the mean that it had when it was learned (results: `nme_fallback`).
The binary form takes all classes of the stream as outputs from the start, unseen ones as negatives, as the authors'
script does; `full_head=False` has outputs of the classes seen, as the paper. Their script averages the means with those
of mirrored images: `mirrored_means=True`. Their rule of herding is `ReplayBuffer(selection='herding_inner_product')`.

While a task is trained, the means are those of the task before, so that validation uses the linear head. Classes
without a mean, all future ones among them, are never predicted: NME has no forward transfer, and its accuracy on tasks
to come is 0 in both scenarios, which PS reads.
"""

from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil.losses import icarl_binary_terms, icarl_softmax_terms
from lightning_cil.methods._exemplars import joined, joined_teacher_logits
from lightning_cil.methods._first_task import FirstTask
from lightning_cil.methods._nearest_mean import NearestMean
from lightning_cil.methods.base import HeadKind
from lightning_cil.networks import Backbone
from lightning_cil.types import Batch, Scenario, Stage, Task

Loss = Literal["binary", "softmax"]
Classifier = Literal["nme", "linear"]


class ICaRL(NearestMean):
    """iCaRL (Rebuffi et al. 2017, no equation, Algorithms 1-5, https://arxiv.org/abs/1611.07725); needs `ReplayBuffer`.

    Args:
        backbone: See `IncrementalModule`.
        head: See `IncrementalModule`.
        scenario: See `IncrementalModule`; iCaRL trains both alike, Task-IL compares the task's means only.
        epochs: Passes over each task's data (the paper: 70 on CIFAR-100).
        optimizer: See `IncrementalModule`. Default: lr 2, momentum 0.9, weight decay 1e-5 for the binary loss (the
            authors' for CIFAR-100: a mean over 100 outputs; lower it for fewer); lr 0.1, weight decay 5e-4 for the
            softmax loss (PyCIL).
        lr_scheduler: See `IncrementalModule`. The authors divide by 5 after 49 and 63 of 70 epochs.
        loss: `binary`: the paper's; `softmax`: PyCIL's, who found it to score better.
        distillation_weight: Weight of the distillation of the softmax loss, at least 0 (PyCIL: 1).
        temperature: T > 0 of the distillation of the softmax loss (PyCIL: 2).
        classifier: What predicts: `nme`: the nearest mean of exemplars; `linear`: the head. The other one's scores are
            in `results.json` as `other_classifier`.
        mirrored_means: Average each class mean with that of the mirrored images (the authors' script).
        first_epochs: Passes over the first task's data; `None`: as many as `epochs` (PyCIL: 200, then 170).
        first_weight_decay: Weight decay of the first task in place of the optimizer's, at least 0; `None`: the
            optimizer's (PyCIL: 5e-4, then 2e-4).
        first_lr_scheduler: Of the first task; `None`: `lr_scheduler`.
        full_head: Outputs of all classes from the first task on, unseen ones being negatives of the binary loss.
            Default: for this loss (the authors' script), not for the other, which it does not suit.
    """

    def __init__(
        self,
        *,
        backbone: str | Backbone | nn.Module = "resnet32",
        head: HeadKind = "linear",
        scenario: Scenario = "class_il",
        epochs: int = 70,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        loss: Loss = "binary",
        distillation_weight: float = 1.0,
        temperature: float = 2.0,
        classifier: Classifier = "nme",
        mirrored_means: bool = False,
        first_epochs: int | None = None,
        first_weight_decay: float | None = None,
        first_lr_scheduler: LRSchedulerCallable | None = None,
        full_head: bool | None = None,
    ) -> None:
        if loss not in ("binary", "softmax"):
            raise ValueError(f"`loss={loss!r}`: expected 'binary' or 'softmax'.")
        super().__init__(
            backbone=backbone,
            head=head,
            scenario=scenario,
            epochs=epochs,
            optimizer=optimizer or (_binary_sgd if loss == "binary" else _softmax_sgd),
            lr_scheduler=lr_scheduler,
            classifier=classifier,
            head_classifier="linear",
            mirrored_means=mirrored_means,
        )
        if distillation_weight < 0:
            raise ValueError(f"`distillation_weight={distillation_weight}`: expected at least 0.")
        if temperature <= 0:
            raise ValueError(f"`temperature={temperature}`: expected a positive number; PyCIL uses 2.")
        if full_head and loss == "softmax":
            raise ValueError(
                "`full_head=True` with `loss='softmax'`: its softmax runs over the classes seen. Give `loss='binary'`, "
                "or leave `full_head` out."
            )
        self.first_task = FirstTask(first_epochs, first_weight_decay, first_lr_scheduler)
        self.loss: Loss = loss
        self.distillation_weight = distillation_weight
        self.temperature = temperature
        self.full_head = loss == "binary" if full_head is None else full_head

    def stages(self, task: Task) -> list[Stage]:
        """One stage; the first task can have settings of its own."""
        return [self.first_task.stage(self)] if task.is_first else super().stages(task)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Classification and distillation on new samples and exemplars together."""
        assert self.task is not None
        target = joined(batch, "target")
        logits = self(joined(batch, "image"))
        teacher = joined_teacher_logits(batch, self.task.num_old, logits)
        if self.loss == "binary":
            terms = icarl_binary_terms(logits, teacher, target)
        else:
            terms = icarl_softmax_terms(
                logits,
                teacher,
                target,
                distillation_weight=self.distillation_weight,
                temperature=self.temperature,
            )
        self.log_terms(**terms)
        return torch.stack(list(terms.values())).sum()


def _binary_sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=2.0, momentum=0.9, weight_decay=1e-5)


def _softmax_sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=5e-4)
