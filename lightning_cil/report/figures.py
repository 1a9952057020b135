"""Figures: functions of groups of runs or of arrays, each returning a matplotlib `Figure`.

Made for print and for all eyes: lines differ in marker and dash, bars in hatching, colours are Okabe and Ito's
(https://jfly.uni-koeln.de/color/), and the heat maps' brightness rises with the value. Axes carry units.
"""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_cil.metrics.confusion import confusion_matrix, per_class_accuracy
from lightning_cil.metrics.plots import COLOURS, figure_of, plot_task_matrix, require_matplotlib
from lightning_cil.report.groups import Group, Stat
from lightning_cil.report.records import curve_of, features_of, group_predictions
from lightning_cil.report.runs import Run
from lightning_cil.report.tables import SCENARIO_NAMES
from lightning_cil.types import Scenario

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)), (0, (6, 1)))
"""Of lengths without a common factor: colour, marker and dash come together again after 7 · 8 · 5 rows."""
HATCHES = ("", "///", "xxx")
WIDTH, HEIGHT = 5.2, 3.6
LEGEND_ROW = 0.19
"""Inches of a line of the legend, by which a figure grows from the third on."""
MOST_POINTS = 2000
HOUR = 3600
MOST_NAMES = 20

Style = dict[str, Any]


@dataclass(frozen=True)
class Picture:
    """A figure with its words.

    Args:
        name: Of its files, without ending.
        title: What it shows.
        alt: What it shows to those who do not see it, with the main numbers.
        draw: Makes it.
    """

    name: str
    title: str
    alt: str
    draw: "Callable[[], Figure]"


def style_of(group: Group, position: int) -> Style:
    """Colour, marker and dash of a group, the same in every figure.

    Args:
        group: The group.
        position: Its position among those drawn.
    """
    if group.is_joint:
        return {"color": "black", "marker": "*", "linestyle": ":"}
    return {
        "color": PALETTE[position % len(PALETTE)],
        "marker": MARKERS[position % len(MARKERS)],
        "linestyle": DASHES[position % len(DASHES)],
    }


def draw_matrix(group: Group, scenario: Scenario, ax: "Axes | None" = None) -> "Figure":
    """The mean accuracy matrix of a group as a heat map with values."""
    fig, ax = new_axes(ax, WIDTH, 4.2)
    plot_task_matrix(group.matrix(scenario), ax, group.first.score_name)
    ax.set_title(textwrap.fill(f"{row_name(group)}, {SCENARIO_NAMES[scenario]}", 60), fontsize=9)
    return fig


def draw_curves(groups: Sequence[Group], scenario: Scenario, ax: "Axes | None" = None) -> "Figure":
    """Accuracy against the number of classes seen; band: standard deviation; dotted: Joint.

    A Joint run that was trained once, on all classes, gives a level. `Independent` has no such accuracy.
    """
    fig, ax = new_axes(ax)
    for position, group in enumerate(groups):
        if group.is_independent:
            continue
        style, curve = style_of(group, position), group.curve(scenario)
        seen = np.cumsum(group.first.task_sizes)[: len(curve)]
        mean, low, high = _band(curve)
        if group.is_joint and len(mean) > 1 and np.isnan(mean[:-1]).all():
            ax.axhline(mean[-1], color=style["color"], linestyle=style["linestyle"], linewidth=1)
            style = {**style, "linestyle": "none"}
        ax.plot(seen, mean, label=row_name(group), markersize=5, **style)
        ax.fill_between(seen, low, high, color=style["color"], alpha=0.18, linewidth=0)
    ax.set_xlabel("classes seen")
    ax.set_ylabel(f"{groups[0].first.score_name if groups else 'accuracy'} on them (%)")
    ax.set_ylim(0, 102)
    figure_legend(fig, ax)
    return fig


