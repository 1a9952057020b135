"""A paper's printed numbers beside ours: which runs belong to a cell, what is printed, which figures are drawn."""

import csv
import io
import pickle
from pathlib import Path
from typing import Any

import pytest

from lightning_cil.__main__ import main
from lightning_cil.report import load_runs
from lightning_cil.report.figures import draw_paper_memory
from lightning_cil.report.paper import Paper, paper_names, read_paper
from tests.report.hand_made import random_matrix, with_matrix, write_run

TASK_SIZES = {"SplitCIFAR100": (10, 10), "SplitTinyImageNet": (10, 20), "SplitImageNet": (10, 100)}


@pytest.fixture(scope="module")
def nfl() -> Paper:
    return read_paper("nfl")


def write(
    folder: Path,
    method: str,
    scenario: str = "class_il",
    memory: int = 0,
    data: str = "SplitCIFAR100",
    tasks: tuple[int, int] | None = None,
    **changes: Any,
) -> Path:
    """A run of one of the paper's streams, with random accuracies; `changes` as for `write_run`."""
    number, size = tasks or TASK_SIZES[data]
    config = {"method": {"epochs": 2}, "callbacks": {"ReplayBuffer": {"total": memory}} if memory else {}}
    matrix = with_matrix(random_matrix(number, seed=len(method)), class_order=list(range(number * size)))
    found = {**matrix, "method": method, "data": data, "scenario": scenario, "config": config}
    return write_run(folder, **{**found, "task_sizes": [size] * number, **changes})


def test_nfls_tables_are_complete(nfl: Paper) -> None:
    assert paper_names() == sorted(paper_names())
    assert "nfl" in paper_names()
    table3 = nfl.tables["table3"]
    assert list(nfl.tables) == ["table3", "table4", "table5", "table6", "table7"]
    assert [len(table.cells) for table in nfl.tables.values()] == [17 * 3, 8, 8, 8, 8]
    assert {c.memory for c in table3.cells} == {None, 200, 500, 5120}
    budgets = {name: {c.memory for c in table.cells} for name, table in nfl.tables.items() if name != "table3"}
    assert budgets == {"table4": {None, 2000}, "table5": {None, 2000}, "table6": {None, 2000}, "table7": {None, 20000}}
    assert {figure.name for figure in nfl.figures} == {f"fig{k}" for k in range(2, 8)}


@pytest.mark.parametrize(
    ("table", "row", "protocol", "printed"),
    [
        ("table3", ("NFL+", None), "imagenet_10x100", {"ACC": 0.5413, "FWT": 0.0731, "BWT": -0.0519}),
        ("table3", ("SGD", None), "tinyimagenet_10x20", {"ACC": 0.2892, "FWT": -0.0821, "BWT": -0.6461}),
        ("table3", ("iCaRL", 500), "cifar100_10x10", {"ACC": 0.8693, "FWT": None, "BWT": -0.0571}),
        ("table4", ("LwF", None), "cifar100_10x10", {"ACC": 0.4314, "AF": 0.4443, "I": -0.028, "PS": 0.3888}),
        ("table5", ("Coil", 2000), "cifar100_20x5", {"ACC": 0.5767, "AF": 0.3748, "I": -0.0505, "PS": 0.2752}),
        ("table6", ("DER++", 2000), "tinyimagenet_10x20", {"ACC": 0.6721, "AF": 0.4672, "I": 0.0003, "PS": 0.45}),
        ("table7", ("MEMO", 20000), "imagenet_10x100", {"ACC": 0.6962, "AF": 0.4087, "I": 0.5541, "PS": 0.5967}),
    ],
)
def test_printed_numbers(nfl: Paper, table: str, row: tuple[str, int | None], protocol: str, printed: dict) -> None:
    (cell,) = [c for c in nfl.tables[table].cells if (c.label, c.memory, c.protocol.config) == (*row, protocol)]
    assert {name: stat.mean for name, stat in cell.printed.items()} == pytest.approx(printed)


def test_a_cell_has_its_own_runs_only(nfl: Paper, tmp_path: Path) -> None:
    write(tmp_path / "right", "ICaRL", memory=2000)
    write(tmp_path / "seed", "ICaRL", memory=2000, seed=1)
    for name, wrong in {
        "budget": {"memory": 1000},
        "scenario": {"memory": 2000, "scenario": "task_il"},
        "tasks": {"memory": 2000, "tasks": (5, 20)},
        "data": {"memory": 2000, "data": "SplitTinyImageNet", "tasks": (10, 10)},
    }.items():
        write(tmp_path / name, "ICaRL", **wrong)
    table = load_runs(tmp_path, paper="nfl").paper_tables()[3]
    assert table.name == "nfl_table4"
    assert {row.label: row.n for row in table.rows if row.n} == {"iCaRL, 2,000 exemplars": 2}
    assert [row.label for row in table.rows][:2] == ["NFL", "NFL+"]


