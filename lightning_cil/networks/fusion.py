"""AAVFM: fuses visual and audio features, sample by sample, where the two agree.

Chen et al., Leveraging Pre-Trained Models for Multimodal Class-Incremental Learning under Adaptive Fusion, 2025, Eq. 1
and 2, https://arxiv.org/abs/2506.09999 (no code). A sample whose features correlate less than a threshold keeps those
of its strong modality.

The paper leaves open: which audio vector Eq. 1 takes (here the projected one, as lengths must be equal), what happens
at equality (here: fused), the form of the attention in Eq. 2 and what masking does to it (`attention`, `mask_mode`),
and the MLP (here residual, with a last layer of zeros, so that training starts from the towers' own features).
Both inputs are made unit length first: with the lengths of CLIP's raw features the softmax of Eq. 2 would all but
leave the audio out.
"""

import math
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cil._precision import wide
from lightning_cil.networks.counters import StepCounter

__all__ = ["AAVFM", "ConcatFusion", "Fusion", "pearson_correlation"]

AttentionKind = Literal["stacked", "projected", "channel"]
MaskMode = Literal["attn", "zero_pad", "bypass"]
Strong = Literal["visual", "audio", "auto"]
Threshold: TypeAlias = float | str
"""A number, or `quantile:q` with q in [0, 1]."""

_NEVER = 2.0
"""A threshold that no correlation reaches."""


