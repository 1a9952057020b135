"""`StreamSummary`: what a run prints."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cil.callbacks import StreamCheckpoint, StreamState
from lightning_cil.callbacks.summary import matrix_lines, scores_line, task_line
from lightning_cil.data.splits import make_tasks
from lightning_cil.methods import FineTune, Joint
from tests.callbacks.conftest import TinyTasks
from tests.streams import fit, make


def filled(correct: list[list[int]], total: int = 8) -> StreamState:
    """A state after the last row; `correct` starts with the row before training."""
    state = StreamState()
    state.begin(len(correct[0]), seed=0)
    for scenario in ("class_il", "task_il"):
        for row, values in enumerate(correct, -1):
            state.record(scenario, row, torch.tensor(values), torch.full((len(values),), total))
    state.task = len(correct) - 2
    return state


def test_a_line_after_every_task_then_matrices_and_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = fit(tmp_path, make(FineTune), TinyTasks())
    lines = capsys.readouterr().out.splitlines()
    found = json.loads((Path(trainer.log_dir) / "results.json").read_text())
    matrix = found["matrix"]["class_il"]
    done = [line for line in lines if line.startswith("task ")]
    for task, line in enumerate(done):
        first, second = found["class_order"][2 * task : 2 * task + 2]
        mean = 100 * sum(matrix[task][: task + 1]) / (task + 1)
        assert line.startswith(f"task {task + 1}/3 [class {first} class {second}]  Class-IL {mean:5.1f} %  Task-IL ")
        assert re.search(r"  \d+\.\d s$", line)
    assert len(done) == 3
    head = lines.index("Class-IL: accuracy in % on task (column) after learning task (row)")
    table = [[float(v) for v in line.split()[1:]] for line in lines[head + 2 : head + 6]]
    assert table == [[round(100 * v, 1) for v in row] for row in (found["before_training"]["class_il"], *matrix)]
    (scores,) = (line for line in lines if line.startswith("Class-IL: ACC"))
    assert f"ACC {100 * found['scores']['class_il']['ACC']:.2f}" in scores
    assert "FWT -" in scores
    assert any(line.startswith(f"Run folder: {trainer.log_dir}") for line in lines)


def test_every_path_it_prints_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, make(FineTune), TinyTasks(), stop_after_task=1)
    text = capsys.readouterr().out
    assert "Stopped after task 1 (of 0 to 2)." in text
    (path,) = re.findall(r", or ckpt_path='(.+)'", text)
    assert Path(path).is_file()
    fit(tmp_path, make(FineTune), TinyTasks(), ckpt_path=path)
    text = capsys.readouterr().out
    folder, names = re.search(r"Run folder: (\S+)   \((.+)\)", text).groups()
    assert all((Path(folder) / name).exists() for name in names.split(", "))


@pytest.mark.parametrize("checkpoints", [None, StreamCheckpoint(keep_tasks=False)])
def test_it_names_no_checkpoint_that_is_not_there(
    checkpoints: StreamCheckpoint | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callbacks, options = ([checkpoints], {}) if checkpoints else ([], {"enable_checkpointing": False})
    fit(tmp_path, make(FineTune), TinyTasks(), callbacks, stop_after_task=1, **options)
    text = capsys.readouterr().out
    paths = re.findall(r", or ckpt_path='(.+)'", text)
    assert [Path(p).name for p in paths] == (["last.ckpt"] if checkpoints else [])
    assert all(Path(p).is_file() for p in paths)
    fit(tmp_path / "all", make(FineTune), TinyTasks(), callbacks, **options)
    assert ("checkpoints/" in capsys.readouterr().out) == bool(checkpoints)


def test_tasks_without_training_have_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, make(Joint), TinyTasks())
    lines = capsys.readouterr().out.splitlines()
    assert [line[:8] for line in lines if line.startswith("task ")] == ["task 3/3"]
    assert not [line for line in lines if "nan" in line.lower()]


def test_a_dry_run_names_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, make(FineTune), TinyTasks(), fast_dev_run=True)
    assert "Run folder" not in capsys.readouterr().out


def test_matrix_of_a_hand_worked_run() -> None:
    state = filled([[0, 4, 2], [8, 0, 0], [4, 6, 1]])
    assert matrix_lines(state, "class_il") == [
        "Class-IL: accuracy in % on task (column) after learning task (row)",
        "              1      2      3",
        "  before    0.0   50.0   25.0",
        "       1  100.0    0.0    0.0",
        "       2   50.0   75.0   12.5",
    ]


def test_scores_of_a_hand_worked_run() -> None:
    state = filled([[0, 4], [8, 2], [4, 6]])
    expected = "Task-IL: ACC 62.50   AIA 81.25   FWT -25.00   BWT -50.00   AF 50.00   (%)"
    assert scores_line(state, "task_il") == expected
    assert scores_line(state, "class_il") == expected.replace("Task", "Class").replace("-25.00", "-")


def test_without_an_evaluation_before_training_the_row_is_empty() -> None:
    state = filled([[0, 0], [8, 2], [4, 6]])
    state.counts["task_il"].total[0] = 0
    assert matrix_lines(state, "task_il")[2] == "  before      -      -"
    assert "FWT -   " in scores_line(state, "task_il")


def test_a_wide_matrix_is_left_to_the_file() -> None:
    state = filled([[0] * 21] * 22)
    assert matrix_lines(state, "class_il")[0].endswith(": 21 tasks, see matrix.csv")
    assert len(matrix_lines(filled([[0] * 20] * 21), "class_il")) == 23


@pytest.mark.parametrize(
    ("sizes", "shown"), [([6, 1], "[a b c d e f]"), ([7, 1], "[a b c d e f … (7 classes)]"), ([1, 7], "[a]")]
)
def test_many_class_names_are_cut(sizes: list[int], shown: str) -> None:
    state: Any = filled([[0, 0], [6, 0], [2, 4]])
    line = task_line(state, make_tasks(sizes)[0], list("abcdefgh"), 1.25)
    assert line == f"task 1/2 {shown}  Class-IL  75.0 %  Task-IL  75.0 %  1.2 s"


def test_a_tasks_line_is_the_mean_over_the_tasks_so_far() -> None:
    state = filled([[0, 0, 0], [6, 0, 0], [2, 4, 8]])
    assert "Class-IL  37.5 %" in task_line(state, make_tasks([1, 1, 1])[1], list("abc"), 0.0)
