"""AudioCLIP: towers for images, texts and sounds, with loaders for published weights."""

from lightning_cil.networks.audioclip.audio import ESResNeXt
from lightning_cil.networks.audioclip.image import CLIP_MEAN, CLIP_STD, ModifiedResNet, VisionTransformer
from lightning_cil.networks.audioclip.model import AudioCLIP
from lightning_cil.networks.audioclip.presets import create_audioclip
from lightning_cil.networks.audioclip.projection import procrustes, semi_orthogonal
from lightning_cil.networks.audioclip.text import TextTower
from lightning_cil.networks.audioclip.transformer import Block

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "AudioCLIP",
    "Block",
    "ESResNeXt",
    "ModifiedResNet",
    "TextTower",
    "VisionTransformer",
    "create_audioclip",
    "procrustes",
    "semi_orthogonal",
]
