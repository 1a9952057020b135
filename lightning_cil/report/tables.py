"""The table of a scenario: one row for each group of runs; Markdown, CSV, LaTeX (booktabs) and HTML.

Printed numbers are percent, megabytes (1e6 bytes) and seconds, mean ± sample standard deviation; the CSV holds
fractions, bytes and seconds. A score that is undefined is a dash with its reason in a note.
"""

import csv
import io
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from lightning_cil.report.groups import Group, Stat
from lightning_cil.report.published import Published
from lightning_cil.types import SCENARIOS, Scenario

Unit = Literal["fraction", "ratio", "bytes", "s"]

SCENARIO_NAMES: dict[Scenario, str] = {"class_il": "Class-IL", "task_il": "Task-IL"}
LOWER_IS_BETTER = ("AF", "I", "recency", "class AF", "gap")
RECORDS = "_records"
"""Ends the name of a table that comes from records."""
LETTERS = (
    "T: number of tasks; A[i,j]: accuracy on task j after learning task i; b[j]: accuracy on task j of the untrained "
    "network; a*: accuracy on the last task of a network trained on all tasks at once (Joint); A_n[j]: accuracy on "
    "task j at measurement n while training. Tasks count from 0 in formulas."
)
UNFINISHED = "†"
DASH = "–"


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Args:
        key: Name in the CSV.
        head: Name where it is printed, with the unit and an arrow towards better.
        unit: Of the stored numbers.
        formula: Where the numbers come from, for the notes.
    """

    key: str
    head: str
    unit: Unit
    formula: str


@dataclass(frozen=True)
class Row:
    """A group's numbers, one for each column.

    Args:
        label: The group's.
        data: Data set and tasks.
        n: Number of runs.
        complete: All tasks were learned.
        cells: As many as there are columns.
    """

    label: str
    data: str
    n: int
    complete: bool
    cells: tuple[Stat, ...]


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        title: What it shows.
        name: For files and captions: `class_il` or `task_il`.
        columns: The columns of numbers.
        rows: One for each group.
        show_data: Whether a column says what data a row is of.
        warnings: Notes of its own.
    """

    title: str
    name: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    show_data: bool = False
    warnings: tuple[str, ...] = ()

    def reasons(self) -> dict[str, str]:
        """Marks of the undefined cells: reason → letter, in the order of reading."""
        texts = [cell.reason for row in self.rows for cell in row.cells if cell.mean is None and cell.reason]
        return {reason: _letter(i) for i, reason in enumerate(dict.fromkeys(texts))}

    def formulas(self) -> list[str]:
        """Notes on where the columns' numbers come from, and what their letters mean."""
        return [*(f"{c.head}: {c.formula}" for c in self.columns if c.formula), LETTERS]

    def notes(self) -> list[str]:
        """All notes without those on formulas."""
        notes = [f"{mark}: {reason}" for reason, mark in self.reasons().items()]
        if any(cell.n > 1 for row in self.rows for cell in row.cells):
            notes.append("± sample standard deviation over the n runs")
        if any(not row.complete for row in self.rows):
            notes.append(
                f"{UNFINISHED}: unfinished; scores of the tasks that are done, no comparison with finished runs"
            )
        return [*notes, *self.warnings]

    def heads(self) -> list[str]:
        """All heads, those of text columns too."""
        return ["Method", *(["Data"] if self.show_data else []), "n", *(c.head for c in self.columns)]

    def texts(self, row: Row) -> list[tuple[str, str]]:
        """What a row shows: text and mark of each cell."""
        marks = self.reasons()
        cells = [
            (format_cell(c, col.unit), marks.get(c.reason, "")) for c, col in zip(row.cells, self.columns, strict=True)
        ]
        texts = [(row.label, "" if row.complete else UNFINISHED)]
        return [*texts, *([(row.data, "")] if self.show_data else []), (str(row.n), ""), *cells]

    def markdown(self, formulas: bool = True) -> str:
        """A table of GitHub's Markdown, with a title and notes.

        Args:
            formulas: Say in the notes where the columns come from.
        """

        def line(cells: Sequence[str]) -> str:
            return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

        text = 2 if self.show_data else 1
        rule = ["---"] * text + ["---:"] * (len(self.columns) + 1)
        rows = [line([t + (f"<sup>{m}</sup>" if m else "") for t, m in self.texts(row)]) for row in self.rows]
        notes = [f"- {note}" for note in (*self.notes(), *(self.formulas() if formulas else []))]
        return "\n".join([f"### {self.title}", "", line(self.heads()), line(rule), *rows, "", *notes]) + "\n"

    def latex(self, formulas: bool = True) -> str:
        """A `table` for LaTeX with the packages booktabs and graphicx, made smaller where it is wider than the line.

        Args:
            formulas: As for `markdown`.
        """
        spec = "l" * (2 if self.show_data else 1) + "r" * (len(self.columns) + 1)
        lines = [
            "% needs \\usepackage{booktabs,graphicx}; wide ones are larger in a sidewaystable (package rotating)",
            "\\begin{table}",
            "\\centering",
            "\\setlength{\\tabcolsep}{4pt}",
            f"\\caption{{{latex_text(self.title)}}}",
            f"\\label{{tab:{self.name.replace('_', '-')}}}",
            "\\smallskip",
            f"\\sbox0{{\\begin{{tabular}}{{{spec}}}",
            "\\toprule",
            " & ".join(_latex_head(head) for head in self.heads()) + r" \\",
            "\\midrule",
        ]
        for row in self.rows:
            cells = [
                _MINUS.sub("$-$", latex_text(t)) + (f"\\textsuperscript{{{latex_text(m)}}}" if m else "")
                for t, m in self.texts(row)
            ]
            lines.append(_after_break(cells[0]) + " & ".join(cells) + r" \\")
        lines += [
            "\\bottomrule",
            "\\end{tabular}}",
            "\\ifdim\\wd0>\\linewidth\\resizebox{\\linewidth}{!}{\\usebox0}\\else\\usebox0\\fi",
            "",
            "\\begin{minipage}{\\linewidth}",
            "\\medskip\\footnotesize\\raggedright",
        ]
        lines += [latex_text(note) + r"\par" for note in (*self.notes(), *(self.formulas() if formulas else []))]
        return "\n".join([*lines, "\\end{minipage}", "\\end{table}"]) + "\n"

    def html(self) -> str:
        """A `<table>` whose columns can be sorted by the page's script, and its notes."""
        heads = []
        for i, head in enumerate(self.heads()):
            kind = "text" if i <= self.show_data else "number"
            button = f'<button type="button">{escape(head)}</button>'
            heads.append(f'<th scope="col" aria-sort="none" data-kind="{kind}">{button}</th>')
        body = []
        for row in self.rows:
            first, *rest = self.texts(row)
            cells = [f'<th scope="row">{_marked(*first)}</th>']
            values = [None] * self.show_data + [float(row.n)] + [cell.mean for cell in row.cells]
            for (text, mark), value in zip(rest, values, strict=True):
                number = "" if value is None else f' data-value="{value!r}"'
                cells.append(f"<td{number}>{_marked(text, mark)}</td>")
            body.append(f"<tr>{''.join(cells)}</tr>")
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes())
        formulas = "".join(f"<li>{escape(note)}</li>" for note in self.formulas())
        return (
            f'<div class="wide" tabindex="0" role="region" aria-label="{escape(self.title)}">\n'
            f'<table class="sortable" id="{self.name}">\n<caption>{escape(self.title)}</caption>\n'
            f"<thead><tr>{''.join(heads)}</tr></thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody>\n</table>\n</div>\n"
            f'<ul class="notes">{notes}</ul>\n'
            f"<details><summary>Where the columns come from</summary><ul>{formulas}</ul></details>\n"
        )


