"""`lightning-cil report` from the command line, and what it loads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_cil.__main__ import main
from lightning_cil.report import load_runs
from lightning_cil.report.published import read_published
from tests.report.hand_made import write_run


def test_a_report_of_runs_and_joint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs/a")
    write_run(tmp_path / "runs/b", seed=1)
    write_run(tmp_path / "joint", method="Joint")
    arguments = ["report", tmp_path / "runs", "--joint", tmp_path / "joint", "--out", tmp_path / "out"]
    assert main(list(map(str, arguments))) == 0
    out = capsys.readouterr().out
    assert "| ER | 2 | 62.50 ± 0.00 |" in out
    assert "### Task-IL" in out
    assert f"3 runs in 2 rows. Report: {tmp_path}/out/report.html" in out
    found = {p.name for p in (tmp_path / "out").iterdir()}
    assert found == {"figures", "report.html", "tables.csv", "tables.md", "tables.tex"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "expected a run folder"),
        ('{"schema": 1, "meth', "half-written"),
        ('{"accuracy": 0.9}', "not written by lightning-cil"),
        ('{"schema": 7, "task_sizes": [1]}', "this lightning-cil reads 1"),
    ],
)
def test_bad_input_is_one_message_that_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, words: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    if content is not None:
        (run / "results.json").write_text(content)
    assert main(["report", str(run), "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert str(run) in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_different_orders_are_refused_until_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", seed=1, class_order=[0, 1, 2, 3])
    arguments = ["report", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert "--average_different_orders" in capsys.readouterr().err
    assert main([*arguments, "--average_different_orders"]) == 0
    assert "as was asked for" in capsys.readouterr().err


def test_wrong_usage_is_2_and_help_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 2
    assert main(["report", "x", "--joined", "y"]) == 2
    assert main(["report", "--help"]) == 0
    assert "--average_different_orders" in capsys.readouterr().out


def test_debug_shows_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_report_loads_no_training_library(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    code = (
        "import json, sys; from lightning_cil.__main__ import main; "
        "main(['report', 'run']); print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(json.loads(result.stdout.splitlines()[-1]))
    assert "matplotlib" in loaded
    assert loaded.isdisjoint({"lightning", "torchmetrics", "torchvision", "timm", "transformers", "sklearn", "pandas"})


# ---------------------------------------------------------------------- published numbers


PUBLISHED = """\
unit: percent
numbers:
  - {method: ER, source: "Someone 2020, table 1", class_il: {ACC: 43.25, PS: 2.5}}
  - {method: iCaRL, source: "Someone 2020, table 1", class_il: {ACC: 50}}
"""


def test_published_numbers_stand_beside_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs/a")
    write_run(tmp_path / "runs/b", method="LwF")
    (tmp_path / "numbers.yaml").write_text(PUBLISHED)
    arguments = ["report", str(tmp_path / "runs"), "--published", str(tmp_path / "numbers.yaml")]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert "| ACC (%) ↑ | ACC (%) ↑ published | AIA (%) ↑ |" in out
    assert "| ER | 1 | 62.50 | 43.25 |" in out
    assert "no published number given" in out
    assert "published numbers of iCaRL (Someone 2020, table 1) fit no row; the rows are ER, LwF" in err
    assert "Someone 2020, table 1" in (tmp_path / "out/tables.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- 1", "expected `unit: percent`"),
        ("unit: percent\nnumbers: 3", "a list `numbers`"),
        ("unit: percent\nnumbers: [{method: ER}]", "expected a `method`, a `source`"),
        ("unit: percent\nnumbers: [{method: ER, source: x, clas_il: {ACC: 1}}]", "'clas_il'"),
        ("unit: percent\nnumbers: [{method: ER, source: x, class_il: {Acc: 1}}]", "Acc: 1"),
        ("unit: fraction\nnumbers: [{method: ER, source: x, class_il: {ACC: 43}}]", "no fraction"),
        ("unit: [", "is no YAML"),
        ("unit: percent\nnumbers: [{method: ER, source: x, class_il: {ACC: .nan}}]", "ACC: nan"),
        ("unit: percent\nnumbers: [{method: ER, source: x, class_il: {PS: .inf}}]", "PS: inf"),
        ("unit: percent\nnumbers: [{method: ER, source: x}]", "gives no score"),
        ("unit: percent\nnumbers: [{method: ER, source: x, data: 3, class_il: {ACC: 1}}]", "`data` is 3"),
        ("unit: percent\nnumbers: [{method: ER, source: x, task_sizes: 5, class_il: {ACC: 1}}]", "`task_sizes` is 5"),
        (
            "unit: percent\nnumbers: [{method: ER, source: x, class_il: {ACC: 1}}, "
            "{method: ER, source: y, class_il: {ACC: 2}}]",
            "entries 1 and 2 of `numbers` both give class_il ACC of ER",
        ),
    ],
)
def test_wrong_files_of_published_numbers_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "numbers.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"numbers\.yaml") as caught:
        read_published(path)
    assert words in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        read_published(tmp_path / "absent.yaml")


def test_published_numbers_go_by_data_and_tasks(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/a")
    write_run(tmp_path / "runs/b", data="SplitMNIST")
    write_run(tmp_path / "runs/c", task_sizes=[1, 3])
    entries = [
        "{method: ER, source: x, class_il: {ACC: 1}}",
        "{method: ER, source: x, data: SplitMNIST, class_il: {ACC: 2}}",
        "{method: ER, source: x, task_sizes: [1, 3], class_il: {ACC: 3}}",
    ]
    (tmp_path / "numbers.yaml").write_text(f"unit: percent\nnumbers: [{', '.join(entries)}]")
    table = load_runs(tmp_path / "runs", published=tmp_path / "numbers.yaml").table()
    column = [c.key for c in table.columns].index("ACC_published")
    assert {row.data: row.cells[column].mean for row in table.rows} == {
        "SplitDigits, 2×2": 0.01,
        "SplitMNIST, 2×2": 0.02,
        "SplitDigits, 1+3": 0.03,
    }
