"""AudioCLIP: towers for images, texts and sounds, loaders for published weights, prompts and prototypes."""

from lightning_cil.networks.audioclip.audio import ESResNeXt
from lightning_cil.networks.audioclip.checkpoints import PUBLISHED, LoadReport, load_checkpoint, read_text_tower
from lightning_cil.networks.audioclip.image import CLIP_MEAN, CLIP_STD, ModifiedResNet, VisionTransformer
from lightning_cil.networks.audioclip.model import AudioCLIP
from lightning_cil.networks.audioclip.presets import create_audioclip
from lightning_cil.networks.audioclip.projection import procrustes, semi_orthogonal
from lightning_cil.networks.audioclip.prompts import Prompts
from lightning_cil.networks.audioclip.prototypes import TextPrototypes
from lightning_cil.networks.audioclip.spec import Towers
from lightning_cil.networks.audioclip.templates import TEMPLATES, fill
from lightning_cil.networks.audioclip.text import TextTower
from lightning_cil.networks.audioclip.tokenizer import Tokenizer, cut_padding
from lightning_cil.networks.audioclip.transformer import Block
from lightning_cil.networks.audioclip.weight_state import WeightState

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "PUBLISHED",
    "TEMPLATES",
    "AudioCLIP",
    "Block",
    "ESResNeXt",
    "LoadReport",
    "ModifiedResNet",
    "Prompts",
    "TextPrototypes",
    "TextTower",
    "Tokenizer",
    "Towers",
    "VisionTransformer",
    "WeightState",
    "create_audioclip",
    "cut_padding",
    "fill",
    "load_checkpoint",
    "procrustes",
    "read_text_tower",
    "semi_orthogonal",
]
