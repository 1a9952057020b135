"""`TOPIC`: a neural gas over the features of old classes, which training must leave where it is.

Source: Tao et al., Few-Shot Class-Incremental Learning, 2020, https://arxiv.org/abs/2004.10956, on AudioCLIP's towers;
the "TOPIC" rows of Chen et al. 2025, table I, https://arxiv.org/abs/2506.09999, which give no settings; no
equation number was at hand. Memory: one sample for each node, at most 400 in the first task and 50 in each later one.

| paper | here |
|---|---|
| neural gas, competitive Hebbian edges | `NeuralGas`, over fused features of length 1 |
| L = CE + λ₁ L_AL + λ₂ L_MML | `training_step` |
| L_AL, nodes' samples stay at their nodes | `anchor_loss`, estimated from samples drawn in each step |
| L_MML, samples go to their nodes, linked nodes of other classes apart | `min_max_terms` |

The first task is trained by cross-entropy, then the gas is fitted to it. Later tasks begin with new nodes at their own
samples as the old model sees them; their centroids are trained with the network, and fitted once more at the end.

The released code, https://github.com/xyutao/fscil, lacks the files of gas and losses. Its other numbers: a weight of
350 for the anchors, which are compared with the old model's features (`anchor_target: features`,
`anchor_precision: equal`), margin 0.5, centroids with lr 0.1 of their own under SGD, distillation with weight 5 and
T = 2 as an option.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_cil._random import fold_seed
from lightning_cil._transfer import to_device
from lightning_cil.callbacks import Teacher
from lightning_cil.callbacks.features import extract_features
from lightning_cil.callbacks.stream_state import stream_state
from lightning_cil.losses import anchor_loss, cross_entropy_over, min_max_terms, soft_cross_entropy
from lightning_cil.methods._multimodal import ONE_TEMPLATE, MultimodalModule, Predict, Scope, ScoreOptions
from lightning_cil.networks import NeuralGas
from lightning_cil.networks.audioclip import Prompts, Towers
from lightning_cil.networks.neural_gas import Precision, Ranking
from lightning_cil.replay import draw_rows
from lightning_cil.types import Batch, Scenario, Stage, Task


class TOPIC(MultimodalModule):
    """TOPIC on AudioCLIP's towers (Tao et al. 2020, AL and MML losses, https://arxiv.org/abs/2004.10956); keeps a sample for each node.

    Args:
        towers: See `MultimodalModule`.
        prompts: See `MultimodalModule`. Default: the bare name.
        predict: See `MultimodalModule`.
        scenario: See `IncrementalModule`.
        epochs: Passes over each task's data.
        optimizer: See `IncrementalModule`.
        lr_scheduler: See `IncrementalModule`.
        scope: What of the towers is trained, see `PartialFineTune`.
        first_task_scope: The same in the first task; for towers that start from random values.
        num_nodes: Nodes of the first task at most (TOPIC: 400), and half of its samples at most.
        new_nodes: Nodes of every later task at most (the released code stores 50 to 120 samples), and half of its
            samples at most. Every class has one at least.
        anchor_weight: λ₁ of the sum over nodes, at least 0 (TOPIC: 0.5).
        anchors_per_step: Samples of nodes drawn in each step on each process, at least 1.
        replay: Whether the drawn samples take part in the cross-entropy, too; in the paper only new ones do.
        anchor_target: Where a node's sample is to stay: `centroid`: its node; `features`: where the model put it at the
            end of the last task.
        anchor_precision: Weights of the coordinates in L_AL, see `NeuralGas.precision`: `relative`, `inverse` (TOPIC's
            letter), `threshold` or `equal`.
        variance_floor: Added to the variances, at least 0.
        min_max_weight: λ₂ of the sum over the batch of all processes, at least 0 (TOPIC: 0.005).
        push_weight: The same for the part of L_MML that keeps nodes apart, at least 0; `None`: λ₂ (TOPIC). The released
            code weighs the two parts apart, 0.3 and 0.0001, as means over the batch.
        margin: ξ, at least 0, between features of length 1 (the released code: 0.5).
        centroid_lr: Learning rate of the new nodes' centroids, above 0. The released code has 0.1 with SGD; AdamW's
            steps have the size of the learning rate itself.
        gas_rate: η, see `NeuralGas` (TOPIC: 0.02).
        gas_neighbourhood: α, see `NeuralGas`.
        gas_lifetime: See `NeuralGas` (TOPIC: 200).
        gas_passes: See `NeuralGas`.
        gas_ranking: See `NeuralGas`.
        distillation_weight: Of distillation from the old model, times T², at least 0; 0: there is none (the released
            code: 5).
        temperature: T > 0 of the distillation (the released code: 2).
        cache_audio: See `MultimodalModule`.
        scores: See `MultimodalModule`.

    Attributes:
        gas: The graph.

    Raises:
        ValueError: For numbers out of range or unknown options.
    """  # noqa: E501

    def __init__(
        self,
        *,
        towers: str | Towers = "vit_b16",
        prompts: Prompts = ONE_TEMPLATE,
        predict: Predict = "sum",
        scenario: Scenario = "class_il",
        epochs: int = 10,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-5),
        lr_scheduler: LRSchedulerCallable | None = None,
        scope: Scope = "last_block",
        first_task_scope: Scope | None = None,
        num_nodes: int = 400,
        new_nodes: int = 50,
        anchor_weight: float = 0.5,
        anchors_per_step: int = 32,
        replay: bool = False,
        anchor_target: Literal["centroid", "features"] = "centroid",
        anchor_precision: Precision = "relative",
        variance_floor: float = 1e-4,
        min_max_weight: float = 0.005,
        push_weight: float | None = None,
        margin: float = 0.5,
        centroid_lr: float = 1e-3,
        gas_rate: float = 0.02,
        gas_neighbourhood: float = 1.0,
        gas_lifetime: int = 200,
        gas_passes: int = 5,
        gas_ranking: Ranking = "class",
        distillation_weight: float = 0.0,
        temperature: float = 2.0,
        cache_audio: bool = True,
        scores: ScoreOptions | None = None,
    ) -> None:
        super().__init__(
            towers=towers,
            prompts=prompts,
            predict=predict,
            scenario=scenario,
            epochs=epochs,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            scope=scope,
            first_task_scope=first_task_scope,
            cache_audio=cache_audio,
            scores=scores,
        )
        for name, value, right, expected in (
            ("num_nodes", num_nodes, num_nodes >= 1, "at least 1"),
            ("new_nodes", new_nodes, new_nodes >= 1, "at least 1"),
            ("anchor_weight", anchor_weight, anchor_weight >= 0, "at least 0; TOPIC: 0.5"),
            ("anchors_per_step", anchors_per_step, anchors_per_step >= 1, "at least 1"),
            ("anchor_target", anchor_target, anchor_target in ("centroid", "features"), "'centroid' or 'features'"),
            ("variance_floor", variance_floor, variance_floor >= 0, "at least 0"),
            ("min_max_weight", min_max_weight, min_max_weight >= 0, "at least 0; TOPIC: 0.005"),
            ("push_weight", push_weight, push_weight is None or push_weight >= 0, "at least 0, or null"),
            ("margin", margin, margin >= 0, "at least 0"),
            ("centroid_lr", centroid_lr, centroid_lr > 0, "a positive number"),
            ("distillation_weight", distillation_weight, distillation_weight >= 0, "at least 0"),
            ("temperature", temperature, temperature > 0, "a positive number; the released code: 2"),
        ):
            if not right:
                raise ValueError(f"`{name}={value!r}`: expected {expected}.")
        self.num_nodes = num_nodes
        self.new_nodes = new_nodes
        self.anchor_weight = anchor_weight
        self.anchors_per_step = anchors_per_step
        self.replay = replay
        self.anchor_target = anchor_target
        self.anchor_precision: Precision = anchor_precision
        self.variance_floor = variance_floor
        self.min_max_weight = min_max_weight
        self.push_weight = min_max_weight if push_weight is None else push_weight
        self.margin = margin
        self.centroid_lr = centroid_lr
        self.distillation_weight = distillation_weight
        self.temperature = temperature
        dim = self.backbone.embed_dim
        self.gas = NeuralGas(
            dim,
            rate=gas_rate,
            neighbourhood=gas_neighbourhood,
            lifetime=gas_lifetime,
            passes=gas_passes,
            ranking=gas_ranking,
        )
        self.gas.precision(anchor_precision, variance_floor)  # refuse an unknown one now
        self._samples = self.gas.samples

    def required_callbacks(self) -> list[Callback]:
        """The old model, if there is distillation."""
        return [Teacher()] if self.distillation_weight else []

    # ------------------------------------------------------------------ nodes

    def begin_stream(self, tasks: Any, seed: int) -> None:
        """A new stream starts without nodes; a checkpoint brings its own."""
        super().begin_stream(tasks, seed)
        if not self.head.num_classes:
            self.gas.clear()

    def stages(self, task: Task) -> list[Stage]:
        """See `MultimodalModule.stages`; later tasks train the centroids of their nodes, too."""
        (stage,) = super().stages(task)
        return [stage if task.is_first else replace(stage, train=[*stage.train, "gas.fresh"])]

    def parameter_groups(self) -> list[Any]:
        """Centroids have a learning rate of their own and no weight decay."""
        others = [p for p in super().parameter_groups() if p is not self.gas.fresh]
        if not self.gas.fresh.requires_grad:
            return others
        return [{"params": others}, {"params": [self.gas.fresh], "lr": self.centroid_lr, "weight_decay": 0.0}]

    def on_stage_start(self, task: Task, stage: Stage) -> None:
        """New nodes for a task that is not the first, by the old model's features."""
        if task.is_first:
            return
        trainer: Any = self.trainer
        trainer.strategy.model_to_device()
        features, target, _ = self._seen(task)
        self.gas.insert(features, target, self._nodes_of(task, self.new_nodes, target), self._seed(task, 0))

    def on_task_end(self, task: Task) -> None:
        """See `MultimodalModule.on_task_end`; fits the task's nodes to the features of the trained model."""
        features, target, index = self._seen(task)
        if task.is_first:
            self.gas.insert(features, target, self._nodes_of(task, self.num_nodes, target), self._seed(task, 0))
        else:
            self.gas.fit(features, target, self._seed(task, 1))
        self.gas.rest(features, target, index)
        if self.anchor_target == "features":
            trainer: Any = self.trainer
            every, position = torch.unique(self.gas.samples.cpu(), return_inverse=True)  # sorted, as what comes back is
            found, _ = extract_features(trainer, self, trainer.datamodule.eval_loader(every))
            self.gas.sample_features = F.normalize(found[position], dim=1).to(self.device)
        super().on_task_end(task)

    def _seen(self, task: Task) -> tuple[Tensor, Tensor, Tensor]:
        """Features of length 1, classes and indices of a task's training samples, on the CPU, the same on all ranks."""
        trainer: Any = self.trainer
        datamodule = trainer.datamodule
        loader = datamodule.eval_loader(datamodule.train_indices([task.index]))
        features, index = extract_features(trainer, self, loader)
        return F.normalize(features, dim=1), datamodule.labels("train")[index], index

    @staticmethod
    def _nodes_of(task: Task, most: int, target: Tensor) -> int:
        return min(len(target), max(task.num_classes, min(most, len(target) // 2)))

    def _seed(self, task: Task, use: int) -> int:
        state = stream_state(self.trainer)
        assert state is not None
        return fold_seed(state.seed, 11, task.index, use)

    # ------------------------------------------------------------------ training

    def on_train_start(self) -> None:
        """See `MultimodalModule.on_train_start`; indices of the nodes' samples are read on the CPU."""
        super().on_train_start()
        self._samples = self.gas.samples.cpu()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """CE + λ₁ L_AL + λ₂ L_MML, and distillation if it has a weight."""
        assert self.task is not None
        fused, target = self.features(*self.inputs(batch)), batch["target"]
        size, later = len(target), not self.task.is_first and self.gas.num_nodes > 0
        terms: dict[str, Tensor] = {}
        if later:
            rows, anchors = self._drawn_nodes()
            terms = self._graph_terms(fused, anchors, target, rows)
            if self.replay:
                fused, target = torch.cat([fused, anchors]), torch.cat([target, self.gas.labels[rows]])
        logits, _ = self.training_logits(fused)
        terms["cross_entropy"] = cross_entropy_over(logits, target, 0, logits.shape[1])
        if self.distillation_weight and "teacher_logits" in batch:
            old = logits[:size, : self.task.num_old]
            kept = soft_cross_entropy(old, batch["teacher_logits"], self.temperature)
            terms["distillation"] = self.distillation_weight * self.temperature**2 * kept
        self.log_terms(**terms)
        return torch.stack(list(terms.values())).sum()

    def _graph_terms(self, fused: Tensor, anchors: Tensor, target: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """λ₁ L_AL and both parts of λ₂ L_MML, of the features of new samples and of some nodes' samples."""
        gas = self.gas
        where = gas.centroids if self.anchor_target == "centroid" else gas.sample_features
        precision = gas.precision(self.anchor_precision, self.variance_floor)
        with torch.autocast(fused.device.type, enabled=False):
            kept = anchor_loss(F.normalize(anchors.float(), dim=1), where[rows], precision[rows])
            features, nodes = F.normalize(fused.float(), dim=1), gas.positions()
            parts = min_max_terms(features, target, nodes, gas.labels, gas.linked, margin=self.margin)
        world = self.trainer.world_size  # DDP takes the mean of the ranks, and L_MML is a sum over all their samples
        return {
            "anchor": self.anchor_weight * gas.num_nodes / len(rows) * kept,
            "pull": self.min_max_weight * world * parts["pull"],
            "push": self.push_weight * world * parts["push"],
        }

    def _drawn_nodes(self) -> tuple[Tensor, Tensor]:
        """This rank's share of the nodes drawn for the step, long `[A]`, and their samples' features `[A, dim]`."""
        trainer: Any = self.trainer
        datamodule = trainer.datamodule
        size = min(self.anchors_per_step, max(1, self.gas.num_nodes // trainer.world_size))
        step = trainer.fit_loop.total_batch_idx
        drawn = draw_rows(self.gas.num_nodes, size * trainer.world_size, self._seed(self.tasks[0], 2), step)
        rows = drawn[trainer.global_rank * size : (trainer.global_rank + 1) * size]
        index = self._samples[rows]
        image = datamodule.transform(to_device(datamodule.stored_images(index), self.device))
        anchors: Any = {"replay_image": image, "replay_index": to_device(index, self.device)}
        return to_device(rows, self.device), self.features(*self.inputs(anchors, "replay_"))

    # ------------------------------------------------------------------ what a run keeps

    def notes(self) -> dict[str, Any]:
        """See `MultimodalModule.notes`."""
        return {**super().notes(), "nodes": len(self.gas.labels)}

    def extra_results(self, done: int) -> dict[str, Any]:
        """See `MultimodalModule.extra_results`; with the graph's size and the classes that have no node."""
        bare = sorted(set(range(self.num_classes_seen)) - set(self.gas.labels.tolist()))
        graph = {"nodes": self.gas.num_nodes, "edges": int(self.gas.linked.sum()) // 2, "classes_without_node": bare}
        return {**super().extra_results(done), "neural_gas": graph}

    def footprint(self) -> dict[str, int]:
        """Bytes of the nodes' samples and of their positions."""
        trainer: Any = self.trainer
        every = torch.unique(self.gas.samples.cpu())
        images = trainer.datamodule.stored_images(every[:1]).nbytes * len(every)
        return {"exemplar_bytes": images, "exemplar_label_bytes": every.nbytes}
