"""`MMICaRL`: iCaRL on AudioCLIP; exemplars are pictures with their sounds.

Source: Rebuffi et al., iCaRL: Incremental Classifier and Representation Learning, 2017, Algorithms 1-5 (no equation has
a number), https://arxiv.org/abs/1611.07725; the "iCaRL" rows of Chen et al. 2025, table I,
https://arxiv.org/abs/2506.09999, which give no settings. Memory: 5 exemplars of each class; the paper has 2,000 in all.

| paper | function |
|---|---|
| Algorithm 3, `loss='binary'`: binary cross-entropy, the old model's sigmoids as targets | `icarl_binary_terms` |
| PyCIL's form (no equation), `loss='softmax'`: cross-entropy + distillation | `icarl_softmax_terms` |
| Algorithms 4 and 5: herding of the fused features | `ReplayBuffer(selection='herding')` |
| Algorithm 1: nearest mean of exemplars | `ExemplarMeans` |

Departures. Outputs are products of fused features with the prototypes of names. CLIP's are far above 0 for every class,
where a sigmoid is flat and cannot tell classes apart: `logit_offset` is taken from them first, the old model's too. New
data and exemplars meet in each batch, as in `ICaRL`.
"""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_cil.callbacks import OtherClassifier, ReplayBuffer, Teacher
from lightning_cil.losses import icarl_binary_terms, icarl_softmax_terms
from lightning_cil.methods._exemplars import joined, joined_inputs, joined_teacher_logits
from lightning_cil.methods._multimodal import ONE_TEMPLATE, MultimodalModule, Predict, Scope, ScoreOptions
from lightning_cil.methods._nearest_mean import NO_PROTOTYPES, ExemplarMeans
from lightning_cil.networks.audioclip import Prompts, Towers
from lightning_cil.types import Batch, Scenario, Task

Loss = Literal["binary", "softmax"]
Classifier = Literal["nme", "text"]


