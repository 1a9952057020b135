"""A run that is killed anywhere and started again ends bit-identical to one that ran through."""

import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.data.formats import write_fsdd, write_image_folder
from tests.resume.conftest import Runs, left_behind, output, points

SEED = int(os.environ.get("KILL_SEED", 0)) or int.from_bytes(os.urandom(4), "big")
"""Chooses where runs are killed; another one at every run of the tests. `KILL_SEED` repeats a choice."""

BOUNDARIES = [
    "batch start 0",
    "batch end 1",
    "batch end 2",
    "optimizer step",
    "epoch end",
    "half of last.ckpt",
    "last.ckpt written",
    "train end",
    "stage end",
    "task end 1",
    "task end 2, exemplars stored",
    "test batch after task 1",
    "scored 1",
    "half of task_1.ckpt",
    "task_1.ckpt named",
    "task_2.ckpt named",
]
"""First, middle and last batch, ends of epochs, stages and tasks, evaluation, every step of writing a checkpoint."""

INSIDE = {
    "three stages, 16-mixed": ["task start 1", "batch end 1", "stage end"],
    "Coil": ["task end 1"],
    "MEMO": ["task end 1", "task_1.ckpt named"],
    "NFL": [*(f"stage start 1 step {step}" for step in (2, 3, 4, 5)), "stage end", "task end 1"],
    "RebLL": ["task end 1", "task end 2, exemplars stored", "test batch after task 1"],
    "ML-DER++": ["batch end 1", "task end 1"],
    "CSC": ["batch end 1"],
    "KRT": ["batch end 1"],
    "MLPODNet": ["batch end 1"],
    "AGCN": ["batch end 1"],
    "L2P": ["batch end 1"],
    "NFL, recorded": [f"stage start 2 step {step}" for step in (3, 5)],
    "NFL+": ["stage start 0 autoencoder", "stage start 1 gamma", "stage start 1 autoencoder", "stage start 2 gamma"],
}
"""Between the steps of a round, and where a body grows; where a run is killed inside of them is left to chance."""

NO_MORE = ("CSC", "KRT", "MLPODNet", "AGCN", "L2P", "three stages, 16-mixed")
MORE = {"RebLL": 1, "ML-DER++": 1, **dict.fromkeys(NO_MORE, 0)}

OVERFLOWING = {"init_scale": 2.0**17, "growth_interval": 2}
"""A loss scale that doubles every two steps until gradients overflow: steps are left out in every stage."""

CASES: dict[str, dict[str, Any]] = {
    "ER": {"name": "er", "checkpoint": {"every_n_train_steps": 1}},
    "ER, epoch ends only": {"name": "er"},
    "iCaRL": {"name": "icarl", "checkpoint": {"every_n_train_steps": 2}},
    "Coil": {"name": "coil", "checkpoint": {"every_n_train_steps": 1}},
    "DER++": {"name": "derpp", "checkpoint": {"every_n_train_steps": 1}},
    "MEMO": {"name": "memo", "checkpoint": {"every_n_train_steps": 1}},
    "LwF": {"name": "lwf", "checkpoint": {"every_n_train_steps": 2}},
    "NFL": {"name": "nfl", "checkpoint": {"every_n_train_steps": 1}, "method": {}},
    "NFL, recorded": {
        "name": "nfl",
        "checkpoint": {"every_n_train_steps": 2},
        "method": {"targets": "recorded", "step3_init": "random"},
    },
    "NFL+": {
        "name": "nfl_plus",
        "checkpoint": {"every_n_train_steps": 1},
        "data": {"batch_size": 4},
        "method": {"encoders": "all", "gamma_reading": "class", "gamma_from_step": 4},
    },
    "RebLL": {"name": "rebll", "checkpoint": {"every_n_train_steps": 1}},
    "ML-DER++": {"name": "ml_derpp", "checkpoint": {"every_n_train_steps": 2}},
    "CSC": {"name": "csc", "checkpoint": {"every_n_train_steps": 2}},
    "KRT": {"name": "krt", "checkpoint": {"every_n_train_steps": 2}},
    "MLPODNet": {"name": "ml_podnet", "checkpoint": {"every_n_train_steps": 2}},
    "AGCN": {"name": "agcn", "checkpoint": {"every_n_train_steps": 2}},
    "L2P": {"name": "l2p", "checkpoint": {"every_n_train_steps": 2}},
    "three stages": {"name": "stages", "checkpoint": {"every_n_train_steps": 2}},
    "three stages, 16-mixed": {"name": "stages", "checkpoint": {"every_n_train_steps": 2}, "scaler": OVERFLOWING},
    "accumulation": {
        "name": "er",
        "checkpoint": {"every_n_train_steps": 1},
        "trainer": {"accumulate_grad_batches": 2},
        "data": {"batch_size": 4},
    },
    "validation inside epochs": {
        "name": "er",
        "checkpoint": {"every_n_train_steps": 1},
        "trainer": {"val_check_interval": 0.5},
        "data": {"batch_size": 4, "val_fraction": 0.2},
    },
    "limits": {
        "name": "er",
        "checkpoint": {"every_n_train_steps": 1},
        "trainer": {"max_steps": 4, "limit_train_batches": 0.7},
        "data": {"batch_size": 4},
    },
    "early stopping": {
        "name": "early",
        "checkpoint": {"every_n_train_steps": 1},
        "data": {"batch_size": 4, "val_fraction": 0.2},
    },
}


