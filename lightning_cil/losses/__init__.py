"""Loss functions: pure, one paper's idea a file, in the order of its equations.

Import them by their file's name as well: `from lightning_cil.losses.distillation import soft_cross_entropy`.
"""

from lightning_cil.losses.classification import cross_entropy_over, task_masked_cross_entropy
from lightning_cil.losses.distillation import binary_distillation, per_head_soft_cross_entropy, soft_cross_entropy

__all__ = [
    "binary_distillation",
    "cross_entropy_over",
    "per_head_soft_cross_entropy",
    "soft_cross_entropy",
    "task_masked_cross_entropy",
]
