"""Scores of multi-label predictions: average precision, F1, false positive rate, precision and recall.

Pure functions of scores `[N, C]` (any real number that is higher for likelier labels) and labels `[N, C]` (0 or 1),
and `MultiLabelScores`, which collects both batch by batch, on any number of processes, and counts every image once.

Conventions, as in the code of the multi-label class-incremental papers:

- AP is not interpolated: the mean over an image list, best score first, of the precision at each positive.
- A label is predicted where the score is *above* the threshold, p > 0.8 by default (the code of KRT,
  https://github.com/witdsl/KRT-MLCIL, and of CSC, https://github.com/Kaile-Du/CSC).
- CF1 is the mean of the classes' F1. `mode="cp_cr"`: the harmonic mean of mean precision and mean recall.
- FPR has no definition in the paper that reports it (RebLL, https://arxiv.org/abs/2408.12161); here FP / (FP + TN) over
  all pairs of image and class.
- 0/0 is 0.

Ties: images of equal score stay in their order (of `MultiLabelScores`: that of their indices), so that a score never
depends on a sorting routine. Ranking is in float64; rank logits, for float32 sigmoids saturate into ties.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

EmptyClass = Literal["zero", "skip"]
Average = Literal["micro", "macro"]

THRESHOLD = 0.8
THRESHOLDS = (0.8, 0.5)
"""At which a run's results hold all scores; the first is that of the papers' tables."""
SWEEP = tuple(round(0.05 * i, 2) for i in range(1, 20))
HISTOGRAM_BINS = 20


def average_precision(scores: Tensor, target: Tensor, empty_class: EmptyClass = "zero") -> Tensor:
    """Average precision of every class.

    AP_c = (1/P_c) Σ_{i: y_i = 1} (positives among the i best) / i.

    Args:
        scores: `[N, C]`; probabilities or logits.
        target: `[N, C]`; 0 or 1.
        empty_class: Of a class without positives: `zero`: 0; `skip`: NaN.

    Returns:
        float64 `[C]`, fractions.

    Raises:
        ValueError: If the shapes differ or `empty_class` is unknown.

    Example:
        >>> average_precision(torch.tensor([[0.9], [0.8], [0.1]]), torch.tensor([[1], [0], [1]]))
        tensor([0.8333], dtype=torch.float64)
    """
    _check(scores, target)
    if empty_class not in ("zero", "skip"):
        raise ValueError(f"`empty_class={empty_class!r}`: expected 'zero' or 'skip'.")
    rank = torch.arange(1, len(scores) + 1, dtype=torch.float64, device=scores.device)
    found = torch.zeros(scores.shape[1], dtype=torch.float64, device=scores.device)
    for c in range(scores.shape[1]):  # one class at a time: little memory beside the scores
        order = scores[:, c].double().argsort(descending=True, stable=True)
        positive = target[order, c].double()
        precision = positive.cumsum(0) / rank
        found[c] = (precision * positive).sum() / positive.sum().clamp(min=1)
    return found if empty_class == "zero" else found.masked_fill((target == 0).all(dim=0), math.nan)


def mean_average_precision(scores: Tensor, target: Tensor, empty_class: EmptyClass = "zero") -> Tensor:
    """mAP: mean over the classes of `average_precision`.

    Args:
        scores: As there.
        target: As there.
        empty_class: `zero`: a class without positives counts as 0; `skip`: it does not count.

    Returns:
        float64 scalar, a fraction; NaN if no class counts.

    Raises:
        ValueError: As there.

    Example:
        >>> mean_average_precision(torch.tensor([[0.9, 0.1], [0.8, 0.7]]), torch.tensor([[1, 0], [0, 1]]))
        tensor(1., dtype=torch.float64)
    """
    return average_precision(scores, target, empty_class).nanmean()


@dataclass(frozen=True)
class LabelCounts:
    """Pairs of image and class, long `[C]` each.

    Args:
        tp: Present and predicted.
        fp: Absent and predicted.
        fn: Present, not predicted.
        tn: Absent, not predicted.
    """

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor

    def precision(self, average: Average = "micro") -> Tensor:
        """TP / (TP + FP), over all pairs, or the mean of the classes'."""
        return _ratio(self.tp, self.tp + self.fp, average)

    def recall(self, average: Average = "micro") -> Tensor:
        """TP / (TP + FN), over all pairs, or the mean of the classes'."""
        return _ratio(self.tp, self.tp + self.fn, average)

    def f1(self, average: Average = "micro") -> Tensor:
        """2·TP / (2·TP + FP + FN): OF1 over all pairs, CF1 as the mean of the classes'."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn, average)

    def false_positive_rate(self, average: Average = "micro") -> Tensor:
        """FP / (FP + TN), over all pairs, or the mean of the classes'."""
        return _ratio(self.fp, self.fp + self.tn, average)

    def harmonic_f1(self) -> Tensor:
        """CF1 in its other form: harmonic mean of the classes' mean precision and mean recall."""
        precision, recall = self.precision("macro"), self.recall("macro")
        return 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(torch.float64).tiny)


