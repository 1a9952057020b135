"""The scripts of `examples/slurm` with a stand-in for `srun`, and their commands on local processes."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from lightning_cil import __main__, cli  # noqa: F401  # imported before the ranks are forked
from tests.conftest import RunCli
from tests.ranks import all_well, run_ranks

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:There is no checkpoint below")
SHORT = ["--config", str(ROOT / "examples/quickstart.yaml"), "--model.epochs", "1", "--data.num_tasks", "2"]


def commands(script: str, folder: Path, *args: str, **variables: str) -> list[list[str]]:
    """What `srun` is asked to run by a script of `examples/slurm`."""
    (folder / "srun").write_text('#!/bin/bash\nprintf "%s\\0" "$@" >> "$ASKED"; printf "\\n\\0" >> "$ASKED"\n')
    (folder / "srun").chmod(0o755)
    asked = folder / "asked"
    asked.unlink(missing_ok=True)
    env = {"PATH": f"{folder}:{os.environ['PATH']}", "ASKED": str(asked), **variables}
    path = ROOT / "examples" / "slurm" / script
    subprocess.run(["bash", str(path), *args], env=env, check=True, timeout=20, cwd=folder)
    return [part.split("\0")[:-1] for part in asked.read_text().split("\n\0")[:-1]]


def test_single_trains_on_all_nodes_and_goes_on_when_requeued(tmp_path: Path) -> None:
    root = ["--trainer.default_root_dir", str(tmp_path / "runs"), "--trainer.accelerator", "cpu"]
    (asked,) = commands("single.sh", tmp_path, *SHORT, *root, SLURM_JOB_NUM_NODES="2", SLURM_NTASKS_PER_NODE="1")
    assert asked[:2] == ["--kill-on-bad-exit=1", "lightning-cil"]

    def run(*more: str) -> None:
        assert __main__.main([*asked[2:], *more]) == 0

    assert all_well(run_ranks(lambda: run("--stop_after_task", "0"), tmp_path, cluster="slurm"))
    assert all_well(run_ranks(run, tmp_path, cluster="slurm"))  # the same command, after the job was requeued
    (folder,) = (tmp_path / "runs").iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert (results["world_size"], results["status"]) == (2, "complete")


def test_array_makes_a_run_for_each_seed(run_cli: RunCli, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        (asked,) = commands("array.sh", tmp_path, *SHORT, ROOT="mine", SLURM_ARRAY_TASK_ID=seed)
        assert asked[:2] == ["--kill-on-bad-exit=1", "lightning-cil"]
        assert run_cli(*asked[2:]).code == 0
    found = {p.parts[1]: json.loads((tmp_path / p).read_text()) for p in map(Path, [
        "mine/seed_1/version_0/results.json", "mine/seed_2/version_0/results.json"
    ])}  # fmt: skip
    assert {name: results["seed"] for name, results in found.items()} == {"seed_1": 1, "seed_2": 2}


def test_array_makes_a_job_for_each_task(run_cli: RunCli, tmp_path: Path) -> None:
    done = []
    for task in ("0", "1"):
        (asked,) = commands("array.sh", tmp_path, *SHORT, PER="task", SLURM_ARRAY_TASK_ID=task)
        assert run_cli(*asked[2:]).code == 0
        done.append(json.loads((tmp_path / "runs/seed_0/version_0/results.json").read_text())["tasks_done"])
    assert done == [1, 2]
    assert run_cli("fit", *SHORT, "--trainer.default_root_dir", "straight").code == 0
    weights = [
        torch.load(tmp_path / run / "version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in ("runs/seed_0", "straight")
    ]
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())


def test_array_says_what_per_may_be(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        commands("array.sh", tmp_path, *SHORT, PER="class", SLURM_ARRAY_TASK_ID="0")
