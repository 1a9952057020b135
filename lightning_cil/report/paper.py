"""A paper's tables and figures: its printed numbers beside ours, and the command of every cell.

`papers/<name>.yaml` beside this file, or a file of your own in the same form:

```yaml
title: No Forgetting Learning
source: https://arxiv.org/abs/2503.04638v2
examples: examples/nfl           # folder of methods/*.yaml and protocols/*.yaml, for the commands
methods:                         # row -> the method's class and its config
  iCaRL: {class: ICaRL, config: icarl}
protocols:                       # name of the config -> what recognises its runs
  cifar100_10x10: {title: "CIFAR-100, 10×10", data: SplitCIFAR100, task_sizes: 10×10}
settings:                        # what the cells change in the two configs: every entry that fits, in this order
  - {scenario: task_il, set: {model.init_args.scenario: task_il}}
  - {method: iCaRL, table: table3, config: icarl_task_il}

Warnings:
  AIA: ACC of this table is what we call AIA.
tables:
  table3:
    title: Task-IL
    scenario: task_il
    protocols: [cifar100_10x10]
    scores:
      - {printed: ACC, unit: percent, ours: [ACC, AIA]}
    warnings: [AIA]
    rows:                        # printed numbers: all protocols of the first score, then of the second, …
      - {method: iCaRL, memory: 200, mean: [81.14], std: [2.13]}
figures:
  fig2: {title: ACC against classes, draw: curves, tables: [table3]}
```

`task_sizes: 3 tasks` is any number of classes in three tasks of nearly equal size, where the paper does not say which.
`memory` is the budget of the cell's `ReplayBuffer`, the last callback of the method's config: exemplars in all, or of
each class with `budget: per_class` at the top of the file; a list has one for each protocol. A run belongs to a cell if
method, scenario, data, tasks, budget and the settings of `where` (an entry of `settings` may have some, or a row)
agree; whatever else differs makes rows of their own. `unit`: `percent`, `fraction` (printed as percent) or `ratio`.
`draw`: a key of `PAPER_FIGURES`, of `multilabel_figures.FIGURES` or of `multimodal_figures.FIGURES`, or `sweep:` and an
option of the method in which runs differ. A figure can have `protocols` (only these), and those of `multimodal_figures`
have `after` (how many tasks are learned; else all).
"""

import csv
import io
import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from lightning_cil.report import multilabel_figures, multimodal_figures
from lightning_cil.report.figures import PAPER_FIGURES, Picture, paper_picture
from lightning_cil.report.groups import Group, Stat
from lightning_cil.report.multilabel import LOWER_IS_BETTER as MULTILABEL_LOWER
from lightning_cil.report.multilabel import multilabel_scores
from lightning_cil.report.multimodal import multimodal_scores
from lightning_cil.report.records import record_scores
from lightning_cil.report.runs import Run
from lightning_cil.report.tables import LOWER_IS_BETTER, Column, Row, Table, Unit
from lightning_cil.types import SCENARIOS, Scenario

FOLDER = Path(__file__).parent / "papers"
MEMORY_OPTION = "trainer.callbacks.init_args"
MEMORY_SETTING = "callbacks.ReplayBuffer"
NOT_PRINTED = "not printed in the paper"
NOTHING: list[Group | None] = [None]
NO_RUN = "n = 0: none of the runs is of this row"

PrintedUnit = Literal["percent", "fraction", "ratio"]
Budget = Literal["total", "per_class"]


@dataclass(frozen=True)
class Score:
    """A printed score.

    Args:
        printed: What the paper calls it.
        unit: Of the printed numbers.
        ours: Which of our scores stand beside it.
    """

    printed: str
    unit: PrintedUnit
    ours: tuple[str, ...]


@dataclass(frozen=True)
class Protocol:
    """Data and tasks of a cell.

    Args:
        config: Its file in `protocols/`, without ending.
        title: Its name in the tables.
        data: The data set's class.
        task_sizes: Classes of each task; empty: any number of classes in `num_tasks` tasks of nearly equal size.
        num_tasks: Their number.
    """

    config: str
    title: str
    data: str
    task_sizes: tuple[int, ...]
    num_tasks: int

    def fits(self, run: Run) -> bool:
        """Whether a run has these data and tasks."""
        sizes = run.task_sizes
        nearly = (
            len(sizes) == self.num_tasks and sorted(sizes, reverse=True) == list(sizes) and sizes[0] - sizes[-1] < 2
        )
        return run.data == self.data and (sizes == self.task_sizes if self.task_sizes else nearly)