@torch.no_grad()
def pearson_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Correlation of two vectors of each sample, over their entries (Eq. 1).

    Args:
        x: float `[B, dim]`.
        y: float `[B, dim]`.

    Returns:
        float32 `[B]` (float64 for such input) in [-1, 1], without a gradient; 0 where a vector is constant.
    """
    x, y = wide(x), wide(y)
    dx, dy = x - x.mean(dim=1, keepdim=True), y - y.mean(dim=1, keepdim=True)
    return (F.normalize(dx, dim=1) * F.normalize(dy, dim=1)).sum(dim=1).clamp(-1, 1)


class AAVFM(nn.Module):
    """Adaptive audio-visual fusion: threshold mask, weighted concatenation, cross-attention, MLP.

    Args:
        dim: Width of the visual and of the projected audio features.
        threshold: Correlation from which on a sample is fused. A number: the paper's 0.8, which features of towers that
            were not trained to match seldom reach (they are then never fused); -1 fuses all. `quantile:q`: the
            q-quantile over the first task's training samples (`calibrate`), so that a share 1 - q of them is fused.
        strong: The modality that samples below the threshold keep. `auto`: the one that classifies the first task's
            training samples better without training (`calibrate`), visual if both do equally well.
        attention: Of Eq. 2, with the visual features as the query. `stacked`: keys and values are the two weighted
            vectors. `projected`: the same through linear layers for query, key and value, which start as identities.
            `channel`: every entry of the visual features attends to every entry of both vectors side by side, which
            takes dim times 2 dim numbers for each sample.
        mask_mode: Below the threshold. `attn`: the weak modality takes no part, the result is the weighted strong
            vector. `zero_pad`: the weak vector is zeros but takes part. `bypass`: the strong vector itself, without the
            MLP.
        heads: Of `projected`; divide `dim`.
        softmax_weights: Whether the two weights add up to 2 by a softmax.
        learnable_temperature: Whether the factor of the scores is trained; it starts at Eq. 2's 1/√d_k.
        mlp: Whether there is an MLP.
        residual: Whether the MLP is added to what it is given; then it starts at zero.

    Attributes:
        counter: `StepCounter` of two numbers: samples fused and samples seen in training mode.

    Raises:
        ValueError: For an unknown option or a threshold out of range.
    """

    threshold: Tensor
    """float scalar (a buffer); above 1, where nothing is fused, until a quantile is known."""
    strong_is_audio: Tensor
    """bool scalar (a buffer); False until `auto` is known."""
    temperature: Tensor | None

    def __init__(
        self,
        dim: int,
        *,
        threshold: Threshold = 0.8,
        strong: Strong = "visual",
        attention: AttentionKind = "stacked",
        mask_mode: MaskMode = "attn",
        heads: int = 1,
        softmax_weights: bool = False,
        learnable_temperature: bool = False,
        mlp: bool = True,
        residual: bool = True,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("strong", strong, ("visual", "audio", "auto")),
            ("attention", attention, ("stacked", "projected", "channel")),
            ("mask_mode", mask_mode, ("attn", "zero_pad", "bypass")),
        ):
            if value not in known:
                raise ValueError(f"AAVFM got `{name}={value!r}`, expected one of {', '.join(known)}.")
        if heads < 1 or dim % heads or (heads > 1 and attention != "projected"):
            raise ValueError(
                f"AAVFM got `heads={heads}` for features of width {dim} and `attention={attention!r}`, expected a "
                "divisor of the width, and 1 unless `attention='projected'`."
            )
        self.dim = dim
        self.attention = attention
        self.mask_mode = mask_mode
        self.heads = heads
        self.softmax_weights = softmax_weights
        self.residual = residual
        self.quantile = _quantile(threshold)
        self.choose_strong = strong == "auto"
        fixed = _NEVER if self.quantile is not None else float(threshold)
        self.register_buffer("threshold", torch.tensor(fixed))
        self.register_buffer("strong_is_audio", torch.tensor(strong == "audio"))
        self.counter = StepCounter(2)
        self.weights = nn.Parameter(torch.zeros(2) if softmax_weights else torch.ones(2))
        scale = 1.0 if attention == "channel" else 1 / math.sqrt(dim // heads)
        self.register_parameter("temperature", nn.Parameter(torch.tensor(scale)) if learnable_temperature else None)
        self.scale = scale
        self.query, self.key, self.value = (
            _identity(dim) if attention == "projected" else nn.Identity() for _ in range(3)
        )
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)) if mlp else None
        if self.mlp is not None and residual:
            nn.init.zeros_(self.mlp[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.mlp[-1].bias)  # type: ignore[arg-type]

    @property
    def needs_calibration(self) -> bool:
        """Whether `calibrate` has something to choose: before it, nothing is fused and visual is strong."""
        return self.quantile is not None or self.choose_strong

    @torch.no_grad()
    def calibrate(
        self, visual: Tensor, audio: Tensor, *, visual_accuracy: float = 0.0, audio_accuracy: float = 0.0
    ) -> None:
        """Choose what depends on the first task's training samples; then it stays, and is part of a checkpoint.

        Args:
            visual: Of all these samples, by the untrained towers, float `[N, dim]`.
            audio: Projected, float `[N, dim]`.
            visual_accuracy: Share that the visual features alone classify correctly.
            audio_accuracy: Share that the audio features alone do.
        """
        if self.quantile is not None:
            # numpy-like linear interpolation; not `torch.quantile`, which takes 16 million samples at most
            ordered = pearson_correlation(visual, audio).sort().values
            position = self.quantile * (len(ordered) - 1)
            low = int(position)
            high = min(low + 1, len(ordered) - 1)
            self.threshold.copy_(torch.lerp(ordered[low], ordered[high], position - low))
        if self.choose_strong:
            self.strong_is_audio.fill_(audio_accuracy > visual_accuracy)

    def modality_weights(self) -> Tensor:
        """w_v and w_a, `[2]`, 1 at the start."""
        return 2 * self.weights.softmax(0) if self.softmax_weights else self.weights

    def fused_fraction(self) -> Tensor:
        """Share of the samples in training that were fused, up to the last `merge_counters`, scalar; 0 without any."""
        return self.counter.total[0] / self.counter.total[1].clamp(min=1)

    def forward(self, visual: Tensor, audio: Tensor) -> Tensor:
        """Fuse.

        Args:
            visual: float `[B, dim]`.
            audio: Projected, float `[B, dim]`.

        Returns:
            float `[B, dim]`, not normalised.
        """
        visual, audio = F.normalize(visual, dim=1), F.normalize(audio, dim=1)
        fuse = pearson_correlation(visual, audio) >= self.threshold
        self.counter.add(torch.stack([fuse.sum(), torch.ones_like(fuse).sum()]))
        keep = torch.stack([fuse | ~self.strong_is_audio, fuse | self.strong_is_audio], dim=1)  # [B, 2]
        attended = (
            self._channel(visual, audio, keep) if self.attention == "channel" else self._rows(visual, audio, keep)
        )
        fused = attended
        if self.mlp is not None:
            fused = attended + self.mlp(attended) if self.residual else self.mlp(attended)
        if self.mask_mode == "bypass":
            strong = torch.where(self.strong_is_audio, audio, visual)
            fused = torch.where(fuse.unsqueeze(1), fused, strong)
        return fused

    def _rows(self, visual: Tensor, audio: Tensor, keep: Tensor) -> Tensor:
        """The visual vector attends to the two weighted vectors."""
        rows = torch.stack([visual, audio], dim=1) * self.modality_weights().unsqueeze(1)  # [B, 2, dim]
        if self.mask_mode == "zero_pad":
            rows = rows * keep.unsqueeze(2)
        query = self.query(visual).unflatten(1, (self.heads, -1))  # [B, heads, d_k]
        key = self.key(rows).unflatten(2, (self.heads, -1))  # [B, 2, heads, d_k]
        value = self.value(rows).unflatten(2, (self.heads, -1))
        scores = torch.einsum("bhd,bnhd->bhn", query, key) * self._factor()
        if self.mask_mode == "attn":
            scores = scores.masked_fill(~keep.unsqueeze(1), float("-inf"))
        return torch.einsum("bhn,bnhd->bhd", scores.softmax(dim=2), value).flatten(1)

    def _channel(self, visual: Tensor, audio: Tensor, keep: Tensor) -> Tensor:
        """Every entry of the visual vector attends to all entries of both weighted vectors."""
        w = self.modality_weights()
        entries = torch.cat([w[0] * visual, w[1] * audio], dim=1)  # [B, 2 dim]
        keep = keep.repeat_interleave(self.dim, dim=1)
        if self.mask_mode == "zero_pad":
            entries = entries * keep
        scores = visual.unsqueeze(2) * entries.unsqueeze(1) * self._factor()  # [B, dim, 2 dim]
        if self.mask_mode == "attn":
            scores = scores.masked_fill(~keep.unsqueeze(1), float("-inf"))
        return (scores.softmax(dim=2) @ entries.unsqueeze(2)).squeeze(2)

    def _factor(self) -> Tensor | float:
        return self.scale if self.temperature is None else self.temperature


class ConcatFusion(nn.Module):
    """Visual and audio features side by side through one linear layer: the "Baseline" of the paper's ablation.

    Args:
        dim: Width of the visual and of the projected audio features, and of the result.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * dim, dim)

    def forward(self, visual: Tensor, audio: Tensor) -> Tensor:
        """Map two float `[B, dim]`, made unit length here, to one, not normalised."""
        both = torch.cat([F.normalize(visual, dim=1), F.normalize(audio, dim=1)], dim=1)
        fused: Tensor = self.linear(both)
        return fused


