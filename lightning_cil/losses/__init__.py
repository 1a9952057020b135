"""Loss functions: pure, one paper's idea a file, in the order of its equations.

Import them by their file's name as well: `from lightning_cil.losses.distillation import soft_cross_entropy`. Functions
named `…_terms` return weighted terms by name; the loss is `sum(terms.values())`. Estimators of mutual information are
modules, as most of them learn.
"""

from lightning_cil.losses._columns import Reduction
from lightning_cil.losses.asymmetric import decay_exponent, known_bce, negative_decay_bce, positive_decay_bce
from lightning_cil.losses.asymmetric_focal import asymmetric_focal_loss
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
from lightning_cil.losses.max_entropy import negative_entropy
from lightning_cil.losses.memo import auxiliary_target, memo_terms
from lightning_cil.losses.mutual_information import MINE, GaussianInformation, InfoNCE, MIEstimator, make_mi_estimator
from lightning_cil.losses.nfl import nfl_final_terms, nfl_plus_final_terms, nfl_step_terms
from lightning_cil.losses.pod import cosine_preservation, growth_factor, pod_spatial
from lightning_cil.losses.pseudo_labels import PseudoLabelSearch, pseudo_labels
from lightning_cil.losses.topic import anchor_loss, min_max_terms
from lightning_cil.losses.transport import prospective_rows, retrospective_rows, sinkhorn, transport_cost

__all__ = [
    "MINE",
    "GaussianInformation",
    "InfoNCE",
    "MIEstimator",
    "PseudoLabelSearch",
    "Reduction",
    "anchor_loss",
    "asymmetric_focal_loss",
    "autoencoder_terms",
    "auxiliary_target",
    "binary_distillation",
    "code_preservation",
    "coil_terms",
    "cosine_preservation",
    "cross_entropy_over",
    "crossmodal_terms",
    "decay_exponent",
    "derpp_terms",
    "gamma_terms",
    "growth_factor",
    "icarl_binary_terms",
    "icarl_softmax_terms",
    "identity_penalty",
    "info_nce",
    "known_bce",
    "logit_matching",
    "make_mi_estimator",
    "memo_terms",
    "min_max_terms",
    "negative_decay_bce",
    "negative_entropy",
    "nfl_final_terms",
    "nfl_plus_final_terms",
    "nfl_step_terms",
    "old_class_distillation",
    "per_head_soft_cross_entropy",
    "pod_spatial",
    "positive_decay_bce",
    "prospective_rows",
    "prospective_term",
    "pseudo_labels",
    "retrospective_rows",
    "retrospective_term",
    "similarity_weighted_cross_entropy",
    "similarity_weights",
    "sinkhorn",
    "soft_cross_entropy",
    "task_masked_cross_entropy",
    "transport_cost",
]
