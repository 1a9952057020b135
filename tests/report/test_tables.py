"""The tables' text, letter by letter, for runs that can be checked by hand."""

import csv
import doctest
import io
from pathlib import Path

import pytest

from lightning_cil.metrics.scores import FORMULAS
from lightning_cil.report import groups, load_runs, tables
from lightning_cil.report import runs as run_files
from lightning_cil.report.groups import Stat
from lightning_cil.report.tables import Column, Row, Table, latex_text, tables_csv
from tests.report.hand_made import write_run

NO_LOSS = {s: [[0.75, 0.0], [0.75, 1.0]] for s in ("class_il", "task_il")}

MARKDOWN = """\
### Class-IL: scores after the last task

| Method | n | ACC (%) ↑ | AIA (%) ↑ | FWT (%) ↑ | BWT (%) ↑ | AF (%) ↓ | I (%) ↓ | PS ↑ | Memory (MB) | \
Memory, NFL's count (MB) | Training (s) |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| ER | 2 | 56.25 ± 8.84 | 65.62 ± 4.42 | –<sup>a</sup> | -37.50 ± 17.68 | 37.50 ± 17.68 | –<sup>b</sup> | \
2.00 ± 0.00 | 1.366 | 1.100 | 5.0 ± 0.0 |
| LwF | 1 | 87.50 | 81.25 | –<sup>a</sup> | 0.00 | 0.00 | –<sup>b</sup> | –<sup>c</sup> | 1.366 | 1.100 | 5.0 |

- a: not defined in Class-IL
- b: needs a Joint run (--joint)
- c: the denominator is 0: no net forgetting (+inf)
- ± sample standard deviation over the n runs
"""

LATEX_ROWS = r"""
ER & 2 & 56.25 $\pm$ 8.84 & 65.62 $\pm$ 4.42 & --\textsuperscript{a} & $-$37.50 $\pm$ 17.68 & 37.50 $\pm$ 17.68 & --\textsuperscript{b} & 2.00 $\pm$ 0.00 & 1.366 & 1.100 & 5.0 $\pm$ 0.0 \\
LwF & 1 & 87.50 & 81.25 & --\textsuperscript{a} & 0.00 & 0.00 & --\textsuperscript{b} & --\textsuperscript{c} & 1.366 & 1.100 & 5.0 \\
"""  # noqa: E501


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """ER twice, losing 0.5 and 0.25 of task 0, LwF once, losing nothing."""
    write_run(tmp_path / "runs/a")
    write_run(tmp_path / "runs/b", seed=1, matrix__class_il=[[0.75, 0.0], [0.5, 0.5]])
    write_run(tmp_path / "runs/c", method="LwF", matrix=NO_LOSS)
    return tmp_path / "runs"


def test_markdown_letter_by_letter(three: Path) -> None:
    assert load_runs(three).table().markdown(formulas=False) == MARKDOWN


def test_latex_letter_by_letter(three: Path) -> None:
    text = load_runs(three).table().latex()
    assert LATEX_ROWS in text
    assert text.count("\\toprule") == text.count("\\midrule") == text.count("\\bottomrule") == 1
    assert "\\begin{tabular}{lrrrrrrrrrrr}" in text
    assert r"ACC (\%) $\uparrow$: mean\_j A[T-1,j]\par" in text
    assert "\\begin{table}" in text
    assert r"& PS $\uparrow$ & \begin{tabular}[b]{@{}r@{}}Memory \\ (MB)\end{tabular} &" in text
    assert "\\resizebox{\\linewidth}{!}{\\usebox0}" in text
    assert r"b: needs a Joint run (-{}-joint)\par" in text  # two hyphens, no dash
    assert text.endswith("\\end{table}\n")


def test_every_columns_formula_is_in_a_note(three: Path) -> None:
    notes = load_runs(three).table("task_il").markdown()
    assert "A[i,j]: accuracy on task j after learning task i" in notes
    assert notes.count("Tasks count from 0") == 1
    for name, formula in FORMULAS.items():
        assert any(line.startswith(f"- {name} ") and line.endswith(formula) for line in notes.splitlines())


