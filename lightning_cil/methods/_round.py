"""`NoForgetting`: the round of steps that NFL and NFL+ share, and the frozen copies that it needs.

Paper: Vahedifar and Zhang, No Forgetting Learning: Memory-free Continual Learning, 2025,
https://arxiv.org/abs/2503.04638v2, Eq. 1-14. Steps have NFL's numbers.

What a step trains is its `Stage.train`. In a stream the driver carries it out, as each step also has an optimizer, a
schedule and a DDP wrap of its own, which no callback can give. In a stock `Trainer` with a module of one's own,
`StagedFreezing(NFL().stages(task))` does, by the same `set_trainable`; its parts are then `backbone` and
`head.blocks.<task>`.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil.callbacks import Teacher
from lightning_cil.callbacks.recorded_logits import RecordedLogits, check_targets
from lightning_cil.losses import cross_entropy_over, nfl_step_terms
from lightning_cil.methods.base import IncrementalModule
from lightning_cil.metrics import count_parameters, module_bytes
from lightning_cil.networks import Backbone, FrozenCopies, MultiHead, unsharded
from lightning_cil.schedulers import constant_rate
from lightning_cil.types import Batch, OptimizerFactory, Scenario, Stage, Task

CHECKPOINT_KEY = "lightning_cil.NoForgetting"

CeScope = Literal["new", "seen"]
KdScope = Literal["auto", "joint", "per_head"]
Step3Init = Literal["warm", "random"]
Targets = Literal["online", "recorded"]


class NoForgetting(IncrementalModule):
    """Base of NFL and NFL+, which say what step 5 minimises.

    Args:
        backbone: See `IncrementalModule`.
        scenario: See `IncrementalModule`.
        epochs: Passes over the first task's data.
        optimizer: See `IncrementalModule`.
        lr_scheduler: Of the first task and of steps 2 and 3.
        tune_lr_scheduler: Of steps 4 and 5; `None`: constant.
        step_epochs: Passes of the steps 2 to 5; 0 leaves a step out.
        lr_factors: Their learning rates as multiples of the optimizer's.
        step3_init: Whether step 3 goes on from the trained weights.
        weights: Weights of terms by argument, at least 0.
        shares: Shares by argument, from 0 to 1.
        temperature: p > 0 of all distillations.
        ce_scope: Classes of the cross-entropy's softmax.
        kd_scope: Classes of the distillation's softmax.
        targets: How H and H~ are made.

    Raises:
        ValueError: For a value out of its range.
    """

    uses_exemplars = False
    head: MultiHead

    def __init__(
        self,
        *,
        backbone: str | Backbone | nn.Module,
        scenario: Scenario,
        epochs: int,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        tune_lr_scheduler: LRSchedulerCallable | None,
        step_epochs: Mapping[int, int],
        lr_factors: Mapping[int, float],
        step3_init: Step3Init,
        weights: Mapping[str, float],
        shares: Mapping[str, float],
        temperature: float,
        ce_scope: CeScope,
        kd_scope: KdScope,
        targets: Targets,
    ) -> None:
        super().__init__(
            backbone=backbone,
            head="multi",
            scenario=scenario,
            epochs=epochs,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        for step, number in step_epochs.items():
            if number < 0:
                raise ValueError(f"`step{step}_epochs={number}`: expected at least 0, which leaves the step out.")
        if not any(step_epochs.values()):
            raise ValueError(
                "All of `step2_epochs` to `step5_epochs` are 0, so that only the first task would be trained; expected "
                "one above 0. Switch a step on."
            )
        for step, factor in lr_factors.items():
            if factor <= 0:
                raise ValueError(
                    f"`step{step}_lr_factor={factor}`: expected a positive multiple of the optimizer's learning rate. "
                    f"To leave the step out, give `step{step}_epochs=0`."
                )
        for name, weight in weights.items():
            if weight < 0:
                raise ValueError(f"`{name}={weight}`: expected a weight of at least 0.")
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"`{name}={share}`: expected a share from 0 to 1; 0.5 weighs both targets alike.")
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
        self.step_epochs = dict(step_epochs)
        self.lr_factors = dict(lr_factors)
        self.ce_weights = {3: weights["lambda_"], 4: weights["omega"]}
        self.step3_init = step3_init
        self.temperature = temperature
        self.ce_scope: CeScope = ce_scope
        self.kd_scope = kd_scope if kd_scope != "auto" else "joint" if scenario == "class_il" else "per_head"
        self.targets: Targets = targets
        self.copies = FrozenCopies()
        """`head`: the old heads from before the round; `body`: f^f, the body that step 4 left; `first_body`."""
        self._recomputed: RecordedLogits | None = None
        if step3_init == "random":
            self.copies.take("first_body", self.backbone)

    # ------------------------------------------------------------------ the round

    def stages(self, task: Task) -> list[Stage]:
        """The steps of the round; the first task is plain training."""
        if task.is_first:
            return [Stage("train", self.epochs, train=["backbone.*", "head.*"])]
        new, old = f"head.blocks.{task.index}.*", [f"head.blocks.{k}.*" for k in range(task.index)]
        trained = {2: [new], 3: ["backbone.*", *old], 4: ["backbone.*", new], 5: ["backbone.*", "head.*"]}
        return [self._step(step, train) for step, train in trained.items() if self.step_epochs[step]]

    def on_stream_start(self, resumed: bool) -> None:
        """A new stream starts without copies of an earlier one."""
        if not resumed:
            self._end_round()

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

    def on_task_end(self, task: Task) -> None:
        """The copies were the round's."""
        self._end_round()

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
        if step in (3, 4):
            return nfl_step_terms(  # Eq. 7 and 12
                logits,
                self.old_logits(batch),
                target,
                ce_weight=self.ce_weights[step],
                temperature=self.temperature,
                old_sizes=self.old_sizes(),
                ce_scope=self.ce_scope,
            )
        return self.final_terms(batch, features, logits)

    @abstractmethod
    def final_terms(self, batch: Batch, features: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """The weighted terms of step 5."""

    def old_logits(self, batch: Batch) -> Tensor:
        """H, `[B, old]` (Eq. 3), as steps 3 and 4 use it."""
        return batch["teacher_logits"]

    def recomputed_logits(self, batch: Batch) -> Tensor:
        """H~ = g_old(f^f(x)), `[B, old]`: the original old heads on the body that step 4 left (Eq. 13)."""
        if self._recomputed is not None:
            return self._recomputed(batch["index"])
        with torch.no_grad():
            return self._recompute(batch["image"])

    def old_sizes(self) -> list[int] | None:
        """Classes of each old head that has a softmax of its own; `None`: one softmax for all."""
        assert self.task is not None
        return [t.num_classes for t in self.tasks[: self.task.index]] if self.kd_scope == "per_head" else None

    # ------------------------------------------------------------------ memory and checkpoints

    def footprint(self) -> dict[str, int]:
        """Bytes of the copies, and of recorded H~, while the last task was trained."""
        copies = 1 if self.step3_init == "random" else 0
        transient = 0
        if self.task is not None and not self.task.is_first and self.step_epochs[5]:
            copies += 1
            transient = 4 * count_parameters(self.head.blocks[: self.task.index])
            if self.targets == "recorded":
                stage = next(s for s in self.stages(self.task) if s.options.get("step") == 5)
                datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
                transient += 4 * len(datamodule.stage_indices(self.task, stage)) * self.task.num_old
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
        return self.tune_lr_scheduler(optimizer) if self.tune_lr_scheduler else constant_rate(optimizer)

    def _end_round(self) -> None:
        self.copies.drop("head", "body")
        self._recomputed = None

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
                    f"{type(self).__name__} got `targets={self.targets!r}` and a `Teacher` with "
                    f"`targets={callback.targets!r}`; expected the same. Take the callback out: the method brings its "
                    "own."
                )