def label_counts(scores: Tensor, target: Tensor, threshold: float = THRESHOLD) -> LabelCounts:
    """Count right and wrong predictions of every class.

    Args:
        scores: `[N, C]`.
        target: `[N, C]`; 0 or 1.
        threshold: A label is predicted where its score is above.

    Returns:
        The counts.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> counts = label_counts(torch.tensor([[0.9], [0.8], [0.1]]), torch.tensor([[1], [0], [1]]))
        >>> [int(n) for n in (counts.tp, counts.fp, counts.fn, counts.tn)]
        [1, 0, 1, 1]
    """
    _check(scores, target)
    predicted, present = scores > threshold, target != 0  # in the scores' type: 0.8 is not above 0.8
    tp, positives, chosen = (x.sum(dim=0) for x in (predicted & present, present, predicted))
    return LabelCounts(tp, chosen - tp, positives - tp, len(scores) - positives - chosen + tp)


def class_f1(
    scores: Tensor, target: Tensor, threshold: float = THRESHOLD, mode: Literal["macro", "cp_cr"] = "macro"
) -> Tensor:
    """CF1.

    Args:
        scores: `[N, C]`.
        target: `[N, C]`; 0 or 1.
        threshold: See `label_counts`.
        mode: `macro`: mean of the classes' F1; `cp_cr`: harmonic mean of mean precision and mean recall.

    Returns:
        float64 scalar, a fraction.

    Raises:
        ValueError: If the shapes differ or the mode is unknown.

    Example:
        >>> class_f1(torch.tensor([[0.9, 0.9], [0.1, 0.9]]), torch.tensor([[1, 1], [0, 0]]))
        tensor(0.8333, dtype=torch.float64)
    """
    if mode not in ("macro", "cp_cr"):
        raise ValueError(f"`mode={mode!r}`: expected 'macro' or 'cp_cr'.")
    counts = label_counts(scores, target, threshold)
    return counts.f1("macro") if mode == "macro" else counts.harmonic_f1()