def test_printed_and_ours_side_by_side(tmp_path: Path) -> None:
    half = [[0.5 if j <= i else 0.0 for j in range(10)] for i in range(10)]
    half[9] = [0.25] * 9 + [0.75]
    changes = with_matrix(half, task_sizes=[10] * 10, class_order=list(range(100)))
    for seed in (0, 1):
        write(tmp_path / f"nfl{seed}", "NFL", seed=seed, **changes)
    text = load_runs(tmp_path, paper="nfl").paper_tables()[3].markdown(formulas=False)
    head = "| Method | n | ACC (%) ↑ printed | AIA (%) ours | ACC (%) ours | AF (%) ↓ printed | AF (%) ours | "
    assert head + "I (%) ↓ printed | I (%) ours | PS ↑ printed | PS ours |" in text
    # AIA: (9 · 0.5 + 0.3) / 10; ACC: (9 · 0.25 + 0.75) / 10; AF: 0.25
    assert "| NFL | 2 | 66.59 | 48.00 ± 0.00 | 30.00 ± 0.00 | 30.59 | 25.00 ± 0.00 | -0.92 | –<sup>a</sup> | " in text
    assert "| Coil, 2,000 exemplars | 0 | 59.67 | – | – |" in text
    assert "- a: needs a Joint run (--joint)" in text
    assert "- printed ACC is not Eq. 23 but the mean over the tasks, our AIA" in text
    assert "- n = 0: none of the runs is of this row" in text


def test_runs_with_other_settings_get_rows_of_their_own(tmp_path: Path) -> None:
    for epochs in (1, 3):
        write(tmp_path / str(epochs), "NFL", config__method__epochs=epochs)
    rows = load_runs(tmp_path, paper="nfl").paper_tables()[3].rows
    assert [row.label for row in rows[:3]] == ["NFL (epochs=1)", "NFL (epochs=3)", "NFL+"]


def test_csv_has_every_number_and_command(nfl: Paper, tmp_path: Path) -> None:
    write(tmp_path / "run", "DERPlusPlus", scenario="task_il", memory=200, data="SplitTinyImageNet")
    groups = load_runs(tmp_path).groups
    rows = list(csv.DictReader(io.StringIO(nfl.csv(groups))))
    assert len(rows) == 17 * 3 * 3 + 4 * 8 * 5
    ours = [row for row in rows if row["runs"]]
    assert {(row["row"], row["exemplars"], row["protocol"], row["n"]) for row in ours} == {
        ("DER++", "200", "tinyimagenet_10x20", "1")
    }
    assert [row["score"] for row in ours] == ["ACC", "FWT", "BWT"]
    assert (float(ours[0]["printed"]), float(ours[0]["printed_std"])) == pytest.approx((0.515, 0.0364))
    assert float(ours[0]["value"]) == pytest.approx(groups[0].scores("task_il")["ACC"].mean)
    assert ours[0]["command"] == (
        "lightning-cil fit --config examples/nfl/methods/derpp.yaml "
        "--config examples/nfl/protocols/tinyimagenet_10x20.yaml --model.init_args.scenario task_il "
        "--data.init_args.batch_size 32 --model.init_args.epochs 100 --model.init_args.lr_scheduler null "
        "--model.init_args.beta 1.0 "
        "--trainer.callbacks.init_args.total 200"
    )


def test_figures_are_those_of_the_paper(nfl: Paper, tmp_path: Path) -> None:
    for data in TASK_SIZES:
        for method in ("NFL", "Joint"):
            write(tmp_path / f"{data}{method}", method, data=data)
            write(tmp_path / f"{data}{method}_task_il", method, data=data, scenario="task_il")
    write(tmp_path / "small", "NFL", tasks=(20, 5))
    write(tmp_path / "coil", "Coil", memory=20000, data="SplitImageNet")
    write(tmp_path / "coil200", "Coil", "task_il", memory=200)
    write(tmp_path / "coil5120", "Coil", "task_il", memory=5120)
    found = {p.name.removeprefix("nfl_"): p for p in nfl.pictures(load_runs(tmp_path).groups)}
    streams = ("cifar100_10x10", "tinyimagenet_10x20", "imagenet_10x100")
    times = {f"fig7_{s}_{p}" for s in ("class_il", "task_il") for p in streams}
    assert set(found) == {"fig2", "fig3", "fig4", "fig5", "fig6", *times}
    pickle.dumps(found)  # other processes draw them
    curves = found["fig2"].draw().axes[0]
    assert [line.get_label() for line in curves.lines] == ["NFL", "Joint"]
    assert list(curves.lines[0].get_xdata()) == list(range(10, 101, 10))
    bars = found["fig5"].draw().axes[0]
    assert [(c.get_label(), [p.get_width() for p in c]) for c in bars.containers] == [
        ("exemplars", [0.1, 0.1, 0.1]),
        ("model", pytest.approx([1.0, 1.0, 1.0])),
    ]
    shown = [text.get_text() for text in found["fig7_task_il_cifar100_10x10"].draw().axes[0].get_yticklabels()]
    assert shown == ["NFL", "Joint", "Coil, 5,120 exemplars"]