def draw_forgetting(groups: Sequence[Group], scenario: Scenario, ax: "Axes | None" = None) -> "Figure":
    """Forgetting of every task but the last: best accuracy before the last task minus that after it; bars: std."""
    fig, ax = new_axes(ax)
    shown = [(i, g) for i, g in enumerate(groups) if _forgets(g, scenario)]
    for place, (position, group) in enumerate(shown):
        terms = group.forgetting(scenario)
        mean, low, _ = _band(terms)
        x = np.arange(1, len(terms) + 1) + 0.3 * ((place + 0.5) / len(shown) - 0.5)
        ax.errorbar(
            x, mean, yerr=mean - low, label=row_name(group), capsize=2, markersize=5, **style_of(group, position)
        )
    ax.axhline(0, color="0.5", linewidth=0.8)
    _whole_ticks(ax)
    longest = max((len(g.forgetting(scenario)) for _, g in shown), default=1)
    ax.set_xlim(0.6, longest + 0.4)
    ax.set_xlabel("task")
    ax.set_ylabel("forgetting (percentage points)")
    figure_legend(fig, ax)
    return fig


def draw_plasticity_stability(groups: Sequence[Group], scenario: Scenario, ax: "Axes | None" = None) -> "Figure":
    """Plasticity P, what training on a task adds, against stability, BWT; bars: std. Upper right is better."""
    fig, ax = new_axes(ax)
    for position, group in enumerate(groups):
        if group.is_independent:
            continue
        stable, plastic = group.scores(scenario)["BWT"], group.plasticity(scenario)
        if stable.mean is None or plastic.mean is None:
            continue
        ax.errorbar(
            100 * stable.mean,
            100 * plastic.mean,
            xerr=100 * (stable.std or 0),
            yerr=100 * (plastic.std or 0),
            capsize=2,
            markersize=8,
            label=row_name(group),
            **{**style_of(group, position), "linestyle": "none"},
        )
    ax.axvline(0, color="0.5", linewidth=0.8)
    ax.margins(0.15)
    ax.set_xlabel("stability: BWT (percentage points; 0: nothing lost)")
    ax.set_ylabel("plasticity: P (percentage points)")
    figure_legend(fig, ax)
    return fig


def draw_memory(groups: Sequence[Group], ax: "Axes | None" = None) -> "Figure":
    """Bytes kept between tasks: model, exemplars, and old models and the like."""
    parts = {"model": "model", "exemplars": "exemplars", "other": "old models, prototypes"}
    values = {name: [(g.bytes(key).mean or 0) / 1e6 for g in groups] for key, name in parts.items()}
    return _stacked_bars(groups, values, "memory kept between tasks (MB, 1e6 bytes)", ax)


def draw_paper_memory(groups: Sequence[Group], ax: "Axes | None" = None) -> "Figure":
    """Bytes as NFL's figure 5 counts them: exemplars' images, and the network without its classifier."""
    exemplars = [(g.bytes("images").mean or 0) / 1e6 for g in groups]
    model = [(g.bytes("paper").mean or 0) / 1e6 - size for g, size in zip(groups, exemplars, strict=True)]
    return _stacked_bars(groups, {"exemplars": exemplars, "model": model}, "memory (MB, 1e6 bytes)", ax)


def draw_seconds(groups: Sequence[Group], ax: "Axes | None" = None) -> "Figure":
    """Time of training and of evaluation, mean over the runs: seconds, or hours where the longest takes two or more."""
    values = {kind: [g.seconds(kind).mean or 0 for g in groups] for kind in ("training", "evaluation")}
    if max(map(sum, zip(*values.values(), strict=True)), default=0) < 2 * HOUR:
        return _stacked_bars(groups, values, "time (s)", ax)
    hours = {kind: [seconds / HOUR for seconds in row] for kind, row in values.items()}
    return _stacked_bars(groups, hours, "time (h)", ax)


