"""The command line: killed, interrupted, and gone on with the command that it prints."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.resume.conftest import ROOT, left_behind


def config(root: Path) -> dict[str, Any]:
    return {
        "trainer": {
            "accelerator": "cpu", "enable_progress_bar": False, "default_root_dir": str(root), "log_every_n_steps": 2,
            "limit_train_batches": 4,
            "callbacks": [
                {"class_path": "tests.resume.cases.BreakFromEnvironment"},
                {"class_path": "StreamCheckpoint", "init_args": {"every_n_train_steps": 3}},
            ],
        },
        "model": {
            "class_path": "tests.resume.cases.ThreeStages",
            "init_args": {
                "backbone": {
                    "class_path": "lightning_cil.networks.Backbone",
                    "init_args": {"name": "small_cnn", "in_channels": 1},
                },
                "epochs": 1,
            },
        },
        "data": {"class_path": "SplitDigits", "init_args": {"num_tasks": 2}},
    }  # fmt: skip


def command(arguments: list[str], folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PL_")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        [sys.executable, "-m", "lightning_cil", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=280,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )  # fmt: skip


def test_the_printed_command_goes_on_exactly(run_cli: Any, tmp_path: Path) -> None:
    for name in ("straight", "broken"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config(tmp_path / name)))
    assert run_cli("fit", "--config", tmp_path / "straight.yaml").code == 0
    first = command(["fit", "--config", "broken.yaml"], tmp_path, BREAK_AT="5", BREAK_WITH="SIGINT")
    assert first.returncode == 130, first.stderr
    assert "Interrupted by Ctrl-C in task 0, after step 6." in first.stderr
    assert "Traceback" not in first.stderr
    printed = next(line for line in first.stderr.splitlines() if line.startswith("Go on:"))
    arguments = shlex.split(printed.removeprefix("Go on:"))
    assert arguments == ["lightning-cil", "fit", "--config", "broken.yaml", "--ckpt_path", "last"]
    second = command(arguments[1:], tmp_path, BREAK_AT="21", BREAK_WITH="SIGKILL")
    assert second.returncode == -9, second.stderr
    third = command(arguments[1:], tmp_path)
    assert third.returncode == 0, third.stderr
    ours, theirs = left_behind(tmp_path / "straight"), left_behind(tmp_path / "broken")
    resumed = [name for name in theirs["files"] if name.startswith("config_resumed")]
    assert [name for name in theirs.pop("files") if name not in resumed] == ours.pop("files")
    assert ours == theirs