@dataclass(frozen=True)
class Cell:
    """A row of a paper's table, for one protocol.

    Args:
        label: The row's name.
        method: The method's class.
        scenario: In which it is scored.
        protocol: Data and tasks.
        memory: Exemplars, as `budget` counts them; `None`: not said.
        config: The method's file in `methods/`, without ending.
        options: What the command line changes in the two configs.
        where: Settings by which the cell's runs are told from others.
        printed: The paper's numbers by their printed names, in its units scaled to fractions.
        budget: What `memory` counts, an option of `ReplayBuffer`: exemplars in all, or of each class.
    """

    label: str
    method: str
    scenario: Scenario
    protocol: Protocol
    memory: int | None
    config: str
    options: Mapping[str, Any]
    where: Mapping[str, Any]
    printed: Mapping[str, Stat]
    budget: Budget = "total"

    @property
    def memory_option(self) -> str:
        """What sets its budget on the command line."""
        return f"{MEMORY_OPTION}.{self.budget}"

    @property
    def name(self) -> str:
        """Label and budget."""
        each = " a class" if self.budget == "per_class" else ""
        return f"{self.label}, {self.memory:,} exemplars{each}" if self.memory else self.label

    def configs(self, examples: str) -> list[str]:
        """The two config files of a folder of examples."""
        return [f"{examples}/methods/{self.config}.yaml", f"{examples}/protocols/{self.protocol.config}.yaml"]

    def arguments(self, examples: str) -> list[str]:
        """What makes its run: `fit`, two configs, and what it changes in them."""
        configs = [part for path in self.configs(examples) for part in ("--config", path)]
        return ["fit", *configs, *(part for n, v in self.options.items() for part in (f"--{n}", _plain(v)))]

    def command(self, examples: str) -> str:
        """The command that makes its run."""
        return shlex.join(["lightning-cil", *self.arguments(examples)])

    def fits(self, group: Group) -> bool:
        """Whether a group's runs are of this cell."""
        run = group.first
        wanted = {**self.where, **({f"{MEMORY_SETTING}.{self.budget}": self.memory} if self.memory else {})}
        return (
            run.method == self.method
            and run.results.get("scenario", self.scenario) == self.scenario
            and self.protocol.fits(run)
            and all(name in run.settings and run.settings[name] == value for name, value in wanted.items())
        )

    def runs(self, groups: Iterable[Group]) -> list[Group]:
        """Its runs, named as the row; with what tells them apart where they are of several settings."""
        found = [group for group in groups if self.fits(group)]
        details = [group.label.removeprefix(self.method) if len(found) > 1 else "" for group in found]
        return [replace(g, label=f"{self.name}{detail}") for g, detail in zip(found, details, strict=True)]


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Args:
        name: In files, such as `table3`.
        title: What it shows.
        scenario: In which it scores.
        scores: Its columns, for each protocol.
        cells: Its rows, one after the other, each with all protocols.
        warnings: What a reader must know of the printed numbers.
    """

    name: str
    title: str
    scenario: Scenario
    scores: tuple[Score, ...]
    cells: tuple[Cell, ...]
    warnings: tuple[str, ...] = ()

    @property
    def protocols(self) -> list[Protocol]:
        """Those of its cells."""
        return list(dict.fromkeys(cell.protocol for cell in self.cells))

    def of(self, protocol: Protocol, memory: Sequence[int] | None = None) -> list[Cell]:
        """Its cells of a protocol (and of some budgets)."""
        return [c for c in self.cells if c.protocol == protocol and (memory is None or (c.memory or 0) in memory)]


@dataclass(frozen=True)
class PaperFigure:
    """A figure of a paper, drawn from the runs of some tables' cells.

    Args:
        name: In files, such as `fig2`.
        title: What it shows.
        draw: A key of `figures.PAPER_FIGURES` or `multimodal_figures.FIGURES`, or what `multilabel_figures.is_known`.
        tables: Names of tables; each protocol of each of them has a picture of its own.
        memory: Only cells with these budgets (0: none).
        protocols: Only these, by the names of their configs.
        after: How many tasks are learned; `None`: all.
    """

    name: str
    title: str
    draw: str
    tables: tuple[str, ...]
    memory: tuple[int, ...] | None = None
    protocols: tuple[str, ...] | None = None
    after: int | None = None


@dataclass(frozen=True)
class Paper:
    """A paper's tables and figures. Made by `read_paper`.

    Args:
        name: Short, for files.
        title: The paper's.
        source: Where it is.
        examples: Folder of the configs, for commands.
        tables: By name.
        figures: In order.
    """

    name: str
    title: str
    source: str
    examples: str
    tables: Mapping[str, PaperTable]
    figures: tuple[PaperFigure, ...] = field(default=())

    @property
    def cells(self) -> list[tuple[PaperTable, Cell]]:
        """Every cell with its table."""
        return [(table, cell) for table in self.tables.values() for cell in table.cells]

    def compare(self, groups: Sequence[Group]) -> list[Table]:
        """Printed numbers beside ours: for each table and protocol one of our tables.

        Args:
            groups: Rows of runs; those of no cell are left out, those of one with other settings get rows of their own.
        """
        return [self._compare(table, p, groups) for table in self.tables.values() for p in table.protocols]

    def _compare(self, table: PaperTable, protocol: Protocol, groups: Sequence[Group]) -> Table:
        columns = [column for score in table.scores for column in _columns(score)]
        rows = []
        for cell in table.of(protocol):
            for group in cell.runs(groups) or NOTHING:
                stats = [stat for score in table.scores for stat in _stats(cell, score, group)]
                label, n = (cell.name, 0) if group is None else (group.label, len(group.runs))
                rows.append(Row(label, protocol.title, n, group is None or group.complete, tuple(stats)))
        notes = [*table.warnings, *([NO_RUN] if any(row.n == 0 for row in rows) else [])]
        short = table.name if len(table.protocols) == 1 else f"{table.name}_{protocol.config}"
        title = f"{self.title}, {table.name.replace('table', 'table ')}: {table.title}, {protocol.title}"
        return Table(title, f"{self.name}_{short}", tuple(columns), tuple(rows), warnings=tuple(notes))

    def csv(self, groups: Sequence[Group]) -> str:
        """Every printed number, every score of ours beside it, and the cell's command; fractions."""
        names = ("table", "scenario", "protocol", "row", "exemplars", "printed_score", "printed", "printed_std")
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow([*names, "score", "value", "std", "n", "runs", "command"])
        for table, cell in self.cells:
            for group in cell.runs(groups) or NOTHING:
                for score in table.scores:
                    theirs, *ours = _stats(cell, score, group)
                    for name, our in zip(score.ours, ours, strict=True):
                        runs = ("", 0, "") if group is None else (our.std, len(group.runs), group.label)
                        fixed = (table.name, cell.scenario, cell.protocol.config, cell.label, cell.memory)
                        line = (*fixed, score.printed, theirs.mean, theirs.std, name, our.mean, *runs)
                        writer.writerow([*line, cell.command(self.examples)])
        return buffer.getvalue()

    def pictures(self, groups: Sequence[Group]) -> list[Picture]:
        """Its figures, as far as there are runs to draw."""
        found: list[Picture] = []
        for figure in self.figures:
            places = [
                (self.tables[name], p)
                for name in figure.tables
                for p in self.tables[name].protocols
                if figure.protocols is None or p.config in figure.protocols
            ]
            for table, protocol in places:
                drawn = [g for cell in table.of(protocol, figure.memory) for g in cell.runs(groups)]
                if not drawn:
                    continue
                name = f"{self.name}_{figure.name}"
                name += f"_{table.scenario}_{protocol.config}" if len(places) > 1 else ""
                title = f"{self.title}, {figure.name.replace('fig', 'figure ')}: {figure.title}, {protocol.title}"
                if figure.draw in PAPER_FIGURES:
                    found.append(paper_picture(figure.draw, name, title, drawn, table.scenario))
                elif figure.draw in multimodal_figures.FIGURES:
                    found += multimodal_figures.figure_of_paper(figure.draw, name, title, drawn, figure.after)
                else:
                    found += multilabel_figures.figure_of_paper(figure.draw, name, title, drawn)
        return found

    def lost(self, groups: Iterable[Group]) -> list[str]:
        """Notes on rows that are of none of its cells."""
        cells = [cell for _, cell in self.cells]
        lost = [g.label for g in groups if not g.is_joint and not any(cell.fits(g) for cell in cells)]
        return [f"{label} is of no cell of {self.name}'s tables" for label in lost]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _columns(score: Score) -> list[Column]:
    unit: Unit = "ratio" if score.unit == "ratio" else "fraction"
    percent = "" if score.unit == "ratio" else " (%)"
    arrow = "↓" if score.printed in (*LOWER_IS_BETTER, *MULTILABEL_LOWER) else "↑"
    printed = Column(f"{score.printed}_printed", f"{score.printed}{percent} {arrow} printed", unit, "")
    return [printed, *(Column(name, f"{name}{percent} ours", unit, "") for name in score.ours)]