def draw_first_task(groups: Sequence[Group], scenario: Scenario, ax: "Axes | None" = None) -> "Figure":
    """Accuracy on the first task at every measurement while training, of each group's first run.

    Of methods that learn task after task: neither `Joint` nor `Independent`. Falls that recover before the task ends
    are the stability gap. Vertical lines: where the first group changes task.
    """
    fig, ax = new_axes(ax)
    watched = [(i, g) for i, g in enumerate(groups) if g.is_stream and curve_of(g.first, scenario)]
    for position, group in watched:
        curve = curve_of(group.first, scenario) or []
        steps = [step for step, _ in curve]
        values = [100 * measured.accuracy[0] for _, measured in curve]
        style = {**style_of(group, position), "markevery": max(1, len(steps) // 12)}
        ax.plot(steps, values, label=group.label, linewidth=1, markersize=4, **style)
    marked = watched[0][1].first if watched else groups[0].first
    tasks = [(step, measured.task) for step, measured in curve_of(marked, scenario) or []]
    for (before, task), (step, following) in pairwise(tasks):
        if following != task:
            ax.axvline((before + step) / 2, color="0.7", linewidth=0.6)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("accuracy on task 1 (%)")
    ax.set_ylim(0, 102)
    figure_legend(fig, ax)
    return fig


# ---------------------------------------------------------------------- of arrays


def draw_class_accuracy(
    accuracy: Sequence[float] | NDArray[Any],
    task_sizes: Sequence[int],
    ax: "Axes | None" = None,
    names: Sequence[str] | None = None,
) -> "Figure":
    """Accuracy on every class after the last task, grouped by task.

    Args:
        accuracy: `[classes]` fractions in the order in which the classes were learned; NaN: no sample.
        task_sizes: Classes of each task.
        ax: Where to draw; by default in a new figure.
        names: Of the classes, in the order of learning; shown up to 20.
    """
    fig, ax = new_axes(ax)
    first = 0
    for task, size in enumerate(task_sizes):
        label = {0: "odd tasks", 1: "even tasks"}.get(task)
        classes = np.arange(first, first + size)
        heights = 100 * np.asarray(accuracy, dtype=float)[classes]
        ax.bar(classes, heights, color=PALETTE[task % 2], hatch=HATCHES[task % 2], label=label, edgecolor="white")
        first += size
    task_borders(ax, task_sizes, horizontal=False)
    ax.set_xlim(-0.5, first - 0.5)
    ax.set_ylim(0, 102)
    class_ticks(ax, names)
    ax.set_xlabel("class, in the order of learning")
    ax.set_ylabel("accuracy (%)")
    figure_legend(fig, ax)
    return fig


def draw_confusion(
    counts: Sequence[Sequence[int]] | NDArray[Any],
    task_sizes: Sequence[int],
    ax: "Axes | None" = None,
    names: Sequence[str] | None = None,
) -> "Figure":
    """Which classes are taken for which, in percent of a class's samples; lines between tasks.

    Args:
        counts: `[classes, classes]`: samples of the row's class that were called the column's class.
        task_sizes: Classes of each task.
        ax: Where to draw; by default in a new figure.
        names: Of the classes, in the order of learning; shown up to 20.
    """
    fig, ax = new_axes(ax, WIDTH, 4.2)
    table = np.asarray(counts, dtype=float)
    share = 100 * table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    image = ax.imshow(share, vmin=0, vmax=100, cmap=COLOURS, interpolation="nearest")
    task_borders(ax, task_sizes, horizontal=True)
    class_ticks(ax, names, both=True)
    ax.set_xlabel("predicted class, in the order of learning")
    ax.set_ylabel("true class")
    fig.colorbar(image, ax=ax, label="share of the true class (%)", shrink=0.8)
    return fig


def draw_features(
    features: NDArray[Any], task: Sequence[int] | NDArray[Any], ax: "Axes | None" = None, seed: int = 0
) -> "Figure":
    """t-SNE of features in two dimensions, coloured and marked by task (van der Maaten and Hinton 2008, scikit-learn).

    Args:
        features: float `[samples, dimensions]`; at most 2,000 evenly spaced samples are drawn.
        task: `[samples]`: task of each.
        ax: Where to draw; by default in a new figure.
        seed: Of t-SNE.

    Raises:
        ValueError: With fewer than 5 samples.
    """
    table, tasks = np.asarray(features, dtype=np.float32), np.asarray(task)
    fig, ax = new_axes(ax, WIDTH, 4.2)
    draw_tsne(ax, table, tasks, {int(number): f"task {number + 1}" for number in np.unique(tasks)}, seed)
    figure_legend(fig, ax)
    return fig


def draw_tsne(ax: "Axes", table: NDArray[Any], numbers: NDArray[Any], names: Mapping[int, str], seed: int = 0) -> None:
    """t-SNE of float `[samples, dimensions]`, marked by `numbers` `[samples]`, whose `names` are for the legend.

    Raises:
        ValueError: With fewer than 5 samples.
    """
    if len(table) < 5:
        raise ValueError(f"`features` has {len(table)} samples, expected at least 5 for t-SNE.")
    if len(table) > MOST_POINTS:
        kept = np.linspace(0, len(table) - 1, MOST_POINTS).round().astype(int)
        table, numbers = table[kept], numbers[kept]
    perplexity = min(30.0, (len(table) - 1) / 4)
    points = _tsne(np.asarray(table, dtype=np.float32).tobytes(), len(table), perplexity, seed)
    for place, (number, name) in enumerate(names.items()):
        x, y = points[numbers == number].T
        # bright to dark, so that the order shows in greyscale too
        colour = _colormap()(0.92 * place / max(1, len(names) - 1))
        ax.scatter(x, y, s=10, marker=MARKERS[place % len(MARKERS)], color=colour, label=name)
    ax.set_xlabel("t-SNE 1 (no unit)")
    ax.set_ylabel("t-SNE 2 (no unit)")
    ax.set_xticks([])
    ax.set_yticks([])


@lru_cache(maxsize=4)
def _tsne(table: bytes, samples: int, perplexity: float, seed: int) -> NDArray[Any]:
    """Points `[samples, 2]` of a float32 table. Methods that start from the same towers have the same ones before."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    features = np.frombuffer(table, dtype=np.float32).reshape(samples, -1)
    with threadpool_limits(1):  # sums in another order give another picture
        points: NDArray[Any] = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features)
    return points


# ---------------------------------------------------------------------- all of a set of runs


def pictures(groups: Sequence[Group], prefix: str = "") -> list[Picture]:
    """The figures of groups of one protocol, drawn when asked for.

    Args:
        groups: Of one data set and one list of tasks.
        prefix: Put before the names of files.
    """
    found: list[Picture] = []

    def add(name: str, title: str, alt: str, draw: "Callable[[], Figure]") -> None:
        found.append(Picture(prefix + name, title, f"{title}. {alt}".strip(), draw))

    for s, words in SCENARIO_NAMES.items():
        drawn = [g for g in groups if not g.is_independent]
        if drawn:
            ends = _listed((g.label, g.curve(s)[-1]) for g in drawn)
            title = f"{words}: {drawn[0].first.score_name} against the number of classes"
            add(f"curves_{s}", title, f"After the last task: {ends}.", later(draw_curves, groups, s))
        losing = [g for g in groups if _forgets(g, s)]
        if losing:
            losses = _listed((g.label, g.scores(s)["AF"]) for g in losing)
            title = f"{words}: forgetting of each task"
            add(f"forgetting_{s}", title, f"Mean (AF): {losses}.", later(draw_forgetting, groups, s))
        both = [g for g in groups if g.scores(s)["BWT"].mean is not None and g.plasticity(s).mean is not None]
        if both:
            words_of = "; ".join(
                f"{g.label} P {percent(g.plasticity(s))}, BWT {percent(g.scores(s)['BWT'])}" for g in both
            )
            title = f"{words}: plasticity against stability"
            add(f"plasticity_{s}", title, f"{words_of}.", later(draw_plasticity_stability, groups, s))
        watched = [g for g in groups if g.is_stream and curve_of(g.first, s)]
        if watched:
            title = f"{words}: accuracy on task 1 while later tasks are learned"
            alt = f"Of {', '.join(g.label for g in watched)}; seed {watched[0].first.seed}."
            add(f"continual_{s}", title, alt, later(draw_first_task, groups, s))
    sizes = "; ".join(f"{g.label} {(g.bytes('total').mean or 0) / 1e6:.3g} MB" for g in groups)
    add("memory", "Memory kept between tasks", f"{sizes}.", later(draw_memory, groups))
    times = "; ".join(f"{g.label} {g.seconds('training').mean or 0:.0f} s" for g in groups)
    add("seconds", "Time of a run", f"Training: {times}.", later(draw_seconds, groups))
    for number, group in enumerate(groups, 1):
        for s, words in SCENARIO_NAMES.items():
            title = f"{words}: {group.first.score_name} on each task after each task, {group.label}"
            alt = f"Mean of the last row: {percent(group.scores(s)['ACC'])}."
            if group.is_independent:
                alt = f"Mean of the diagonal: {percent(group.alone(s))}."
            add(f"matrix_{number:02d}_{s}", title, alt, later(draw_matrix, group, s))
        predictions, sizes_of = group_predictions(group), group.first.task_sizes
        if predictions is not None and not group.is_independent:
            names = class_names(group.first)
            counts, each = (f(*predictions, sum(sizes_of)) for f in (confusion_matrix, per_class_accuracy))
            title = f"Class-IL: accuracy on each class, {group.label}"
            alt = f"From {100 * np.nanmin(each):.1f} % to {100 * np.nanmax(each):.1f} %."
            add(f"classes_{number:02d}", title, alt, later(draw_class_accuracy, each, sizes_of, None, names))
            title = f"Class-IL: which classes are taken for which, {group.label}"
            draw = later(draw_confusion, counts, sizes_of, None, names)
            add(f"confusion_{number:02d}", title, "Grouped by task.", draw)
        recorded = features_of(group.first)
        if recorded is not None:
            title = f"Features of the test images after the last task (t-SNE), {group.label}, seed {group.first.seed}"
            add(f"features_{number:02d}", title, "Coloured by task.", later(draw_features, *recorded))
    return found


PAPER_FIGURES: "dict[str, Callable[[Sequence[Group], Scenario], Figure]]" = {
    "curves": draw_curves,
    "forgetting": draw_forgetting,
    "memory": lambda groups, scenario: draw_memory(groups),
    "paper_memory": lambda groups, scenario: draw_paper_memory(groups),
    "seconds": lambda groups, scenario: draw_seconds(groups),
}
"""What a paper's figure can show, by the name that its file gives (`draw`)."""


def paper_picture(draw: str, name: str, title: str, groups: Sequence[Group], scenario: Scenario) -> Picture:
    """A figure of a paper, from runs.

    Args:
        draw: A key of `PAPER_FIGURES`.
        name: Of its files.
        title: What it shows.
        groups: Of one data set and one list of tasks.
        scenario: In which they are scored.
    """
    alt = f"{title}. Of {', '.join(group.label for group in groups)}."
    return Picture(name, title, alt, later(_paper_figure, draw, groups, scenario))


def _paper_figure(draw: str, groups: Sequence[Group], scenario: Scenario) -> "Figure":
    return PAPER_FIGURES[draw](groups, scenario)


def _forgets(group: Group, scenario: Scenario) -> bool:
    """Whether forgetting is defined for some task."""
    return not group.is_independent and any(s.mean is not None for s in group.forgetting(scenario))


def class_names(run: Run) -> list[str] | None:
    """Names of the classes in the order of learning, if they were recorded."""
    names = run.results.get("class_names")
    if not isinstance(names, list) or len(names) != sum(run.task_sizes):
        return None
    return [str(name) for name in names]


def later(draw: "Callable[..., Figure]", *arguments: Any) -> "Callable[[], Figure]":
    """A call for later, perhaps in another process: `draw` has a name in its module."""
    return partial(draw, *arguments)


def percent(stat: Stat) -> str:
    """A fraction in words."""
    return "undefined" if stat.mean is None else f"{100 * stat.mean:.1f} %"


def _listed(items: "Iterable[tuple[str, Stat]]") -> str:
    return "; ".join(f"{label} {percent(stat)}" for label, stat in items)


def row_name(group: Group) -> str:
    """Label of a group in a legend, with the number of runs."""
    runs = f" (n={len(group.runs)})" if len(group.runs) > 1 else ""
    return f"{group.label}{runs}{'' if group.complete else ' †'}"


def new_axes(ax: "Axes | None", width: float = WIDTH, height: float = HEIGHT) -> tuple["Figure", "Axes"]:
    """The given axes, or those of a new figure."""
    require_matplotlib()
    if ax is not None:
        return figure_of(ax)
    fig, axes = new_figure(1, 1, width, height)
    return fig, axes[0, 0]


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple["Figure", Any]:
    """A figure that pyplot does not know and nobody must close, with axes `[rows, columns]`; sizes in inches."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(fig)
    return fig, fig.subplots(rows, columns, squeeze=False)


def _band(stats: Sequence[Stat]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Mean, mean - std and mean + std in percent, NaN where undefined."""
    mean = np.array([np.nan if s.mean is None else 100 * s.mean for s in stats])
    std = np.array([100 * (s.std or 0) for s in stats])
    return mean, mean - std, mean + std


def _stacked_bars(groups: Sequence[Group], values: dict[str, list[float]], label: str, ax: "Axes | None") -> "Figure":
    fig, ax = new_axes(ax, WIDTH, 1.3 + 0.34 * len(groups))
    left = np.zeros(len(groups))
    names = [row_name(group) for group in groups]
    for i, (name, sizes) in enumerate(values.items()):
        if not any(sizes):
            continue
        style: Style = {"color": PALETTE[i], "hatch": HATCHES[i % len(HATCHES)], "edgecolor": "white", "linewidth": 0.5}
        ax.barh(np.arange(len(groups)), sizes, left=left, label=name, **style)
        left += np.array(sizes)
    for place, total in enumerate(left):
        text = f"{total:,.0f}" if total >= 1000 else f"{total:.3g}"
        ax.text(total, place, f" {text}", va="center", fontsize=8)
    ax.set_xlim(0, max(left.max(), 1e-9) * 1.16)
    ax.set_yticks(range(len(groups)), names)
    ax.invert_yaxis()
    ax.set_xlabel(label)
    figure_legend(fig, ax)
    return fig


def task_borders(ax: "Axes", task_sizes: Sequence[int], horizontal: bool) -> None:
    """Lines between the classes of different tasks."""
    for border in np.cumsum(task_sizes)[:-1] - 0.5:
        ax.axvline(border, color="0.7", linewidth=0.6)
        if horizontal:
            ax.axhline(border, color="0.7", linewidth=0.6)


def _whole_ticks(ax: "Axes", both: bool = False) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if both:
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))


def class_ticks(ax: "Axes", names: Sequence[str] | None, both: bool = False) -> None:
    """Names of the classes where they are few, else numbers."""
    if names is None or len(names) > MOST_NAMES:
        _whole_ticks(ax, both)
        return
    shown = [textwrap.shorten(name, 16, placeholder="…") for name in names]
    ax.set_xticks(range(len(shown)), shown, rotation=90 if max(map(len, shown)) > 2 else 0, fontsize=8)
    if both:
        ax.set_yticks(range(len(shown)), shown, fontsize=8)


def figure_legend(fig: "Figure", ax: "Axes") -> None:
    """A legend below a figure with one pair of axes, inside of others."""
    handles, labels = ax.get_legend_handles_labels()
    if handles and len(fig.axes) == 1:
        columns = max(1, min(3, 60 // max(len(label) + 8 for label in labels)))
        rows = -(-len(labels) // columns)
        width, height = fig.get_size_inches()
        fig.set_size_inches(width, height + LEGEND_ROW * max(0, rows - 2))
        fig.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    elif handles:
        ax.legend(fontsize=8)


def _colormap() -> Any:
    from matplotlib import colormaps

    return colormaps[COLOURS]
