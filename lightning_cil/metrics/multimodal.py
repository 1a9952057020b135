"""M1 and M2, two scores of multimodal class-incremental learning, and each of their ingredients.

Chen et al., Leveraging Pre-Trained Models for Multimodal Class-Incremental Learning under Adaptive Fusion, 2025, Eq. 10
and 11, https://arxiv.org/abs/2506.09999. The paper names the ingredients and does not define them; the definitions here
are ours, `MULTIMODAL_FORMULAS` has one line for each, and `multimodal_scores` puts those that were used beside the
numbers.

`A[t, j]` is the accuracy on task j after training on task t, over all classes seen by then; tasks count from 0.
Everything is a fraction in [0, 1], except what `m1` returns: percent, as in the paper.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cil.metrics.scores import Matrix, Score, _check_fractions, _table, _to_float64

Values: TypeAlias = Sequence[Score] | Tensor
"""One value for each task: a list, in which `None` marks one that is not known, or a tensor `[T]` with NaN for it."""

Preset = Literal["fifths", "thirds", "half"]
BackwardMap = Literal["shifted", "halved"]
ForwardKind = Literal["learned", "gem"]

M2_COEFFICIENTS: dict[Preset, tuple[float, float, float]] = {
    "fifths": (1 / 5, 1 / 5, 1 / 5),
    "thirds": (1 / 3, 1 / 6, 1 / 6),
    "half": (1 / 2, 1 / 8, 1 / 8),
}
"""c_A, c_B and c_N of each preset of M2; c_A + 2 c_B + 2 c_N = 1, without which M2 would leave [0, 1]."""

MULTIMODAL_FORMULAS: dict[str, str] = {
    "M1": "50 (mean_t A_t + mean_t (1 - w_t)(1 - For_t)), percent",
    "M2": "c_A mean_t A_t + c_B mean_t (BWT_t + FWT_t) + c_N (NMI(f,v) + NMI(f,a))",
    "A_t": "accuracy on the test images of all tasks up to t, after task t",
    "For_t": "mean_{j<t} max(0, max_{j<=l<t} A[l,j] - A[t,j]), For_0 = 0",
    "w_t": "(1 + (cos(semantic) + cos(feature)) / 2) / 2 clipped to [0,1], means of task t and earlier ones, w_0 = 1",
    "BWT_t, shifted": "clip(1 + mean_{j<t}(A[t,j] - A[j,j]), 0, 1), BWT_0 = 1",
    "BWT_t, halved": "(1 + mean_{j<t}(A[t,j] - A[j,j])) / 2, BWT_0 = 1/2",
    "FWT_t, learned": "A[t,t]",
    "FWT_t, gem": "(1 + A[t-1,t] - zero-shot[t]) / 2",
    "NMI": "of k-means clusters (K = classes seen) of L2-normalised features, arithmetic mean normalisation",
}
"""One line for each score and ingredient, as reports and `results.json` print it."""


# ---------------------------------------------------------------------- the two scores


def m1(average_accuracy: float | Values, forgetting: float | Values, similarity: float | Values) -> float | None:
    """M1: accuracy, and how little was forgotten where tasks were unlike the earlier ones. Higher is better.

    ```text
    M1 = 1/2 Acc_avg + 1/(2T) Σ_t (1 - w_t)(100 - For_t)        Eq. 10, Acc_avg and For_t in percent
    ```

    w depends on the features that it is taken from, so that numbers of different methods do not compare; give the
    frozen network's similarities for those that do (`M1_frozen` in `multimodal_scores`).

    Args:
        average_accuracy: Acc_avg, a fraction in [0, 1], or A_t of each task, whose mean it is.
        forgetting: For_t of each task, fractions in [0, 1]; see `stage_forgetting`.
        similarity: w_t of each task, in [0, 1]; see `task_similarity`.

    Returns:
        Percent in [0, 100]; `None` if one of the values is not known.

    Raises:
        ValueError: If lengths differ or a value is outside [0, 1].

    Example:
        Perfect accuracy, nothing forgotten, two tasks that are nothing alike: 50 + 50 (T - 1) / T.

        >>> m1(1.0, [0.0, 0.0], [1.0, 0.0])
        75.0
    """
    lost, alike = _per_task(forgetting=forgetting, similarity=similarity)
    accuracy = _fractions("average_accuracy", average_accuracy).mean()
    return _number(50 * accuracy + 50 * ((1 - alike) * (1 - lost)).mean())


def m2(
    average_accuracy: float | Values,
    backward: float | Values,
    forward: float | Values,
    nmi_visual: float | int | None,
    nmi_audio: float | int | None,
    preset: Preset = "fifths",
    coefficients: Sequence[float] | None = None,
) -> float | None:
    """M2: accuracy, memory and plasticity, and what the fused features share with those of each modality.

    ```text
    M2 = c_A Acc_avg + c_B/T Σ_t (BWT_t + FWT_t) + c_N (NMI_{f-v} + NMI_{f-a})        Eq. 11
    ```

    The coefficients cannot be read in the copy of the paper that we have, which shows three numbers of one digit over
    another; the presets are those that keep M2 in [0, 1].

    Args:
        average_accuracy: As in `m1`.
        backward: BWT_t of each task, in [0, 1]; see `stage_backward`.
        forward: FWT_t of each task, in [0, 1]; see `stage_forward`.
        nmi_visual: NMI of fused and visual features, in [0, 1]; see `cluster_agreement`.
        nmi_audio: NMI of fused and audio features, in [0, 1].
        preset: Names c_A, c_B and c_N, see `M2_COEFFICIENTS`.
        coefficients: c_A, c_B and c_N themselves, in place of the preset; at least 0, c_A + 2 c_B + 2 c_N = 1.

    Returns:
        A number in [0, 1]; `None` if one of the values is not known.

    Raises:
        ValueError: If lengths differ, a value is outside [0, 1], the preset is unknown or the coefficients do not add
            up.

    Example:
        >>> round(m2(0.5, [1.0, 0.8], [0.6, 0.6], 0.7, 0.3), 4)  # (0.5 + 0.9 + 0.6 + 0.7 + 0.3) / 5
        0.6
    """
    accuracy_weight, transfer_weight, nmi_weight = _coefficients(preset, coefficients)
    kept, learned = _per_task(backward=backward, forward=forward)
    accuracy = _fractions("average_accuracy", average_accuracy).mean()
    shared = _fractions("nmi_visual", nmi_visual).sum() + _fractions("nmi_audio", nmi_audio).sum()
    return _number(accuracy_weight * accuracy + transfer_weight * (kept + learned).mean() + nmi_weight * shared)


# ---------------------------------------------------------------------- ingredients from the matrix


def stage_accuracy(matrix: Matrix, num_samples: Sequence[int] | Tensor) -> list[float | None]:
    """A_t: accuracy after each task on the test samples of all tasks up to it. Its mean is Acc_avg, its end "last".

    Args:
        matrix: `T×T` fractions in [0, 1]; `None` or NaN where not evaluated.
        num_samples: Test samples of each task, at least 1 each.

    Returns:
        One fraction for each task; `None` where a seen task was not evaluated.

    Raises:
        ValueError: If `matrix` is not square, `num_samples` has not one count for each task, or a value is outside its
            range.

    Example:
        >>> stage_accuracy([[1.0, None], [0.5, 1.0]], [30, 10])
        [1.0, 0.625]
    """
    table = _table(matrix)
    counts = torch.as_tensor(num_samples, dtype=torch.float64)
    if counts.shape != (len(table),) or (counts < 1).any():
        raise ValueError(
            f"`num_samples` is {counts.tolist()} for {len(table)} tasks, expected one count of at least 1 for each."
        )
    return _list((table.tril() @ counts) / counts.cumsum(0))


def stage_forgetting(matrix: Matrix) -> list[float | None]:
    """For_t: how far the earlier tasks are below their best, after each task. Lower is better.

    For_t = mean_{j<t} max(0, max_{j≤l<t} A[l, j] - A[t, j]), and 0 for the first task. Tasks that gained count as 0:
    else M1 could exceed 100.

    Args:
        matrix: `T×T` fractions in [0, 1]; `None` or NaN where not evaluated.

    Returns:
        One fraction for each task; `None` where an entry was not evaluated.

    Raises:
        ValueError: If `matrix` is not square or holds a value outside [0, 1].

    Example:
        >>> stage_forgetting([[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.75, 0.5, 1.0]])
        [0.0, 0.5, 0.375]
    """
    table = _table(matrix)
    result = torch.zeros(len(table), dtype=torch.float64)
    for t in range(1, len(table)):
        past = table[:t, :t]
        not_yet = torch.ones(t, t, dtype=torch.bool).triu(1)
        best = past.masked_fill(not_yet, -1).amax(dim=0)  # NaN wins a maximum
        result[t] = (best - table[t, :t]).clamp(min=0).mean()
    return _list(result)


def stage_backward(matrix: Matrix, mapping: BackwardMap = "shifted") -> list[float | None]:
    """BWT_t, "memory stability": change of the earlier tasks since each was learned, mapped to [0, 1].

    With d = mean_{j<t}(A[t, j] - A[j, j]), 0 for the first task: `shifted` is 1 + d, at most 1; `halved` is (1 + d)/2.

    Args:
        matrix: `T×T` fractions in [0, 1]; `None` or NaN where not evaluated.
        mapping: `shifted` or `halved`.

    Returns:
        One value in [0, 1] for each task; `None` where an entry was not evaluated.

    Raises:
        ValueError: If `matrix` is not square, holds a value outside [0, 1], or the mapping is unknown.

    Example:
        >>> stage_backward([[1.0, 0.0], [0.75, 1.0]])
        [1.0, 0.75]
    """
    if mapping not in ("shifted", "halved"):
        raise ValueError(f"`mapping={mapping!r}` is unknown; expected 'shifted' or 'halved'.")
    table = _table(matrix)
    drift = (table - table.diagonal()).tril(-1).sum(dim=1) / torch.arange(len(table)).clamp(min=1)
    return _list((1 + drift).clamp(0, 1) if mapping == "shifted" else (1 + drift) / 2)


def stage_forward(
    matrix: Matrix,
    kind: ForwardKind = "learned",
    ahead: Values | None = None,
    zero_shot: Values | None = None,
) -> list[float | None]:
    """FWT_t, "learning plasticity".

    `learned`: A[t, t], how well a task is learned. `gem`: (1 + ahead_t - zero_shot_t)/2, how much the earlier tasks
    gave to a task that is still to be learned, over what the untrained network knew.

    Args:
        matrix: `T×T` fractions in [0, 1]; `None` or NaN where not evaluated. `gem` reads its size only.
        kind: `learned` or `gem`.
        ahead: `gem`: accuracy on task t before it is learned, with the classes of tasks 0 to t as candidates. It is not
            an entry of the matrix, whose candidates end before t. The first value is the untrained network's.
        zero_shot: `gem`: the untrained network's accuracy on task t with the same candidates.

    Returns:
        One value in [0, 1] for each task; `None` where a value is not known.

    Raises:
        ValueError: If `matrix` is not square, a value is outside [0, 1], lengths differ, or the kind is unknown.

    Example:
        >>> stage_forward([[1.0, 0.0], [0.75, 0.5]])
        [1.0, 0.5]
        >>> stage_forward([[1.0, 0.0], [0.75, 0.5]], "gem", ahead=[0.5, 0.75], zero_shot=[0.5, 0.25])
        [0.5, 0.75]
    """
    table = _table(matrix)
    if kind == "learned":
        return _list(table.diagonal())
    if kind != "gem":
        raise ValueError(f"`kind={kind!r}` is unknown; expected 'learned' or 'gem'.")
    if ahead is None or zero_shot is None:
        raise ValueError("`kind='gem'` needs `ahead` and `zero_shot`: accuracies on each task before it is learned.")
    later, untrained, _ = _per_task(ahead=ahead, zero_shot=zero_shot, matrix=table.diagonal())
    return _list((1 + later - untrained) / 2)


# ---------------------------------------------------------------------- ingredients from features


def task_similarity(prototypes: Tensor, task_means: Tensor, num_new: int) -> float:
    """w_t: how alike the newest task and the earlier ones are, in meaning and in features.

    ```text
    w_t = clip(1/2 + c_t / 2, 0, 1),   c_t = 1/2 (cos(p̄_new, p̄_old) + cos(f̄_new, f̄_old))
    ```

    p̄ are means of class prototypes (text features); f̄ are means of fused features of training samples. Ask for it at
    the end of each task, as prototypes change.

    Args:
        prototypes: Of all classes seen, float `[seen, dim]`, those of the newest task last.
        task_means: Mean feature of each task's training samples, float `[tasks, dim]`, as taken at the task's end.
        num_new: Classes of the newest task.

    Returns:
        A number in [0, 1]; 1 for the first task, which counts for nothing in M1 then.

    Raises:
        ValueError: If there is no task, or not at least one old class when there are several tasks.

    Example:
        >>> task_similarity(torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 2.0]]), num_new=1)
        0.5
    """
    num_old = len(prototypes) - num_new
    if not len(task_means) or num_new < 1 or (num_old < 1) != (len(task_means) == 1):
        raise ValueError(
            f"Got {len(prototypes)} prototypes, `num_new={num_new}` and the means of {len(task_means)} tasks; expected "
            "the prototypes of all classes of these tasks, the newest task's last."
        )
    if len(task_means) == 1:
        return 1.0
    semantic = _cosine(prototypes[num_old:].double().mean(dim=0), prototypes[:num_old].double().mean(dim=0))
    feature = _cosine(task_means[-1].double(), task_means[:-1].double().mean(dim=0))
    return (0.5 + (semantic + feature) / 4).clamp(0, 1).item()


class Agreement(NamedTuple):
    """How far two groupings of the same samples agree.

    Args:
        nmi: Normalised mutual information in [0, 1]; with many groups and few samples far above 0 by chance.
        ami: The same adjusted for chance: about 0 for groupings that have nothing to do with each other, at most 1.
    """

    nmi: float
    ami: float


def cluster_agreement(first: Tensor, second: Tensor, num_clusters: int, seed: int = 0) -> Agreement:
    """Do two kinds of features of the same samples fall into the same groups?

    k-means with 10 starts on L2-normalised features of each kind.

    Args:
        first: float `[N, dim]`.
        second: float `[N, another_dim]`; row i belongs to row i of `first`.
        num_clusters: Groups of each kind: the number of classes, at least 1 and at most N.
        seed: Of k-means.

    Returns:
        NMI (arithmetic mean normalisation, scikit-learn) and AMI.

    Raises:
        ValueError: If there are not as many samples of both, or fewer than groups.
    """
    return _agreement(_clusters(first, num_clusters, seed), _clusters(second, num_clusters, seed))


def label_agreement(features: Tensor, target: Tensor, num_clusters: int, seed: int = 0) -> Agreement:
    """Do features fall into groups that are the classes? See `cluster_agreement`.

    Args:
        features: float `[N, dim]`.
        target: long `[N]`.
        num_clusters: Groups, at least 1 and at most N.
        seed: Of k-means.

    Returns:
        NMI and AMI.

    Raises:
        ValueError: If there are not as many labels as samples, or fewer samples than groups.
    """
    return _agreement(_clusters(features, num_clusters, seed), target.cpu().numpy())


# ---------------------------------------------------------------------- all of it


def multimodal_scores(
    matrix: Matrix,
    num_samples: Sequence[int] | Tensor,
    *,
    similarity: Values,
    frozen_similarity: Values | None = None,
    nmi_visual: float | None = None,
    nmi_audio: float | None = None,
    preset: Preset = "fifths",
    coefficients: Sequence[float] | None = None,
    backward: BackwardMap = "shifted",
    forward: ForwardKind = "learned",
    ahead: Values | None = None,
    zero_shot: Values | None = None,
) -> dict[str, Any]:
    """M1, M1_frozen and M2 of a stream with every ingredient and the definitions that were chosen.

    Args:
        matrix: `T×T` fractions in [0, 1], over all classes seen (Class-IL).
        num_samples: Test samples of each task.
        similarity: w_t of each task by the method's own features.
        frozen_similarity: w_t by the features of the untrained network, for scores that compare between methods.
        nmi_visual: See `m2`.
        nmi_audio: See `m2`.
        preset: See `m2`.
        coefficients: See `m2`.
        backward: See `stage_backward`.
        forward: See `stage_forward`.
        ahead: See `stage_forward`.
        zero_shot: See `stage_forward`.

    Returns:
        Plain JSON: `average_accuracy`, `last_accuracy`, `M1` and `M1_frozen` (percent), `M2`, lists `accuracy`,
        `forgetting`, `similarity`, `frozen_similarity`, `backward`, `forward`, `nmi` and `choices`. `None` for what is
        not known.

    Raises:
        ValueError: As in the functions that it calls.
    """
    accuracy = stage_accuracy(matrix, num_samples)
    forgetting = stage_forgetting(matrix)
    kept, learned = stage_backward(matrix, backward), stage_forward(matrix, forward, ahead, zero_shot)
    weights = _coefficients(preset, coefficients)
    return {
        "average_accuracy": _number(_fractions("matrix", accuracy).mean()),
        "last_accuracy": accuracy[-1],
        "M1": m1(accuracy, forgetting, similarity),
        "M1_frozen": None if frozen_similarity is None else m1(accuracy, forgetting, frozen_similarity),
        "M2": m2(accuracy, kept, learned, nmi_visual, nmi_audio, preset, coefficients),
        "accuracy": accuracy,
        "forgetting": forgetting,
        "similarity": _list(_fractions("similarity", similarity)),
        "frozen_similarity": None
        if frozen_similarity is None
        else _list(_fractions("frozen_similarity", frozen_similarity)),
        "backward": kept,
        "forward": learned,
        "nmi": {"visual": nmi_visual, "audio": nmi_audio},
        "choices": {
            "M1": MULTIMODAL_FORMULAS["M1"],
            "M2": MULTIMODAL_FORMULAS["M2"],
            "c_A, c_B, c_N": list(weights),
            "A_t": MULTIMODAL_FORMULAS["A_t"],
            "For_t": MULTIMODAL_FORMULAS["For_t"],
            "w_t": MULTIMODAL_FORMULAS["w_t"],
            "BWT_t": MULTIMODAL_FORMULAS[f"BWT_t, {backward}"],
            "FWT_t": MULTIMODAL_FORMULAS[f"FWT_t, {forward}"],
            "NMI": MULTIMODAL_FORMULAS["NMI"],
        },
    }


# ---------------------------------------------------------------------- private


def _fractions(name: str, values: float | Values | None) -> Tensor:
    """Check one value or one for each task and give them as float64 `[T]`, NaN for what is not known."""
    single = values is None or isinstance(values, int | float)
    vector = _to_float64(name, [values] if single else values)  # type: ignore[arg-type]
    vector = vector.reshape(1) if vector.ndim == 0 else vector
    if vector.ndim != 1 or not len(vector):
        raise ValueError(f"`{name}` has shape {tuple(vector.shape)}, expected one value for each task, at least one.")
    _check_fractions(name, vector)
    return vector.clamp(0, 1)


def _per_task(**values: float | Values) -> list[Tensor]:
    """What `_fractions` makes of several lists, which must be of one length."""
    vectors = {name: _fractions(name, value) for name, value in values.items()}
    lengths = {name: len(vector) for name, vector in vectors.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Got numbers of values {lengths}, expected one value for each task in all of them.")
    return list(vectors.values())


def _coefficients(preset: Preset, coefficients: Sequence[float] | None) -> tuple[float, float, float]:
    if coefficients is None:
        if preset not in M2_COEFFICIENTS:
            raise ValueError(f"`preset={preset!r}` is unknown; expected one of {sorted(M2_COEFFICIENTS)}.")
        return M2_COEFFICIENTS[preset]
    values = tuple(float(c) for c in coefficients)
    if len(values) != 3 or min(values) < 0 or not math.isclose(values[0] + 2 * values[1] + 2 * values[2], 1):
        raise ValueError(
            f"`coefficients={list(coefficients)}`: expected three numbers c_A, c_B and c_N of at least 0 with "
            "c_A + 2 c_B + 2 c_N = 1, so that M2 is in [0, 1]."
        )
    return values[0], values[1], values[2]


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    return F.cosine_similarity(first, second, dim=0)


def _clusters(features: Tensor, num_clusters: int, seed: int) -> Any:
    if not 1 <= num_clusters <= len(features):
        raise ValueError(
            f"Got `num_clusters={num_clusters}` for {len(features)} samples, expected 1 to the number of samples."
        )
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    points = F.normalize(features.detach().cpu().double(), dim=1).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct samples than groups: some stay empty
        return KMeans(num_clusters, n_init=10, random_state=seed).fit_predict(points)


def _agreement(first: Any, second: Any) -> Agreement:
    if len(first) != len(second):
        raise ValueError(f"Got {len(first)} and {len(second)} samples, expected as many of both, in one order.")
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    return Agreement(
        float(normalized_mutual_info_score(first, second)), float(adjusted_mutual_info_score(first, second))
    )


def _number(value: Tensor) -> float | None:
    """A float, or `None` for NaN."""
    return None if value.isnan() else value.item()


def _list(values: Tensor) -> list[float | None]:
    return [_number(value) for value in values]