def _stats(cell: Cell, score: Score, group: Group | None) -> list[Stat]:
    """The printed number, and ours beside it."""
    if group is None:
        return [cell.printed[score.printed], *(Stat(None) for _ in score.ours)]
    known = {**group.scores(cell.scenario), **multilabel_scores(group), **multimodal_scores(group)}
    if not set(score.ours) <= set(known):
        known = {**record_scores(group, cell.scenario), **known}
    missing = Stat(None, reason="not among the scores of the runs")
    return [cell.printed[score.printed], *(known.get(name, missing) for name in score.ours)]


# ---------------------------------------------------------------------- reading


def paper_names() -> list[str]:
    """Papers whose numbers come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_paper(name: str | Path) -> Paper:
    """Read a paper's numbers.

    Args:
        name: One of `paper_names`, or a YAML file.

    Raises:
        ValueError: If there is no such paper, or the file is none; names file and entry and what was expected.
    """
    import yaml

    shipped = FOLDER / f"{name}.yaml"
    path = shipped if str(name) in paper_names() else Path(name)
    if not path.is_file():
        raise ValueError(f"`paper={str(name)!r}`: expected one of {', '.join(paper_names())}, or a YAML file.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    return _Reader(path, content).paper()


@dataclass
class _Reader:
    """Turns the content of a file into a `Paper`, with messages that name the place."""

    path: Path
    content: Any

    def paper(self) -> Paper:
        keys = ("title", "source", "examples", "methods", "protocols", "tables")
        top = self.mapping(self.content, "the file", keys, ("settings", "warnings", "figures", "budget"))
        self.budget: Budget = self.named({b: b for b in get_args(Budget)}, top.get("budget", "total"), "`budget`")
        self.warnings: dict[str, str] = self.mapping(top.get("warnings", {}), "`warnings`")
        self.methods: dict[str, Any] = {
            label: self.mapping(entry, f"`methods.{label}`", ("class", "config"), ("where",))
            for label, entry in self.mapping(top["methods"], "`methods`").items()
        }
        self.protocols = {n: self.protocol(n, e) for n, e in self.mapping(top["protocols"], "`protocols`").items()}
        selects = ("method", "protocol", "memory", "scenario", "table")
        self.settings = [
            self.mapping(entry, f"entry {i} of `settings`", (), (*selects, "set", "where", "config"))
            for i, entry in enumerate(top.get("settings", []), 1)
        ]
        tables = {name: self.table(name, entry) for name, entry in self.mapping(top["tables"], "`tables`").items()}
        figures = self.mapping(top.get("figures", {}), "`figures`")
        drawn = tuple(self.figure(name, entry, tables) for name, entry in figures.items())
        return Paper(self.path.stem, str(top["title"]), str(top["source"]), str(top["examples"]), tables, drawn)

    def mapping(
        self, value: Any, where: str, required: Sequence[str] = (), optional: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """A mapping with these keys; without any, any."""
        if not isinstance(value, dict):
            raise ValueError(f"{self.path}: {where} is {value!r}, expected a mapping.")
        known = (*required, *(optional or ()))
        wrong = [k for k in required if k not in value] + [str(k) for k in value if known and k not in known]
        if wrong:
            raise ValueError(
                f"{self.path}: {where} has the keys {', '.join(map(str, value))}; {wrong[0]!r} is missing or unknown; "
                f"expected {', '.join(required) or 'none'}, and perhaps {', '.join(optional or ()) or 'none'}."
            )
        return value

    def named(self, known: Mapping[str, Any], name: Any, where: str) -> Any:
        if name not in known:
            raise ValueError(f"{self.path}: {where} names {name!r}, expected one of {', '.join(known)}.")
        return known[name]

    def protocol(self, name: str, entry: Any) -> Protocol:
        found = self.mapping(entry, f"`protocols.{name}`", ("title", "data", "task_sizes"))
        sizes = found["task_sizes"]
        count, _, size = sizes.partition("×") if isinstance(sizes, str) else ("", "", "")
        if isinstance(sizes, str) and sizes.removesuffix(" tasks").isdigit() and sizes.endswith(" tasks"):
            return Protocol(name, str(found["title"]), str(found["data"]), (), int(sizes.removesuffix(" tasks")))
        if count.isdigit() and size.isdigit():
            sizes = [int(size)] * int(count)
        if not isinstance(sizes, list) or not sizes or not all(type(s) is int and s > 0 for s in sizes):
            raise ValueError(
                f"{self.path}: `protocols.{name}.task_sizes` is {sizes!r}, expected 10×10, [50, 10, 10] or 3 tasks."
            )
        return Protocol(name, str(found["title"]), str(found["data"]), tuple(sizes), len(sizes))

    def table(self, name: str, entry: Any) -> PaperTable:
        where = f"`tables.{name}`"
        found = self.mapping(entry, where, ("title", "scenario", "protocols", "scores", "rows"), ("warnings",))
        scenario: Scenario = self.named({s: s for s in SCENARIOS}, found["scenario"], where)
        protocols = [self.named(self.protocols, p, where) for p in found["protocols"]]
        scores = tuple(self.score(e, where) for e in found["scores"])
        cells = [c for row in found["rows"] for c in self.row(name, row, scenario, protocols, scores)]
        warnings = tuple(str(self.named(self.warnings, n, where)) for n in found.get("warnings", []))
        return PaperTable(name, str(found["title"]), scenario, scores, tuple(cells), warnings)

    def score(self, entry: Any, where: str) -> Score:
        found = self.mapping(entry, f"a score of {where}", ("printed", "unit"), ("ours",))
        self.named({unit: unit for unit in get_args(PrintedUnit)}, found["unit"], where)
        return Score(str(found["printed"]), found["unit"], tuple(found.get("ours", [found["printed"]])))

    def row(
        self, table: str, entry: Any, scenario: Scenario, protocols: Sequence[Protocol], scores: Sequence[Score]
    ) -> list[Cell]:
        where = f"a row of `tables.{table}`"
        row = self.mapping(entry, where, ("method",), ("memory", "mean", "std", "set", "where"))
        where = f"{where} ({row['method']})"
        method = self.named(self.methods, row["method"], where)
        means, stds = (self.numbers(row.get(k), len(protocols) * len(scores), where) for k in ("mean", "std"))
        memory = row.get("memory")
        budgets = memory if isinstance(memory, list) else [memory] * len(protocols)
        if len(budgets) != len(protocols):
            raise ValueError(f"{self.path}: {where} has {len(budgets)} budgets, expected one, or {len(protocols)}.")
        cells = []
        for i, protocol in enumerate(protocols):
            printed = {}
            for j, score in enumerate(scores):
                k = j * len(protocols) + i
                scale = 100 if score.unit == "percent" else 1
                mean, std = (None if v is None else v / scale for v in (means[k], stds[k]))
                printed[score.printed] = Stat(mean, std, reason="" if mean is not None else NOT_PRINTED)
            memory = budgets[i]
            chosen = {
                "method": row["method"],
                "protocol": protocol.config,
                "memory": memory,
                "scenario": scenario,
                "table": table,
            }
            own = [e for e in self.settings if all(e[k] == v for k, v in chosen.items() if k in e)]
            config, options, wanted = method["config"], {}, dict(method.get("where", {}))
            for entry in [*own, row]:
                config = entry.get("config", config)
                options.update(entry.get("set", {}))
                wanted.update(entry.get("where", {}))
            if memory:
                options[f"{MEMORY_OPTION}.{self.budget}"] = memory
            found = (row["method"], method["class"], scenario, protocol, memory, config, options, wanted, printed)
            cells.append(Cell(*found, self.budget))
        return cells

    def numbers(self, values: Any, count: int, where: str) -> list[float | None]:
        if values is None:
            return [None] * count
        fine = isinstance(values, list) and len(values) == count
        if not fine or not all(v is None or (type(v) in (int, float) and math.isfinite(v)) for v in values):
            raise ValueError(
                f"{self.path}: {where} has the numbers {values!r}, expected {count}, each a number or null."
            )
        return list(values)

    def figure(self, name: str, entry: Any, tables: Mapping[str, PaperTable]) -> PaperFigure:
        where = f"`figures.{name}`"
        found = self.mapping(entry, where, ("title", "draw", "tables"), ("memory", "protocols", "after"))
        if not multilabel_figures.is_known(str(found["draw"])):
            known = {**PAPER_FIGURES, **multilabel_figures.FIGURES, **multimodal_figures.FIGURES}
            self.named(known, found["draw"], where)
        for table in found["tables"]:
            self.named(tables, table, where)
        for protocol in found.get("protocols", []):
            self.named(self.protocols, protocol, where)
        memory, only = (tuple(found[key]) if key in found else None for key in ("memory", "protocols"))
        after = found.get("after")
        if after is not None and (
            type(after) is not int or after < 1 or found["draw"] not in multimodal_figures.FIGURES
        ):
            raise ValueError(
                f"{self.path}: {where} has `after: {after!r}`, expected a number of tasks, and a figure of "
                f"{', '.join(multimodal_figures.FIGURES)}."
            )
        return PaperFigure(name, str(found["title"]), found["draw"], tuple(found["tables"]), memory, only, after)