def kill_and_go_on(runs: Runs, case: dict[str, Any], root: Path, wanted: list[str], more: int, **options: Any) -> None:
    source = random.Random(f"{SEED} {case}")
    events = runs.straight(case, root / "straight", **options)
    expected = left_behind(root / "straight")
    for at in points(events, wanted, more, source):
        where = f"KILL_SEED={SEED}, event {at}: {events[at]}"
        print(where)
        broken = root / str(at)
        assert runs(case, broken, at=at, how="kill", **options) == -9, f"{where}\n{output(broken)}"
        assert runs(case, broken, ckpt_path="last", **options) == 0, f"{where}\n{output(broken)}"
        found = left_behind(broken)
        for what, value in expected.items():
            assert found[what] == value, f"{what} differs, {where}"


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_goes_on_exactly(runs: Runs, tmp_path: Path, name: str) -> None:
    every = name in ("ER", "LwF", "three stages")
    wanted = BOUNDARIES if every else INSIDE.get(name, [])
    kill_and_go_on(runs, CASES[name], tmp_path, wanted, MORE.get(name, 3 if wanted else 8))


@pytest.mark.parametrize("workers", [0, 2])
def test_decoding_processes_make_no_difference(runs: Runs, tmp_path: Path, workers: int) -> None:
    write_image_folder(tmp_path / "images", train=6)
    case = {"name": "files", "images": str(tmp_path / "images"), "checkpoint": {"every_n_train_steps": 1}}
    wanted = ["batch start 0", "batch end 1", "batch end 2", "epoch end", "task end 1", "test batch after task 0"]
    wanted += ["half of last.ckpt", "task_0.ckpt named"]
    kill_and_go_on(runs, {**case, "workers": workers}, tmp_path, wanted, 4)


@pytest.mark.parametrize("name", ["multimodal", "mm_icarl", "topic"])
def test_experts_exemplars_with_sounds_and_nodes_come_back(runs: Runs, tmp_path: Path, name: str) -> None:
    write_fsdd(tmp_path / "sounds")
    case = {"name": name, "sounds": str(tmp_path / "sounds"), "checkpoint": {"every_n_train_steps": 1}}
    kill_and_go_on(runs, case, tmp_path, ["batch start 2"], 0)  # only the second task has a third batch


def test_two_processes_that_are_killed_go_on_exactly(runs: Runs, tmp_path: Path) -> None:
    two = {"devices": 2, "strategy": "ddp_fork"}
    case = {"name": "er", "checkpoint": {"every_n_train_steps": 1}, "trainer": two, "data": {"batch_size": 4}}
    wanted = [
        "batch start 0",
        "batch end 1",
        "batch end 2",
        "task end 1",
        "test batch after task 1",
        "half of last.ckpt",
    ]
    kill_and_go_on(runs, case, tmp_path, [*wanted, "task_1.ckpt named"], 5)


def test_a_run_that_is_killed_again_and_again_comes_to_the_same_end(runs: Runs, tmp_path: Path) -> None:
    source = random.Random(SEED)
    case = CASES["ER"]
    runs.straight(case, tmp_path / "straight")
    codes = []
    while len(codes) < 40 and (not codes or codes[-1] != 0):
        at, how = source.randrange(20, 60), "kill"
        print(f"KILL_SEED={SEED}, event {at} of run {len(codes)}")
        codes.append(runs(case, tmp_path / "broken", at=at, how=how, ckpt_path="last"))
    assert codes[-1] == 0, output(tmp_path / "broken")
    assert codes.count(-9) >= 2
    assert left_behind(tmp_path / "broken") == left_behind(tmp_path / "straight")
