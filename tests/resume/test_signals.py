"""SIGTERM and Ctrl-C leave a checkpoint of the step in progress and say how to go on; the run goes on exactly."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cil.callbacks.interruption import resume_command
from tests.data.formats import write_image_folder
from tests.resume.conftest import Runs, left_behind, output, points
from tests.resume.test_kill import CASES, SEED

CODE = {"term": 143, "int": 130}


def saved_step(root: Path) -> int:
    path = max(root.glob("version_*/checkpoints/last.ckpt"))
    return int(torch.load(path, weights_only=True)["global_step"])


def steps_before(events: list[str], at: int) -> int:
    return sum(event == "optimizer step" for event in events[: at + 1])


def interrupt_and_go_on(runs: Runs, case: dict[str, Any], root: Path, at: int, how: str, **options: Any) -> str:
    code = runs(case, root, at=at, how=how, **options)
    said = output(root)
    assert code == CODE[how.split()[0]], said
    assert runs(case, root, ckpt_path="last") == 0, output(root)
    return said


@pytest.mark.parametrize("how", ["term", "int"])
def test_a_signal_while_training_saves_the_current_step(runs: Runs, tmp_path: Path, how: str) -> None:
    case = CASES["ER, epoch ends only"]
    events = runs.straight(case, tmp_path / "straight")
    expected = left_behind(tmp_path / "straight")
    source = random.Random(SEED)
    for at in points(events, ["batch start 1", "batch end 1", "batch start 0", "batch end 2", "epoch end"], 0, source):
        root = tmp_path / str(at)
        where = f"KILL_SEED={SEED}, event {at}: {events[at]}"
        assert runs(case, root, at=at, how=how) == CODE[how], f"{where}\n{output(root)}"
        middle = events[at] != "batch end 2" and not events[at].startswith("epoch end")
        done = steps_before(events, at) + (events[at].startswith("batch start"))
        assert saved_step(root) == done, where
        assert f"after step {done}" in output(root), where
        assert "Saved: " in output(root) or not middle, where
        assert "ckpt_path='last'" in output(root), where
        assert runs(case, root, ckpt_path="last") == 0, f"{where}\n{output(root)}"
        assert left_behind(root) == expected, where


@pytest.mark.parametrize("name", ["LwF", "three stages", "accumulation", "validation inside epochs"])
def test_a_signal_anywhere(runs: Runs, tmp_path: Path, name: str) -> None:
    case = {**CASES[name], "checkpoint": {}}
    events = runs.straight(case, tmp_path / "straight")
    expected = left_behind(tmp_path / "straight")
    for at in points(events, ["batch start 1", "task end 1", "test batch after task 1"], 4, random.Random(SEED)):
        where = f"KILL_SEED={SEED}, event {at}: {events[at]}"
        if events[at].startswith("last.ckpt") and at > len(events) - 4:
            continue  # the end of the run: nothing is left to interrupt
        said = interrupt_and_go_on(runs, case, tmp_path / str(at), at, "term")
        assert left_behind(tmp_path / str(at)) == expected, where
        assert re.search(r"Saved: |is repeated exactly|Nothing was saved yet", said), f"{where}\n{said}"


def test_a_signal_before_anything_is_saved_says_so(runs: Runs, tmp_path: Path) -> None:
    assert runs(CASES["ER"], tmp_path, at=0, how="int") == 130
    assert "Nothing was saved yet" in output(tmp_path)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_without_checkpoints_a_signal_says_so(runs: Runs, tmp_path: Path) -> None:
    case = {**CASES["ER"], "checkpoint": None, "trainer": {"enable_checkpointing": False}}
    assert runs(case, tmp_path, at=10, how="term") == 143
    assert "switched off" in output(tmp_path)
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("ranks", [[0], [1], [0, 1]])
def test_processes_end_at_the_same_step_whichever_gets_the_signal(runs: Runs, tmp_path: Path, ranks: list[int]) -> None:
    two = {"devices": 2, "strategy": "ddp_fork"}
    case = {"name": "er", "trainer": two, "data": {"batch_size": 4}}
    events = runs.straight(case, tmp_path / "straight")
    wanted = ["optimizer step", "batch end 1", "task end 0", "test batch after task 1"]
    if 1 in ranks:  # writes no file
        events = [event for event in events if ".ckpt" not in event]
    if len(ranks) == 2:  # the same event on both: before the first file
        events, wanted = events[: events.index("epoch end 0")], ["optimizer step", "batch end 1"]
    for at in points(events, wanted, 0, random.Random(SEED)):
        root = tmp_path / str(at)
        assert runs(case, root, at=at, how="term", ranks=ranks) == 143, output(root)
        assert runs(case, root, ckpt_path="last") == 0, output(root)
        assert left_behind(root) == left_behind(tmp_path / "straight"), f"KILL_SEED={SEED}, event {at}: {events[at]}"


def test_a_signal_to_everybody_lets_decoding_processes_finish_the_step(runs: Runs, tmp_path: Path) -> None:
    write_image_folder(tmp_path / "images", train=6)
    case = {"name": "files", "images": str(tmp_path / "images"), "workers": 2}
    events = runs.straight(case, tmp_path / "straight")
    for how in ("term group", "int group"):
        at = points(events, ["batch start 0"], 0, random.Random(SEED))[0]
        said = interrupt_and_go_on(runs, case, tmp_path / how, at, how)
        assert "Saved: " in said
        assert left_behind(tmp_path / how) == left_behind(tmp_path / "straight")


def test_a_second_ctrl_c_ends_at_once(runs: Runs, tmp_path: Path) -> None:
    assert runs(CASES["ER, epoch ends only"], tmp_path, at=10, how="int twice") == 130
    assert not list(tmp_path.rglob("last.ckpt"))


def test_the_command_that_goes_on() -> None:
    given = ["lightning-cil", "fit", "--config", "my run.yaml", "--ckpt_path", "a.ckpt", "--ckpt_path=b", "--seed", "1"]
    assert resume_command(given) == "lightning-cil fit --config 'my run.yaml' --seed 1 --ckpt_path last"
