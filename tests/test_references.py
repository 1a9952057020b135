"""`lightning-cil references RUN`, on a run of the digits."""

import json
from pathlib import Path

import pytest
import yaml

from lightning_cil.references import finished_reference, reference_config, run_references
from lightning_cil.report.runs import without_results

QUICK = ("--model.epochs", "1", "--data.num_tasks", "2", "--trainer.enable_progress_bar", "false")


@pytest.fixture
def finished_run(run_cli, tmp_path: Path) -> Path:
    done = run_cli("fit", "--config", "examples/quickstart.yaml", "--trainer.default_root_dir", "runs", *QUICK)
    assert done.code == 0, done.stderr
    return tmp_path / "runs" / "version_0"


def test_both_references_are_trained_from_the_runs_own_config(run_cli, finished_run: Path):
    done = run_cli("references", finished_run, "--independent")
    assert done.code == 0, done.stderr
    run = json.loads((finished_run / "results.json").read_text())
    for reference, method in (("joint", "Joint"), ("independent", "Independent")):
        folder = finished_reference(finished_run, reference)
        assert folder == finished_run / "references" / reference / "version_0"
        found = json.loads((folder / "results.json").read_text())
        assert found["method"] == method
        for same in ("data", "seed", "class_order", "task_sizes", "data_fingerprint"):
            assert found[same] == run[same]
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["trainer"]["callbacks"] == []  # the memory is no part of it
        assert config["model"]["init_args"]["epochs"] == 1
        assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.02
    joint = json.loads((finished_run / "references/joint/version_0/results.json").read_text())
    assert joint["matrix"]["class_il"][0] == [None, None]
    assert joint["scores"]["class_il"]["ACC"] > run["scores"]["class_il"]["ACC"] - 0.2
    assert [p.name for p in sorted(finished_run.parent.iterdir())] == ["version_0"]  # beside the run nothing new
    assert without_results(finished_run.parent) == []


def test_complete_references_are_left_alone_and_cut_ones_go_on(run_cli, finished_run: Path):
    assert run_cli("references", finished_run, "--cumulative", "--stop_after_task", "0").code == 0
    folder = finished_run / "references" / "joint_cumulative" / "version_0"
    assert json.loads((folder / "results.json").read_text())["status"] == "partial"
    assert finished_reference(finished_run, "joint_cumulative") is None
    assert run_cli("references", finished_run, "--cumulative").code == 0
    assert json.loads((folder / "results.json").read_text())["status"] == "complete"
    written = (folder / "results.json").stat().st_mtime_ns
    again = run_cli("references", finished_run, "--cumulative", "--model.epochs=1")
    assert again.code == 0, again.stderr
    assert "joint_cumulative: complete already" in again.stdout
    other = run_cli("references", finished_run, "--cumulative", "--model.epochs", "3")
    assert other.code != 0
    assert "`--model.epochs` is 3 now and it was trained with 1" in other.stderr
    assert f"delete the folder {folder.parent}" in other.stderr
    assert (folder / "results.json").stat().st_mtime_ns == written
    assert run_cli("references", finished_run).code == 0  # the other mode has a folder of its own
    assert finished_reference(finished_run, "joint") == finished_run / "references" / "joint" / "version_0"


def test_options_of_fit_are_passed_on(run_cli, finished_run: Path):
    assert run_cli("references", finished_run, "--model.epochs", "2").code == 0
    config = yaml.safe_load((finished_run / "references/joint/version_0/config.yaml").read_text())
    assert config["model"]["init_args"]["epochs"] == 2


CONFIG = {
    "seed_everything": 5,
    "trainer": {
        "callbacks": [
            {"class_path": "lightning_cil.callbacks.Teacher"},
            {"class_path": "lightning_cil.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss"}},
            {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"},
        ],
        "devices": 2,
        "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "elsewhere"}},
        "stop_after_task": 3,
        "default_root_dir": "runs",
    },
    "model": {"class_path": "somewhere.Own", "init_args": {"epochs": 7, "temperature": 2.0, "head": "cosine"}},
    "data": {"class_path": "lightning_cil.data.SplitDigits"},
}


