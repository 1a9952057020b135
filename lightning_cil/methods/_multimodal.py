"""`MultimodalModule`: what all methods on AudioCLIP's towers share.

A class is the mean feature of prompts with its name; a sample is what the method makes of its image and its sound; the
logits are their products. So there is no layer of outputs to grow, and classes to come can be scored before they are
learned.

Where the data go: `encode` (towers) -> `fuse` -> `classify` (prototypes). `inputs` takes the sound's features from a
table when the audio tower is frozen.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.optim import Optimizer

from lightning_cil.callbacks.features import run_over
from lightning_cil.callbacks.gather import gather_columns
from lightning_cil.callbacks.stream_state import stream_state
from lightning_cil.losses import cross_entropy_over
from lightning_cil.methods._audio_cache import AudioCache
from lightning_cil.methods._candidates import CandidateCounts
from lightning_cil.methods.base import IncrementalModule
from lightning_cil.metrics.multimodal import (
    BackwardMap,
    ForwardKind,
    Preset,
    cluster_agreement,
    label_agreement,
    m2,
    multimodal_scores,
    task_similarity,
)
from lightning_cil.networks import MIFE, Mixtures, PrototypeHead, evaluating, merge_counters
from lightning_cil.networks.audioclip import AudioCLIP, Prompts, Towers
from lightning_cil.types import Batch, Scenario, Stage, Task

CHECKPOINT_KEY = "lightning_cil.multimodal"

Predict = Literal["sum", "image", "audio"]
CeScope = Literal["seen", "new"]
Scope = str | Sequence[str]
"""`none`, `all`, `last_block`, `image`, `text`, `audio`, or patterns of parameter names of the towers."""

ONE_TEMPLATE = Prompts(templates=["{}"])
"""The bare name, as AudioCLIP scores sounds."""


@dataclass(frozen=True)
class ScoreOptions:
    """What M1 and M2 are made of, see `lightning_cil.metrics.multimodal`.

    Args:
        preset: Of M2's coefficients: `fifths`, `thirds` or `half`.
        coefficients: c_A, c_B and c_N in place of a preset.
        backward: How BWT_t is mapped to [0, 1]: `shifted` or `halved`.
        forward: What FWT_t is: `learned`: accuracy on the task when it is learned; `gem`: how much better than the
            untrained towers the model is on the task before it learns it.
        nmi: What the groups of the fused features are compared with: `modalities`: those of the visual and the audio
            features, as in the paper; `labels`: the classes.
        seed: Of k-means.

    Raises:
        ValueError: For an unknown option, or coefficients with which M2 would leave [0, 1].
    """

    preset: Preset = "fifths"
    coefficients: tuple[float, float, float] | None = None
    backward: BackwardMap = "shifted"
    forward: ForwardKind = "learned"
    nmi: Literal["modalities", "labels"] = "modalities"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("backward", self.backward, ("shifted", "halved")),
            ("forward", self.forward, ("learned", "gem")),
            ("nmi", self.nmi, ("modalities", "labels")),
        ):
            if value not in known:
                raise ValueError(f"`scores.{name}={value!r}` is unknown; expected {known[0]!r} or {known[1]!r}.")
        m2(0.0, [0.0], [0.0], 0.0, 0.0, self.preset, self.coefficients)  # refuses what it cannot use


class MultimodalModule(IncrementalModule):
    """Base of the methods on AudioCLIP.

    Args:
        towers: A preset's name, or `Towers` with weights and options.
        prompts: The texts that stand for a class.
        predict: Which modalities the pairwise score counts: `½ (s_it v·t + s_at a·t)`, or one of the two.
        scenario: See `IncrementalModule`.
        epochs: See `IncrementalModule`.
        optimizer: See `IncrementalModule`.
        lr_scheduler: See `IncrementalModule`.
        scope: What of the towers is trained.
        first_task_scope: The same in the first task, by default `scope`; for towers that start from random values.
        mife: Mixtures of experts in the towers; `None`: none.
        ce_scope: Classes of the softmax in training: `seen`: all so far, `new`: the current task's.
        cache_audio: Whether the features of a frozen audio tower are computed once for each clip.
        scores: What M1 and M2 are made of.
    """

    uses_exemplars = False
    backbone: AudioCLIP
    head: PrototypeHead

    def __init__(
        self,
        *,
        towers: str | Towers,
        prompts: Prompts,
        predict: Predict,
        scenario: Scenario,
        epochs: int,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        scope: Scope = "none",
        first_task_scope: Scope | None = None,
        mife: MIFE | None = None,
        ce_scope: CeScope = "seen",
        cache_audio: bool = True,
        scores: ScoreOptions | None = None,
    ) -> None:
        spec = made(Towers, Towers(towers) if isinstance(towers, str) else towers)
        model = spec.build()
        super().__init__(
            backbone=model,
            head=PrototypeHead(model.embed_dim),
            scenario=scenario,
            epochs=epochs,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        if predict not in ("sum", "image", "audio") or ce_scope not in ("seen", "new"):
            raise ValueError(
                f"got `predict={predict!r}`, `ce_scope={ce_scope!r}`; expected 'sum', 'image' or 'audio', and 'seen' "
                "or 'new'."
            )
        self.towers = spec
        self.predict: Predict = predict
        self.ce_scope: CeScope = ce_scope
        self.cache_audio = cache_audio
        self.scores = made(ScoreOptions, scores or ScoreOptions())
        self.backbone.requires_grad_(False)
        self.scope = self._patterns("scope", scope)
        self.first_task_scope = (
            self.scope if first_task_scope is None else self._patterns("first_task_scope", first_task_scope)
        )
        self.mixtures: Mixtures | None = made(MIFE, mife).insert(self.backbone) if mife is not None else None
        prompts = made(Prompts, prompts)
        tokenizer = spec.tokenizer(self.backbone)
        self._prototypes = prompts.build(tokenizer)
        self._training_prototypes = prompts.build(tokenizer)
        self._audio = AudioCache()
        self._fits_projection = spec.projection == "procrustes"
        self._forget()

    def _forget(self) -> None:
        """What a stream finds out about itself."""
        self._frozen_similarity: list[float] | None = None
        self._similarity: list[float] = []
        self._task_means = torch.zeros(0, self.backbone.embed_dim)
        self._agreement: dict[str, dict[str, float]] = {}
        self._notes: list[dict[str, Any]] = []
        self._candidates = CandidateCounts(max(1, len(self.tasks)))
        self._found: list[tuple[Tensor, ...]] = []

    # ------------------------------------------------------------------ network

    @property
    def uses_audio(self) -> bool:
        """Whether sounds matter to a prediction."""
        return self.predict != "image"

    @property
    def _keeps_audio(self) -> bool:
        """Whether the audio tower's features come from the table."""
        return self.cache_audio and self.uses_audio and self.backbone.audio.frozen

    def inputs(self, batch: Batch, prefix: str = "") -> tuple[Tensor, ...]:
        """Images, and the sounds' features `[B, audio_dim]` from the table, or waves `[B, 1, samples]`."""
        given = cast(dict[str, Tensor], batch)
        image = given[f"{prefix}image"]
        if not self.uses_audio:
            return (image,)
        datamodule: Any = self.trainer.datamodule if self._trainer is not None else None  # type: ignore[attr-defined]
        if prefix:  # exemplars have no sounds with them, only the number of their sample
            index = given[f"{prefix}index"]
            if self._keeps_audio:
                return image, self._table()[self._audio.clip_of[index]]
            return image, datamodule.transform_audio(datamodule.load_audio(index.cpu()).to(image.device))
        if "clip" in given and datamodule is not None and self._keeps_audio:
            return image, self._table()[given["clip"]]
        if "audio" not in given:
            raise ValueError(
                f"{type(self).__name__} got a batch with {sorted(given)}, without `audio`; expected images with "
                "sounds, as `ImageNetESC`, `SpokenDigits` or a `ManifestTasks` with the column `audio` have them. "
                "`predict: image` does without, where a method has it."
            )
        return image, given["audio"]

    def _table(self) -> Tensor:
        self._audio.fill(self.trainer, self.backbone)
        assert self._audio.table is not None
        return self._audio.table

    def encode(self, image: Tensor, audio: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Unit features of both modalities, float `[B, dim]` each; the second is `None` without sounds.

        Args:
            image: float `[B, 3, size, size]`, normalised.
            audio: float `[B, audio_dim]` of the audio tower, or waves `[B, 1, samples]` in [-1, 1].
        """
        visual = self.backbone.encode_image(image)
        if audio is None:
            return visual, None
        features = self.backbone.encode_audio(audio) if audio.ndim == 3 else audio
        return visual, self.backbone.project_audio(features)

    def fuse(self, visual: Tensor, audio: Tensor | None) -> Tensor:
        """What is compared with the prototypes, float `[B, dim]`; here such that the products are the pairwise score.

        Raises:
            ValueError: If a modality that the score needs is missing.
        """
        terms = []
        if self.predict != "audio":
            terms.append(self.backbone.scale("image_text") * visual)
        if self.predict != "image":
            if audio is None:
                raise ValueError(f"`predict={self.predict!r}` needs sounds; expected `audio` beside `image`.")
            terms.append(self.backbone.scale("audio_text") * audio)
        return torch.stack(terms).mean(dim=0)

    def features(self, image: Tensor, audio: Tensor | None = None) -> Tensor:
        """Map images and sounds (see `encode`) to `[B, dim]`, what is compared with the prototypes."""
        return self.fuse(*self.encode(image, audio))

    def modality_features(self, batch: Batch) -> dict[str, Tensor]:
        """Features of a batch, float `[B, dim]` each: `features` (fused), `visual`, and `audio` where sounds matter."""
        visual, audio = self.encode(*self.inputs(batch))
        found = {"features": self.fuse(visual, audio), "visual": visual}
        return found if audio is None else {**found, "audio": audio}

    def forward(self, image: Tensor, audio: Tensor | None = None) -> Tensor:
        """Map images and sounds (see `encode`) to the logits `[B, seen]` of all classes seen."""
        return self.classify(self.features(image, audio), num_future=0)

    def classify(self, features: Tensor, num_future: int | None = None) -> Tensor:
        """Logits `[B, classes]` of the classes seen and of `num_future` tasks to come, by default all."""
        future = sum(t.num_classes for t in self.tasks[len(self.head.sizes) :][:num_future])
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.head(features.float(), self.class_prototypes()[: self.head.num_classes + future])
            return logits

    def class_prototypes(self) -> Tensor:
        """Of all the stream's classes, float `[C, dim]`; kept while the text tower stays as it is."""
        self._prototypes.set_classes(self._names(0, None))
        return self._prototypes(self.backbone).float()

    def training_logits(self, features: Tensor) -> tuple[Tensor, int]:
        """Logits `[B, classes]` for the loss, and the first of the classes that take part, see `ce_scope`."""
        assert self.task is not None
        first = 0 if self.ce_scope == "seen" else self.task.first_class
        self._training_prototypes.set_classes(self._names(first, self.task.num_seen))
        prototypes = self._training_prototypes(self.backbone, step=self.global_step)
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.float(), prototypes.float()), first

    def _names(self, first: int, end: int | None) -> list[str]:
        if not self.class_names:
            raise ValueError(
                f"{type(self).__name__} knows no names of classes, of which its prototypes are made. Train it with an "
                "`IncrementalDataModule`, load a checkpoint, or set `class_names`."
            )
        return self.class_names[first:end]

    def batch_logits(self, batch: Batch, num_future: int | None = None) -> Tensor:
        """See `IncrementalModule.batch_logits`."""
        return self.classify(self.batch_features(batch), num_future)

    def predicted_labels(self, batch: Batch) -> dict[str, Tensor]:
        """See `IncrementalModule.predicted_labels`."""
        logits = self.batch_logits(batch)
        self.count_candidates(logits, batch)
        return self.labels_of(logits, batch)

    def count_candidates(self, logits: Tensor, batch: Batch) -> None:
        """Count what FWT_t is made of, if that is asked for, from logits `[B, classes]` of the whole stream."""
        if self.scores.forward == "gem" and self._row is not None:
            self._candidates.add(logits, batch["target"], batch["task"], self._end_class, self._row)

    def batch_features(self, batch: Batch) -> Tensor:
        """Fused features of a batch, `[B, dim]`; those of the last evaluation are noted, for M2."""
        visual, audio = self.encode(*self.inputs(batch))
        fused = self.fuse(visual, audio)
        if self._row is not None and self._row == len(self.tasks) - 1:
            other = visual if audio is None else audio
            features = [f.float().cpu() for f in (fused, visual, other)]
            self._found.append((batch["index"].cpu(), *features, batch["target"].cpu()))
        return fused

    def configure_model(self) -> None:
        """Refuse FSDP2: the towers are used by parts of them.

        Raises:
            ValueError: Under `ModelParallelStrategy`.
        """
        if self.device_mesh is not None:
            raise ValueError(
                f"{type(self).__name__} cannot be sharded by `ModelParallelStrategy`, as its towers are used by parts. "
                "Use `strategy='ddp'`."
            )

    # ------------------------------------------------------------------ stream

    def begin_stream(self, tasks: Sequence[Task], seed: int) -> None:
        """A new stream starts without notes; a checkpoint brings its own."""
        super().begin_stream(tasks, seed)
        if not self.head.num_classes:
            self._forget()

    def grow_to(self, task: Task) -> None:
        """Count the classes of `task`, and have its experts and routers."""
        super().grow_to(task)
        if self.mixtures is not None:
            self.mixtures.start_task(task.index)

    def stages(self, task: Task) -> list[Stage]:
        """One stage that trains the scope, the experts, and what else the method has."""
        scope = self.first_task_scope if task.is_first else self.scope
        experts = ["backbone.*.adapter.*"] if self.mixtures is not None else []
        train = [*scope, *experts, *self.extra_parameters()]
        if not train:
            raise ValueError(
                f"{type(self).__name__} trains nothing in task {task.index} with `scope={self.scope}`; expected a "
                "scope such as 'last_block' or 'all', or mixtures."
            )
        return [Stage("train", self.epochs, train=train)]

    def extra_parameters(self) -> list[str]:
        """Patterns of the parameters beside the towers that are trained."""
        return []

    def begin_stage(self, task: Task, stage: Stage) -> None:
        """See `IncrementalModule.begin_stage`; sounds are read only if the audio tower is trained."""
        super().begin_stage(task, stage)
        if self.mixtures is not None:
            self.mixtures.apply_freezing()
        if not self.backbone.audio.frozen:
            self._audio.clear()

    def setup(self, stage: str) -> None:
        """Say whether batches need sounds.

        Raises:
            ValueError: If the data's sounds have another sample rate than the audio tower reads.
        """
        super().setup(stage)
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.uses_audio and hasattr(datamodule, "provide_audio"):
            datamodule.setup("fit")
            given, wanted = datamodule.clips().form.sample_rate, self.backbone.sample_rate
            if given != wanted:
                raise ValueError(
                    f"The data have sounds of {given} Hz, but the audio tower reads {wanted} Hz: it would hear them "
                    f"{wanted / given:.3g} times as fast. Give the data `sample_rate: {wanted}`; files of other rates "
                    "are resampled."
                )
            datamodule.provide_audio(not self._keeps_audio)

    def on_train_start(self) -> None:
        """Have the table of sounds, and look at the untrained towers if nobody has yet."""
        self._ready(untrained=self.global_step == 0)

    def on_test_start(self) -> None:
        """Start counting anew."""
        super().on_test_start()
        self._found = []
        self._candidates.start(self.device)
        self._ready(untrained=self._row == -1)

    def on_validation_start(self) -> None:
        """See `IncrementalModule.on_validation_start`."""
        super().on_validation_start()
        self._ready(untrained=False)

    def _ready(self, untrained: bool) -> None:
        if self._fits_projection:
            self._fit_projection()
        if self._keeps_audio:
            self._table()
        if untrained and self._frozen_similarity is None:
            self._look_at_untrained()

    def _fit_projection(self) -> None:
        """P by the names of the first task, before anything is trained; a checkpoint brings its own."""
        with torch.inference_mode(False), evaluating(self):
            self.towers.fit_projection(self.backbone, self._names(0, self.tasks[0].num_seen))
        self._fits_projection = False

    def _look_at_untrained(self) -> None:
        """The similarity of tasks by the untrained towers, and what the method chooses by the first task."""
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]

        def both(*inputs: Tensor) -> Tensor:
            visual, audio = self.encode(*inputs)
            return torch.cat([visual, visual if audio is None else audio], dim=1)

        everything = datamodule.eval_loader(datamodule.train_indices(range(len(self.tasks))))
        with torch.inference_mode(False), evaluating(self):
            found, index = run_over(self.trainer, self, both, everything, self.inputs)
            visual, audio = found.chunk(2, dim=1)
            label = datamodule.labels("train")[index]
            fused = MultimodalModule.fuse(self, visual.to(self.device), audio.to(self.device)).cpu()
            prototypes = self.class_prototypes().cpu()
            means = torch.stack([fused[datamodule.task_of(label) == t.index].mean(dim=0) for t in self.tasks])
            self._frozen_similarity = [
                task_similarity(prototypes[: t.num_seen], means[: t.index + 1], t.num_classes) for t in self.tasks
            ]
            first = label < self.tasks[0].num_seen
            own = prototypes[: self.tasks[0].num_seen]
            self.calibrate(visual[first], audio[first], label[first], own)

    def calibrate(self, visual: Tensor, audio: Tensor, target: Tensor, prototypes: Tensor) -> None:
        """Choose what depends on the first task's training samples, seen by the untrained towers."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """With `16-mixed`: wavelets take steps of the same size as without."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and self.backbone.audio.front_end == "fbsp":
            self.backbone.audio.fbsp.undo_unscaling(scaler)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add up what all ranks counted."""
        world = self.trainer.world_size
        merge_counters(self, None if world == 1 else lambda t: self.trainer.strategy.reduce(t, reduce_op="sum"))

    def on_task_end(self, task: Task) -> None:
        """Note the mean feature of the task's samples, the prototypes' likeness, and how the experts were used."""
        features = self.task_features(task, self.features)
        self._task_means = torch.cat([self._task_means[: task.index], features.mean(dim=0, keepdim=True)])
        with evaluating(self):
            prototypes = self.class_prototypes()[: task.num_seen].cpu()
        likeness = task_similarity(prototypes, self._task_means, task.num_classes)
        self._similarity = [*self._similarity[: task.index], likeness]
        self._notes = [*self._notes[: task.index], self.notes()]
        if self.mixtures is not None:
            self.mixtures.end_task()

    def task_features(self, task: Task, function: Callable[..., Tensor]) -> Tensor:
        """What a function of the `inputs` makes of a task's training samples, float `[N, dim]` on the CPU."""
        if self._keeps_audio:
            self._table()
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        loader = datamodule.eval_loader(datamodule.train_indices([task.index]))
        return run_over(self.trainer, self, function, loader, self.inputs)[0]

    def notes(self) -> dict[str, Any]:
        """What `results.json` says of a task's training, plain JSON."""
        if self.mixtures is None:
            return {}
        usage = {name: [float(share) for share in shares] for name, shares in self.mixtures.usage().items()}
        return {"expert_usage": usage, "gate_entropy": float(self.mixtures.mean_entropy())}

    def on_test_epoch_end(self) -> None:
        """Group the features of the last evaluation."""
        super().on_test_epoch_end()
        if self._row is not None and self.scores.forward == "gem":
            self._candidates.keep(self._row)
        if self._row is None or self._row != len(self.tasks) - 1:
            return
        columns = gather_columns(self.trainer, self._found or [self._nothing()])
        self._found = []
        _, fused, visual, audio, target = columns
        classes = self.num_classes_seen
        self._agreement = {}
        if len(fused) < classes:
            return
        for name, other in (("visual", visual), ("audio", audio)):
            if name == "audio" and not self.uses_audio:
                continue
            found = (
                cluster_agreement(fused, other, classes, self.scores.seed)
                if self.scores.nmi == "modalities"
                else label_agreement(fused, target, classes, self.scores.seed)
            )
            self._agreement[name] = {"nmi": found.nmi, "ami": found.ami}

    def _nothing(self) -> tuple[Tensor, ...]:
        none, dim = torch.empty(0, dtype=torch.int64), self.backbone.embed_dim
        return none, *(torch.empty(0, dim) for _ in range(3)), none

    def extra_results(self, done: int) -> dict[str, Any]:
        """M1, M2, and all they are made of."""
        state = stream_state(self.trainer)
        assert state is not None
        counts = state.counts["class_il"]
        tests = counts.total[done, :done]
        matrix = [row[:done] for row in counts.matrix()[:done]]
        if bool((tests < 1).any()):
            return {"multimodal": None}
        frozen = self._frozen_similarity[:done] if self._frozen_similarity is not None else None
        own: Any = self._similarity if len(self._similarity) >= done else frozen if self.always_evaluated else None
        nmi = {name: found["nmi"] for name, found in self._agreement.items()}
        ahead, zero_shot = self._candidates.ahead(done)
        if self.no_forward_transfer:
            ahead = [None] * done
        result = multimodal_scores(
            matrix,
            tests,
            similarity=(own or [None] * done)[:done],
            frozen_similarity=frozen,
            nmi_visual=nmi.get("visual"),
            nmi_audio=nmi.get("audio"),
            preset=self.scores.preset,
            coefficients=self.scores.coefficients,
            backward=self.scores.backward,
            forward=self.scores.forward,
            ahead=ahead,
            zero_shot=zero_shot,
        )
        result["ami"] = {name: found["ami"] for name, found in self._agreement.items()}
        result["choices"] |= {"nmi": self.scores.nmi, "predict": self.prediction_rule}
        return {"multimodal": {**result, "tasks": self._notes[:done]}}

    @property
    def prediction_rule(self) -> str:
        """What predicts, in words."""
        rules = {"sum": "½ (s_it v·t + s_at a·t)", "image": "s_it v·t", "audio": "s_at a·t"}
        return rules[self.predict]

    @abstractmethod
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """See `IncrementalModule.training_step`."""

    def cross_entropy(self, batch: Batch) -> Tensor:
        """Of the fused features over the classes of `ce_scope`, with the experts' balance loss, if it has a weight."""
        logits, first = self.training_logits(self.features(*self.inputs(batch)))
        return cross_entropy_over(logits, batch["target"] - first, 0, logits.shape[1]) + self.balance()

    def balance(self) -> Tensor:
        """The balance loss of the step's forward passes; 0 without a weight."""
        loss = self.mixtures.balance() if self.mixtures is not None else None
        return torch.zeros((), device=self.device) if loss is None else loss

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what the scores are made of."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY] = {
            "frozen_similarity": self._frozen_similarity,
            "similarity": self._similarity,
            "task_means": self._task_means,
            "agreement": self._agreement,
            "notes": self._notes,
            "candidates": self._candidates.counts,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back; the table of sounds is computed from the checkpoint's weights."""
        super().on_load_checkpoint(checkpoint)
        self._audio.clear()
        self._fits_projection = False
        saved: Mapping[str, Any] = checkpoint.get(CHECKPOINT_KEY) or {}
        if saved:
            self._frozen_similarity, self._similarity = saved["frozen_similarity"], list(saved["similarity"])
            self._task_means, self._agreement = saved["task_means"], dict(saved["agreement"])
            self._notes = list(saved["notes"])
            self._candidates.counts = saved["candidates"]

    # ------------------------------------------------------------------ private

    def _patterns(self, argument: str, scope: Scope) -> list[str]:
        """Patterns of the module's parameter names that a scope stands for."""
        last = _last_blocks(self.backbone)
        known = {"none": [], "all": ["image.*", "text.*", "audio.*"], "last_block": last}
        known |= {name: [f"{name}.*"] for name in ("image", "text", "audio")}
        if isinstance(scope, str) and scope not in known:
            raise ValueError(
                f"`{argument}={scope!r}` is unknown; expected one of {', '.join(known)}, or a list of patterns such as "
                "['image.ln_post.*']."
            )
        patterns = known[scope] if isinstance(scope, str) else list(scope)
        names = [name for name, _ in self.backbone.named_parameters()]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"`{argument}` has the pattern {pattern!r}, which matches no parameter of the towers, such as "
                    f"{names[3]!r}."
                )
        return [f"backbone.{pattern}" for pattern in patterns]


def _last_blocks(model: AudioCLIP) -> list[str]:
    """Patterns of the last block and the projections of image and text tower, and of the audio tower's last layer."""
    names = [name for name, _ in model.named_parameters()]
    ends = {name.split(".")[0]: f"{name}.*" for name in model.blocks()}
    wanted = [*ends.values(), "image.proj", "image.layer4.*", "image.attnpool.*", "text.text_projection", "audio.fc.*"]
    return [pattern for pattern in wanted if any(fnmatchcase(name, pattern) for name in names)]


def made(kind: Any, value: Any) -> Any:
    """A spec, also from a checkpoint's hyper-parameters."""
    return kind(**value) if isinstance(value, dict) else value
