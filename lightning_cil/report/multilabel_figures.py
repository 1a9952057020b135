"""Figures of multi-label runs, and of options that runs differ in; functions of groups of runs, as in `figures`.

| figure | from |
|---|---|
| scores of absent classes | `results.json`: `multilabel.histogram`, FPR |
| labels of exemplars before and after relabelling | `results.json`: `relabelling` |
| class activation maps | `records/maps_task_<k>.npz` (`ActivationMapRecords`) |
| a score against an option | the settings of runs that differ in it alone |
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_cil.metrics.plots import COLOURS
from lightning_cil.report.figures import (
    HEIGHT,
    WIDTH,
    Picture,
    class_names,
    figure_legend,
    later,
    new_axes,
    new_figure,
    percent,
    row_name,
    style_of,
)
from lightning_cil.report.groups import Group, Stat, differing
from lightning_cil.report.multilabel import multilabel_scores
from lightning_cil.report.records import ActivationMaps, activation_maps_of
from lightning_cil.report.runs import tells_apart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_MAPS = 4
"""Class activation maps beside an image."""
MAP_SIDE = 1.5
"""Inches."""


# ---------------------------------------------------------------------- false positives


def histogram_of(group: Group) -> NDArray[np.float64] | None:
    """Share of the absent classes' probabilities in each bin of [0, 1] after the last task, over all runs, `[bins]`.

    `None` without a histogram of the same bins in each run.
    """
    found = [run.multilabel.get("histogram", {}).get("absent") for run in group.runs]
    if None in found or len({len(counts) for counts in found}) != 1:
        return None
    counts = np.sum(found, axis=0, dtype=np.float64)
    return counts / counts.sum() if counts.sum() else None


def draw_absent_scores(groups: Sequence[Group], ax: "Axes | None" = None) -> "Figure":
    """How probable classes are said to be that are absent, with the false positive rate; dotted: its threshold.

    A share of all pairs of a test image and a class that it does not show, on a logarithmic axis.
    """
    fig, ax = new_axes(ax)
    lowest = 1.0
    for position, group in enumerate(groups):
        share = histogram_of(group)
        if share is None:
            continue
        edges = np.linspace(0, 1, len(share) + 1)
        heights = np.where(share > 0, 100 * share, np.nan)
        lowest = min(lowest, float(np.nanmin(heights)))
        style = {k: v for k, v in style_of(group, position).items() if k != "marker"}
        label = f"{row_name(group)}, FPR {percent(multilabel_scores(group)['FPR'])}"
        ax.stairs(heights, edges, baseline=None, label=label, **style)
    ax.axvline(_threshold(groups), color="0.5", linestyle=":", linewidth=1)
    ax.set_yscale("log")
    ax.set_ylim(lowest / 1.5, 150)
    ax.set_xlim(0, 1)
    ax.set_xlabel("probability of a class that is absent (no unit)")
    ax.set_ylabel("share of them (%)")
    figure_legend(fig, ax)
    return fig


def _threshold(groups: Sequence[Group]) -> float:
    return next((float(g.first.multilabel["threshold"]) for g in groups if "threshold" in g.first.multilabel), 0.8)


# ---------------------------------------------------------------------- relabelling


def label_shares(group: Group) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Share of labels known in the memory when the first run's last task ended, before and after relabelling.

    Returns:
        Two `[tasks, tasks]` in [0, 1]: task of the exemplar, task of the class; NaN where no exemplar is left. `None`
        without relabelling.
    """
    tasks = group.first.results.get("relabelling", {}).get("tasks", [])
    if not tasks:
        return None
    size = int(tasks[-1]["task"]) + 1
    before, after = (np.asarray(tasks[-1][k], dtype=float)[:size, :size] for k in ("known_before", "known_after"))
    classes = np.asarray(group.first.task_sizes[:size], dtype=float)
    exemplars = np.diag(after) / classes  # a task's own labels are always known
    whole = np.outer(np.where(exemplars > 0, exemplars, np.nan), classes)
    return before / whole, after / whole


