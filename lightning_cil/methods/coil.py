"""`Coil`: classifier rows carried between old and new classes by optimal transport, beside exemplars and distillation.

Paper: Zhou, Ye, Zhan, Co-Transport for Class-Incremental Learning, 2021, https://arxiv.org/abs/2107.12654, in the form
of its code, https://github.com/LAMDA-CL/PyCIL, `models/coil.py`; no equation is cited by number. Memory: 2,000
exemplars in all by default (PyCIL's on CIFAR-100).

| part | function |
|---|---|
| start of a task: rows of new classes from old ones' (prospective transport) | `sinkhorn`, `prospective_rows` |
| (1 - λ) cross-entropy + λ distillation, λ the share of old classes | `coil_terms` |
| first epoch: new outputs stay near those of the transported rows | `prospective_term` |
| later epochs: rows made of new classes repeat the old model | `retrospective_rows`, `retrospective_term` |
| herding, head and nearest mean of exemplars both scored | `ReplayBuffer`, `NearestMean` |

Departures. The code takes old classes' means from all their past data, and a task's from the task before it; here old
classes are seen through exemplars only, and transport waits until the new task starts. Both sides of a transport have
mass 1 (the code's masses differ where the numbers of classes do, and then no plan exists). The first epoch's target is
a constant. Every batch of new data is joined by exemplars, while the code shuffles them into the task's data. A class
that loses its exemplars, with a budget below the number of classes, keeps the mean that it had when it was learned.
Forward transfer is measured on the untrained rows of tasks to come, which no transport has touched.
"""

from functools import partial
from typing import Any, Literal, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_cil.losses import (
    coil_terms,
    prospective_rows,
    prospective_term,
    retrospective_rows,
    retrospective_term,
    sinkhorn,
    transport_cost,
)
from lightning_cil.methods._exemplars import joined, joined_teacher_logits
from lightning_cil.methods._nearest_mean import NearestMean, memory_of
from lightning_cil.networks import Backbone, CosineHead, remove_last_activation, unsharded
from lightning_cil.replay import class_means
from lightning_cil.schedulers import FractionStepLR
from lightning_cil.types import Batch, Scenario, Stage, Task

CHECKPOINT_KEY = "lightning_cil.Coil"


