"""`AudioCLIP`: an image, a text and an audio tower whose features can be compared.

Sources: Guzhov et al., AudioCLIP: Extending CLIP to Image, Text and Audio, 2021, https://arxiv.org/abs/2106.13043; with
a ViT-B/16 and a frozen projection of the audio features as in Chen et al. 2025, https://arxiv.org/abs/2506.09999.

Where the data go: image → `encode_image`; text → `Tokenizer.encode` → `encode_text`; wave → `encode_audio` →
`project_audio`. All three ends have the width `embed_dim` and length 1, and `match` compares them.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cil.networks.audioclip.audio import ESResNeXt, check_wave
from lightning_cil.networks.audioclip.image import ModifiedResNet, VisionTransformer
from lightning_cil.networks.audioclip.projection import semi_orthogonal
from lightning_cil.networks.audioclip.text import TextTower
from lightning_cil.networks.audioclip.transformer import Block

Match = Literal["sum", "image", "audio"]

INT16_RANGE = 32_768.0
"""What a wave in [-1, 1] is multiplied by, so that it has the range of 16-bit integers."""

_MAX_LOG_SCALE = math.log(100.0)


class AudioCLIP(nn.Module):
    """Three towers, the projection P and the scales of the scores.

    Args:
        image: Gives features `[B, embed_dim]`.
        text: Gives features `[N, embed_dim]`.
        audio: Gives features `[B, audio_dim]`, of any width.
        embed_dim: Width of image and text features.
        audio_dim: Width of audio features.
        projection_seed: P starts as the semi-orthogonal matrix of this seed; `None` is the identity, which needs
            `audio_dim == embed_dim`.

    Attributes:
        projection: P as a frozen linear layer without bias; part of the state dict.
        logit_scale: Logarithm of the scale of image-text scores; frozen, as are the next two.
        logit_scale_ai: Of audio-image scores.
        logit_scale_at: Of audio-text scores.
        load_reports: What files of weights gave, one line each.

    Raises:
        ValueError: If P cannot be the identity.
    """

    def __init__(
        self,
        image: VisionTransformer | ModifiedResNet,
        text: TextTower,
        audio: ESResNeXt,
        *,
        embed_dim: int,
        audio_dim: int,
        projection_seed: int | None = 0,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.audio_dim = audio_dim
        self.image = image
        self.text = text
        self.audio = audio
        if projection_seed is None and audio_dim != embed_dim:
            raise ValueError(
                f"AudioCLIP got `projection_seed=None`, the identity, for audio features of width {audio_dim} and "
                f"others of width {embed_dim}, expected equal widths or a seed."
            )
        self.projection = nn.Linear(audio_dim, embed_dim, bias=False)
        self.set_projection(
            torch.eye(embed_dim) if projection_seed is None else semi_orthogonal(embed_dim, audio_dim, projection_seed)
        )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)), requires_grad=False)
        self.logit_scale_ai = nn.Parameter(torch.tensor(_MAX_LOG_SCALE), requires_grad=False)
        self.logit_scale_at = nn.Parameter(torch.tensor(_MAX_LOG_SCALE), requires_grad=False)
        self.load_reports: Sequence[object] = ()
        self.audio.requires_grad_(False)
        self.audio.eval()

    @property
    def num_features(self) -> int:
        """Width of the features that are compared."""
        return self.embed_dim

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        return self.image.image_size

    @property
    def sample_rate(self) -> int:
        """Of the waves, in hertz."""
        return self.audio.sample_rate

    def blocks(self) -> dict[str, Block]:
        """Every transformer block of the image and text towers by name, first to last; each can take an adapter."""
        return {name: part for name, part in self.named_modules() if isinstance(part, Block)}

    def set_projection(self, weight: Tensor) -> None:
        """Give P other values; it stays frozen.

        Args:
            weight: Float `[embed_dim, audio_dim]`.

        Raises:
            ValueError: If the shape is another.
        """
        if weight.shape != self.projection.weight.shape:
            raise ValueError(
                f"AudioCLIP got a projection {list(weight.shape)}, expected [embed_dim, audio_dim] = "
                f"{list(self.projection.weight.shape)}."
            )
        self.projection.requires_grad_(False)
        with torch.no_grad():
            self.projection.weight.copy_(weight)

    def encode_image(self, image: Tensor, *, normalize: bool = True) -> Tensor:
        """Map normalised float `[B, 3, image_size, image_size]` to unit features `[B, embed_dim]`."""
        return _unit(self.image(image), normalize)

    def encode_text(self, tokens: Tensor, *, normalize: bool = True) -> Tensor:
        """Map token ids, long `[N, L]`, to features `[N, embed_dim]`, of length 1 by default."""
        return _unit(self.text(tokens), normalize)

    def encode_audio(self, wave: Tensor) -> Tensor:
        """Map a wave, float `[B, 1, S]` in [-1, 1], to the audio tower's features `[B, audio_dim]`, not normalised.

        The wave is multiplied by 32,768 here. While the tower is frozen the result depends on nothing but the clip, so
        that it can be kept.
        """
        check_wave(wave)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.audio.frozen):
            features: Tensor = self.audio(wave * INT16_RANGE)
        return features

    def project_audio(self, audio: Tensor, *, normalize: bool = True) -> Tensor:
        """Map features of `encode_audio` `[B, audio_dim]` through P to `[B, embed_dim]`, of length 1 by default."""
        return _unit(self.projection(audio), normalize)

    def scale(self, pair: Literal["image_text", "audio_image", "audio_text"] = "image_text") -> Tensor:
        """The factor of a pair's scores, a scalar in [1, 100]."""
        log = {"image_text": self.logit_scale, "audio_image": self.logit_scale_ai, "audio_text": self.logit_scale_at}
        return log[pair].clamp(0.0, _MAX_LOG_SCALE).exp()

    def match(
        self, text: Tensor, *, image: Tensor | None = None, audio: Tensor | None = None, by: Match = "sum"
    ) -> Tensor:
        """Scores of samples against texts: `½ (s_it v·t + s_at a·t)`, or one of the two terms without the ½.

        Args:
            text: Float `[C, embed_dim]`, of length 1, one for each class.
            image: Float `[B, embed_dim]`, of length 1; not needed for `audio`.
            audio: Projected, float `[B, embed_dim]`, of length 1; not needed for `image`.
            by: Which modalities count.

        Returns:
            Logits, float `[B, C]`.

        Raises:
            ValueError: If `by` is unknown or what it needs is missing.
        """
        if by not in get_args(Match):
            raise ValueError(f"AudioCLIP.match got `by={by!r}`, expected one of {', '.join(get_args(Match))}.")
        terms = []
        if by != "audio":
            terms.append(self.scale("image_text") * _given(image, "image", by) @ text.T)
        if by != "image":
            terms.append(self.scale("audio_text") * _given(audio, "audio", by) @ text.T)
        return torch.stack(terms).mean(dim=0)


def _given(features: Tensor | None, name: str, by: str) -> Tensor:
    if features is None:
        raise ValueError(f"AudioCLIP.match got `by={by!r}` without `{name}`, expected its features [B, embed_dim].")
    return features


def _unit(features: Tensor, normalize: bool) -> Tensor:
    return F.normalize(features, dim=-1) if normalize else features