class MMICaRL(MultimodalModule):
    """iCaRL on AudioCLIP's towers (Rebuffi et al. 2017, no equation, Algorithms 1-5, https://arxiv.org/abs/1611.07725); needs `ReplayBuffer`.

    Args:
        towers: See `MultimodalModule`.
        prompts: See `MultimodalModule`. Default: the bare name.
        predict: See `MultimodalModule`; also what of the modalities herding and class means see.
        scenario: See `IncrementalModule`.
        epochs: Passes over each task's data.
        optimizer: See `IncrementalModule`.
        lr_scheduler: See `IncrementalModule`.
        scope: What of the towers is trained, see `PartialFineTune`.
        first_task_scope: The same in the first task; for towers that start from random values.
        loss: `binary`: iCaRL's, a mean over classes and batch (Mammoth); `softmax`: PyCIL's.
        distillation_weight: Weight of the distillation of the softmax loss, at least 0 (PyCIL: 1).
        temperature: T > 0 of the distillation of the softmax loss (PyCIL: 2).
        logit_offset: What the binary loss takes from every logit. `auto`: half-way between the mean logit of the right
            class and that of the others, by the untrained towers, on the first task's training samples. 0 is the
            paper's letter.
        classifier: What predicts: `nme`: the nearest mean of exemplars; `text`: the pairwise score. The other one's
            scores are in `results.json` as `other_classifier`.
        cache_audio: See `MultimodalModule`.
        scores: See `MultimodalModule`.

    Attributes:
        offset: float scalar (a buffer), the offset; 0 until `auto` is known.

    Raises:
        ValueError: For an unknown loss, classifier or offset, a negative weight, or a temperature that is not positive.
    """  # noqa: E501

    uses_exemplars = True
    offset: Tensor

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
        loss: Loss = "binary",
        distillation_weight: float = 1.0,
        temperature: float = 2.0,
        logit_offset: float | str = "auto",
        classifier: Classifier = "nme",
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
        if loss not in ("binary", "softmax") or classifier not in ("nme", "text"):
            raise ValueError(
                f"got `loss={loss!r}`, `classifier={classifier!r}`; expected 'binary' or 'softmax', and 'nme' or "
                "'text'."
            )
        if distillation_weight < 0 or temperature <= 0:
            raise ValueError(
                f"got `distillation_weight={distillation_weight}`, `temperature={temperature}`; expected a weight of "
                "at least 0, and a positive temperature; PyCIL uses 1 and 2."
            )
        if isinstance(logit_offset, str) and logit_offset != "auto":
            raise ValueError(f"`logit_offset={logit_offset!r}`: expected a number, or 'auto'.")
        self.loss: Loss = loss
        self.distillation_weight = distillation_weight
        self.temperature = temperature
        self.finds_offset = isinstance(logit_offset, str)
        self.register_buffer("offset", torch.tensor(0.0 if isinstance(logit_offset, str) else float(logit_offset)))
        self.classifier: Classifier = classifier
        self.other_classifier: Classifier = "text" if classifier == "nme" else "nme"
        self.no_forward_transfer = NO_PROTOTYPES if classifier == "nme" else None
        self.exemplar_means = ExemplarMeans(self.backbone.embed_dim)
        self._other: dict[str, dict[str, Tensor]] = {}

    def required_callbacks(self) -> list[Callback]:
        """The memory, the old model, and the scores of the classifier that does not predict."""
        other = OtherClassifier(self.other_classifier, NO_PROTOTYPES if self.other_classifier == "nme" else None)
        return [ReplayBuffer(per_class=5, selection="herding"), Teacher(), other]

    # ------------------------------------------------------------------ training

    def forward(self, image: Tensor, audio: Tensor | None = None) -> Tensor:
        """Map images and sounds (see `encode`) to the pairwise scores `[B, seen]`, which the teacher has, too."""
        return super().classify(self.features(image, audio), num_future=0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Classification and distillation on new samples and exemplars together."""
        assert self.task is not None
        target = joined(batch, "target")
        logits, _ = self.training_logits(self.features(*joined_inputs(self, batch)))
        teacher = joined_teacher_logits(batch, self.task.num_old, logits)
        if self.loss == "binary":
            terms = icarl_binary_terms(logits - self.offset, teacher - self.offset, target)
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

    def calibrate(self, visual: Tensor, audio: Tensor, target: Tensor, prototypes: Tensor) -> None:
        """The offset, where the config leaves it to the first task's data."""
        if not self.finds_offset:
            return
        logits = self.fuse(visual.to(self.device), audio.to(self.device)).cpu() @ prototypes.T
        right = torch.nn.functional.one_hot(target, logits.shape[1]).bool()
        parts = [logits[mask].mean() for mask in (right, ~right) if bool(mask.any())]
        self.offset.fill_(torch.stack(parts).mean())

    # ------------------------------------------------------------------ evaluation

    def begin_stream(self, tasks: Any, seed: int) -> None:
        """A new stream starts without means; a checkpoint brings its own."""
        super().begin_stream(tasks, seed)
        if not self.head.num_classes:
            self.exemplar_means.clear()

    def on_task_end(self, task: Task) -> None:
        """See `MultimodalModule.on_task_end`; and means of all classes so far, the exemplars being chosen already."""
        super().on_task_end(task)
        self.exemplar_means.update(self, task)

    def classify(self, features: Tensor, num_future: int | None = None) -> Tensor:
        """Scores of the classifier that predicts; inside a task the pairwise ones, as its classes have no means yet."""
        if self.classifier != "nme" or not self.exemplar_means.cover(self):
            return super().classify(features, num_future)
        return self.exemplar_means.scores(self, features, num_future)

    def predicted_labels(self, batch: Batch) -> dict[str, Tensor]:
        """See `IncrementalModule.predicted_labels`; both classifiers look at the same features."""
        features = self.batch_features(batch)
        nme = self.classifier == "nme"
        other = super().classify(features) if nme else self.exemplar_means.scores(self, features)
        self._other = {self.other_classifier: self.labels_of(other, batch)}
        scores = self.classify(features)
        self.count_candidates(scores, batch)
        return self.labels_of(scores, batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Count correct predictions of a batch; those of the other classifier are returned under its name."""
        predicted: dict[str, Any] = super().test_step(batch, batch_idx, dataloader_idx)
        other, self._other = self._other, {}
        return {**predicted, **other}

    def on_test_start(self) -> None:
        """Say it when NME cannot predict."""
        super().on_test_start()
        if self.classifier == "nme":
            self.exemplar_means.warn_unless_covered(self, "pairwise score")

    @property
    def prediction_rule(self) -> str:
        """See `MultimodalModule.prediction_rule`."""
        rule = super().prediction_rule
        return f"nearest mean of exemplars, of the features of {rule}" if self.classifier == "nme" else rule

    # ------------------------------------------------------------------ what a run keeps

    def extra_results(self, done: int) -> dict[str, Any]:
        """See `MultimodalModule.extra_results` and `ExemplarMeans.results`."""
        return {**super().extra_results(done), **self.exemplar_means.results()}

    def footprint(self) -> dict[str, int]:
        """Bytes of the class means."""
        return self.exemplar_means.footprint()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the means, too."""
        super().on_save_checkpoint(checkpoint)
        self.exemplar_means.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back."""
        super().on_load_checkpoint(checkpoint)
        self.exemplar_means.load(checkpoint)
