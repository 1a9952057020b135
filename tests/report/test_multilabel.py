"""Reports on multi-label runs: mAP last and average, CF1, OF1, FPR; two seeds, a Joint run as the bound."""

import csv
import io
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from lightning_cil.report import load_runs
from tests.report.hand_made import with_matrix, write_run

NAMES = ("mAP_last", "mAP_avg", "CF1", "OF1", "FPR", "precision", "recall", "AF")
SCORES = dict(zip(NAMES, (0.5, 0.6, 0.4, 0.3, 0.02, 0.7, 0.2, 0.1), strict=True))
MATRIX = [[0.8, None], [0.45, 0.55]]


def run(folder: Path, seed: int = 0, method: str = "RebLL", matrix: Any = MATRIX, **scores: Any) -> Path:
    found = {**SCORES, "mAP": [0.7, 0.5], "formulas": {"FPR": "FP / (FP + TN)"}, **scores}
    undefined = {s: {"FWT": "classes to come are not scored"} for s in ("class_il", "task_il")}
    return write_run(folder, **with_matrix(matrix, seed=seed, method=method, multilabel=found, undefined=undefined))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, last in enumerate((0.5, 0.6)):
        run(tmp_path / "runs" / f"rebll{seed}", seed, mAP_last=last)
    run(tmp_path / "runs" / "ft", method="MLFineTune", FPR=0.3)
    gone = {"mAP_avg": None, "AF": None}
    run(tmp_path / "runs" / "joint", method="MLJoint", matrix=[[None, None], [0.9, 0.92]], mAP_last=0.91, **gone)
    return tmp_path / "runs"


def test_the_table_has_the_papers_columns(folder: Path) -> None:
    table = load_runs(folder).multilabel_table()
    rows = {row.label: dict(zip([c.key for c in table.columns], row.cells, strict=True)) for row in table.rows}
    assert list(rows) == ["MLFineTune", "RebLL", "MLJoint"]
    cell = rows["RebLL"]["mAP_last"]
    assert (cell.mean, cell.std, cell.n) == (pytest.approx(mean([0.5, 0.6])), pytest.approx(stdev([0.5, 0.6])), 2)
    for name, value in SCORES.items():
        if name != "mAP_last":
            assert rows["RebLL"][name].mean == pytest.approx(value)
    assert rows["MLFineTune"]["FPR"].mean == 0.3
    assert rows["MLJoint"]["mAP_avg"].mean is None
    assert "all tasks at once" in rows["MLJoint"]["mAP_avg"].reason
    assert "FPR (%) ↓: FP / (FP + TN)" in table.formulas()


def test_a_report_is_written(folder: Path, tmp_path: Path) -> None:
    runs = load_runs(folder)
    page = runs.write(tmp_path / "report")
    text = (page.parent / "tables.md").read_text()
    assert "Multi-label: scores after the last task" in text
    assert "| RebLL | 2 | 55.00 ± 7.07 |" in text
    lines = list(csv.DictReader(io.StringIO((page.parent / "tables.csv").read_text())))
    found = {line["method"]: line for line in lines if line["scenario"] == "multilabel"}
    assert float(found["RebLL"]["OF1"]) == pytest.approx(0.3)
    assert any("mean average precision" in note for note in runs.notes)
    assert "mAP against the number of classes" in page.read_text()
    figure, axes = runs.plot_curves()
    assert axes.get_ylabel() == "mAP on them (%)"
    figure.clear()


def test_the_joint_run_bounds_the_others(folder: Path, tmp_path: Path) -> None:
    runs = load_runs(folder / "ft", joint=folder / "joint")
    stat = runs.groups[0].scores("class_il")["I"]
    assert stat.mean == pytest.approx(0.92 - 0.55)


def test_single_label_runs_have_no_such_table(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    assert load_runs(tmp_path / "run").multilabel_table() is None