def test_what_is_kept_of_a_config(tmp_path: Path):
    made = reference_config(CONFIG, "joint", tmp_path, {"joint_mode": "cumulative"})
    assert made["model"] == {
        "class_path": "lightning_cil.methods.joint.Joint",
        "init_args": {"epochs": 7, "head": "cosine", "joint_mode": "cumulative"},
    }
    kept = [c["class_path"].rpartition(".")[2] for c in made["trainer"]["callbacks"]]
    assert kept == ["EarlyStopping", "LearningRateMonitor"]
    assert made["trainer"] | {"callbacks": []} == {
        "callbacks": [], "devices": 2, "logger": None, "stop_after_task": None, "default_root_dir": str(tmp_path)
    }  # fmt: skip
    assert (made["seed_everything"], made["data"]) == (5, CONFIG["data"])
    assert len(CONFIG["trainer"]["callbacks"]) == 3  # the run's own stays as it is


def complete(folder: Path, config: dict) -> Path:
    """A run with a finished Joint run below, as far as `references` reads them."""
    version = folder / "references" / "joint" / "version_0"
    version.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (version / "config.yaml").write_text(yaml.safe_dump(config))
    (version / "results.json").write_text('{"status": "complete"}')
    return version


@pytest.mark.parametrize(
    ("options", "same"),
    [
        (["--model.epochs", "7"], True),
        (["--model.epochs=8"], False),
        (["--model.head", "cosine", "--trainer.devices", "2"], True),
        (["--trainer.devices", "1"], False),
        (["--seed_everything", "5", "--stop_after_task", "0"], True),
        (["--data", "SplitDigits"], True),
        (["--data", "SplitMNIST"], False),
        (["--model.warmup", "3"], False),
        (["--config", "other.yaml"], False),
    ],
)
def test_a_complete_reference_is_compared_with_the_options(tmp_path: Path, options: list[str], same: bool):
    complete(tmp_path, CONFIG)
    arguments = [str(tmp_path), *options]
    if same:
        assert run_references(arguments, fit=lambda rest: pytest.fail(str(rest))) == 0
    else:
        with pytest.raises(ValueError, match=r"To train it anew delete the folder .*references/joint;"):
            run_references(arguments, fit=lambda rest: pytest.fail(str(rest)))


def test_a_half_written_reference_is_named(tmp_path: Path):
    version = complete(tmp_path, CONFIG)
    (version / "results.json").write_text('{"status": "comp')
    with pytest.raises(ValueError, match=r"joint/version_0/results\.json is no complete JSON"):
        run_references([str(tmp_path)], fit=lambda rest: pytest.fail(str(rest)))


def test_bad_input(run_cli, tmp_path: Path):
    nothing = run_cli("references", tmp_path / "nowhere")
    assert nothing.code == 1
    assert "nowhere/config.yaml: no such file; expected the folder of a run" in nothing.stderr
    (tmp_path / "config.yaml").write_text("model: 3\n")
    foreign = run_cli("references", tmp_path)
    assert foreign.code == 1
    assert "is not the config of a run" in foreign.stderr
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"model": {"class_path": "somewhere.Own", "init_args": {}}, "data": CONFIG["data"]})
    )
    endless = run_cli("references", tmp_path)
    assert endless.code == 1
    assert "--model.epochs N" in endless.stderr
    assert "Traceback" not in nothing.stderr + foreign.stderr + endless.stderr
    assert run_cli("references").code == 2


def test_a_multi_label_run_is_bounded_by_its_own_joint_training(tmp_path: Path):
    model = {"class_path": "lightning_cil.methods.RebLL", "init_args": {"epochs": 3, "alpha": 1.0}}
    made = reference_config({"model": model, "seed_everything": 5}, "joint", tmp_path, {})
    assert made["model"] == {"class_path": "lightning_cil.methods.ml_joint.MLJoint", "init_args": {"epochs": 3}}
    with pytest.raises(ValueError, match="multi-label run has the reference `joint` only"):
        reference_config({"model": model}, "independent", tmp_path, {})
