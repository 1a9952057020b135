"""Sizes of the three towers by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from lightning_cil.networks.audioclip.audio import ESResNeXt
from lightning_cil.networks.audioclip.front_ends import FrontEndKind
from lightning_cil.networks.audioclip.image import ModifiedResNet, VisionTransformer
from lightning_cil.networks.audioclip.model import AudioCLIP
from lightning_cil.networks.audioclip.text import TextTower
from lightning_cil.networks.audioclip.transformer import Activation

MFCC_SAMPLE_RATE = 16_000
"""Of the waves for the `mfcc` front end, in hertz."""


@dataclass(frozen=True)
class Preset:
    """Sizes of the towers: arguments of their classes, and whether the image tower is a ResNet."""

    embed_dim: int
    audio_dim: int
    image: Mapping[str, Any]
    text: Mapping[str, Any]
    audio: Mapping[str, Any]
    resnet: bool = False


PRESETS: Mapping[str, Preset] = {
    # Chen et al. 2025: CLIP ViT-B/16 and the audio tower of AudioCLIP.
    "vit_b16": Preset(512, 1024, {}, {}, {}),
    # AudioCLIP as published: CLIP RN50.
    "rn50": Preset(1024, 1024, {}, {}, {}, resnet=True),
    # Learns small pictures and sounds on a CPU from random values; texts as bytes.
    "small": Preset(
        128,
        256,
        {"image_size": 32, "patch_size": 4, "width": 128, "blocks": 4, "heads": 4},
        {"width": 128, "blocks": 2, "heads": 4, "context_length": 96, "vocab_size": 258},
        {
            "sample_rate": 16_000,
            "n_fft": 512,
            "win_length": 400,
            "hop_length": 320,
            "width": 16,
            "layers": (1, 1, 1, 1),
            "groups": 8,
        },
    ),
    # For tests: runs in milliseconds; texts as bytes.
    "tiny": Preset(
        32,
        48,
        {"image_size": 16, "patch_size": 8, "width": 16, "blocks": 1, "heads": 2},
        {"width": 16, "blocks": 1, "heads": 2, "context_length": 96, "vocab_size": 258},
        {
            "sample_rate": 8_000,
            "n_fft": 128,
            "win_length": 100,
            "hop_length": 50,
            "width": 4,
            "layers": (1, 1, 1, 1),
            "groups": 4,
        },
    ),
}


def create_audioclip(
    preset: str = "vit_b16",
    *,
    front_end: FrontEndKind = "fbsp",
    batch_norm: str = "running",
    normalize_gradients: bool = True,
    projection_seed: int | None = 0,
    activation: Activation = "quick_gelu",
) -> AudioCLIP:
    """Make the towers with random values; the audio tower is frozen.

    Args:
        preset: `vit_b16`, `rn50`, `small` or `tiny`.
        front_end: See `ESResNeXt`. `mfcc` takes waves of 16 kHz.
        batch_norm: See `ESResNeXt`.
        normalize_gradients: See `FBSP`.
        projection_seed: See `AudioCLIP`; `rn50` has the identity whatever the seed, as its audio tower was trained
            to match.
        activation: Of the transformers, see `MLP`: `gelu` for weights that were trained with it.

    Raises:
        ValueError: If the preset is unknown.
    """
    if preset not in PRESETS:
        close = get_close_matches(preset, PRESETS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"create_audioclip got `preset={preset!r}`, expected one of {', '.join(PRESETS)}.{hint}")
    sizes = PRESETS[preset]
    audio = {**sizes.audio, **({"sample_rate": MFCC_SAMPLE_RATE} if front_end == "mfcc" else {})}
    return AudioCLIP(
        ModifiedResNet(sizes.embed_dim, **sizes.image)
        if sizes.resnet
        else VisionTransformer(sizes.embed_dim, **sizes.image, activation=activation),
        TextTower(sizes.embed_dim, **sizes.text, activation=activation),
        ESResNeXt(
            sizes.audio_dim,
            front_end=front_end,
            batch_norm=batch_norm,
            normalize_gradients=normalize_gradients,
            **audio,
        ),
        embed_dim=sizes.embed_dim,
        audio_dim=sizes.audio_dim,
        projection_seed=None if sizes.resnet else projection_seed,
    )