def test_csv_has_fractions_bytes_and_seconds(three: Path) -> None:
    found = load_runs(three)
    text = tables_csv([found.table("class_il"), found.table("task_il")])
    rows = {(r["scenario"], r["method"]): r for r in csv.DictReader(io.StringIO(text))}
    assert set(rows) == {(s, m) for s in ("class_il", "task_il") for m in ("ER", "LwF")}
    row = rows["class_il", "ER"]
    assert float(row["ACC"]) == 0.5625
    assert float(row["ACC_std"]) == pytest.approx(0.0625 * 2**0.5)
    assert (row["FWT"], row["FWT_undefined"]) == ("", "not defined in Class-IL")
    assert (float(row["memory_bytes"]), float(row["training_seconds"])) == (1_366_000, 5.0)
    assert (row["n"], row["finished"], row["data"]) == ("2", "yes", "SplitDigits, 2×2")
    assert float(rows["task_il", "ER"]["FWT"]) == 0.25


def test_unfinished_rows_are_marked_everywhere(tmp_path: Path) -> None:
    part = {"matrix": {s: [[0.5, 0.1], [None, None]] for s in ("class_il", "task_il")}, "tasks_done": 1}
    write_run(tmp_path / "part", **part)
    table = load_runs(tmp_path).table()
    assert "| ER, 1 of 2 tasks<sup>†</sup> | 1 | 50.00 |" in table.markdown()
    assert "- †: unfinished" in table.markdown()
    assert r"ER, 1 of 2 tasks\textsuperscript{$\dagger$}" in table.latex()
    assert ",no,0.5," in tables_csv([table])


def test_data_are_named_where_they_differ(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", data="SplitMNIST", task_sizes=[3, 1])
    lines = load_runs(tmp_path).table().markdown().splitlines()
    assert lines[2].startswith("| Method | Data | n |")
    assert {line.split("|")[2].strip() for line in lines[4:6]} == {"SplitDigits, 2×2", "SplitMNIST, 3+1"}


def test_bars_in_names_do_not_break_the_table(tmp_path: Path) -> None:
    for k, name in enumerate(["a|b", "c&d"]):
        write_run(tmp_path / str(k), config__method__head=name)
    table = load_runs(tmp_path).table()
    assert r"| ER (head=a\|b) | 1 |" in table.markdown()
    assert r"ER (head=c\&d) & 1" in table.latex()
    assert "<th scope" in table.html()


def test_an_unknown_scenario_is_refused(three: Path) -> None:
    with pytest.raises(ValueError, match=r"`scenario='dil'`: expected one of 'class_il', 'task_il'"):
        load_runs(three).table("dil")  # type: ignore[arg-type]


@pytest.mark.parametrize("module", [groups, run_files, tables], ids=lambda m: m.__name__.rpartition(".")[2])
def test_examples_of_the_docstrings(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_latex_takes_no_name_for_a_command_or_an_option() -> None:
    cells = (Stat(0.5, None, 1),)
    labels = ("[1] α ≥ 0.5, λ → Ω", "*", "é_{x}~^\\$&#%")
    rows = tuple(Row(label, "d", 1, True, cells) for label in labels)
    text = Table("t", "t", (Column("ACC", "ACC", "fraction", ""),), rows).latex(formulas=False)
    assert "\n{}[1] $\\alpha$ $\\ge$ 0.5, $\\lambda$ $\\to$ $\\Omega$ & 1 & 50.00 \\\\\n" in text
    assert "\n{}* & 1 &" in text
    assert "\né\\_\\{x\\}\\textasciitilde{}\\^{}\\textbackslash{}\\$\\&\\#\\% & 1 &" in text
    assert latex_text("e\u0301") == "é"  # pdfLaTeX has letters with accents, no accents after letters


def test_a_head_in_lines_is_no_option_of_a_line() -> None:
    row = Row("ER", "d", 1, True, (Stat(0.5, None, 1),))
    text = Table("t", "t", (Column("m", "Accuracy [MB]", "fraction", ""),), (row,)).latex(formulas=False)
    assert r"Accuracy \\ {}[MB]" in text