def overall_f1(scores: Tensor, target: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """OF1: F1 over all pairs of image and class.

    Args:
        scores: `[N, C]`.
        target: `[N, C]`; 0 or 1.
        threshold: See `label_counts`.

    Returns:
        float64 scalar, a fraction.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> overall_f1(torch.tensor([[0.9, 0.9], [0.1, 0.9]]), torch.tensor([[1, 1], [0, 0]]))
        tensor(0.8000, dtype=torch.float64)
    """
    return label_counts(scores, target, threshold).f1()


def false_positive_rate(
    scores: Tensor, target: Tensor, threshold: float = THRESHOLD, average: Average = "micro"
) -> Tensor:
    """FPR: share of the absent labels that are predicted.

    Args:
        scores: `[N, C]`.
        target: `[N, C]`; 0 or 1.
        threshold: See `label_counts`.
        average: `micro`: over all pairs; `macro`: the mean of the classes'.

    Returns:
        float64 scalar, a fraction.

    Raises:
        ValueError: If the shapes differ or `average` is unknown.

    Example:
        >>> false_positive_rate(torch.tensor([[0.9, 0.9], [0.1, 0.9]]), torch.tensor([[1, 1], [0, 0]]))
        tensor(0.5000, dtype=torch.float64)
    """
    return label_counts(scores, target, threshold).false_positive_rate(average)


def threshold_scores(scores: Tensor, target: Tensor, threshold: float = THRESHOLD) -> dict[str, float]:
    """All scores that depend on a threshold, by name.

    Args:
        scores: `[N, C]`.
        target: `[N, C]`; 0 or 1.
        threshold: See `label_counts`.

    Returns:
        CF1, CF1_cp_cr, OF1, FPR, FPR_macro, precision, recall (over all pairs), class_precision, class_recall (means of
        the classes'); fractions.

    Raises:
        ValueError: If the shapes differ.
    """
    counts = label_counts(scores, target, threshold)
    found = {
        "CF1": counts.f1("macro"),
        "CF1_cp_cr": counts.harmonic_f1(),
        "OF1": counts.f1(),
        "FPR": counts.false_positive_rate(),
        "FPR_macro": counts.false_positive_rate("macro"),
        "precision": counts.precision(),
        "recall": counts.recall(),
        "class_precision": counts.precision("macro"),
        "class_recall": counts.recall("macro"),
    }
    return {name: value.item() for name, value in found.items()}


def threshold_sweep(
    probabilities: Tensor, target: Tensor, thresholds: Sequence[float] = SWEEP
) -> dict[str, list[float]]:
    """CF1, OF1 and FPR at each of several thresholds.

    Args:
        probabilities: `[N, C]`.
        target: `[N, C]`; 0 or 1.
        thresholds: In ascending order.

    Returns:
        `threshold`, `CF1`, `OF1`, `FPR`: lists of one length.

    Raises:
        ValueError: If the shapes differ.
    """
    rows = [label_counts(probabilities, target, t) for t in thresholds]
    return {
        "threshold": list(thresholds),
        "CF1": [row.f1("macro").item() for row in rows],
        "OF1": [row.f1().item() for row in rows],
        "FPR": [row.false_positive_rate().item() for row in rows],
    }


def score_histogram(probabilities: Tensor, target: Tensor, bins: int = HISTOGRAM_BINS) -> dict[str, list[int]]:
    """How many pairs of image and class have which score, of labels that are absent and of those that are present.

    Args:
        probabilities: `[N, C]` in [0, 1].
        target: `[N, C]`; 0 or 1.
        bins: Of equal width over [0, 1].

    Returns:
        `absent`, `present`: counts of each bin.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> score_histogram(torch.tensor([[0.1, 0.9]]), torch.tensor([[0, 1]]), bins=2)
        {'absent': [1, 0], 'present': [0, 1]}
    """
    _check(probabilities, target)
    column = (probabilities * bins).long().clamp(0, bins - 1)
    present = target != 0
    return {
        "absent": column[~present].bincount(minlength=bins).tolist(),
        "present": column[present].bincount(minlength=bins).tolist(),
    }


class MultiLabelScores(Metric):
    """Scores of all images together: logits and labels are kept on the CPU, each image once, whatever its process.

    State: one row of logits (as they came), labels (bool) and the index of each image: for N images and C classes
    N · (5·C + 8) bytes in float32. An image that came twice (padded samplers, several processes) counts once, as it
    came first; images are ranked in the order of their indices, so that results are the same on any number of
    processes.

    Args:
        threshold: On the probability sigmoid(logit), in (0, 1).
        empty_class: See `average_precision`.
        kwargs: Keywords of every `torchmetrics.Metric`.

    Raises:
        ValueError: For a threshold outside (0, 1) or an unknown `empty_class`.

    Example:
        >>> metric = MultiLabelScores()
        >>> metric.update(torch.tensor([[3.0, -1.0]]), torch.tensor([[1, 0]]), torch.tensor([0]))
        >>> logits, target = torch.tensor([[-2.0, 2.0], [3.0, -1.0]]), torch.tensor([[0, 1], [1, 0]])
        >>> metric.update(logits, target, torch.tensor([1, 0]))
        >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}["mAP"]
        1.0
        >>> len(metric.samples()[0])
        2
    """

    is_differentiable: bool = False
    higher_is_better: bool = True
    full_state_update: bool = False

    logits: list[Tensor]
    targets: list[Tensor]
    indices: list[Tensor]

    def __init__(self, threshold: float = THRESHOLD, empty_class: EmptyClass = "zero", **kwargs: Any) -> None:
        super().__init__(**{"dist_sync_fn": _gather_on_cpu, **kwargs})
        if not 0 < threshold < 1:
            raise ValueError(f"`threshold={threshold}`: expected a probability between 0 and 1; the papers use 0.8.")
        if empty_class not in ("zero", "skip"):
            raise ValueError(f"`empty_class={empty_class!r}`: expected 'zero' or 'skip'.")
        self.threshold = threshold
        self.empty_class: EmptyClass = empty_class
        for name in ("logits", "targets", "indices"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, target: Tensor, index: Tensor) -> None:
        """Add a batch.

        Args:
            logits: `[B, C]`. B may be 0.
            target: `[B, C]`; 0 or 1.
            index: long `[B]`: what tells the images apart.

        Raises:
            ValueError: If shapes or types differ from these.
        """
        _check(logits, target)
        if index.shape != (len(logits),) or index.is_floating_point():
            raise ValueError(
                f"`index` has shape {tuple(index.shape)} and type {index.dtype}, expected integers ({len(logits)},): "
                "one for each image. Give the image's position in the data set."
            )
        self.logits.append(logits.detach().cpu())
        self.targets.append((target != 0).cpu())
        self.indices.append(index.cpu())

    def samples(self) -> tuple[Tensor, Tensor, Tensor]:
        """All images of all processes; every process must ask.

        Returns:
            index, long `[N]`, ascending, each once; logits `[N, C]`; labels, bool `[N, C]`; on the CPU.
        """
        ours = not self._is_synced
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute and ours, should_unsync=ours
        ):
            return self._samples()

    def compute(self) -> dict[str, Tensor]:
        """mAP, CF1, OF1, FPR, precision and recall: float64 scalars, fractions."""
        _, logits, target = self._samples()
        found = {"mAP": mean_average_precision(logits, target, self.empty_class)}
        scores = threshold_scores(logits, target, math.log(self.threshold / (1 - self.threshold)))
        names = ("CF1", "OF1", "FPR", "precision", "recall")
        return found | {name: torch.tensor(scores[name], dtype=torch.float64) for name in names}

    def _samples(self) -> tuple[Tensor, Tensor, Tensor]:
        if not len(self.indices):
            raise ValueError("`MultiLabelScores` has seen no image; expected at least one `update`.")
        logits, targets, indices = (dim_zero_cat(x) for x in (self.logits, self.targets, self.indices))
        order = indices.argsort(stable=True)
        ascending = indices[order]
        first = torch.ones_like(ascending, dtype=torch.bool)
        first[1:] = ascending[1:] != ascending[:-1]
        rows = order[first]
        return ascending[first], logits[rows], targets[rows]


