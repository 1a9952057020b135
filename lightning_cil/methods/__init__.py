"""The papers' methods, one file each."""

from lightning_cil.methods._multilabel import MultiLabelModule
from lightning_cil.methods.agcn import AGCN
from lightning_cil.methods.base import IncrementalModule
from lightning_cil.methods.coil import Coil
from lightning_cil.methods.csc import CSC
from lightning_cil.methods.derpp import DERPlusPlus
from lightning_cil.methods.er import ER
from lightning_cil.methods.finetune import FineTune
from lightning_cil.methods.icarl import ICaRL
from lightning_cil.methods.independent import Independent
from lightning_cil.methods.joint import Joint
from lightning_cil.methods.krt import KRT
from lightning_cil.methods.l2p import L2P
from lightning_cil.methods.lwf import LwF
from lightning_cil.methods.memo import MEMO
from lightning_cil.methods.ml_derpp import MLDERPlusPlus
from lightning_cil.methods.ml_er import MLER
from lightning_cil.methods.ml_finetune import MLFineTune
from lightning_cil.methods.ml_joint import MLJoint
from lightning_cil.methods.ml_kd import MLKD
from lightning_cil.methods.ml_lwf import MLLwF
from lightning_cil.methods.ml_podnet import MLPODNet
from lightning_cil.methods.mm_icarl import MMICaRL
from lightning_cil.methods.mm_lwf import MMLwF
from lightning_cil.methods.moe_clip import MoEClip
from lightning_cil.methods.multimodal_cil import MultimodalCIL
from lightning_cil.methods.nfl import NFL
from lightning_cil.methods.nfl_plus import NFLPlus
from lightning_cil.methods.partial_finetune import PartialFineTune
from lightning_cil.methods.rebll import RebLL
from lightning_cil.methods.topic import TOPIC
from lightning_cil.methods.zero_shot_audioclip import ZeroShotAudioCLIP

__all__ = [
    "AGCN",
    "CSC",
    "ER",
    "KRT",
    "L2P",
    "MEMO",
    "MLER",
    "MLKD",
    "NFL",
    "TOPIC",
    "Coil",
    "DERPlusPlus",
    "FineTune",
    "ICaRL",
    "IncrementalModule",
    "Independent",
    "Joint",
    "LwF",
    "MLDERPlusPlus",
    "MLFineTune",
    "MLJoint",
    "MLLwF",
    "MLPODNet",
    "MMICaRL",
    "MMLwF",
    "MoEClip",
    "MultiLabelModule",
    "MultimodalCIL",
    "NFLPlus",
    "PartialFineTune",
    "RebLL",
    "ZeroShotAudioCLIP",
]