def draw_label_blocks(group: Group) -> "Figure":
    """Which labels of the exemplars are known before and after the last relabelling, by task of image and class."""
    fig, axes = new_figure(1, 2, WIDTH + 1.2, HEIGHT)
    image: Any = None
    for ax, share, when in zip(axes.flat, label_shares(group) or (), ("before", "after"), strict=True):
        image = ax.imshow(100 * share, vmin=0, vmax=100, cmap=COLOURS, interpolation="nearest")
        ticks = range(0, len(share), max(1, -(-len(share) // 10)))
        ax.set_xticks(ticks, [str(i + 1) for i in ticks])
        ax.set_yticks(ticks, [str(i + 1) for i in ticks])
        ax.set_title(f"{when} relabelling", fontsize=9)
        ax.set_xlabel("task of the class")
        ax.set_ylabel("task of the exemplar")
    fig.colorbar(image, ax=list(axes.flat), label="labels known (%)", shrink=0.7)
    return fig


# ---------------------------------------------------------------------- options


@dataclass(frozen=True)
class Sweep:
    """Groups that differ in one option of the method.

    Args:
        option: The setting.
        groups: In the order of its values, which are numbers.
    """

    option: str
    groups: tuple[Group, ...]

    @property
    def name(self) -> str:
        """The option without its section."""
        return self.option.removeprefix("method.")

    @property
    def values(self) -> list[float]:
        """Of the option."""
        return [float(group.first.settings[self.option]) for group in self.groups]

    def scores(self) -> dict[str, list[Stat]]:
        """MAP after the last task and on average, or ACC and AIA, for each value."""
        if self.groups[0].first.is_multilabel:
            return {n: [multilabel_scores(g)[n] for g in self.groups] for n in ("mAP_last", "mAP_avg")}
        return {n: [g.scores("class_il")[n] for g in self.groups] for n in ("ACC", "AIA")}


def sweeps_of(groups: Sequence[Group], options: Sequence[str] | None = None) -> list[Sweep]:
    """Sets of groups that differ in one number among the method's settings and in nothing else.

    Args:
        groups: Of one data set and one list of tasks.
        options: Only these settings; `None`: all.
    """
    names = differing([group.first.settings for group in groups])
    found = []
    for option in [n for n in names if n.startswith("method.") and (options is None or n in options)]:
        sets: dict[str, list[Group]] = {}
        for group in groups:
            settings = group.first.settings
            if group.complete and type(settings.get(option)) in (int, float):
                rest = {k: v for k, v in settings.items() if k != option and tells_apart(k)}
                sets.setdefault(json.dumps(rest, sort_keys=True, default=str), []).append(group)
        for members in sets.values():
            ordered = sorted(members, key=lambda g, option=option: float(g.first.settings[option]))  # type: ignore[misc]
            if len({g.first.settings[option] for g in members}) > 1:
                found.append(Sweep(option, tuple(ordered)))
    return found


def draw_sweep(sweep: Sweep, ax: "Axes | None" = None) -> "Figure":
    """Scores against the values of an option; bars: std."""
    fig, ax = new_axes(ax)
    for position, (name, stats) in enumerate(sweep.scores().items()):
        known = [(v, s) for v, s in zip(sweep.values, stats, strict=True) if s.mean is not None]
        if not known:
            continue
        ax.errorbar(
            [v for v, _ in known],
            [100 * (s.mean or 0) for _, s in known],
            yerr=[100 * (s.std or 0) for _, s in known],
            label=name,
            capsize=2,
            markersize=5,
            **style_of(sweep.groups[0], position),
        )
    ax.set_xlabel(f"{sweep.name} (no unit)")
    ax.set_ylabel("score (%)")
    figure_legend(fig, ax)
    return fig


# ---------------------------------------------------------------------- class activation maps


def shown_classes(maps: ActivationMaps, row: int, first_new: int) -> list[int]:
    """Classes whose maps are drawn beside an image: those it shows, then the most probable ones.

    Old and new classes take turns within both, the most probable first.
    """
    scores, present = maps.scores[row], maps.target[row]
    ranked = sorted(range(len(scores)), key=lambda c: (not present[c], -scores[c]))
    old, new = ([c for c in ranked if (c >= first_new) is is_new] for is_new in (False, True))
    half = MOST_MAPS // 2
    kept = [*old[: max(half, MOST_MAPS - len(new))], *new[: max(half, MOST_MAPS - len(old))]]
    return sorted(kept[:MOST_MAPS])


def draw_activation_maps(group: Group) -> "Figure":
    """Test images with the activation maps of old and new classes and their probabilities; bold: the image shows it."""
    run = group.first
    maps = activation_maps_of(run)
    assert maps is not None
    first_new = sum(run.task_sizes[: run.tasks_done - 1])
    names = class_names(run) or [str(c) for c in range(sum(run.task_sizes))]
    rows = [shown_classes(maps, i, first_new) for i in range(len(maps.image))]
    columns = 1 + max(map(len, rows))
    fig, axes = new_figure(len(rows), columns, MAP_SIDE * columns, (MAP_SIDE + 0.35) * len(rows))
    for ax in axes.flat:
        ax.axis("off")
    for i, classes in enumerate(rows):
        picture = _picture(maps.image[i])
        axes[i, 0].imshow(picture, cmap="gray")
        for ax, c in zip(axes[i, 1:], classes, strict=False):
            heat = np.maximum(maps.maps[i, c].astype(np.float64), 0)
            side = (-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5)
            ax.imshow(picture, cmap="gray")
            ax.imshow(heat / (heat.max() or 1), cmap=COLOURS, alpha=0.55, extent=side, interpolation="bilinear")
            weight = "bold" if maps.target[i, c] else "normal"
            age = "new" if c >= first_new else "old"
            ax.set_title(f"{names[c]} ({age}) {maps.scores[i, c]:.2f}", fontsize=7, fontweight=weight)
    return fig


def _picture(image: NDArray[Any]) -> NDArray[Any]:
    """uint8 `[channels, height, width]` as matplotlib wants it."""
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)


# ---------------------------------------------------------------------- all of a set of runs


def pictures(groups: Sequence[Group], prefix: str = "") -> list[Picture]:
    """The figures of groups of one protocol, as far as there is something to draw.

    Args:
        groups: Of one data set and one list of tasks.
        prefix: Put before the names of files.
    """
    found = [picture for name in FIGURES for picture in figure_of_paper(name, prefix + name, "", groups)]
    for i, sweep in enumerate(sweeps_of(groups), 1):
        title = f"{sweep.groups[0].first.method}: scores against {sweep.name}"
        found.append(_sweep_picture(sweep, f"{prefix}sweep_{i:02d}", title))
    return found


FIGURES: dict[str, str] = {
    "absent_scores": "Probabilities of classes that are absent, after the last task",
    "label_blocks": "Labels of exemplars before and after relabelling",
    "activation_maps": "Class activation maps of old and new classes",
}
"""What can be drawn of multi-label runs, and what it shows."""


def is_known(draw: str) -> bool:
    """Whether `figure_of_paper` can draw it."""
    return draw in FIGURES or (draw.startswith("sweep:") and draw.removeprefix("sweep:").isidentifier())


def figure_of_paper(draw: str, name: str, title: str, groups: Sequence[Group]) -> list[Picture]:
    """One kind of figure of groups of one protocol; empty where there is nothing to draw.

    Args:
        draw: A key of `FIGURES`, or `sweep:` and an option of the method.
        name: Of the files; figures of one group each are numbered from the second on.
        title: What it shows; empty: as `FIGURES` says.
        groups: Of one data set and one list of tasks.
    """
    if draw.startswith("sweep:"):
        sweeps = sweeps_of(groups, ["method." + draw.removeprefix("sweep:")])
        return [_sweep_picture(s, _numbered(name, i), f"{title}, {s.name}") for i, s in enumerate(sweeps)]
    title = title or FIGURES[draw]
    if draw == "absent_scores":
        drawn = [group for group in groups if histogram_of(group) is not None]
        rates = "; ".join(f"{g.label} {percent(multilabel_scores(g)['FPR'])}" for g in drawn)
        return [Picture(name, title, f"{title}. FPR: {rates}.", later(draw_absent_scores, drawn))] if drawn else []
    has, one = _OF_ONE_GROUP[draw]
    shown = [group for group in groups if has(group)]
    titles = [f"{title}, {group.label}" for group in shown]
    return [
        Picture(_numbered(name, i), words, f"{words}, seed {g.first.seed}.", later(one, g))
        for i, (g, words) in enumerate(zip(shown, titles, strict=True))
    ]


_OF_ONE_GROUP: "dict[str, tuple[Callable[[Group], bool], Callable[[Group], Figure]]]" = {
    "label_blocks": (lambda group: label_shares(group) is not None, draw_label_blocks),
    "activation_maps": (lambda group: activation_maps_of(group.first) is not None, draw_activation_maps),
}


def _numbered(name: str, i: int) -> str:
    return name if i == 0 else f"{name}_{i + 1}"


def _sweep_picture(sweep: Sweep, name: str, title: str) -> Picture:
    label, stats = next(iter(sweep.scores().items()))
    points = "; ".join(f"{v:g}: {percent(s)}" for v, s in zip(sweep.values, stats, strict=True))
    return Picture(name, title, f"{title}. {label}: {points}.", later(draw_sweep, sweep))
