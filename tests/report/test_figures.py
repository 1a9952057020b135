"""Figures: what is drawn where, units on axes, marks that need no colour, the same bytes for the same runs."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from lightning_cil.metrics.plots import plot_task_matrix
from lightning_cil.report import Group, Runs, drawing, figures, load_runs
from lightning_cil.report.drawing import draw_all
from tests.report.hand_made import random_matrix, with_matrix, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("figures")
    for k, (method, seed) in enumerate([(m, s) for m in ("ER", "LwF", "FineTune") for s in (0, 1)]):
        write_run(root / str(k), method=method, seed=seed, **with_matrix(random_matrix(4, k)))
    joint: list[list[Any]] = [[None] * 4] * 3 + [[0.9, 0.9, 0.9, 0.8]]
    curve = {"sample_weighted_accuracy": {s: [None, None, None, 0.875] for s in ("class_il", "task_il")}}
    write_run(root / "joint", method="Joint", **{**with_matrix(joint), **curve})
    return load_runs(root)


def line(figure: Figure, label: str) -> Any:
    return next(found for found in figure.axes[0].lines if found.get_label() == label)


def test_curves_are_means_against_classes_with_the_joint_bound(runs: Runs) -> None:
    figure = figures.draw_curves(runs.groups, "class_il")
    for group in runs.groups[:3]:
        drawn = line(figure, f"{group.label} (n=2)")
        assert list(drawn.get_xdata()) == [2, 4, 6, 8]
        assert drawn.get_ydata() == pytest.approx([100 * (s.mean or 0) for s in group.curve("class_il")])
    assert line(figure, "Joint").get_ydata()[-1] == 87.5
    levels = [found for found in figure.axes[0].lines if set(found.get_ydata()) == {87.5}]
    assert len(levels) == 1
    assert levels[0].get_linestyle() == ":"
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    low = [100 * ((s.mean or 0) - (s.std or 0)) for s in runs.groups[0].curve("class_il")]
    assert band[:, 1].min() == pytest.approx(min(low))


def test_forgetting_is_drawn_for_each_task_but_the_last(runs: Runs) -> None:
    figure = figures.draw_forgetting(runs.groups, "class_il")
    assert len(figure.axes[0].containers) == 3
    for group, bars in zip(runs.groups, figure.axes[0].containers, strict=False):
        x, y = bars[0].get_data()
        assert [round(v) for v in x] == [1, 2, 3]
        assert y == pytest.approx([100 * (s.mean or 0) for s in group.forgetting("class_il")])


def test_plasticity_is_drawn_against_stability(runs: Runs) -> None:
    figure = figures.draw_plasticity_stability(runs.groups, "class_il")
    points = [container[0].get_data() for container in figure.axes[0].containers]
    assert len(points) == 3
    for group, (x, y) in zip(runs.groups[:3], points, strict=True):
        assert x[0] == pytest.approx(100 * (group.scores("class_il")["BWT"].mean or 0))
        assert y[0] == pytest.approx(100 * (group.plasticity("class_il").mean or 0))


def test_memory_bars_add_up(runs: Runs) -> None:
    figure = figures.draw_memory(runs.groups)
    parts = {container.get_label(): container for container in figure.axes[0].containers}
    assert set(parts) == {"model", "exemplars", "old models, prototypes"}
    assert sum(parts[name][0].get_width() for name in parts) == pytest.approx(1.366)
    assert parts["model"][0].get_width() == pytest.approx(1.234)
    assert len({container[0].get_hatch() for container in parts.values()}) == 3


def test_time_bars_split_training_and_evaluation(runs: Runs) -> None:
    widths = [container[0].get_width() for container in figures.draw_seconds(runs.groups).axes[0].containers]
    assert widths == [5.0, 1.0]


def test_matrix_shows_values_up_to_twenty_tasks() -> None:
    for size, shown in ((3, 6), (20, 210), (21, 0)):
        rows = [[0.5 if j <= i else None for j in range(size)] for i in range(size)]
        figure, axes = Figure(), None
        axes = figure.add_subplot()
        plot_task_matrix(rows, axes)
        assert len(axes.texts) == shown
        assert np.isnan(axes.images[0].get_array().filled(np.nan)).sum() == size * (size - 1) / 2
    assert {text.get_text() for text in axes.texts} <= {"50.0", "50"}


DRAWINGS: list[Callable[[Runs], Figure]] = [
    lambda runs: figures.draw_curves(runs.groups, "class_il"),
    lambda runs: figures.draw_forgetting(runs.groups, "task_il"),
    lambda runs: figures.draw_plasticity_stability(runs.groups, "class_il"),
    lambda runs: figures.draw_memory(runs.groups),
    lambda runs: figures.draw_seconds(runs.groups),
    lambda runs: figures.draw_matrix(runs.groups[0], "class_il"),
    lambda runs: figures.draw_class_accuracy([0.5, np.nan, 1.0, 0.0], [1, 3]),
    lambda runs: figures.draw_confusion([[3, 1], [0, 2]], [1, 1]),
    lambda runs: figures.draw_features(np.random.default_rng(0).normal(size=(30, 4)), np.arange(30) % 3),
]
UNITS = r"\(%\)|\(percentage points|\(MB|\(s\)|classes seen|task|class|no unit|^$"


@pytest.mark.parametrize("draw", DRAWINGS)
def test_axes_carry_units_and_marks_need_no_colour(runs: Runs, draw: Callable[[Runs], Figure]) -> None:
    figure = draw(runs)
    for axes in figure.axes:
        assert axes.get_ylabel() or len(axes.get_yticklabels()) == len(runs.groups) or axes.get_label() == "<colorbar>"
        assert re.search(UNITS, axes.get_xlabel())
        assert re.search(UNITS, axes.get_ylabel())
    series = [found for found in figure.axes[0].lines if not str(found.get_label()).startswith("_")]
    assert len({found.get_marker() for found in series}) == len(series)


def test_groups_differ_in_marker_and_dash_for_many_rows(runs: Runs) -> None:
    styles = [figures.style_of(runs.groups[0], position) for position in range(40)]
    marks = [(style["marker"], str(style["linestyle"])) for style in styles]
    assert len(set(marks)) == 40
    assert len({(style["color"], style["marker"]) for style in styles}) == 40
    light = [np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)) for colour in figures.PALETTE]
    assert max(light) < 0.8  # every colour stands out on white


def test_confusion_is_a_share_of_the_true_class() -> None:
    figure = figures.draw_confusion([[3, 1], [0, 0]], [1, 1])
    assert figure.axes[0].images[0].get_array().tolist() == [[75.0, 25.0], [0.0, 0.0]]


def test_features_are_thinned_evenly_and_too_few_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MOST_POINTS", 20)
    table = np.random.default_rng(0).normal(size=(60, 3))
    drawn = figures.draw_features(table, np.repeat([0, 1, 2], 20)).axes[0].collections
    assert [len(points.get_offsets()) for points in drawn] == [7, 6, 7]
    with pytest.raises(ValueError, match="expected at least 5"):
        figures.draw_features(np.zeros((4, 2)), [0, 0, 1, 1])


def test_files_are_the_same_bytes_again(runs: Runs, tmp_path: Path) -> None:
    for name in ("a", "b"):
        runs.write(tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert {"report.html", "tables.md", "tables.csv", "tables.tex", "figures/curves_class_il.svg"} <= set(
        map(str, files)
    )
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    with Image.open(tmp_path / "a/figures/matrix_01_class_il.png") as image:
        assert image.size[0] > 600
    assert "matrix_05_class_il" not in str(files)
    assert "ER (n=2), Class-IL" in (tmp_path / "a/figures/matrix_01_class_il.svg").read_text()


def test_another_process_draws_the_same(runs: Runs, tmp_path: Path) -> None:
    picture = figures.pictures(runs.groups)[0]
    urls = []
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        urls += draw_all([picture], tmp_path / str(processes), processes)
    assert urls[0] == urls[1]
    for ending in (".svg", ".png"):
        one, other = (tmp_path / p / f"{picture.name}{ending}" for p in "12")
        assert one.read_bytes() == other.read_bytes()
    with pytest.raises(ValueError, match="processes=0"):
        draw_all([picture], tmp_path, 0)


def test_processes_are_as_many_as_are_useful(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Pool:
        """Draws nothing."""

        def __init__(self, processes: int, *args: Any) -> None:
            asked.append(processes)

        def __enter__(self) -> "Pool":
            return self

        def __exit__(self, *args: object) -> None:
            pass

        def map(self, draw: Any, pictures: list[Any], paths: list[Any]) -> list[str]:
            return [picture.name for picture in pictures]

    monkeypatch.setattr(drawing, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(drawing, "_cores", lambda: 64)
    picture = figures.pictures(runs.groups)[0]
    assert draw_all([picture] * drawing.MANY, tmp_path, None) == [picture.name] * drawing.MANY
    assert asked == [drawing.MOST_PROCESSES]
    assert draw_all([picture], tmp_path, None)[0].startswith("data:")
    assert len(asked) == 1  # few are drawn here


def test_the_same_features_are_laid_out_once() -> None:
    table = np.random.default_rng(1).normal(size=(20, 3))
    before = figures._tsne.cache_info()
    places = [
        [
            points.get_offsets().tolist()
            for points in figures.draw_features(features, np.arange(20) % 2).axes[0].collections
        ]
        for features in (table, table.copy(), table + 1)
    ]
    assert places[0] == places[1] != places[2]
    after = figures._tsne.cache_info()
    assert (after.hits - before.hits, after.misses - before.misses) == (1, 2)


def test_figures_of_an_earlier_report_go_and_other_files_stay(runs: Runs, tmp_path: Path) -> None:
    runs.write(tmp_path)
    (tmp_path / "figures" / "matrix_99_class_il.svg").write_text("mine")
    Runs(runs.groups[:1]).write(tmp_path)
    left = {p.name for p in (tmp_path / "figures").iterdir()}
    assert {"matrix_01_class_il.svg", "matrix_01_class_il.png", "matrix_99_class_il.svg"} <= left
    assert left.isdisjoint({"matrix_02_class_il.svg", "matrix_04_task_il.png"})


def test_many_rows_leave_the_axes_their_height(runs: Runs) -> None:
    group = runs.groups[0]
    heights = {}
    for count in (2, 20):
        many = [Group(f"a method with a long name {i}", group.runs) for i in range(count)]
        figure = figures.draw_forgetting(many, "class_il")
        figure.draw_without_rendering()
        heights[count] = figure.axes[0].get_window_extent().height
        box, whole = figure.axes[0].yaxis.label.get_window_extent(), figure.bbox
        assert whole.y0 <= box.y0 <= box.y1 <= whole.y1  # the label is not cut off
        assert figure.axes[0].get_xlim()[0] > 0  # no tick at task 0
    assert heights[20] > 0.8 * heights[2]


def test_plot_methods_give_figure_and_axes(runs: Runs) -> None:
    figure = Figure()
    for name in ("curves", "forgetting", "plasticity_stability", "memory", "seconds", "matrix"):
        axes = figure.add_subplot()
        assert getattr(runs, f"plot_{name}")(ax=axes) == (figure, axes)
    assert runs.plot_matrix("LwF", "task_il", figure.add_subplot())[1].get_ylabel() == "after learning task"
    with pytest.raises(KeyError, match=r"no such row; the rows are ER, FineTune, LwF, Joint"):
        runs.plot_matrix("Lwf")
    with pytest.raises(IndexError, match=r"`row=99`: no such row; the rows are 0: ER, 1: FineTune"):
        runs.plot_matrix(99)


def test_curves_of_different_protocols_are_not_mixed(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", data="SplitMNIST")
    runs = load_runs(tmp_path)
    with pytest.raises(ValueError, match=r"2 protocols \(SplitDigits, 2×2; SplitMNIST, 2×2\)"):
        runs.plot_curves()
    runs.write(tmp_path / "out")
    names = {p.stem for p in (tmp_path / "out/figures").glob("*.svg")}
    assert {"1_curves_class_il", "2_curves_class_il", "1_memory", "2_memory"} <= names


def test_without_matplotlib_the_message_says_what_to_install(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install lightning-cil\[report\]"):
        runs.write(tmp_path)
    assert runs.table().markdown()