class Coil(NearestMean):
    """Coil: rows of the classifier transported between classes (Zhou et al. 2021, no equation, https://arxiv.org/abs/2107.12654); needs `ReplayBuffer`.

    All defaults are those of PyCIL's settings for CIFAR-100.

    Args:
        backbone: See `IncrementalModule`.
        scenario: See `IncrementalModule`; Coil trains both alike.
        epochs: Passes over each task's data.
        optimizer: See `IncrementalModule`. Default: lr 0.1, momentum 0.9, weight decay 5e-4.
        lr_scheduler: See `IncrementalModule`. Default: a tenth at 50 % and at 75 % (PyCIL: after 80 and 120 of 160).
        temperature: T > 0 of all three distillations.
        prospective_weight: Weight of the first epoch's term, at least 0.
        retrospective_weight: Weight of the later epochs' term at the end of a task, at least 0.
        new_rows: What new classes' rows start from: `transported`: from old rows; `random`: as in other methods.
        cost_norm: Order of the norm between class means that is the cost of transport, at least 1.
        regularisation: ε > 0 of Sinkhorn's algorithm.
        tolerance: Its largest error of a row sum, as a share of the whole mass, above 0.
        max_iterations: Its iterations until the run ends with an error, at least 1.
        solve_every: After how many steps of an epoch retrospective rows are made anew, at least 1. Each time the body
            runs over the task's data and the exemplars.
        scale: First value of the classifier's learnable scale, above 0.
        last_activation: Whether the last residual block of a backbone given by name ends with its ReLU; other backbones
            are used as they are.
        classifier: What predicts: `cosine`: the head; `nme`: the nearest mean of exemplars. The other one's scores are
            in `results.json` as `other_classifier`.
    """  # noqa: E501

    head: CosineHead

    def __init__(
        self,
        *,
        backbone: str | Backbone | nn.Module = "resnet32",
        scenario: Scenario = "class_il",
        epochs: int = 160,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4),
        lr_scheduler: LRSchedulerCallable | None = FractionStepLR,
        temperature: float = 2.0,
        prospective_weight: float = 1e-3,
        retrospective_weight: float = 1e-3,
        new_rows: Literal["transported", "random"] = "transported",
        cost_norm: float = 3.0,
        regularisation: float = 0.464,
        tolerance: float = 1e-9,
        max_iterations: int = 10_000,
        solve_every: int = 30,
        scale: float = 1.0,
        last_activation: bool = False,
        classifier: Literal["cosine", "nme"] = "cosine",
    ) -> None:
        super().__init__(
            backbone=backbone,
            head="cosine",
            scenario=scenario,
            epochs=epochs,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            classifier=classifier,
            head_classifier="cosine",
        )
        for name, value, wrong, expected in (
            ("temperature", temperature, temperature <= 0, "a positive number; PyCIL: 2"),
            ("prospective_weight", prospective_weight, prospective_weight < 0, "at least 0; PyCIL: 0.001"),
            ("retrospective_weight", retrospective_weight, retrospective_weight < 0, "at least 0; PyCIL: 0.001"),
            ("new_rows", new_rows, new_rows not in ("transported", "random"), "'transported' or 'random'"),
            ("cost_norm", cost_norm, not cost_norm >= 1, "at least 1; PyCIL: 3"),
            ("regularisation", regularisation, not regularisation > 0, "a positive number; PyCIL: 0.464"),
            ("tolerance", tolerance, not tolerance > 0, "a positive number, such as 1e-9"),
            ("max_iterations", max_iterations, max_iterations < 1, "at least 1, such as 10000"),
            ("solve_every", solve_every, solve_every < 1, "at least 1 step; PyCIL: 30"),
            ("scale", scale, not 0 < scale < float("inf"), "a positive, finite number; PyCIL: 1"),
        ):
            if wrong:
                raise ValueError(f"`{name}={value!r}`: expected {expected}.")
        if not last_activation and not isinstance(backbone, nn.Module):
            remove_last_activation(self.backbone)
        nn.init.constant_(self.head.scale, scale)
        self.temperature = temperature
        self.prospective_weight = prospective_weight
        self.retrospective_weight = retrospective_weight
        self.new_rows = new_rows
        self.cost_norm = cost_norm
        self.sinkhorn = partial(
            sinkhorn, regularisation=regularisation, tolerance=tolerance, max_iterations=max_iterations
        )
        self.solve_every = solve_every
        self.rows: dict[str, Tensor] = {}
        """While a task is trained: `prospective` `[new, dim]` and, from its second epoch on, `retrospective`."""

    # ------------------------------------------------------------------ transport

    def on_task_start(self, task: Task) -> None:
        """The rows were the last task's."""
        self.rows = {}

    def on_stage_start(self, task: Task, stage: Stage) -> None:
        """Rows for the new classes, from the task's data and the exemplars as the old body sees them."""
        if task.is_first or self.rows:
            return
        trainer: Any = self.trainer
        trainer.strategy.model_to_device()
        new, old = slice(task.num_old, task.num_seen), slice(task.num_old)
        means, weight = self._class_means(task), unsharded(self.head).weight.detach()
        rows = prospective_rows(self._plan(means[old], means[new]), weight[old].cpu())
        self.rows["prospective"] = rows.to(weight.device)
        if self.new_rows == "transported":
            weight[new] = self.rows["prospective"]

    def on_train_start(self) -> None:
        """Rows that a checkpoint brought follow the network to its device."""
        self.rows = {name: rows.to(self.device) for name, rows in self.rows.items()}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """From the second epoch on, every so many steps: rows for the old classes, by the body as it is."""
        task = self.task
        if task is None or task.is_first or not self.current_epoch or not self.retrospective_weight:
            return
        if batch_idx % self.solve_every and "retrospective" in self.rows:
            return
        means, weight = self._class_means(task), unsharded(self.head).weight.detach()
        plan = self._plan(means[task.num_old :], means[: task.num_old])
        rows = retrospective_rows(plan, weight[task.num_old : task.num_seen].cpu())
        self.rows["retrospective"] = rows.to(self.device)

    def on_task_end(self, task: Task) -> None:
        """Class means for the nearest mean of exemplars."""
        super().on_task_end(task)
        self.rows = {}

    def _class_means(self, task: Task) -> Tensor:
        """Means of all classes so far by the present body, `[seen, dim]`: new data of the task, exemplars of others."""
        trainer: Any = self.trainer
        new = trainer.datamodule.train_indices([task.index])
        index = torch.unique(torch.cat([memory_of(trainer).store.column("index"), new]))
        known = self.exemplar_means
        means = class_means(*known.labelled_features(self, index), task.num_seen, known.fallback())
        if not means.known.all():
            missing = (~means.known).nonzero().flatten().tolist()
            raise ValueError(
                f"The classes {missing} (in the order of learning) have neither exemplars nor a stored mean, expected "
                "one of them: transport needs each old class. Go on with the `ReplayBuffer` of the run that learned "
                "them."
            )
        return means.means

    def _plan(self, source: Tensor, target: Tensor) -> Tensor:
        return self.sinkhorn(transport_cost(source, target, self.cost_norm))

    # ------------------------------------------------------------------ loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy and distillation, and the term of the epoch's transport."""
        assert self.task is not None
        features = self.features(joined(batch, "image"))
        logits = self.head(features)
        teacher = joined_teacher_logits(batch, self.task.num_old, logits)
        terms = coil_terms(logits, teacher, joined(batch, "target"), temperature=self.temperature)
        if not self.task.is_first and not self.current_epoch:
            terms["prospective"] = prospective_term(
                logits[:, self.task.num_old :],
                features,
                self.rows["prospective"].to(features.dtype),
                weight=self.prospective_weight,
                temperature=self.temperature,
            )
        elif not self.task.is_first and self.retrospective_weight:
            terms["retrospective"] = retrospective_term(
                teacher,
                features,
                self.rows["retrospective"].to(features.dtype),
                progress=self.current_epoch / (self.stage.epochs if self.stage else self.epochs),
                weight=self.retrospective_weight,
                temperature=self.temperature,
            )
        self.log_terms(**terms)
        return torch.stack(list(terms.values())).sum()

    # ------------------------------------------------------------------ what a run keeps

    def footprint(self) -> dict[str, int]:
        """Bytes of the class means and, transient, of the rows while the last task was trained."""
        rows = self.task.num_seen if self.task is not None and not self.task.is_first else 0
        return {**super().footprint(), "transient_bytes": 4 * rows * self.head.in_features}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the rows."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY] = {name: rows.cpu() for name, rows in self.rows.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back."""
        super().on_load_checkpoint(checkpoint)
        self.rows = dict(cast(dict[str, Tensor], checkpoint.get(CHECKPOINT_KEY, {})))
