"""`load_runs` and `Runs`: any number of runs, and what can be said of them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_cil.metrics.confusion import confusion_matrix, per_class_accuracy
from lightning_cil.metrics.plots import figure_of, require_matplotlib
from lightning_cil.report import figures, multilabel_figures, multimodal_figures
from lightning_cil.report.drawing import draw_all
from lightning_cil.report.groups import Group, group_runs, notes_of
from lightning_cil.report.multilabel import make_multilabel_table
from lightning_cil.report.multimodal import make_multimodal_table
from lightning_cil.report.page import Drawn, make_page
from lightning_cil.report.paper import Paper, read_paper
from lightning_cil.report.published import Published, read_published, unmatched
from lightning_cil.report.records import curve_of, features_of, group_predictions
from lightning_cil.report.runs import JOINTS, Run, read_all, without_results
from lightning_cil.report.tables import Table, make_record_table, make_table, protocol_name, tables_csv
from lightning_cil.types import SCENARIOS, Scenario

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

MANIFEST = "written.txt"
"""Names the figures of a report, beside them."""

Paths = str | Path | Iterable[str | Path]


def load_runs(
    paths: Paths,
    *,
    joint: Paths = (),
    published: str | Path | None = None,
    average_different_orders: bool = False,
    paper: str | Path | None = None,
) -> "Runs":
    """Read runs from their `results.json`.

    Args:
        paths: Run folders, folders with runs below, or `results.json` files.
        joint: The same for the Joint runs that intransigence and figures compare with; by default those among `paths`,
            if all have the same settings.
        published: YAML file with published numbers, see `lightning_cil.report.published`.
        average_different_orders: Average runs with different class orders or splits.
        paper: A paper whose tables and figures are made as well: `nfl`, or a YAML file, see
            `lightning_cil.report.paper`.

    Returns:
        The runs, grouped by their settings.

    Raises:
        FileNotFoundError: If a path has no run.
        ValueError: If there is no such paper, a file is no `results.json` of a run, a Joint run is none or unfinished,
            or runs of a group have different class orders or splits.
    """
    bounds = read_all(joint)
    for run in bounds:
        if not run.is_joint or not run.complete:
            what = f"a run of {run.method}" if not run.is_joint else f"unfinished ({run.tasks_done} of {run.num_tasks})"
            methods = " or ".join(JOINTS)
            raise ValueError(f"`joint`: {run.path} is {what}, expected a finished run of the method {methods}.")
    runs = {run.path.resolve(): run for run in (*read_all(paths), *bounds)}
    if not runs:
        raise ValueError("`paths` names no run; expected at least one run folder.")
    starts = [paths] if isinstance(paths, str | Path) else list(paths)
    unstarted = sorted({folder for path in starts for folder in without_results(Path(path))})
    return Runs(
        group_runs(list(runs.values()), bounds, average_different_orders),
        published=read_published(Path(published)) if published is not None else [],
        unstarted=unstarted,
        average_different_orders=average_different_orders,
        paper=read_paper(paper) if paper is not None else None,
    )


class Runs:
    """Any number of runs, grouped by their settings. Made by `load_runs`.

    Args:
        groups: The groups.
        published: Numbers of others.
        unstarted: Run folders in which not one task was finished.
        average_different_orders: Whether groups may hold different class orders or splits.
        paper: Whose tables and figures are made as well.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        published: Sequence[Published] = (),
        unstarted: Sequence[Path] = (),
        average_different_orders: bool = False,
        paper: Paper | None = None,
    ) -> None:
        self.groups = list(groups)
        self.published = list(published)
        self.paper = paper
        self.notes = notes_of(self.groups, average_different_orders) + unmatched(published, self.groups)
        self.notes += [f"{folder}: not one task is finished; left out" for folder in unstarted]
        self.notes += paper.lost(self.groups) if paper else []

    @property
    def runs(self) -> list[Run]:
        """All runs, in the order of the groups."""
        return [run for group in self.groups for run in group.runs]

    @property
    def protocols(self) -> list[tuple[str, tuple[int, ...]]]:
        """Data sets and task sizes that occur; numbers compare within one."""
        return list(dict.fromkeys(group.first.protocol for group in self.groups))

    def __len__(self) -> int:
        """How many runs."""
        return len(self.runs)

    def table(self, scenario: Scenario = "class_il") -> Table:
        """The scores of a scenario, a row for each group.

        Returns:
            Has `markdown()`, `latex()` and `rows`.
        """
        return make_table(self.groups, scenario, self.published)

    def record_table(self, scenario: Scenario = "class_il") -> Table | None:
        """Recency bias, AF by class, min-ACC, WC-ACC and stability gap, as far as there are records; `None` without."""
        return make_record_table(self.groups, scenario)

    def multilabel_table(self) -> Table | None:
        """mAP, F1 and false positive rate of multi-label runs; `None` without any."""
        return make_multilabel_table(self.groups)

    def multimodal_table(self) -> Table | None:
        """Average and last accuracy, M1 and M2 of multimodal runs; `None` without any."""
        return make_multimodal_table(self.groups)

    def paper_tables(self) -> list[Table]:
        """The paper's tables, its numbers beside ours; empty without a paper."""
        return self.paper.compare(self.groups) if self.paper else []

    def plot_matrix(
        self, row: str | int = 0, scenario: Scenario = "class_il", ax: "Axes | None" = None
    ) -> tuple["Figure", "Axes"]:
        """Heat map of a row's mean accuracy matrix.

        Args:
            row: Label or number of the row.
            scenario: Which matrix.
            ax: Where to draw; by default in a new figure.

        Returns:
            Figure and axes, as all `plot_` methods.

        Raises:
            KeyError: If no row has the label.
            IndexError: If no row has the number.
            ModuleNotFoundError: Without matplotlib.
        """
        group = self._row(row)
        return _in_axes(ax, lambda axes: figures.draw_matrix(group, scenario, axes))

    def plot_curves(self, scenario: Scenario = "class_il", ax: "Axes | None" = None) -> tuple["Figure", "Axes"]:
        """Accuracy against the number of classes seen, a line for each row, Joint as the bound."""
        return _in_axes(ax, lambda axes: figures.draw_curves(self._comparable(), scenario, axes))

    def plot_forgetting(self, scenario: Scenario = "class_il", ax: "Axes | None" = None) -> tuple["Figure", "Axes"]:
        """Forgetting of each task but the last."""
        return _in_axes(ax, lambda axes: figures.draw_forgetting(self._comparable(), scenario, axes))

    def plot_plasticity_stability(
        self, scenario: Scenario = "class_il", ax: "Axes | None" = None
    ) -> tuple["Figure", "Axes"]:
        """Plasticity against stability, a point for each row."""
        return _in_axes(ax, lambda axes: figures.draw_plasticity_stability(self._comparable(), scenario, axes))

    def plot_memory(self, ax: "Axes | None" = None) -> tuple["Figure", "Axes"]:
        """Memory kept between tasks, split into model, exemplars and the rest."""
        return _in_axes(ax, lambda axes: figures.draw_memory(self.groups, axes))

    def plot_seconds(self, ax: "Axes | None" = None) -> tuple["Figure", "Axes"]:
        """Seconds of training and of evaluation."""
        return _in_axes(ax, lambda axes: figures.draw_seconds(self.groups, axes))

    def plot_classes(self, row: str | int = 0, ax: "Axes | None" = None) -> tuple["Figure", "Axes"]:
        """Accuracy on every class after the last task (Class-IL), from a row's recorded predictions.

        Raises:
            KeyError: If no row has the label.
            IndexError: If no row has the number.
            ValueError: If a run of the row has no recorded predictions.
        """
        target, predicted, sizes, names = self._predictions(row)
        accuracy = per_class_accuracy(target, predicted, sum(sizes))
        return _in_axes(ax, lambda axes: figures.draw_class_accuracy(accuracy, sizes, axes, names))

    def plot_confusion(self, row: str | int = 0, ax: "Axes | None" = None) -> tuple["Figure", "Axes"]:
        """Which classes are taken for which after the last task (Class-IL); raises as `plot_classes`."""
        target, predicted, sizes, names = self._predictions(row)
        counts = confusion_matrix(target, predicted, sum(sizes))
        return _in_axes(ax, lambda axes: figures.draw_confusion(counts, sizes, axes, names))

    def plot_features(self, row: str | int = 0, ax: "Axes | None" = None) -> tuple["Figure", "Axes"]:
        """t-SNE of the recorded features after the last task, of a row's first run; raises as `plot_classes`."""
        recorded = features_of(self._row(row).first)
        if recorded is None:
            raise ValueError(f"`row={row!r}` has no recorded features; train it with the callback FeatureRecords.")
        return _in_axes(ax, lambda axes: figures.draw_features(*recorded, axes))

    def plot_continual(self, scenario: Scenario = "class_il", ax: "Axes | None" = None) -> tuple["Figure", "Axes"]:
        """Accuracy on the first task while later tasks are learned, a line for each row with such records.

        Raises:
            ValueError: If no row has any.
        """
        groups = self._comparable()
        if not any(group.is_stream and curve_of(group.first, scenario) for group in groups):
            raise ValueError("no row has accuracies while training; train with the callback ContinualEvaluation.")
        return _in_axes(ax, lambda axes: figures.draw_first_task(groups, scenario, axes))

    def _row(self, row: str | int) -> Group:
        labels = [group.label for group in self.groups]
        if isinstance(row, str):
            if row not in labels:
                raise KeyError(f"`row={row!r}`: no such row; the rows are {', '.join(labels)}.")
            return self.groups[labels.index(row)]
        if not -len(labels) <= row < len(labels):
            numbered = ", ".join(f"{i}: {label}" for i, label in enumerate(labels))
            raise IndexError(f"`row={row}`: no such row; the rows are {numbered}.")
        return self.groups[row]

    def _predictions(self, row: str | int) -> tuple["NDArray[Any]", "NDArray[Any]", tuple[int, ...], list[str] | None]:
        """Labels, predictions, task sizes and class names of a row."""
        group = self._row(row)
        found = group_predictions(group)
        if found is None:
            raise ValueError(
                f"`row={row!r}`: a run of {group.label} has no recorded predictions, or another class order; train it "
                "with the callback PredictionRecords."
            )
        return *found, group.first.task_sizes, figures.class_names(group.first)

    def _comparable(self) -> list[Group]:
        if len(self.protocols) > 1:
            raise ValueError(
                f"The runs are of {len(self.protocols)} protocols ({'; '.join(map(protocol_name, self.protocols))}), "
                "whose curves do not compare. Load the runs of one protocol at a time."
            )
        return self.groups

    def write(self, folder: str | Path = "report", processes: int | None = 1) -> Path:
        """Write tables (`tables.md`, `.tex`, `.csv`), `figures/*.svg` and `*.png`, and the page `report.html`.

        With a paper also its tables, `<paper>.md`, `.tex` and `.csv`.

        Args:
            folder: Made if it is not there; files of an earlier report, which `figures/written.txt` lists, are
                replaced or removed.
            processes: How many draw the figures, see `lightning_cil.report.drawing.draw_all`.

        Returns:
            The page.

        Raises:
            ModuleNotFoundError: Without matplotlib.
            ValueError: For fewer than one process.
        """
        require_matplotlib()
        out = Path(folder)
        (out / "figures").mkdir(parents=True, exist_ok=True)
        _remove_earlier(out / "figures")
        tables = [self.table(scenario) for scenario in SCENARIOS]
        tables += [t for t in (self.multilabel_table(), self.multimodal_table()) if t is not None]
        tables += [t for t in (self.record_table(scenario) for scenario in SCENARIOS) if t is not None]
        compared = self.paper_tables()
        pictured: dict[str, list[figures.Picture]] = {}
        for number, protocol in enumerate(self.protocols, 1):
            groups = [group for group in self.groups if group.first.protocol == protocol]
            prefix = f"{number}_" if len(self.protocols) > 1 else ""
            pictured[protocol_name(protocol)] = [
                *figures.pictures(groups, prefix),
                *multilabel_figures.pictures(groups, prefix),
                *multimodal_figures.pictures(groups, prefix),
            ]
        if self.paper:
            pictured[self.paper.title] = self.paper.pictures(self.groups)
        urls = iter(draw_all([p for pictures in pictured.values() for p in pictures], out / "figures", processes))
        drawn: dict[str, list[Drawn]] = {
            heading: [(p.title, p.alt, next(urls)) for p in pictures] for heading, pictures in pictured.items()
        }
        names = [picture.name for pictures in pictured.values() for picture in pictures]
        (out / "figures" / MANIFEST).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        texts = {
            "tables.md": "\n".join(table.markdown() for table in tables),
            "tables.tex": "\n".join(table.latex() for table in tables),
            "tables.csv": tables_csv(tables),
            "report.html": make_page(self.groups, [*tables, *compared], drawn, self.notes),
        }
        if self.paper:
            texts[f"{self.paper.name}.md"] = "\n".join(table.markdown(formulas=False) for table in compared)
            texts[f"{self.paper.name}.tex"] = "\n".join(table.latex(formulas=False) for table in compared)
            texts[f"{self.paper.name}.csv"] = self.paper.csv(self.groups)
        for name, text in texts.items():
            (out / name).write_text(text, encoding="utf-8")
        return out / "report.html"


def _remove_earlier(folder: Path) -> None:
    """Remove the figures that an earlier report wrote there, and no other file."""
    manifest = folder / MANIFEST
    for name in manifest.read_text(encoding="utf-8").split() if manifest.is_file() else []:
        if Path(name).name == name:
            for ending in (".svg", ".png"):
                (folder / f"{name}{ending}").unlink(missing_ok=True)


def _in_axes(ax: "Axes | None", draw: "Callable[[Axes], Figure]") -> tuple["Figure", "Axes"]:
    require_matplotlib()
    _, axes = figure_of(ax)
    return draw(axes), axes
