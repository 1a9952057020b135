"""data."""

from lightning_cil.data.base import IncrementalDataModule
from lightning_cil.data.digits import SplitDigits

__all__ = ["IncrementalDataModule", "SplitDigits"]
