"""The command line: commands, overrides, resume, branching, prediction, and what it says when something is wrong."""

import csv
import json
import shlex
import sys
import types
from pathlib import Path

import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from lightning_cil.callbacks.interruption import resume_command
from tests.conftest import RunCli

FAST = ("--model.init_args.epochs", "1", "--trainer.limit_train_batches", "8")


def fit(run_cli: RunCli, root: Path, *extra: str) -> Path:
    code, out, err = run_cli("fit", "--config", "examples/quickstart.yaml", "--trainer.default_root_dir", root, *extra)
    assert code == 0, out + err
    return max(root.glob("version_*"), key=lambda p: int(p.name[8:]))


def test_version_and_help_and_unknown_commands(run_cli: RunCli) -> None:
    assert run_cli("--version").stdout.startswith("lightning-cil 0.")
    assert "commands:" in run_cli("--help").stdout
    assert run_cli().code == 0
    code, _, err = run_cli("fti")
    assert code == 2
    assert "Did you mean 'fit'?" in err


def test_methods_and_data_are_listed(run_cli: RunCli) -> None:
    methods = run_cli("methods").stdout
    assert all(name in methods for name in ("FineTune", "Joint", "LwF", "ER"))
    assert "IncrementalModule" not in methods
    data = run_cli("data").stdout
    assert all(name in data for name in ("SplitDigits", "SplitCIFAR100", "ManifestTasks"))


def test_help_shows_the_docstrings(run_cli: RunCli) -> None:
    code, out, _ = run_cli("fit", "--model.help", "LwF")
    assert code == 0
    assert "Learning without Forgetting" in out
    assert "T > 0 of the distillation" in out
    out = run_cli("fit", "--help").stdout
    assert "--stop_after_task" in out
    assert "--ckpt_path" in out


def test_print_config_holds_every_hyperparameter(run_cli: RunCli) -> None:
    code, out, _ = run_cli("fit", "--config", "examples/quickstart.yaml", "--model", "LwF", "--print_config")
    assert code == 0
    config = yaml.safe_load(out)
    assert config["model"]["init_args"]["temperature"] == 2.0
    assert config["model"]["init_args"]["backbone"]["name"] == "small_cnn"
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.02


def test_defaults_reach_the_config_without_any_file(run_cli: RunCli) -> None:
    code, out, _ = run_cli("fit", "--model", "ER", "--data", "SplitCIFAR100", "--print_config")
    assert code == 0
    config = yaml.safe_load(out)
    assert config["data"]["init_args"]["class_order"] == "seed:1993"
    assert config["model"]["init_args"]["backbone"] == "resnet32"