def test_long_runs_are_drawn_in_hours_and_long_bars_have_plain_numbers(nfl: Paper, tmp_path: Path) -> None:
    seconds = [{"task": 0, "stage": "train", "seconds": 9000.0}, {"task": 0, "stage": "evaluation", "seconds": 1800.0}]
    write(tmp_path / "run", "NFL", seconds=seconds, footprint__paper=1_234_500_000)
    groups = load_runs(tmp_path).groups
    bars = {p.name: p for p in nfl.pictures(groups)}["nfl_fig7_class_il_cifar100_10x10"].draw().axes[0]
    assert [container[0].get_width() for container in bars.containers] == [2.5, 0.5]
    assert bars.get_xlabel() == "time (h)"
    assert draw_paper_memory(groups).axes[0].texts[0].get_text() == " 1,234"


def test_the_command_writes_the_papers_tables_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "runs/nfl", "NFL")
    write_run(tmp_path / "runs/er")
    assert main(["report", str(tmp_path / "runs"), "--paper", "nfl", "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert "### No Forgetting Learning, table 4: Class-IL after the last task, CIFAR-100, 10×10" in out
    assert "table 5" not in out  # of which there is no run
    assert "ER is of no cell of nfl's tables" in err
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written >= {"nfl.md", "nfl.tex", "nfl.csv", "report.html"}
    assert "table 5" in (tmp_path / "out/nfl.md").read_text(encoding="utf-8")
    assert r"NFL & 1 & 66.59 & " in (tmp_path / "out/nfl.tex").read_text(encoding="utf-8")
    assert 'id="nfl_table4"' in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert (tmp_path / "out/figures/nfl_fig2.svg").is_file()


SMALL = """\
title: A paper
source: https://example.org
examples: here
methods: {ER: {class: ER, config: er}}
protocols: {two: {title: Two, data: SplitDigits, task_sizes: 2×2}}
settings: [{table: table1, where: {method.epochs: 1}, set: {model.init_args.epochs: 1}}]
warnings: {odd: Numbers are odd.}
tables:
  table1:
    title: Scores
    scenario: class_il
    protocols: [two]
    scores: [{printed: Acc, unit: percent, ours: [ACC, recency, F1]}]
    warnings: [odd]
    rows: [{method: ER, mean: [50]}, {method: ER, mean: [60], where: {method.epochs: 2}, set: {model.epochs: 2}}]
figures: {fig1: {title: Curves, draw: curves, tables: [table1]}}
"""


def test_a_file_of_ones_own_tells_cells_apart_by_settings(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")
    write_run(tmp_path / "runs/one")
    write_run(tmp_path / "runs/two", config__method__epochs=2)
    (table,) = load_runs(tmp_path / "runs", paper=tmp_path / "small.yaml").paper_tables()
    assert [(row.label, row.n, row.cells[0].mean, row.cells[1].mean) for row in table.rows] == [
        ("ER", 1, 0.5, 0.625),
        ("ER", 1, 0.6, 0.625),
    ]
    assert [row.cells[3].reason for row in table.rows] == ["not among the scores of the runs"] * 2
    assert "- Numbers are odd." in table.markdown()
    one, two = read_paper(tmp_path / "small.yaml").cells
    assert two[1].arguments("here")[5:] == ["--model.init_args.epochs", "1", "--model.epochs", "2"]
    assert one[1].configs("here") == ["here/methods/er.yaml", "here/protocols/two.yaml"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("title: A paper\n", "", "the file has the keys source, .*'title' is missing or unknown"),
        ("config: er}", "conf: er}", "`methods.ER` has the keys class, conf; 'config' is missing or unknown"),
        ("2×2", "2x2", "`protocols.two.task_sizes` is '2x2', expected 10×10, "),
        ("protocols: [two]", "protocols: [three]", "`tables.table1` names 'three', expected one of two"),
        ("class_il", "cil", "`tables.table1` names 'cil', expected one of class_il, task_il"),
        ("unit: percent", "unit: per cent", "names 'per cent', expected one of percent, fraction, ratio"),
        ("warnings: [odd]", "warnings: [even]", "names 'even', expected one of odd"),
        ("mean: [50]", "mean: [50, 60]", r"\(ER\) has the numbers \[50, 60\], expected 1, each a number or null"),
        ("mean: [50]", "mean: [many]", r"has the numbers \['many'\]"),
        ("draw: curves", "draw: lines", "`figures.fig1` names 'lines', expected one of curves, "),
        ("tables: [table1]", "tables: [table2]", "`figures.fig1` names 'table2', expected one of table1"),
        ("{table: table1, where", "{tabel: table1, where", "entry 1 of `settings` has the keys tabel, "),
        ("title: A paper", "title: [", "is no YAML"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "small.yaml"
    assert old in SMALL
    path.write_text(SMALL.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=words) as error:
        read_paper(path)
    assert str(path) in str(error.value)


def test_an_unknown_paper_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run")
    assert main(["report", str(tmp_path / "run"), "--paper", "nlf", "--out", str(tmp_path / "out")]) == 1
    assert "`paper='nlf'`: expected one of " in capsys.readouterr().err
