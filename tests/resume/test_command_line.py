"""The command line: killed, interrupted, and gone on with the command that it prints."""

import shlex
from pathlib import Path
from typing import Any

import yaml

from tests.resume.conftest import Runs, left_behind


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


def test_the_printed_command_goes_on_exactly(runs: Runs, run_cli: Any, tmp_path: Path) -> None:
    def command(arguments: list[str], **env: str) -> tuple[int, str]:
        (tmp_path / "output.txt").unlink(missing_ok=True)
        code = runs(None, tmp_path, module="lightning_cil", argv=arguments, env=env)
        return code, (tmp_path / "output.txt").read_text()

    for name in ("straight", "broken"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config(tmp_path / name)))
    assert run_cli("fit", "--config", tmp_path / "straight.yaml").code == 0
    code, said = command(["fit", "--config", "broken.yaml"], BREAK_AT="5", BREAK_WITH="SIGINT")
    assert code == 130, said
    assert "Interrupted by Ctrl-C in task 0, after step 6." in said
    assert "Traceback" not in said
    printed = next(line for line in said.splitlines() if line.startswith("Go on:"))
    arguments = shlex.split(printed.removeprefix("Go on:"))
    assert arguments == ["lightning-cil", "fit", "--config", "broken.yaml", "--ckpt_path", "last"]
    code, said = command(arguments[1:], BREAK_AT="21", BREAK_WITH="SIGKILL")
    assert code == -9, said
    code, said = command(arguments[1:])
    assert code == 0, said
    ours, theirs = left_behind(tmp_path / "straight"), left_behind(tmp_path / "broken")
    resumed = [name for name in theirs["files"] if name.startswith("config_resumed")]
    assert [name for name in theirs.pop("files") if name not in resumed] == ours.pop("files")
    assert ours == theirs
