"""`NFLPlus`: NFL with an autoencoder that keeps what old tasks need in the features, and corrected old logits.

Paper: Vahedifar and Zhang, No Forgetting Learning: Memory-free Continual Learning, 2025,
https://arxiv.org/abs/2503.04638v2, Eq. 16-22 and Alg. 2. Memory: the autoencoder (`encoders='all'`: one a task) beside
what NFL needs during a task.

| phase | equation | trained | function |
|---|---|---|---|
| end of each task but the last | Eq. 16-17 | autoencoder R | `Autoencoder`, `autoencoder_terms` |
| steps 2 to 4 | Eq. 4-12 | as in NFL | as in NFL |
| Γ, on held-out samples | Eq. 18-20 | Γ | `BiasCorrection`, `gamma_terms` |
| step 5 (the paper's step 6) | Eq. 21-22 | everything but R and Γ | `nfl_plus_final_terms` |

Departures. Alg. 2 trains R for task t at the start of task t + 1, from data that are gone then; here it is trained at
the end of its task. Eq. 16, 18 and 21 are read on the body's features, Eq. 21 as the distance of the trained body from
the old one. Γ's shapes do not fit as printed: see `gamma_reading`. Alone, Γ has the trivial solution 1, so it does
little. Weights, widths, epochs, optimizers of both phases and the size of the held-out split are ours; Γ's optimizer is
Adam, as plain gradient steps of 0.1 diverge on the digits.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil._random import fold_seed
from lightning_cil.callbacks import Teacher
from lightning_cil.losses import autoencoder_terms, gamma_terms, nfl_plus_final_terms
from lightning_cil.methods._round import NoForgetting
from lightning_cil.networks import Autoencoder, Backbone, BiasCorrection, GrowingList, feature_width
from lightning_cil.schedulers import FractionStepLR, constant_rate
from lightning_cil.types import Batch, OptimizerFactory, Scenario, Stage, Task


class NFLPlus(NoForgetting):
    """NFL with feature preservation and corrected old logits (Vahedifar and Zhang 2025, Eq. 16-22, https://arxiv.org/abs/2503.04638v2).

    Args:
        backbone: See `IncrementalModule`.
        scenario: See `IncrementalModule`.
        epochs: See `NFL`.
        optimizer: See `NFL`.
        lr_scheduler: See `NFL`.
        tune_lr_scheduler: See `NFL`.
        step2_epochs: See `NFL`; steps have NFL's numbers, the paper counts one more here.
        step3_epochs: See `NFL`.
        step4_epochs: See `NFL`.
        step5_epochs: See `NFL`.
        step2_lr_factor: See `NFL`.
        step3_lr_factor: See `NFL`.
        step4_lr_factor: See `NFL`.
        step5_lr_factor: See `NFL`.
        step3_init: See `NFL`.
        lambda_: See `NFL`.
        omega: See `NFL`.
        eta: η in [0, 1], share of the corrected logits H' against the recomputed ones in step 5.
        phi: φ ≥ 0, weight of the cross-entropy in step 5.
        rho: ρ ≥ 0, weight of feature preservation in step 5. Default: EBLL's 0.1 on half the sum of squares.
        tau: τ ≥ 0, weight of Γ's distance from 1; matters where Γ is trained with a distillation only.
        temperature: See `NFL`.
        ce_scope: See `NFL`.
        kd_scope: See `NFL`.
        targets: See `NFL`.
        encoders: `latest`: one autoencoder, trained on every task in turn; `all`: one for each task, all kept.
        code_features: Width of the code, below the features'. `None`: three quarters of it (384 of 512).
        activation: σ of the code.
        autoencoder_bias: Whether encoder and decoder have biases.
        autoencoder_epochs: Passes over a task's data that train its autoencoder, at least 1.
        autoencoder_optimizer: Of the autoencoder. Default: Adam with 0.001.
        reconstruction_weight: Ω ≥ 0, weight of the reconstruction against the cross-entropy.
        reconstruction: `mean`: over the features' dimensions; `sum`: the norm as printed.
        gamma_reading: Shapes of Γ: `sample` (A), `class` (B), `task` (C) or `literal` (D), see `BiasCorrection`.
        gamma_objective: `identity` (Eq. 20) or `kd`: Γ's terms of Eq. 22.
        gamma_from_step: First of the paper's steps that uses H': 6 (Alg. 2) or 4 (its text).
        gamma_joint: Whether step 5 trains Γ too.
        gamma_epochs: Passes over the held-out samples that train Γ; 0: no Γ, so that H' = H, and no held-out split.
        gamma_optimizer: Of Γ. Default: Adam with 0.01.
        holdout: Share of each new class that is held out from the round for Γ, in (0, 1).
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
        eta: float = 0.5,
        phi: float = 1.0,
        rho: float = 0.05,
        tau: float = 0.1,
        temperature: float = 2.0,
        ce_scope: Literal["new", "seen"] = "new",
        kd_scope: Literal["auto", "joint", "per_head"] = "auto",
        targets: Literal["online", "recorded"] = "online",
        encoders: Literal["latest", "all"] = "latest",
        code_features: int | None = None,
        activation: Literal["sigmoid", "tanh", "relu"] = "sigmoid",
        autoencoder_bias: bool = False,
        autoencoder_epochs: int = 20,
        autoencoder_optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-3),
        reconstruction_weight: float = 1.0,
        reconstruction: Literal["mean", "sum"] = "mean",
        gamma_reading: Literal["sample", "class", "task", "literal"] = "sample",
        gamma_objective: Literal["identity", "kd"] = "identity",
        gamma_from_step: int = 6,
        gamma_joint: bool = False,
        gamma_epochs: int = 5,
        gamma_optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=0.01),
        holdout: float = 0.1,
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
            weights={
                "lambda_": lambda_,
                "omega": omega,
                "phi": phi,
                "rho": rho,
                "tau": tau,
                "reconstruction_weight": reconstruction_weight,
            },
            shares={"eta": eta},
            temperature=temperature,
            ce_scope=ce_scope,
            kd_scope=kd_scope,
            targets=targets,
        )
        for name, value, known in (
            ("encoders", encoders, ("latest", "all")),
            ("reconstruction", reconstruction, ("mean", "sum")),
            ("gamma_reading", gamma_reading, ("sample", "class", "task", "literal")),
            ("gamma_objective", gamma_objective, ("identity", "kd")),
            ("gamma_from_step", gamma_from_step, (4, 6)),
        ):
            if value not in known:
                raise ValueError(f"`{name}={value!r}`: expected one of {', '.join(map(repr, known))}.")
        if autoencoder_epochs < 1:
            raise ValueError(
                f"`autoencoder_epochs={autoencoder_epochs}`: expected at least 1. `NFL` has no autoencoder."
            )
        if gamma_epochs < 0 or (gamma_epochs and not 0 < holdout < 1):
            raise ValueError(
                f"`gamma_epochs={gamma_epochs}` with `holdout={holdout}`: expected at least 0 passes and a share above "
                "0 and below 1. To leave Γ out, give `gamma_epochs=0`."
            )
        if gamma_joint and not gamma_epochs:
            raise ValueError("`gamma_joint=True` with `gamma_epochs=0`: there is no Γ to train. Give `gamma_epochs=1`.")
        self.eta = eta
        self.phi = phi
        self.rho = rho
        self.tau = tau
        self.keep_all = encoders == "all"
        self.autoencoder_epochs = autoencoder_epochs
        self.autoencoder_optimizer = autoencoder_optimizer
        self.reconstruction_weight = reconstruction_weight
        self.reconstruction: Literal["mean", "sum"] = reconstruction
        self.gamma_reading = gamma_reading
        self.gamma_objective: Literal["identity", "kd"] = gamma_objective
        self.gamma_first = gamma_from_step - 1
        self.gamma_joint = gamma_joint
        self.gamma_epochs = gamma_epochs
        self.gamma_optimizer = gamma_optimizer
        self.holdout = holdout if gamma_epochs else 0.0
        width = feature_width(self.backbone)
        new_encoder = partial(Autoencoder, width, code_features, autoencoder_bias, activation)
        code = new_encoder().encoder.out_features
        self.new_encoder = new_encoder
        self.new_gamma = partial(BiasCorrection, width, code, reading=gamma_reading)
        self.encoders = GrowingList(partial(_like_encoder, new_encoder))
        self.gammas = GrowingList(partial(_like_gamma, self.new_gamma))
        """Γ of the current round, if there is one."""

    # ------------------------------------------------------------------ the round

    def required_callbacks(self) -> list[Callback]:
        """The old model, for H and for its features."""
        return [Teacher(targets=self.targets, features=True)]

    def grow_to(self, task: Task) -> None:
        """Give the head its outputs, and the task its autoencoder and Γ."""
        super().grow_to(task)
        wanted = task.index + (not task.is_last) if self.keep_all else 1
        while len(self.encoders) < wanted:
            seed = fold_seed(self.head.seed, len(self.encoders))
            self.encoders.append(self.new_encoder(seed=seed).to(self.device))
        if self.gamma_epochs and not task.is_first:
            gamma = self._fresh_gamma(task)
            shapes = [part.weight.shape for part in self.gammas]
            if shapes != [gamma.weight.shape]:
                del self.gammas[:]
                self.gammas.append(gamma)

    def configure_model(self) -> None:
        """Refuse FSDP2: encoders and Γ are used by their parts, which are not gathered then."""
        if self.device_mesh is not None:
            raise ValueError(
                "NFLPlus got `ModelParallelStrategy`, which shards its encoders; expected whole ones. Use "
                "`strategy='ddp'`."
            )

    def stages(self, task: Task) -> list[Stage]:
        """The round of NFL, Γ before the first step that uses it, the autoencoder while the task's data are there."""
        stages = [replace(stage, holdout=0.0 if task.is_first else self.holdout) for stage in super().stages(task)]
        if self.gamma_epochs and not task.is_first:
            users = [i for i, stage in enumerate(stages) if stage.options["step"] >= self.gamma_first]
            if users:
                stages.insert(users[0], self._phase("gamma", self.gamma_epochs, "gammas.*", data="held_out"))
            if self.gamma_joint:
                stages = [
                    replace(stage, train=[*stage.train, "gammas.*"]) if stage.options["step"] == 5 else stage
                    for stage in stages
                ]
        if not task.is_last:
            encoder = task.index if self.keep_all else 0
            stages.append(self._phase("autoencoder", self.autoencoder_epochs, f"encoders.{encoder}.*"))
        return stages

    def on_stage_start(self, task: Task, stage: Stage) -> None:
        """As in NFL; each round has a Γ of its own."""
        super().on_stage_start(task, stage)
        if stage.options.get("step") == "gamma":
            self.gammas[0].load_state_dict(self._fresh_gamma(task).state_dict())

    # ------------------------------------------------------------------ losses

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms of the current step's or phase's loss."""
        assert self.stage is not None
        phase = self.stage.options.get("step")
        if phase == "autoencoder":
            return self._autoencoder_terms(batch)
        return self._gamma_terms(batch) if phase == "gamma" else super().terms(batch)

    def old_logits(self, batch: Batch) -> Tensor:
        """H, or H' if step 4 of the paper uses it."""
        assert self.stage is not None
        if not self.gamma_epochs or self.stage.options["step"] < self.gamma_first:
            return batch["teacher_logits"]
        return self._corrected(batch)[1].detach()

    def final_terms(self, batch: Batch, features: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """The terms of step 5 (Eq. 22)."""
        gamma, corrected = self._corrected(batch)
        return nfl_plus_final_terms(
            logits,
            self.copies["head"](features),  # O
            corrected,  # H'
            self.recomputed_logits(batch),  # H~
            batch["target"],
            code=self._codes(features),
            teacher_code=self._codes(batch["teacher_features"]),
            gamma=gamma,
            eta=self.eta,
            phi=self.phi,
            rho=self.rho,
            tau=self.tau,
            temperature=self.temperature,
            old_sizes=self.old_sizes(),
            ce_scope=self.ce_scope,
            train_gamma=self.gamma_joint,
        )

    def _autoencoder_terms(self, batch: Batch) -> dict[str, Tensor]:
        assert self.task is not None
        features = self.features(batch["image"])
        reconstruction = self.encoders[self.task.index if self.keep_all else 0](features)  # Eq. 16
        return autoencoder_terms(  # Eq. 17
            reconstruction,
            features,
            self.head(reconstruction),
            batch["target"],
            self.task.first_class,
            self.task.num_seen,
            omega=self.reconstruction_weight,
            reduction=self.reconstruction,
        )

    def _gamma_terms(self, batch: Batch) -> dict[str, Tensor]:
        assert self.task is not None
        gamma, corrected = self._corrected(batch)
        student = corrected.detach()
        if self.gamma_objective == "kd":
            original = "head" in self.copies  # without step 5 there is no copy, and step 3 has not changed the head yet
            head = self.copies["head"] if original else self.head
            student = head(self.features(batch["image"]))[:, : self.task.num_old]  # O of Eq. 22
        return gamma_terms(  # Eq. 20
            gamma,
            corrected,
            student,
            objective=self.gamma_objective,
            tau=self.tau,
            eta=self.eta,
            temperature=self.temperature,
            old_sizes=self.old_sizes(),
        )

    def _corrected(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Γ(x), `[B, factors]`, and H', `[B, old]`."""
        teacher, features = batch["teacher_logits"], batch["teacher_features"]
        if not self.gamma_epochs:
            return teacher.new_ones(len(teacher), 1), teacher
        correction = cast(BiasCorrection, self.gammas[0])
        gamma: Tensor = correction(features, self._old_encoders()[-1].encoder.weight)  # Eq. 18
        return gamma, correction.correct(gamma, teacher)  # Eq. 19

    def _codes(self, features: Tensor) -> Tensor:
        """Codes of the old tasks' encoders side by side, `[B, units]`."""
        return torch.cat([encoder.encode(features) for encoder in self._old_encoders()], dim=1)

    def _old_encoders(self) -> list[Autoencoder]:
        assert self.task is not None
        return [cast(Autoencoder, e) for e in self.encoders][: self.task.index if self.keep_all else 1]

    # ------------------------------------------------------------------ private

    def _phase(self, name: str, epochs: int, train: str, data: Literal["task", "held_out"] = "task") -> Stage:
        make = self.gamma_optimizer if name == "gamma" else self.autoencoder_optimizer
        return Stage(
            name,
            epochs,
            train=[train],
            data=data,
            optimizer=_factory(make),
            lr_scheduler=constant_rate,
            options={"step": name, "teacher": name == "gamma"},
            holdout=self.holdout if name == "gamma" else 0.0,
        )

    def _fresh_gamma(self, task: Task) -> BiasCorrection:
        sizes = [t.num_classes for t in self.tasks[: task.index]]
        return self.new_gamma(sizes, seed=fold_seed(self.head.seed, task.index)).to(self.device)


def _factory(make: OptimizerCallable) -> OptimizerFactory:
    def called_by_name(params: Any) -> torch.optim.Optimizer:
        return make(params)

    return called_by_name


def _like_encoder(new: "partial[Autoencoder]", stored: Mapping[str, Tensor]) -> nn.Module:
    return new()


def _like_gamma(new: "partial[BiasCorrection]", stored: Mapping[str, Tensor]) -> nn.Module:
    """Its shapes are what matters: Γ is used in the round that made it only."""
    rows = len(stored["weight"])
    return new([rows] if new.keywords["reading"] == "class" else [1] * rows)
