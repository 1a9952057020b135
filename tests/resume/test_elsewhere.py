"""Going on after a requeue, after an exception, with other processes, other batch sizes and damaged files."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.resume.conftest import Runs, left_behind, output, points
from tests.resume.test_kill import CASES, SEED
from tests.resume.test_signals import saved_step, steps_before


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a SLURM job whose `scontrol` notes what it is told."""
    tool = tmp_path / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.txt\n')
    tool.chmod(0o755)
    import os

    names = {"JOB_ID": "77", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    return {"PATH": f"{tool.parent}:{os.environ['PATH']}", **{f"SLURM_{k}": v for k, v in names.items()}}


def test_a_requeued_job_goes_on_exactly_without_being_told(runs: Runs, tmp_path: Path, slurm: dict[str, str]) -> None:
    case = CASES["ER, epoch ends only"]
    events = runs.straight(case, tmp_path / "straight")
    expected = left_behind(tmp_path / "straight")
    wanted = ["batch start 1", "batch end 1", "task end 1", "test batch after task 1", "stage end 1"]
    for number, at in enumerate(points(events, wanted, 0, random.Random(SEED)), 1):
        root, where = tmp_path / str(at), f"KILL_SEED={SEED}, event {at}: {events[at]}"
        assert runs(case, root, at=at, how="usr1", env=slurm) == 138, f"{where}\n{output(root)}"
        assert (tmp_path / "scontrol.txt").read_text() == "requeue 77\n" * number
        kept = list(root.glob("hpc_ckpt_*.ckpt"))
        if steps_before(events, at) > 1:
            assert [p.name for p in kept] == ["hpc_ckpt_1.ckpt"], f"{where}\n{output(root)}"
        assert runs(case, root, env=slurm) == 0, f"{where}\n{output(root)}"
        assert left_behind(root) == expected, where
        assert not list(root.glob("hpc_ckpt_*")), "a finished stream leaves nothing that a requeued job would take up"


def test_a_requeue_that_fails_does_not_end_the_run(runs: Runs, tmp_path: Path, slurm: dict[str, str]) -> None:
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\nexit 1\n")
    runs.straight(CASES["ER"], tmp_path / "straight")
    assert runs(CASES["ER"], tmp_path / "run", at=30, how="usr1", env=slurm) == 0, output(tmp_path / "run")
    assert "could not be requeued" in output(tmp_path / "run")
    assert left_behind(tmp_path / "run") == left_behind(tmp_path / "straight")


def test_what_another_job_left_is_named_and_not_taken(runs: Runs, tmp_path: Path, slurm: dict[str, str]) -> None:
    runs.straight(CASES["ER"], tmp_path / "straight")
    root = tmp_path / "run"
    assert runs(CASES["LwF"], root, at=30, how="usr1", env=slurm) == 138
    shutil.rmtree(root / "version_0")
    assert runs(CASES["ER"], root, env={**slurm, "SLURM_JOB_ID": "78"}) == 0, output(root)
    assert "It does not go on from" in output(root)
    assert "hpc_ckpt_1.ckpt (job 77)" in output(root)
    assert left_behind(root) == left_behind(tmp_path / "straight")


def test_an_exception_anywhere_leaves_a_file_that_goes_on_exactly(runs: Runs, tmp_path: Path) -> None:
    case = {**CASES["three stages"], "checkpoint": {}}
    events = runs.straight(case, tmp_path / "straight", on_exception=True)
    expected = left_behind(tmp_path / "straight")
    wanted = ["batch start 1", "optimizer step", "batch end 2", "stage end 1", "task end 1", "test batch after task 1"]
    chosen = points(events, [*wanted, "test batch after task -1"], 1, random.Random(SEED))
    for at in sorted({*chosen, len(events) - 1}):  # the last event: nothing is left to do
        root, where = tmp_path / str(at), f"KILL_SEED={SEED}, event {at}: {events[at]}"
        assert runs(case, root, at=at, how="raise", on_exception=True) == 1, where
        kept = root / "on_exception.ckpt"
        assert kept.exists() == any((root / "version_0").rglob("last.ckpt")), where
        assert runs(case, root, on_exception=True) == 0, f"{where}\n{output(root)}"
        assert left_behind(root) == expected, where
        assert not kept.exists()


def test_the_decision_to_stop_early_is_kept(runs: Runs, tmp_path: Path) -> None:
    case = {"name": "early", "data": {"val_fraction": 0.2}}
    events = runs.straight(case, tmp_path / "straight")
    expected = left_behind(tmp_path / "straight")
    assert events.count("epoch end 1") == 3
    assert "epoch end 2" not in events  # 2 of 4 epochs in each task
    decided = [i for i, event in enumerate(events) if event == "epoch end 1"]
    for epoch_end in decided:
        at = events.index("last.ckpt named", epoch_end)
        assert runs(case, tmp_path / str(at), at=at, how="kill") == -9
        assert runs(case, tmp_path / str(at), ckpt_path="last") == 0, output(tmp_path / str(at))
        assert left_behind(tmp_path / str(at)) == expected
        resumed = json.loads((tmp_path / str(at) / "events.json").read_text())
        assert not [e for e in resumed if e == "epoch end 2"]


def weights(root: Path) -> dict[str, Any]:
    return torch.load(root / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("first", [1, 2])
def test_another_number_of_processes_goes_on_inside_an_epoch(runs: Runs, tmp_path: Path, first: int) -> None:
    def of(processes: int) -> dict[str, Any]:
        trainer = {"devices": processes, "strategy": "ddp_fork" if processes > 1 else "auto"}
        return {"name": "plain", "data": {"batch_size": 2 // processes}, "trainer": trainer}  # 13 steps an epoch

    events = runs.straight(of(1), tmp_path / "straight")
    at = points(events, ["batch end 2"], 0, random.Random(SEED))[0]
    root = tmp_path / "run"
    assert runs(of(first), root, at=at, how="term") == 143, output(root)
    assert saved_step(root) % 13 != 0  # inside an epoch; two processes agree some steps after the signal
    assert runs(of(3 - first), root, ckpt_path="last") == 0, output(root)
    ours, theirs = weights(root), weights(tmp_path / "straight")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)
    assert left_behind(root)["counts"] == left_behind(tmp_path / "straight")["counts"]


def test_another_global_batch_is_refused_inside_an_epoch(runs: Runs, tmp_path: Path) -> None:
    case = {"name": "plain", "data": {"batch_size": 8}}
    at = runs.straight(case, tmp_path / "straight").index("batch end 1")
    root = tmp_path / "run"
    assert runs(case, root, at=at, how="term") == 143
    assert runs({**case, "data": {"batch_size": 6}}, root, ckpt_path="last") == 1
    assert "8 samples in a step over all processes; here a step has 6" in output(root)
    assert runs(case, root, ckpt_path="last") == 0, output(root)


def test_a_damaged_last_checkpoint_is_named_with_an_older_one(runs: Runs, tmp_path: Path) -> None:
    case = CASES["ER"]
    at = runs.straight(case, tmp_path / "straight").index("stage start 2 train")
    assert runs(case, tmp_path / "run", at=at, how="kill") == -9
    folder = tmp_path / "run" / "version_0" / "checkpoints"
    content = (folder / "last.ckpt").read_bytes()
    (folder / "last.ckpt").unlink()  # it is the same file as task_1.ckpt
    (folder / "last.ckpt").write_bytes(content[: len(content) // 2])
    (folder / "task_1.ckpt").write_bytes(b"")
    assert runs(case, tmp_path / "run", ckpt_path="last") == 1
    assert f"Go on from an older one, --ckpt_path {folder}/task_0.ckpt" in output(tmp_path / "run")


def test_half_written_files_are_cleared_away(runs: Runs, tmp_path: Path) -> None:
    case = CASES["ER"]
    at = runs.straight(case, tmp_path / "straight").index("half of task_1.ckpt written")
    assert runs(case, tmp_path / "run", at=at, how="kill") == -9
    assert list((tmp_path / "run").rglob("*.part"))
    assert runs(case, tmp_path / "run", ckpt_path="last") == 0
    assert not list((tmp_path / "run").rglob("*.part"))
