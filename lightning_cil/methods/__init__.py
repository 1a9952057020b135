"""The papers' methods, one file each."""

from lightning_cil.methods.base import IncrementalModule
from lightning_cil.methods.er import ER
from lightning_cil.methods.finetune import FineTune
from lightning_cil.methods.independent import Independent
from lightning_cil.methods.joint import Joint
from lightning_cil.methods.lwf import LwF
from lightning_cil.methods.nfl import NFL
from lightning_cil.methods.nfl_plus import NFLPlus

__all__ = ["ER", "NFL", "FineTune", "IncrementalModule", "Independent", "Joint", "LwF", "NFLPlus"]
