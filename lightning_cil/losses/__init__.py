"""Loss functions: pure, one paper's idea a file, in the order of its equations.

Import them by their file's name as well: `from lightning_cil.losses.distillation import soft_cross_entropy`. Functions
named `…_terms` return weighted terms by name; the loss is `sum(terms.values())`. Estimators of mutual information are
modules, as most of them learn.
"""

from lightning_cil.losses.autoencoder import autoencoder_terms, code_preservation
from lightning_cil.losses.bias_correction import gamma_terms, identity_penalty
from lightning_cil.losses.classification import cross_entropy_over, task_masked_cross_entropy
from lightning_cil.losses.coil import coil_terms, prospective_term, retrospective_term
from lightning_cil.losses.crossmodal import (
    crossmodal_terms,
    info_nce,
    similarity_weighted_cross_entropy,
    similarity_weights,
)
from lightning_cil.losses.derpp import derpp_terms, logit_matching
from lightning_cil.losses.distillation import (
    binary_distillation,
    old_class_distillation,
    per_head_soft_cross_entropy,
    soft_cross_entropy,
)
from lightning_cil.losses.icarl import icarl_binary_terms, icarl_softmax_terms
from lightning_cil.losses.memo import auxiliary_target, memo_terms
from lightning_cil.losses.mutual_information import MINE, GaussianInformation, InfoNCE, MIEstimator, make_mi_estimator
from lightning_cil.losses.nfl import nfl_final_terms, nfl_plus_final_terms, nfl_step_terms
from lightning_cil.losses.transport import prospective_rows, retrospective_rows, sinkhorn, transport_cost

__all__ = [
    "MINE",
    "GaussianInformation",
    "InfoNCE",
    "MIEstimator",
    "autoencoder_terms",
    "auxiliary_target",
    "binary_distillation",
    "code_preservation",
    "coil_terms",
    "cross_entropy_over",
    "crossmodal_terms",
    "derpp_terms",
    "gamma_terms",
    "icarl_binary_terms",
    "icarl_softmax_terms",
    "identity_penalty",
    "info_nce",
    "logit_matching",
    "make_mi_estimator",
    "memo_terms",
    "nfl_final_terms",
    "nfl_plus_final_terms",
    "nfl_step_terms",
    "old_class_distillation",
    "per_head_soft_cross_entropy",
    "prospective_rows",
    "prospective_term",
    "retrospective_rows",
    "retrospective_term",
    "similarity_weighted_cross_entropy",
    "similarity_weights",
    "sinkhorn",
    "soft_cross_entropy",
    "task_masked_cross_entropy",
    "transport_cost",
]
