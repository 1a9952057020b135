"""`MultimodalCIL`: mixtures of experts in AudioCLIP's image and text towers, adaptive fusion, and two losses.

Paper: Chen et al., Leveraging Pre-Trained Models for Multimodal Class-Incremental Learning under Adaptive Fusion, 2025,
https://arxiv.org/abs/2506.09999 (no code). Memory: none.

| paper | here |
|---|---|
| section II-A, mixtures in every block, text diversity | `MIFE`, `Prompts` |
| Eq. 1 and 2, fusion | `AAVFM` |
| Eq. 3, softmax over cosines with the prototypes | `fuse`, `classify`; times CLIP's s_it, else it is flat |
| Eq. 4 and 5, weighted cross-entropy | `similarity_weighted_cross_entropy` |
| Eq. 6-8, mutual information | `make_mi_estimator` |
| Eq. 9, L = α L_CW + (1 - α) L_MI | `crossmodal_terms` |

The rows of the paper's tables II and III: "Baseline": `fusion: {kind: concat}`, `prompts: {templates: 1}`, `loss: ce`;
"+ textual diversity", "+ AAVFM" and "+ loss" change one of the three back; "ours" has all.

What the paper leaves open is an option each: learning rate, epochs, experts, estimator, which classes the softmax runs
over (here: all seen). The audio tower and P are frozen.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_cil.callbacks.gather import gather_batch
from lightning_cil.losses import cross_entropy_over, crossmodal_terms, make_mi_estimator
from lightning_cil.losses.crossmodal import Reading
from lightning_cil.methods._multimodal import CeScope, MultimodalModule, Scope, ScoreOptions, made
from lightning_cil.networks import AAVFM, MIFE, Fusion
from lightning_cil.networks.audioclip import Prompts, Towers
from lightning_cil.networks.fusion import pearson_correlation
from lightning_cil.networks.router_selectors import SelectorKind, make_router_selector
from lightning_cil.schedulers import FractionCosineLR
from lightning_cil.types import Batch, Scenario, Task

Loss = Literal["crossmodal", "ce"]
Estimator = Literal["info_nce", "mine", "gaussian"]


class MultimodalCIL(MultimodalModule):
    """Experts in AudioCLIP and adaptive fusion of images and sounds (Chen et al. 2025, Eq. 1-9, https://arxiv.org/abs/2506.09999).

    Args:
        towers: See `MultimodalModule`.
        prompts: See `MultimodalModule`. Default: our 35 templates.
        mife: The mixtures; `None`: none, so that the fusion alone is trained.
        fusion: How image and sound become one.
        scenario: See `IncrementalModule`.
        epochs: Passes over each task's data.
        optimizer: See `IncrementalModule`. Default: AdamW (the paper), lr 1e-3, no weight decay (ours).
        lr_scheduler: See `IncrementalModule`. Default: a cosine (the paper).
        loss: `crossmodal`: Eq. 9; `ce`: plain cross-entropy (ablation).
        alpha: α in [0, 1] (the paper: 0.7); 1 trains without mutual information.
        reading: Of Eq. 5: `A`: each sample's loss times its mean similarity; `C`: pairs of one class; `B`: all pairs,
            each sample with the other's label, for comparison.
        mi_estimator: `info_nce`, `mine` or `gaussian`.
        mi_options: Further arguments of the estimator, such as `temperature` or `dim`.
        mi_audio: Samples of I(f; a): `all` (Eq. 7), or `fused_only`, those that the fusion fuses.
        scale: Factor of the cosines of Eq. 3; `None`: CLIP's s_it. 1 is the paper's letter.
        ce_scope: Classes of the softmax in training: `seen`: all so far; `new`: the current task's.
        router_selector: With `mife: {router: per_task}`: which router an image takes at test: `last`; `nearest`: that
            of the task whose mean frozen feature is nearest; `ddas`. Texts take the last.
        router_options: Further arguments of `ddas`: `code`, `threshold`, `iterations`, `lr`; see
            `ReconstructionSelector`.
        first_task_scope: What of the towers is trained in the first task besides; for towers that start from random
            values.
        cache_audio: See `MultimodalModule`.
        scores: See `MultimodalModule`.

    Raises:
        ValueError: For options out of range or that do not go together.
    """

    def __init__(
        self,
        *,
        towers: str | Towers = "vit_b16",
        prompts: Prompts | None = None,
        mife: MIFE | None = MIFE(),  # noqa: B008  # frozen
        fusion: Fusion | None = None,
        scenario: Scenario = "class_il",
        epochs: int = 10,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = lambda o: FractionCosineLR(o),
        loss: Loss = "crossmodal",
        alpha: float = 0.7,
        reading: Reading = "A",
        mi_estimator: Estimator = "info_nce",
        mi_options: dict[str, float | int | bool] | None = None,
        mi_audio: Literal["all", "fused_only"] = "all",
        scale: float | None = None,
        ce_scope: CeScope = "seen",
        router_selector: SelectorKind = "last",
        router_options: dict[str, float | int | None] | None = None,
        first_task_scope: Scope = "none",
        cache_audio: bool = True,
        scores: ScoreOptions | None = None,
    ) -> None:
        super().__init__(
            towers=towers,
            prompts=prompts or Prompts(),
            predict="sum",
            scenario=scenario,
            epochs=epochs,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            first_task_scope=first_task_scope,
            mife=mife,
            ce_scope=ce_scope,
            cache_audio=cache_audio,
            scores=scores,
        )
        for name, value, known in (
            ("loss", loss, ("crossmodal", "ce")),
            ("reading", reading, ("A", "B", "C")),
            ("mi_audio", mi_audio, ("all", "fused_only")),
        ):
            if value not in known:
                raise ValueError(f"`{name}={value!r}` is unknown; expected one of {', '.join(known)}.")
        if not 0 <= alpha <= 1 or (scale is not None and not scale > 0):
            raise ValueError(
                f"got `alpha={alpha}`, `scale={scale}`; expected a weight in [0, 1], and a positive number."
            )
        per_task = self.mixtures is not None and self.mixtures.spec.router == "per_task"
        if router_selector != "last" and not per_task:
            raise ValueError(
                f"`router_selector={router_selector!r}` chooses among the routers of `mife: {{router: per_task}}`; "
                "expected that, or 'last'."
            )
        dim = self.backbone.embed_dim
        self.fusion = made(Fusion, fusion or Fusion()).build(dim)
        if mi_audio == "fused_only" and not isinstance(self.fusion, AAVFM):
            raise ValueError("`mi_audio='fused_only'` needs `fusion: {kind: aavfm}`, which says what is fused.")
        self.loss: Loss = loss
        self.alpha = alpha
        self.reading: Reading = reading
        self.mi_audio = mi_audio
        self.scale = scale
        informed = loss == "crossmodal" and alpha < 1
        options: Mapping[str, Any] = mi_options or {}
        self.mi_visual = make_mi_estimator(mi_estimator, dim, dim, **options) if informed else None
        self.mi_sound = make_mi_estimator(mi_estimator, dim, dim, **options) if informed else None
        of_selector: Mapping[str, Any] = router_options or {}
        selector = make_router_selector(router_selector, dim, **of_selector)
        self.router_selector = selector if router_selector != "last" else None

    def extra_parameters(self) -> list[str]:
        """The fusion's, and those of the estimators of mutual information."""
        parts = {"fusion": self.fusion, "mi_visual": self.mi_visual, "mi_sound": self.mi_sound}
        return [f"{name}.*" for name, part in parts.items() if part is not None and list(part.parameters())]

    # ------------------------------------------------------------------ prediction

    def encode(self, image: Tensor, audio: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """See `MultimodalModule.encode`; in evaluation a selector says which router each image takes."""
        if self.router_selector is None or self.mixtures is None or self.training:
            return super().encode(image, audio)
        chosen = self.router_selector(self._frozen_visual(image))
        self.mixtures.select_router(chosen, "image")
        try:
            return super().encode(image, audio)
        finally:
            self.mixtures.select_router(None)

    def _frozen_visual(self, image: Tensor) -> Tensor:
        """Features `[B, dim]` of the image tower without its mixtures."""
        assert self.mixtures is not None
        self.mixtures.select_router(-1, "image")
        try:
            return self.backbone.encode_image(image)
        finally:
            self.mixtures.select_router(None)

    def fuse(self, visual: Tensor, audio: Tensor | None) -> Tensor:
        """Fused features `[B, dim]`, of length s, so that their products with the prototypes are Eq. 3's."""
        return self._scaled(self._fused(visual, audio))

    def _fused(self, visual: Tensor, audio: Tensor | None) -> Tensor:
        if audio is None:
            raise ValueError("MultimodalCIL needs sounds; expected `audio` beside `image`.")
        fused: Tensor = self.fusion(visual, audio)
        return fused

    def _scaled(self, fused: Tensor) -> Tensor:
        scale = self.backbone.scale("image_text") if self.scale is None else self.scale
        return scale * F.normalize(fused.float(), dim=1)

    @property
    def prediction_rule(self) -> str:
        """See `MultimodalModule.prediction_rule`."""
        return f"s cos(f, t), s = {'s_it' if self.scale is None else self.scale}"

    # ------------------------------------------------------------------ training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """α L_CW + (1 - α) L_MI over the batch of all ranks."""
        visual, audio = self.encode(*self.inputs(batch))
        fused = self._fused(visual, audio)
        assert audio is not None
        target = batch["target"]
        if self.loss == "crossmodal":
            visual, audio, fused, target = (self._everywhere(part) for part in (visual, audio, fused, target))
        logits, first = self.training_logits(self._scaled(fused))
        if self.loss == "ce":
            terms = {"cross_entropy": cross_entropy_over(logits, target - first, 0, logits.shape[1])}
        else:
            information = self.information(fused, visual, audio, target)
            terms = crossmodal_terms(
                logits, target - first, visual, information, alpha=self.alpha, reading=self.reading
            )
        if self.mixtures is not None and self.mixtures.spec.balance_weight:
            terms["balance"] = self.balance()
        self.log_terms(**terms)
        return torch.stack(list(terms.values())).sum()

    def information(self, fused: Tensor, visual: Tensor, audio: Tensor, target: Tensor) -> Tensor:
        """I(f; v) + I(f; a), scalar in nats; 0 where it has no weight. All features float `[B, dim]`."""
        if self.mi_visual is None or self.mi_sound is None:
            return fused.new_zeros(())
        of_visual: Tensor = self.mi_visual(fused, visual, target)
        if self.mi_audio == "fused_only":
            assert isinstance(self.fusion, AAVFM)
            kept = pearson_correlation(visual, audio) >= self.fusion.threshold
            fused, audio, target = fused[kept], audio[kept], target[kept]
        of_audio: Tensor = self.mi_sound(fused, audio.detach(), target)
        return of_visual + of_audio

    def _everywhere(self, part: Tensor) -> Tensor:
        return part if self._trainer is None else gather_batch(self.trainer, part)

    def on_train_epoch_end(self) -> None:
        """Log the share of this task's samples that were fused, and the entropy of the experts' gates."""
        if isinstance(self.fusion, AAVFM):
            self.log("train/fused_fraction", self.fusion.fused_fraction().float(), sync_dist=True)
        if self.mixtures is not None:
            self.log("train/gate_entropy", self.mixtures.mean_entropy().float(), sync_dist=True)

    # ------------------------------------------------------------------ tasks

    def calibrate(self, visual: Tensor, audio: Tensor, target: Tensor, prototypes: Tensor) -> None:
        """The threshold and the strong modality, where the config leaves them to the first task's data."""
        if not isinstance(self.fusion, AAVFM) or not self.fusion.needs_calibration:
            return
        right = [float(((part @ prototypes.T).argmax(1) == target).float().mean()) for part in (visual, audio)]
        self.fusion.calibrate(visual, audio, visual_accuracy=right[0], audio_accuracy=right[1])

    def on_task_end(self, task: Task) -> None:
        """See `MultimodalModule.on_task_end`; the selector learns the task before its features are taken."""
        if self.router_selector is not None:
            features = self.task_features(task, lambda image, *_: self._frozen_visual(image))
            self.router_selector.learn(task.index, features.to(self.device))
        super().on_task_end(task)
        if isinstance(self.fusion, AAVFM):
            self.fusion.counter.reset()

    def notes(self) -> dict[str, Any]:
        """See `MultimodalModule.notes`; with the share that was fused and what was chosen."""
        if not isinstance(self.fusion, AAVFM):
            return super().notes()
        return {
            **super().notes(),
            "fused_fraction": float(self.fusion.fused_fraction()),
            "threshold": float(self.fusion.threshold),
            "strong": "audio" if bool(self.fusion.strong_is_audio) else "visual",
            "modality_weights": self.fusion.modality_weights().tolist(),
        }