def make_table(groups: Sequence[Group], scenario: Scenario, published: Sequence[Published] = ()) -> Table:
    """The table of a scenario.

    Args:
        groups: The rows.
        scenario: Which scores.
        published: Numbers of others, in columns beside ours where there are any.
    """
    from lightning_cil.metrics.scores import FORMULAS

    if scenario not in SCENARIOS:
        raise ValueError(f"`scenario={scenario!r}`: expected one of {', '.join(map(repr, SCENARIOS))}.")
    columns: list[Column] = []
    cells: list[list[Stat]] = [[] for _ in groups]
    scores = [group.scores(scenario) for group in groups]
    for name, formula in FORMULAS.items():
        arrow = "↓" if name in LOWER_IS_BETTER else "↑"
        unit: Unit = "ratio" if name == "PS" else "fraction"
        head = f"{name} {arrow}" if name == "PS" else f"{name} (%) {arrow}"
        columns.append(Column(name, head, unit, formula))
        for row, values in zip(cells, scores, strict=True):
            row.append(values[name])
        theirs = [
            max(
                (p for p in published if p.fits(group) and name in p.scores(scenario)),
                key=lambda p, group=group: p.closeness(group),  # type: ignore[misc]
                default=None,
            )
            for group in groups
        ]
        if any(theirs):
            sources = "; ".join(dict.fromkeys(p.source for p in theirs if p))
            columns.append(Column(f"{name}_published", f"{head} published", unit, sources))
            for row, p in zip(cells, theirs, strict=True):
                row.append(Stat(p.scores(scenario)[name], n=1) if p else Stat(None, reason="no published number given"))
    full = "network, exemplars, old models and what else is kept between tasks, 1 MB = 1e6 bytes"
    paper = "the network without its classifier at 4 bytes a parameter, and the exemplars' images"
    columns += [
        Column("memory_bytes", "Memory (MB)", "bytes", full),
        Column("memory_paper_bytes", "Memory, NFL's count (MB)", "bytes", paper),
        Column("training_seconds", "Training (s)", "s", "all stages and what the method does when a task ends"),
    ]
    for row, group in zip(cells, groups, strict=True):
        row += [group.bytes("total"), group.bytes("paper"), group.seconds("training")]
    rows = tuple(
        Row(group.label, protocol_name(group.first.protocol), len(group.runs), group.complete, tuple(row))
        for group, row in zip(groups, cells, strict=True)
    )
    title = f"{SCENARIO_NAMES[scenario]}: scores after the last task"
    return Table(title, scenario, tuple(columns), rows, len({row.data for row in rows}) > 1)


