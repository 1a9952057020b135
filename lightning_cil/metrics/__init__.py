"""Scores of a stream of tasks: pure functions of the accuracy matrix, and torchmetrics shells around them.

The shells are imported on first use: torchmetrics takes seconds to load, and reports need only the functions.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_cil.metrics.confusion import confusion_matrix, per_class_accuracy, recency_bias, task_confusion
from lightning_cil.metrics.continual import (
    CONTINUAL_FORMULAS,
    Measurement,
    minimum_accuracy,
    stability_gap,
    worst_case_accuracy,
)
from lightning_cil.metrics.footprint import (
    Footprint,
    count_parameters,
    footprint,
    megabytes,
    module_bytes,
    printed_megabytes,
)
from lightning_cil.metrics.multimodal import (
    MULTIMODAL_FORMULAS,
    cluster_agreement,
    label_agreement,
    m1,
    m2,
    multimodal_scores,
    stage_accuracy,
    stage_backward,
    stage_forgetting,
    stage_forward,
    task_similarity,
)
from lightning_cil.metrics.scores import (
    FORMULAS,
    average_accuracy,
    average_forgetting,
    average_incremental_accuracy,
    backward_transfer,
    forward_transfer,
    intransigence,
    plasticity,
    plasticity_stability,
    summarise,
)

if TYPE_CHECKING:
    from lightning_cil.metrics.task_matrix import (
        AverageAccuracy,
        AverageForgetting,
        AverageIncrementalAccuracy,
        BackwardTransfer,
        ForwardTransfer,
        Intransigence,
        PlasticityStability,
        TaskMatrix,
        sample_weighted_accuracy,
    )

__all__ = [
    "CONTINUAL_FORMULAS",
    "FORMULAS",
    "MULTIMODAL_FORMULAS",
    "AverageAccuracy",
    "AverageForgetting",
    "AverageIncrementalAccuracy",
    "BackwardTransfer",
    "Footprint",
    "ForwardTransfer",
    "Intransigence",
    "Measurement",
    "PlasticityStability",
    "TaskMatrix",
    "average_accuracy",
    "average_forgetting",
    "average_incremental_accuracy",
    "backward_transfer",
    "cluster_agreement",
    "confusion_matrix",
    "count_parameters",
    "footprint",
    "forward_transfer",
    "intransigence",
    "label_agreement",
    "m1",
    "m2",
    "megabytes",
    "minimum_accuracy",
    "module_bytes",
    "multimodal_scores",
    "per_class_accuracy",
    "plasticity",
    "plasticity_stability",
    "printed_megabytes",
    "recency_bias",
    "sample_weighted_accuracy",
    "stability_gap",
    "stage_accuracy",
    "stage_backward",
    "stage_forgetting",
    "stage_forward",
    "summarise",
    "task_confusion",
    "task_similarity",
    "worst_case_accuracy",
]


def __getattr__(name: str) -> Any:
    """Load what needs torchmetrics on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module("lightning_cil.metrics.task_matrix"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
