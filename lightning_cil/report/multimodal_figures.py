"""Figures of multimodal runs; functions of groups of runs, as in `figures`, drawn of a group's first run.

| figure | from |
|---|---|
| cosines of samples and class prototypes | `records/features_*.npz` (`FeatureRecords`) |
| t-SNE of visual features before and after training | the same |
| confusion after some task | `records/task_<k>.npz` (`PredictionRecords`), of all runs of a group |
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_cil.metrics.confusion import confusion_matrix
from lightning_cil.metrics.plots import COLOURS
from lightning_cil.report.figures import (
    LEGEND_ROW,
    MOST_NAMES,
    Picture,
    class_names,
    class_ticks,
    draw_confusion,
    draw_tsne,
    later,
    new_figure,
    task_borders,
)
from lightning_cil.report.groups import Group
from lightning_cil.report.records import Modalities, group_predictions, modalities_of
from lightning_cil.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL = 3.0
"""Inches."""
FEWEST_POINTS = 5
"""That t-SNE takes."""

FIGURES: dict[str, str] = {
    "similarity": "Cosines of samples and class prototypes",
    "visual_features": "Visual features of the test images (t-SNE)",
    "confusion": "Which classes are taken for which",
}
"""What can be drawn of multimodal runs, and what it shows."""


# ---------------------------------------------------------------------- cosines


def similarities(found: Modalities, num_seen: int) -> dict[str, NDArray[np.float64]]:
    """Mean cosine of each class's samples (row) and each class's prototype (column), `[seen, seen]`, by modality.

    NaN where a class has no sample.
    """
    prototypes = _unit(found.prototypes[:num_seen])
    tables = {"images": found.visual, "sounds": found.audio, "fused": found.fused}
    result = {}
    for name, table in tables.items():
        if table is not None:
            rows = [_unit(table[found.target == c]) @ prototypes.T for c in range(num_seen)]
            result[name] = np.stack([r.mean(axis=0) if len(r) else np.full(num_seen, np.nan) for r in rows])
    return result


def margin(similarity: NDArray[np.float64]) -> float:
    """How much nearer samples are to their own class's prototype than to the others', a difference of mean cosines."""
    own = np.eye(len(similarity), dtype=bool)
    others = similarity[~own]
    return float(np.nanmean(similarity[own]) - (np.nanmean(others) if others.size else 0))


def _unit(table: NDArray[Any]) -> NDArray[np.float64]:
    values = table.astype(np.float64)
    unit: NDArray[np.float64] = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return unit


def draw_similarity(run: Run, after: int | None = None) -> "Figure":
    """Mean cosines of a class's samples and the prototypes of all classes seen; above: before training.

    Args:
        run: With features of its test samples.
        after: How many tasks are learned; `None`: all that are done.
    """
    done = after or run.tasks_done
    sizes = run.task_sizes[:done]
    shown = {when: similarities(found, sum(sizes)) for when, found in _moments(run, done).items()}
    low, high = (f(np.concatenate([t.ravel() for row in shown.values() for t in row.values()])) for f in _ENDS)
    columns = max(map(len, shown.values()))
    fig, axes = new_figure(len(shown), columns, PANEL * columns + 2.0, (PANEL + 0.2) * len(shown) + 1.2)
    image: Any = None
    for line, (when, row) in zip(axes, shown.items(), strict=True):
        for ax, (name, table) in zip(line, row.items(), strict=True):
            image = ax.imshow(table, vmin=low, vmax=high, cmap=COLOURS, interpolation="nearest")
            task_borders(ax, sizes, horizontal=True)
            class_ticks(ax, _names(run, sum(sizes)), both=True)
            ax.tick_params(labelbottom=ax in axes[-1], labelleft=ax in axes[:, 0])
            ax.set_title(f"{name}, {when}\nown class − others: {_short(margin(table))}", fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("class of the prototype")
    for ax in axes[:, 0]:
        ax.set_ylabel("class of the sample")
    fig.colorbar(image, ax=list(axes.flat), label="mean cosine (no unit)", shrink=0.7)
    return fig


_ENDS: tuple[Callable[..., Any], ...] = (np.nanmin, np.nanmax)


def _moments(run: Run, done: int) -> dict[str, Modalities]:
    """What was recorded before training and after some tasks."""
    found = {"before training": modalities_of(run, 0), f"after task {done}": modalities_of(run, done)}
    return {when: part for when, part in found.items() if part is not None}


def _names(run: Run, num_seen: int) -> list[str] | None:
    names = class_names(run)
    return names if names is None else names[:num_seen]


# ---------------------------------------------------------------------- t-SNE


def draw_visual_features(run: Run, after: int | None = None) -> "Figure":
    """t-SNE of the test images' visual features, left before training, right after some tasks; marked by class.

    Beyond 20 classes by task. The silhouette (Rousseeuw 1987) of the features themselves stands above.

    Args:
        run: With features of its test samples.
        after: How many tasks are learned; `None`: all that are done.
    """
    done = after or run.tasks_done
    num_seen = sum(run.task_sizes[:done])
    moments = _moments(run, done)
    fig, axes = new_figure(1, len(moments), (PANEL + 0.4) * len(moments), PANEL + 0.9)
    for ax, (when, found) in zip(axes.flat, moments.items(), strict=True):
        seen = found.target < num_seen
        numbers, names = _marks(run, found.target[seen], num_seen)
        draw_tsne(ax, found.visual[seen].astype(np.float32), numbers, names)
        value = silhouette(found, num_seen)
        ax.set_title(when + ("" if value is None else f", silhouette {_short(value)}"), fontsize=9)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    columns = max(1, min(5, 80 // max(len(label) + 6 for label in labels)))
    width, height = fig.get_size_inches()
    fig.set_size_inches(width, height + LEGEND_ROW * (-(-len(labels) // columns) - 1))
    fig.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return fig


def silhouette(found: Modalities, num_seen: int) -> float | None:
    """Mean silhouette of the seen classes' visual features, by cosines, in [-1, 1]; `None` with one class."""
    from sklearn.metrics import silhouette_score

    seen = found.target < num_seen
    target = found.target[seen]
    if not 2 <= len(np.unique(target)) < len(target):
        return None
    return float(silhouette_score(_unit(found.visual[seen]), target, metric="cosine"))