def make_record_table(groups: Sequence[Group], scenario: Scenario) -> Table | None:
    """The table of the scores that come from recorded predictions; `None` if no group has any.

    Args:
        groups: The rows; those without records are left out.
        scenario: Which scores.
    """
    from lightning_cil.report.records import RECORD_FORMULAS, record_scores

    found = [(group, record_scores(group, scenario)) for group in groups]
    found = [(group, scores) for group, scores in found if any(s.mean is not None for s in scores.values())]
    names = [n for n in RECORD_FORMULAS if any(scores[n].mean is not None for _, scores in found)]
    if not names:
        return None
    columns = tuple(
        Column(n, f"{n} (%) {'↓' if n in LOWER_IS_BETTER else '↑'}", "fraction", RECORD_FORMULAS[n]) for n in names
    )
    rows = tuple(
        Row(g.label, protocol_name(g.first.protocol), len(g.runs), g.complete, tuple(scores[n] for n in names))
        for g, scores in found
    )
    title = f"{SCENARIO_NAMES[scenario]}: from the recorded predictions"
    return Table(title, scenario + RECORDS, columns, rows, len({row.data for row in rows}) > 1)


def tables_csv(tables: Sequence[Table]) -> str:
    """All tables as one CSV: fractions, bytes and seconds; mean, standard deviation and the reason of undefined ones.

    Columns: scenario, method, data, n, finished, then `<key>`, `<key>_std`, `<key>_undefined` for each.
    """
    keys = list(dict.fromkeys(c.key for table in tables for c in table.columns))
    buffer = io.StringIO()
    fields = [part for key in keys for part in (key, f"{key}_std", f"{key}_undefined")]
    writer = csv.DictWriter(buffer, ["scenario", "method", "data", "n", "finished", *fields], lineterminator="\n")
    writer.writeheader()
    lines: dict[tuple[str, str, str], dict[str, object]] = {}
    for table in tables:
        for row in table.rows:
            scenario = table.name.removesuffix(RECORDS)
            line = lines.setdefault((scenario, row.label, row.data), {})
            line |= {"scenario": scenario, "method": row.label, "data": row.data, "n": row.n}
            line["finished"] = "yes" if row.complete else "no"
            for column, cell in zip(table.columns, row.cells, strict=True):
                line[column.key], line[f"{column.key}_std"] = cell.mean, cell.std
                line[f"{column.key}_undefined"] = cell.reason if cell.mean is None else None
    writer.writerows(lines.values())
    return buffer.getvalue()


