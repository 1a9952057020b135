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

from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR

from lightning_cil.callbacks import Teacher
from lightning_cil.callbacks.recorded_logits import RecordedLogits, check_targets
from lightning_cil.losses import cross_entropy_over, nfl_final_terms, nfl_step_terms
from lightning_cil.methods.base import IncrementalModule
from lightning_cil.metrics import count_parameters, module_bytes
from lightning_cil.networks import Backbone, FrozenCopies, MultiHead, unsharded
from lightning_cil.schedulers import FractionStepLR
from lightning_cil.types import Batch, OptimizerFactory, Scenario, Stage, Task

CHECKPOINT_KEY = "lightning_cil.NFL"

CeScope = Literal["new", "seen"]
KdScope = Literal["auto", "joint", "per_head"]


class NFL(IncrementalModule):
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

    head: MultiHead

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
        ce_scope: CeScope = "new",
        kd_scope: KdScope = "auto",
        targets: Literal["online", "recorded"] = "online",
    ) -> None:
        super().__init__(
            backbone=backbone,
            head="multi",
            scenario=scenario,
            epochs=epochs,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        self.step_epochs = {2: step2_epochs, 3: step3_epochs, 4: step4_epochs, 5: step5_epochs}
        self.lr_factors = {2: step2_lr_factor, 3: step3_lr_factor, 4: step4_lr_factor, 5: step5_lr_factor}
        for step, number in self.step_epochs.items():
            if number < 0:
                raise ValueError(f"`step{step}_epochs={number}`: expected at least 0, which leaves the step out.")
        if not any(self.step_epochs.values()):
            raise ValueError(
                "All of `step2_epochs` to `step5_epochs` are 0, so that only the first task would be trained; expected "
                "one above 0. Switch a step on."
            )
        for step, factor in self.lr_factors.items():
            if factor <= 0:
                raise ValueError(
                    f"`step{step}_lr_factor={factor}`: expected a positive multiple of the optimizer's learning rate. "
                    f"To leave the step out, give `step{step}_epochs=0`."
                )
        for name, weight in (("lambda_", lambda_), ("omega", omega), ("beta", beta)):
            if weight < 0:
                raise ValueError(f"`{name}={weight}`: expected a weight of at least 0.")
        if not 0 <= alpha <= 1:
            raise ValueError(f"`alpha={alpha}`: expected a share from 0 to 1; 0.5 weighs both targets alike.")
        if temperature <= 0:
            raise ValueError(f"`temperature={temperature}`: expected a positive number, such as 2.")
        if ce_scope not in ("new", "seen") or kd_scope not in ("auto", "joint", "per_head"):
            raise ValueError(
                f"got `ce_scope={ce_scope!r}`, `kd_scope={kd_scope!r}`; expected 'new' or 'seen', and 'auto', 'joint' "
                "or 'per_head'."
            )
        if step3_init not in ("warm", "random"):
            raise ValueError(f"`step3_init={step3_init!r}`: expected 'warm' or 'random'.")
        check_targets(targets)
        self.tune_lr_scheduler = tune_lr_scheduler
        self.step3_init = step3_init
        self.lambda_ = lambda_
        self.omega = omega
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.ce_scope: CeScope = ce_scope
        self.kd_scope = kd_scope if kd_scope != "auto" else "joint" if scenario == "class_il" else "per_head"
        self.targets = targets
        self.copies = FrozenCopies()
        """`head`: the old heads from before the round; `body`: f^f, the body that step 4 left; `first_body`."""
        self._recomputed: RecordedLogits | None = None
        if step3_init == "random":
            self.copies.take("first_body", self.backbone)

    # ------------------------------------------------------------------ the round

    def required_callbacks(self) -> list[Callback]:
        """The old model, for H."""
        return [Teacher(targets=self.targets)]

    def stages(self, task: Task) -> list[Stage]:
        """The steps of the round; the first task is plain training."""
        if task.is_first:
            return [Stage("train", self.epochs)]
        new, old = f"head.blocks.{task.index}.*", [f"head.blocks.{k}.*" for k in range(task.index)]
        trained = {2: [new], 3: ["backbone.*", *old], 4: ["backbone.*", new], 5: ["*"]}
        return [self._step(step, train) for step, train in trained.items() if self.step_epochs[step]]

    def on_stream_start(self, resumed: bool) -> None:
        """A new stream starts without copies of an earlier one."""
        if not resumed:
            self.on_task_end(None)

    def on_task_start(self, task: Task) -> None:
        """Keep the original old heads for step 5."""
        if not task.is_first and self.step_epochs[5]:
            self.copies.take("head", self.head)

    def on_stage_start(self, task: Task, stage: Stage) -> None:
        """Step 3: start again, if asked for; step 5: keep the body that step 4 left, f^f."""
        step = stage.options.get("step")
        if step == 3 and self.step3_init == "random":
            self._start_again(task)
        elif step == 5:
            self.copies.take("body", self.backbone)

    def on_train_start(self) -> None:
        """Step 5, also a resumed one: the logits H~ of all images, if they are recorded."""
        self._check_teacher()
        self._restore_copies()
        if self.targets == "recorded" and self.stage is not None and self.stage.options.get("step") == 5:
            self._recomputed = RecordedLogits.of_stage(self.trainer, self, self.copies["body"], self._recompute)

    def on_task_end(self, task: Task | None) -> None:
        """The copies were the round's."""
        self.copies.drop("head", "body")
        self._recomputed = None

    # ------------------------------------------------------------------ losses

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of the current step."""
        terms = self.terms(batch)
        self.log_terms(**terms)
        loss = sum(terms.values())
        assert isinstance(loss, Tensor)
        return loss

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms of the current step's loss."""
        assert self.task is not None
        assert self.stage is not None
        step, target = self.stage.options.get("step"), batch["target"]
        features = self.features(batch["image"])
        logits = self.head(features)
        if step in (None, 2):
            first = 0 if self.ce_scope == "seen" else self.task.first_class
            return {"cross_entropy": cross_entropy_over(logits, target, first, self.task.num_seen)}  # Eq. 2, 5
        old_sizes = [t.num_classes for t in self.tasks[: self.task.index]] if self.kd_scope == "per_head" else None
        teacher = batch["teacher_logits"]  # H, Eq. 3
        if step in (3, 4):
            return nfl_step_terms(  # Eq. 7 and 12
                logits,
                teacher,
                target,
                ce_weight=self.lambda_ if step == 3 else self.omega,
                temperature=self.temperature,
                old_sizes=old_sizes,
                ce_scope=self.ce_scope,
            )
        return nfl_final_terms(  # Eq. 15
            logits,
            self.copies["head"](features),  # O
            teacher,
            self.recomputed_logits(batch),  # H~
            target,
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            old_sizes=old_sizes,
            ce_scope=self.ce_scope,
        )

    def recomputed_logits(self, batch: Batch) -> Tensor:
        """H~ = g_old(f^f(x)), `[B, old]`: the original old heads on the body that step 4 left (Eq. 13)."""
        if self._recomputed is not None:
            return self._recomputed(batch["index"])
        with torch.no_grad():
            return self._recompute(batch["image"])

    # ------------------------------------------------------------------ memory and checkpoints

    def footprint(self) -> dict[str, int]:
        """Bytes of the copies, and of recorded H~, while the last task was trained."""
        copies = 1 if self.step3_init == "random" else 0
        transient = 0
        if self.task is not None and not self.task.is_first and self.step_epochs[5]:
            copies += 1
            transient = 4 * count_parameters(self.head.blocks[: self.task.index])
            if self.targets == "recorded":
                datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
                transient += 4 * len(datamodule.train_indices([self.task.index])) * self.task.num_old
        return {"transient_bytes": transient + copies * sum(module_bytes(self.backbone))}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the copies."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY] = self.copies.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back; recorded logits are computed again when the stage goes on."""
        super().on_load_checkpoint(checkpoint)
        self.copies.load_state_dict(checkpoint.get(CHECKPOINT_KEY, {}))

    # ------------------------------------------------------------------ private

    def _step(self, step: int, train: list[str]) -> Stage:
        return Stage(
            f"step {step}",
            self.step_epochs[step],
            train=train,
            optimizer=self._optimizer_of(self.lr_factors[step]),
            lr_scheduler=self._tuning_schedule if step in (4, 5) else None,
            options={"step": step, "teacher": step != 2},
        )

    def _optimizer_of(self, factor: float) -> OptimizerFactory:
        def make(params: Any) -> torch.optim.Optimizer:
            optimizer = self.optimizer(params)
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * factor
            return optimizer

        return make

    def _tuning_schedule(self, optimizer: torch.optim.Optimizer) -> Any:
        return self.tune_lr_scheduler(optimizer) if self.tune_lr_scheduler else ConstantLR(optimizer, factor=1.0)

    def _restore_copies(self) -> None:
        self.copies.restore(self.device, head=self.head, body=self.backbone, first_body=self.backbone)

    def _start_again(self, task: Task) -> None:
        self.backbone, self.head = unsharded(self.backbone), unsharded(self.head)
        self._restore_copies()
        self.backbone.load_state_dict(self.copies["first_body"].state_dict())
        fresh = MultiHead(self.head.in_features, seed=self.head.seed)
        for earlier in self.tasks[: task.index]:
            fresh.grow(earlier.num_classes)
        self.head.blocks[: task.index].load_state_dict(fresh.blocks.state_dict())

    def _recompute(self, image: Tensor) -> Tensor:
        logits: Tensor = self.copies["head"](self.copies["body"](image))
        return logits

    def _check_teacher(self) -> None:
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Teacher) and callback.targets != self.targets:
                raise ValueError(
                    f"NFL got `targets={self.targets!r}` and a `Teacher` with `targets={callback.targets!r}`; expected "
                    "the same. Take the callback out: the method brings its own."
                )
