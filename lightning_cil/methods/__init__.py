"""The papers' methods, one file each."""

from lightning_cil.methods.base import IncrementalModule
from lightning_cil.methods.derpp import DERPlusPlus
from lightning_cil.methods.er import ER
from lightning_cil.methods.finetune import FineTune
from lightning_cil.methods.icarl import ICaRL
from lightning_cil.methods.independent import Independent
from lightning_cil.methods.joint import Joint
from lightning_cil.methods.lwf import LwF
from lightning_cil.methods.mm_lwf import MMLwF
from lightning_cil.methods.moe_clip import MoEClip
from lightning_cil.methods.multimodal_cil import MultimodalCIL
from lightning_cil.methods.nfl import NFL
from lightning_cil.methods.nfl_plus import NFLPlus
from lightning_cil.methods.partial_finetune import PartialFineTune
from lightning_cil.methods.zero_shot_audioclip import ZeroShotAudioCLIP

__all__ = [
    "ER",
    "NFL",
    "DERPlusPlus",
    "FineTune",
    "ICaRL",
    "IncrementalModule",
    "Independent",
    "Joint",
    "LwF",
    "MMLwF",
    "MoEClip",
    "MultimodalCIL",
    "NFLPlus",
    "PartialFineTune",
    "ZeroShotAudioCLIP",
]