def summarise_scores(logits: Tensor, target: Tensor, empty_class: EmptyClass = "zero") -> dict[str, Any]:
    """What a run's results keep of an evaluation.

    Args:
        logits: `[N, C]`.
        target: `[N, C]`; 0 or 1.
        empty_class: See `average_precision`.

    Returns:
        Plain types: `images`, `mAP`, `AP` (of each class, `None`: skipped), and of each of `THRESHOLDS` (as text) the
        scores of `threshold_scores`. An evaluation without images has `mAP` `None`.
    """
    if not len(logits):
        return {"images": 0, "mAP": None, "AP": [None] * logits.shape[1]}
    each = average_precision(logits, target, empty_class).tolist()
    known = [v for v in each if not math.isnan(v)]
    found: dict[str, Any] = {
        "images": len(logits),
        "mAP": sum(known) / len(known) if known else None,
        "AP": [None if math.isnan(v) else v for v in each],
    }
    for threshold in THRESHOLDS:
        found[str(threshold)] = threshold_scores(logits, target, math.log(threshold / (1 - threshold)))
    return found


def _gather_on_cpu(tensor: Tensor, group: Any = None) -> list[Tensor]:
    """All processes' tensors, by way of pickles: CPU tensors pass any backend, and shapes may differ."""
    parts: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(parts, tensor.cpu(), group=group)
    return [part for part in parts if part.numel()] or parts[:1]  # an empty one would change the type of all


def _ratio(numerator: Tensor, denominator: Tensor, average: Average) -> Tensor:
    """0 where the denominator is."""
    if average not in ("micro", "macro"):
        raise ValueError(f"`average={average!r}`: expected 'micro' or 'macro'.")
    if average == "micro":
        numerator, denominator = numerator.sum(), denominator.sum()
    return (numerator.double() / denominator.clamp(min=1)).mean()


def _check(scores: Tensor, target: Tensor) -> None:
    if scores.ndim != 2 or scores.shape != target.shape or not scores.is_floating_point():
        raise ValueError(
            f"Got scores of shape {tuple(scores.shape)} and type {scores.dtype}, labels of shape "
            f"{tuple(target.shape)}; expected floating-point scores and labels, both [images, classes]. Labels are 0 "
            "or 1 for each class, not class numbers."
        )