def _marks(run: Run, target: NDArray[Any], num_seen: int) -> tuple[NDArray[Any], dict[int, str]]:
    """What tells samples apart, and its names: the class, or the task where classes are many."""
    names = _names(run, num_seen) or [f"class {c}" for c in range(num_seen)]
    if num_seen <= MOST_NAMES:
        return target, {c: names[c] for c in range(num_seen) if (target == c).any()}
    task = np.repeat(np.arange(run.num_tasks), run.task_sizes)[target]
    return task, {int(t): f"task {t + 1}" for t in np.unique(task)}


# ---------------------------------------------------------------------- confusion


def draw_stage_confusion(group: Group, after: int | None = None) -> "Figure":
    """Which of the classes seen after some tasks are taken for which, over all runs of a group."""
    sizes = group.first.task_sizes[: after or group.first.tasks_done]
    target, predicted = group_predictions(group, after) or _NOTHING
    seen = target < sum(sizes)
    counts = confusion_matrix(target[seen], predicted[seen], sum(sizes))
    return draw_confusion(counts, sizes, None, _names(group.first, sum(sizes)))


_NOTHING = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


# ---------------------------------------------------------------------- all of a set of runs


def pictures(groups: Sequence[Group], prefix: str = "") -> list[Picture]:
    """The figures of groups of one protocol after their last task, as far as there is something to draw.

    Args:
        groups: Of one data set and one list of tasks.
        prefix: Put before the names of files.
    """
    names = [name for name in FIGURES if name != "confusion"]  # `figures` draws that of all runs
    return [picture for name in names for picture in figure_of_paper(name, prefix + name, "", groups)]


def figure_of_paper(
    draw: str, name: str, title: str, groups: Sequence[Group], after: int | None = None
) -> list[Picture]:
    """One kind of figure, of each group that has records for it.

    Args:
        draw: A key of `FIGURES`.
        name: Of the files; the second group's and later ones' are numbered.
        title: What it shows; empty: as `FIGURES` says.
        groups: Of one data set and one list of tasks.
        after: How many tasks are learned; `None`: all that are done.
    """
    shown = [group for group in groups if _has(draw, group, after)]
    found = []
    for number, group in enumerate(shown, 1):
        words = f"{title or FIGURES[draw]}, after task {after or group.first.tasks_done}, {group.label}"
        words += "" if draw == "confusion" else f", seed {group.first.seed}"
        drawn: Callable[[], Figure] = later(_draw, draw, group, after)
        file = name if number == 1 else f"{name}_{number}"
        found.append(Picture(file, words, f"{words}. {_numbers(draw, group, after)}".strip(), drawn))
    return found


_DRAW: "dict[str, Callable[[Group, int | None], Figure]]" = {
    "similarity": lambda group, after: draw_similarity(group.first, after),
    "visual_features": lambda group, after: draw_visual_features(group.first, after),
    "confusion": draw_stage_confusion,
}


def _draw(draw: str, group: Group, after: int | None) -> "Figure":
    return _DRAW[draw](group, after)


def _has(draw: str, group: Group, after: int | None) -> bool:
    run = group.first
    done = after or run.tasks_done
    if done > run.tasks_done:
        return False
    if draw == "confusion":
        return group_predictions(group, done) is not None
    found = modalities_of(run, done)
    if found is None:
        return False
    samples = int((found.target < sum(run.task_sizes[:done])).sum())
    return samples >= (FEWEST_POINTS if draw == "visual_features" else 1)


def _numbers(draw: str, group: Group, after: int | None) -> str:
    """The main numbers in words."""
    run, done = group.first, after or group.first.tasks_done
    num_seen = sum(run.task_sizes[:done])
    if draw == "confusion":
        target, predicted = group_predictions(group, done) or _NOTHING
        right = (target == predicted)[target < num_seen].mean()
        return f"Right: {100 * right:.1f} %."
    if draw == "similarity":
        parts = [
            f"{when}: {', '.join(f'{k} {_short(margin(t))}' for k, t in similarities(found, num_seen).items())}"
            for when, found in _moments(run, done).items()
        ]
        return f"Own class minus others, {'; '.join(parts)}."
    values = {when: silhouette(found, num_seen) for when, found in _moments(run, done).items()}
    return f"Silhouette {', '.join(f'{when} {_short(v)}' for when, v in values.items() if v is not None)}."


def _short(value: float) -> str:
    """Two digits, without a sign of zero."""
    return f"{round(value, 2) + 0.0:.2f}"