def test_fit_stop_resume_test_predict(run_cli: RunCli, tmp_path: Path) -> None:
    run = fit(run_cli, tmp_path / "runs", *FAST, "--stop_after_task", "1")
    assert json.loads((run / "results.json").read_text())["tasks_done"] == 2
    again = fit(run_cli, tmp_path / "runs", *FAST, "--ckpt_path", "last")
    assert again == run  # the run goes on in its folder
    found = json.loads((run / "results.json").read_text())
    assert found["status"] == "complete"
    straight = fit(run_cli, tmp_path / "straight", *FAST)
    assert json.loads((straight / "results.json").read_text())["matrix"] == found["matrix"]

    ckpt = str(run / "checkpoints" / "last.ckpt")
    config = str(run / "config.yaml")
    code, out, err = run_cli("test", "--config", config, "--ckpt_path", ckpt)
    assert code == 0, err
    assert f"{100 * sum(found['matrix']['class_il'][-1]) / 5:.2f}" in out

    digits = load_digits()
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(40):
        Image.fromarray((digits.images[i] * 255 / 16).astype("uint8")).save(folder / f"{i:02d}_{digits.target[i]}.png")
    code, out, err = run_cli(
        "predict", "--config", config, "--ckpt_path", ckpt, "--images", folder, "--output", "p.csv"
    )
    assert code == 0, err
    with open("p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    assert set(rows[0]) == {"image", "class", "probability", *(str(d) for d in range(10))}
    right = [row["class"] == row["image"][-5] for row in rows]
    assert sum(right) > 20  # chance is 4; names and columns belong together
    assert sum(float(rows[0][str(d)]) for d in range(10)) == pytest.approx(1, abs=1e-4)


def test_validate_scores_the_held_out_data(run_cli: RunCli, tmp_path: Path) -> None:
    held = ("--data.init_args.val_fraction", "0.2")
    run = fit(run_cli, tmp_path, *FAST, *held, "--stop_after_task", "0")
    ckpt = str(run / "checkpoints" / "task_0.ckpt")
    code, out, err = run_cli("validate", "--config", run / "config.yaml", "--ckpt_path", ckpt)
    assert code == 0, err
    assert "held-out data of task 1:  Class-IL" in out


def test_branching_from_a_task_with_another_setting_says_which_wins(run_cli: RunCli, tmp_path: Path) -> None:
    run = fit(run_cli, tmp_path, *FAST, "--stop_after_task", "0")
    ckpt = str(run / "checkpoints" / "task_0.ckpt")
    code, out, err = run_cli(
        "fit", "--config", run / "config.yaml", "--ckpt_path", ckpt, "--model.init_args.ce_scope", "task",
        "--trainer.default_root_dir", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    assert "`model.init_args.ce_scope` is task here and seen in" in out
    branch = tmp_path / "version_1"
    assert yaml.safe_load((branch / "config.yaml").read_text())["model"]["init_args"]["ce_scope"] == "task"
    assert json.loads((branch / "results.json").read_text())["status"] == "complete"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("--model.init_args.epoch", "1"), ["epoch"]),
        (("--model.init_args.epochs", "many"), ["epochs", "many"]),
        (("--model.init_args.epochs", "0"), ["`epochs=0`", "at least 1"]),
        (("--model", "ERR"), ["ERR"]),
        (("--data.init_args.num_tasks", "3"), ["`num_tasks=3`", "divisor"]),
        (("--data.init_args.class_order", "[0, 1, 1]"), ["more than once"]),
        (("--data.init_args.class_order", "random"), ["'random'", "seed:N"]),
        (("--ckpt_path", "nowhere.ckpt"), ["nowhere.ckpt", "no such file"]),
        (("--stop_after_task", "9"), ["`stop_after_task=9`", "0 to 4"]),
        (("--model.init_args.backbone.name", "resnet1O1"), ["resnet1O1", "resnet101"]),
    ],
)
def test_wrong_input_is_answered_with_a_message(
    run_cli: RunCli, tmp_path: Path, extra: tuple[str, str], words: list[str]
) -> None:
    code, out, err = run_cli(
        "fit", "--config", "examples/quickstart.yaml", "--trainer.default_root_dir", tmp_path, *FAST, *extra
    )
    assert code in (1, 2), out
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_a_budget_below_the_number_of_classes_is_refused(run_cli: RunCli, tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text("trainer:\n  callbacks:\n    - class_path: ReplayBuffer\n      init_args: {total: 5}\n")
    code, _, err = run_cli(
        "fit", "--config", "examples/quickstart.yaml", "--config", config, "--trainer.default_root_dir", tmp_path
    )
    assert code == 1
    assert "fewer than the 10 classes" in err
    assert "allow_missing_classes" in err


def test_debug_shows_the_traceback(run_cli: RunCli, tmp_path: Path) -> None:
    code, _, err = run_cli("fit", "--config", "examples/quickstart.yaml", "--ckpt_path", "no.ckpt", "--debug")
    assert code == 1
    assert "Traceback" in err


def test_a_class_beside_the_config_is_found(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_at_hand.py").write_text("from lightning_cil.methods import FineTune\nclass Mine(FineTune): ...\n")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    code, out, err = run_cli(
        "fit", "--config", "examples/quickstart.yaml", "--model", "mine_at_hand.Mine", "--trainer.fast_dev_run", "true"
    )
    assert code == 0, out + err


@pytest.mark.filterwarnings("ignore:FineTune uses no exemplars")  # its memory stays in the config
def test_going_on_with_another_method_is_said(run_cli: RunCli, tmp_path: Path) -> None:
    run = fit(run_cli, tmp_path, *FAST, "--model", "FineTune", "--stop_after_task", "0")
    with pytest.warns(UserWarning, match="was written by FineTune and goes on with ER"):
        fit(run_cli, tmp_path, *FAST, "--ckpt_path", str(run / "checkpoints" / "task_0.ckpt"))


@pytest.mark.parametrize("logger", ["false", "CSVLogger"])
def test_last_is_found_with_any_logger(run_cli: RunCli, tmp_path: Path, logger: str) -> None:
    options = [*FAST, "--trainer.default_root_dir", tmp_path, "--trainer.logger", logger]
    options += ["--trainer.logger.save_dir", tmp_path] if logger != "false" else []
    command = ("fit", "--config", "examples/quickstart.yaml", *options)
    assert run_cli(*command, "--stop_after_task", "1").code == 0
    code, out, err = run_cli(*command, "--ckpt_path", "last")
    assert code == 0, err
    assert "task 1/5" not in out
    assert "task 3/5" in out


def test_last_without_a_checkpoint_is_said(run_cli: RunCli, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="There is no checkpoint below"):
        fit(
            run_cli, tmp_path, *FAST, "--ckpt_path", "last", "--trainer.fast_dev_run", "false", "--stop_after_task", "0"
        )
    code, _, err = run_cli(
        "test", "--config", "examples/quickstart.yaml", "--trainer.default_root_dir", tmp_path / "no", "--ckpt_path",
        "last",
    )  # fmt: skip
    assert code == 1
    assert "no checkpoints/last.ckpt below" in err


@pytest.mark.parametrize("command", ["test", "predict"])
def test_an_untrained_network_is_not_scored(run_cli: RunCli, tmp_path: Path, command: str) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    extra = ["--images", tmp_path] if command == "predict" else []
    code, _, err = run_cli(
        command, "--config", "examples/quickstart.yaml", "--trainer.default_root_dir", tmp_path / "r", *extra
    )
    assert code == 1
    assert "has learned no class yet" in err
    assert not (tmp_path / "predictions.csv").exists()


def test_a_resumed_run_keeps_its_first_config_and_names_differences(run_cli: RunCli, tmp_path: Path) -> None:
    run = fit(run_cli, tmp_path, *FAST, "--stop_after_task", "0")
    first = (run / "config.yaml").read_text()
    code, out, err = run_cli(
        "fit", "--config", "examples/quickstart.yaml", "--trainer.default_root_dir", tmp_path, *FAST, "--ckpt_path",
        "last", "--model.init_args.ce_scope", "task", "--stop_after_task", "1",
    )  # fmt: skip
    assert code == 0, err
    assert "`model.init_args.ce_scope` is task here and seen in" in out
    assert (run / "config.yaml").read_text() == first
    assert yaml.safe_load((run / "config_resumed_1.yaml").read_text())["model"]["init_args"]["ce_scope"] == "task"
    code, _, err = run_cli(
        "fit", "--config", "examples/quickstart.yaml", "--trainer.default_root_dir", tmp_path, "--model", "FineTune",
        "--ckpt_path", "last",
    )  # fmt: skip
    assert code == 1
    assert "which is a run of ER, and the method given is FineTune" in err


def test_stopping_at_a_task_that_is_done_trains_nothing(run_cli: RunCli, tmp_path: Path) -> None:
    run = fit(run_cli, tmp_path, *FAST, "--stop_after_task", "2")
    ckpt = str(run / "checkpoints" / "task_2.ckpt")
    code, out, err = run_cli(
        "fit", "--config", "examples/quickstart.yaml", "--trainer.default_root_dir", tmp_path / "b", *FAST,
        "--ckpt_path", ckpt, "--stop_after_task", "1",
    )  # fmt: skip
    assert code == 0, err
    assert "task 4/5" not in out


def test_validate_sees_all_tasks_of_the_checkpoint_and_needs_held_out_data(run_cli: RunCli, tmp_path: Path) -> None:
    run = fit(run_cli, tmp_path, *FAST, "--data.init_args.val_fraction", "0.2", "--stop_after_task", "1")
    ckpt = ("--ckpt_path", str(run / "checkpoints" / "task_1.ckpt"))
    code, out, err = run_cli("validate", "--config", run / "config.yaml", *ckpt)
    assert code == 0, err
    assert "held-out data of task 1 to 2:  Class-IL" in out
    code, _, err = run_cli("validate", "--config", run / "config.yaml", *ckpt, "--data.init_args.val_fraction", "0.0")
    assert code == 1


@pytest.mark.parametrize("name", ["EarlyStopping", "ModelCheckpoint"])
def test_a_short_name_that_lightning_has_too_means_this_packages_class(
    run_cli: RunCli, tmp_path: Path, name: str
) -> None:
    config = tmp_path / "monitor.yaml"
    config.write_text(f"trainer: {{callbacks: [{{class_path: {name}, init_args: {{monitor: val/loss}}}}]}}\n")
    data = ("--data", "SplitDigits", "--model", "FineTune", "--print_config")
    for given in (
        ("--config", config),
        ("--trainer.callbacks", name, "--trainer.callbacks.monitor", "val/loss"),
        ("--trainer.callbacks+", name, "--trainer.callbacks.monitor", "val/loss"),
    ):
        code, out, err = run_cli("fit", *given, *data)
        assert code == 0, err
        (callback,) = yaml.safe_load(out)["trainer"]["callbacks"]
        assert callback["class_path"].startswith("lightning_cil.callbacks.")
        assert callback["class_path"].endswith(f".{name}")


def test_a_stopped_run_prints_the_commands_that_go_on_and_what_is_finished_says_so(
    run_cli: RunCli, tmp_path: Path
) -> None:
    first = ("fit", "--config", "examples/quickstart.yaml", "--trainer.default_root_dir", tmp_path / "my runs", *FAST)
    code, out, err = run_cli(*first, "--stop_after_task", "3")
    assert code == 0, err
    (line,) = (line for line in out.splitlines() if line.startswith("Go on:"))
    command = shlex.split(line.removeprefix("Go on:"))
    assert command[-2:] == ["--ckpt_path", "last"]
    assert str(tmp_path / "my runs") in command
    assert "--stop_after_task" not in command
    code, out, err = run_cli(*command[1:])
    assert code == 0, err
    assert [line[:8] for line in out.splitlines() if line.startswith("task ")] == ["task 5/5"]
    (line,) = (line for line in out.splitlines() if "lightning-cil predict" in line)
    assert str(tmp_path / "my runs" / "version_0" / "config.yaml") in shlex.split(line)

    code, out, err = run_cli(*command[1:], "--model.init_args.ce_scope", "task")
    assert code == 0, err
    assert "last.ckpt is finished: nothing to train." in out
    assert "the value given here is used" not in out


def test_the_command_that_goes_on_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["lightning-cil", "fit", "--stop_after_task=0", "--ckpt_path", "a", "--config", "a b.yaml"]
    expected = "fit --config 'a b.yaml' --ckpt_path last"
    assert resume_command(given, without=["--stop_after_task"]) == f"lightning-cil {expected}"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    printed = resume_command(given, without=["--stop_after_task"])
    assert printed.startswith("start torchrun again")
    assert printed.endswith(f"-m lightning_cil {expected}")


def test_other_processes_leave_wrong_input_to_the_first(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("fit", "--data", "SplitDigits", "--model", "ERR")
    assert "no class `ERR`" in run_cli(*given).stderr
    monkeypatch.setenv("LOCAL_RANK", "1")
    code, _, err = run_cli(*given)
    assert code == 2
    assert err == ""


def test_other_processes_say_what_their_own_batch_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_cil.cli import _is_said_by_rank_0

    monkeypatch.setenv("LOCAL_RANK", "1")
    for module, said in (("lightning.pytorch.loops.fit_loop", False), ("lightning_cil.data.base", True)):
        scope = {"__name__": module}
        exec("def run():\n    raise ValueError('an image')", scope)
        with pytest.raises(ValueError, match="an image") as caught:
            scope["run"]()
        assert _is_said_by_rank_0(caught.value) is said


def test_ctrl_c_while_everything_is_imported(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(types.ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "lightning_cil.cli", Slow("lightning_cil.cli"))
    code, _, err = run_cli("fit")
    assert code == 130
    assert err.strip() == "lightning-cil fit: interrupted"


def test_an_optimizer_with_tuples_is_the_same_in_a_checkpoint():
    from lightning_cil._usage import plain

    adam = {"class_path": "torch.optim.Adam", "init_args": {"betas": (0.9, 0.999)}}
    assert plain(adam) == {"class_path": "torch.optim.Adam", "init_args": {"betas": [0.9, 0.999]}}