def protocol_name(protocol: tuple[str, tuple[int, ...]]) -> str:
    """Data set and tasks in words.

    Example:
        >>> protocol_name(("SplitDigits", (2, 2, 2, 2, 2))), protocol_name(("SplitCIFAR100", (50, 10, 10)))
        ('SplitDigits, 5×2', 'SplitCIFAR100, 50+10+10')
        >>> protocol_name(("SplitCIFAR100", (50, *[5] * 10)))
        'SplitCIFAR100, 50+10×5'
    """
    data, sizes = protocol
    if len(set(sizes)) == 1:
        return f"{data}, {len(sizes)}×{sizes[0]}"
    if len(set(sizes[1:])) == 1 and len(sizes) > 3:
        return f"{data}, {sizes[0]}+{len(sizes) - 1}×{sizes[1]}"
    return f"{data}, {'+'.join(map(str, sizes))}"


def format_cell(cell: Stat, unit: Unit) -> str:
    """A number as it is printed.

    Example:
        >>> format_cell(Stat(0.95254, 0.00421, 3), "fraction"), format_cell(Stat(121184.0, None, 1), "bytes")
        ('95.25 ± 0.42', '0.121')
        >>> format_cell(Stat(None), "fraction")
        '–'
    """
    if cell.mean is None:
        return DASH
    scale = {"fraction": 100.0, "ratio": 1.0, "bytes": 1e-6, "s": 1.0}[unit]
    digits = {"fraction": 2, "ratio": 2, "bytes": 3 if cell.mean < 1e7 else 1, "s": 1}[unit]
    text = f"{scale * cell.mean:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    spread = unit != "bytes" or bool(cell.std)
    return text if cell.std is None or not spread else f"{text} ± {scale * cell.std:.{digits}f}"


def latex_text(text: str) -> str:
    r"""Escape what LaTeX would take for a command, and write as one what pdfLaTeX has no letter for.

    Example:
        >>> latex_text("AF (%) ↓"), latex_text("a_b ± 1"), latex_text("α ≥ 2"), latex_text("---a-b")
        ('AF (\\%) $\\downarrow$', 'a\\_b $\\pm$ 1', '$\\alpha$ $\\ge$ 2', '-{}-{}-a-b')
    """
    return _LATEX_PATTERN.sub(lambda m: _LATEX[m[0]], unicodedata.normalize("NFC", text))


def _latex_head(head: str) -> str:
    """A head in several lines where it is long; its column is as narrow as the numbers allow."""
    parts = textwrap.wrap(head, LONGEST_HEAD, break_long_words=False, break_on_hyphens=False)
    if len(parts) == 1:
        return latex_text(head)
    lines = r" \\ ".join(_after_break(part) + latex_text(part) for part in parts)
    return f"\\begin{{tabular}}[b]{{@{{}}r@{{}}}}{lines}\\end{{tabular}}"


def _after_break(text: str) -> str:
    """What keeps a text from being an option of the line before."""
    return "{}" if text.startswith(("[", "*")) else ""


LONGEST_HEAD = 9
"""Characters of a line of a head in LaTeX."""


def _greek(letter: str) -> str:
    name = unicodedata.name(letter).rpartition(" ")[2].replace("LAMDA", "LAMBDA")
    return f"$\\{name.capitalize() if letter.isupper() else name.lower()}$"


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "%": r"\%",
    "_": r"\_",
    "&": r"\&",
    "#": r"\#",
    "$": r"\$",
    "^": r"\^{}",
    "~": r"\textasciitilde{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "-": "-{}",  # before another one: else they become a dash
    "`": "'",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "−": "$-$",
    "²": "$^2$",
    "³": "$^3$",
    "µ": r"$\mu$",
    "–": "--",
    "†": r"$\dagger$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\to$",
    "…": r"\dots{}",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "≠": r"$\ne$",
    "≈": r"$\approx$",
    "∞": r"$\infty$",
    "∑": r"$\sum$",
    **{letter: _greek(letter) for letter in "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ"},
}
_LATEX_PATTERN = re.compile("|".join("-(?=-)" if key == "-" else re.escape(key) for key in _LATEX))


_MINUS = re.compile(r"^-(?=\d)")


def _letter(index: int) -> str:
    """Give a, b, …, z, aa, ab and so on."""
    text = chr(ord("a") + index % 26)
    return text if index < 26 else _letter(index // 26 - 1) + text


def _marked(text: str, mark: str) -> str:
    return escape(text) + (f"<sup>{escape(mark)}</sup>" if mark else "")
