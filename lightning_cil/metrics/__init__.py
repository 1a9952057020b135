"""Scores of a stream of tasks: pure functions of the accuracy matrix, and torchmetrics shells around them.

The shells are imported on first use: torchmetrics takes seconds to load, and reports need only the functions.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_cil.metrics.confusion import (
    class_forgetting,
    confusion_matrix,
    per_class_accuracy,
    recency_bias,
    task_confusion,
)
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
    from lightning_cil.metrics.multilabel import (
        MultiLabelScores,
        average_precision,
        class_f1,
        false_positive_rate,
        label_counts,
        mean_average_precision,
        overall_f1,
        score_histogram,
        summarise_scores,
        threshold_scores,
        threshold_sweep,
    )
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
    "MultiLabelScores",
    "PlasticityStability",
    "TaskMatrix",
    "average_accuracy",
    "average_forgetting",
    "average_incremental_accuracy",
    "average_precision",
    "backward_transfer",
    "class_f1",
    "class_forgetting",
    "cluster_agreement",
    "confusion_matrix",
    "count_parameters",
    "false_positive_rate",
    "footprint",
    "forward_transfer",
    "intransigence",
    "label_agreement",
    "label_counts",
    "m1",
    "m2",
    "mean_average_precision",
    "megabytes",
    "minimum_accuracy",
    "module_bytes",
    "multimodal_scores",
    "overall_f1",
    "per_class_accuracy",
    "plasticity",
    "plasticity_stability",
    "printed_megabytes",
    "recency_bias",
    "sample_weighted_accuracy",
    "score_histogram",
    "stability_gap",
    "stage_accuracy",
    "stage_backward",
    "stage_forgetting",
    "stage_forward",
    "summarise",
    "summarise_scores",
    "task_confusion",
    "task_similarity",
    "threshold_scores",
    "threshold_sweep",
    "worst_case_accuracy",
]


MULTI_LABEL = frozenset(
    {
        "MultiLabelScores",
        "average_precision",
        "class_f1",
        "false_positive_rate",
        "label_counts",
        "mean_average_precision",
        "overall_f1",
        "score_histogram",
        "summarise_scores",
        "threshold_scores",
        "threshold_sweep",
    }
)
"""What `multilabel.py` has; the others that are loaded on first use are in `task_matrix.py`."""


def __getattr__(name: str) -> Any:
    """Load what needs torchmetrics on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "multilabel" if name in MULTI_LABEL else "task_matrix"
    value = getattr(import_module(f"lightning_cil.metrics.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