@dataclass(frozen=True)
class Fusion:
    """What a config says of the fusion.

    Args:
        kind: `aavfm`, or `concat` (the "Baseline" of the paper's ablation), which has no options.
        threshold: See `AAVFM`, as the others below.
        strong: See there.
        attention: See there.
        mask_mode: See there.
        heads: See there.
        softmax_weights: See there.
        learnable_temperature: See there.
        mlp: See there.
        residual: See there.

    Raises:
        ValueError: For an unknown kind.
    """

    kind: Literal["aavfm", "concat"] = "aavfm"
    threshold: Threshold = 0.8
    strong: Strong = "visual"
    attention: AttentionKind = "stacked"
    mask_mode: MaskMode = "attn"
    heads: int = 1
    softmax_weights: bool = False
    learnable_temperature: bool = False
    mlp: bool = True
    residual: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("aavfm", "concat"):
            raise ValueError(f"Fusion got `kind={self.kind!r}`, expected 'aavfm' or 'concat'.")

    def build(self, dim: int) -> AAVFM | ConcatFusion:
        """Make the module for features of this width."""
        options = asdict(self)
        return AAVFM(dim, **options) if options.pop("kind") == "aavfm" else ConcatFusion(dim)


def _identity(dim: int) -> nn.Linear:
    layer = nn.Linear(dim, dim, bias=False)
    nn.init.eye_(layer.weight)
    return layer


def _quantile(threshold: Threshold) -> float | None:
    """The q of `quantile:q`; `None` for a number."""
    kind, colon, number = str(threshold).partition(":")
    try:
        value = float(number if colon else kind)
    except ValueError:
        value = math.nan
    if not (colon and kind == "quantile" and 0 <= value <= 1) and not (not colon and -1 <= value <= 1):
        raise ValueError(
            f"AAVFM got `threshold={threshold!r}`, expected a correlation in [-1, 1], for example 0.8, or 'quantile:q' "
            "with q in [0, 1], for example 'quantile:0.5'."
        )
    return value if colon else None
