"""`NFL`: No Forgetting Learning. Each task is a round of steps that train one part of the network against another.

Paper: Vahedifar and Zhang, No Forgetting Learning: Memory-free Continual Learning, 2025,
https://arxiv.org/abs/2503.04638v2, Eq. 1-15 and Alg. 1. Memory: none beside the old model,
its heads and a copy of the body during a task.

| step | equation | trained | function |
|---|---|---|---|
| first task | Eq. 1-2 | everything | `cross_entropy_over` |
| 1, record H | Eq. 3 | nothing | `Teacher` |
| 2, warm-up | Eq. 4-5 | new head | `cross_entropy_over` |
| 3 | Eq. 6-7 | body, old heads | `nfl_step_terms` |
| 4 | Eq. 11-12 | body, new head | `nfl_step_terms` |
| 5, recompute H~ | Eq. 13 | nothing | `recomputed_logits` |
| 5 | Eq. 14-15 | everything | `nfl_final_terms` |

Departures, each an option. Step 3's superscript r reads "random", but a body that restarts forgets more than plain
training does, so `step3_init='warm'` goes on from the trained weights. The paper prints no weight, temperature, epochs
or learning rate: these defaults are ours; the epochs of steps 2 to 5 add up to the 170 of PyCIL's iCaRL. Which classes
share a softmax is left open: see `kd_scope` and `ce_scope`. H and H~ are by default those of the same augmented images;
`targets='recorded'` computes them once, without augmentation. "Each instance is encountered once" and "until
convergence" contradict one another; with one epoch a step, NFL visits each image four times in its own task.
"""

from typing import Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil.callbacks import Teacher
from lightning_cil.losses import nfl_final_terms
from lightning_cil.methods._round import NoForgetting
from lightning_cil.networks import Backbone
from lightning_cil.schedulers import FractionStepLR
from lightning_cil.types import Batch, Scenario


class NFL(NoForgetting):
    """No Forgetting Learning: parts of the network take turns (Vahedifar and Zhang 2025, Eq. 1-15, https://arxiv.org/abs/2503.04638v2).

    Args:
        backbone: See `IncrementalModule`.
        scenario: See `IncrementalModule`.
        epochs: Passes over the first task's data. This and all other epochs are ours; the paper gives none.
        optimizer: See `IncrementalModule`; each step has a fresh one. Default: lr 0.1, momentum 0.9, weight decay 2e-4.
        lr_scheduler: Of the first task and of steps 2 and 3. Default: a tenth at 50 % and at 75 % of each.
        tune_lr_scheduler: Of steps 4 and 5. `None`: constant.
        step2_epochs: Passes that train the new head alone; 0, here and below, leaves the step out.
        step3_epochs: Passes that train body and old heads, the new head frozen.
        step4_epochs: Passes that train body and new head, the old heads frozen.
        step5_epochs: Passes that train everything towards both kinds of targets.
        step2_lr_factor: Learning rate of step 2 as a multiple of the optimizer's, above 0.
        step3_lr_factor: The same of step 3.
        step4_lr_factor: The same of step 4.
        step5_lr_factor: The same of step 5.
        step3_init: `warm`: step 3 goes on from the trained body and old heads; `random`: it starts again from the
            weights that they had before their first training.
        lambda_: λ ≥ 0, weight of the cross-entropy in step 3.
        omega: ω ≥ 0, its weight in step 4.
        alpha: α in [0, 1], share of the old model's logits against the recomputed ones in step 5.
        beta: β ≥ 0, weight of the cross-entropy in step 5.
        temperature: p > 0 of all distillations (LwF: 2).
        ce_scope: Classes of the cross-entropy's softmax: `new`: the current task's; `seen`: all so far.
        kd_scope: `joint`: one softmax over all old classes; `per_head`: one for each old head, summed; `auto`: `joint`
            in Class-IL, `per_head` in Task-IL.
        targets: `online`: H and H~ of the same augmented images; `recorded`: of the images without augmentation,
            computed once.
    """

    def __init__(
        self,
        *,
        backbone: str | Backbone | nn.Module = "resnet32",
        scenario: Scenario = "class_il",
        epochs: int = 200,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=2e-4),
        lr_scheduler: LRSchedulerCallable | None = FractionStepLR,
        tune_lr_scheduler: LRSchedulerCallable | None = None,
        step2_epochs: int = 10,
        step3_epochs: int = 100,
        step4_epochs: int = 30,
        step5_epochs: int = 30,
        step2_lr_factor: float = 1.0,
        step3_lr_factor: float = 1.0,
        step4_lr_factor: float = 0.1,
        step5_lr_factor: float = 0.1,
        step3_init: Literal["warm", "random"] = "warm",
        lambda_: float = 1.0,
        omega: float = 1.0,
        alpha: float = 0.5,
        beta: float = 1.0,
        temperature: float = 2.0,
        ce_scope: Literal["new", "seen"] = "new",
        kd_scope: Literal["auto", "joint", "per_head"] = "auto",
        targets: Literal["online", "recorded"] = "online",
    ) -> None:
        super().__init__(
            backbone=backbone,
            scenario=scenario,
            epochs=epochs,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            tune_lr_scheduler=tune_lr_scheduler,
            step_epochs={2: step2_epochs, 3: step3_epochs, 4: step4_epochs, 5: step5_epochs},
            lr_factors={2: step2_lr_factor, 3: step3_lr_factor, 4: step4_lr_factor, 5: step5_lr_factor},
            step3_init=step3_init,
            weights={"lambda_": lambda_, "omega": omega, "beta": beta},
            shares={"alpha": alpha},
            temperature=temperature,
            ce_scope=ce_scope,
            kd_scope=kd_scope,
            targets=targets,
        )
        self.alpha = alpha
        self.beta = beta

    def required_callbacks(self) -> list[Callback]:
        """The old model, for H."""
        return [Teacher(targets=self.targets)]

    def final_terms(self, batch: Batch, features: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """The terms of step 5 (Eq. 15)."""
        return nfl_final_terms(
            logits,
            self.copies["head"](features),  # O
            batch["teacher_logits"],  # H
            self.recomputed_logits(batch),  # H~
            batch["target"],
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            old_sizes=self.old_sizes(),
            ce_scope=self.ce_scope,
        )
