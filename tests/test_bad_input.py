"""Bad input of every kind, through the command line: one message, an exit code that is not 0, no traceback."""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cil._usage import explain
from lightning_cil.callbacks import NonFiniteError, ReplayBuffer
from lightning_cil.data import SplitDigits
from lightning_cil.methods import ER
from tests.conftest import CommandResult, RunCli
from tests.data import formats
from tests.streams import fit, make

QUICKSTART = ("--config", "examples/quickstart.yaml", "--model.epochs", "1", "--trainer.limit_train_batches", "4")
LONGEST = 1200
NOISE = ("Traceback", "Namespace(", "NestedArg", "Union subtypes", "jsonargparse", "NoneType")


def refused(result: CommandResult, *words: str) -> str:
    """The message, after the checks that hold for all of them."""
    assert result.code in (1, 2), result.stdout + result.stderr
    text = result.stderr[result.stderr.index("lightning-cil ") :]
    assert len(text) <= LONGEST
    assert [noise for noise in NOISE if noise in result.stderr] == []
    assert [word for word in words if word not in text] == [], text
    return text


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# ---------------------------------------------------------------------- options and configs


@pytest.mark.parametrize(
    ("options", "words"),
    [
        # keys
        ("--model.init_args.epoch 1", ["`model.epoch`", "ER has no option 'epoch'", "`epochs`"]),
        ("--model.ep 3", ["`model.ep`", "`epochs`"]),
        ("--trainer.max_epoch 3", ["`--trainer.max_epoch`", "`--trainer.max_epochs`"]),
        ("--trainer.limit_train 3", ["`--trainer.limit_train`", "`--trainer.limit_train_batches`"]),
        ("--ckpt_pth x", ["`--ckpt_pth`", "`--ckpt_path`"]),
        ("--modl.epochs 3", ["`--modl.epochs`", "`--model`"]),
        (
            "--model ICaRL --model.optimizer null --model.optimizer.lr 1",
            ["`model.optimizer.lr`", "--model.optimizer torch.optim.SGD"],
        ),
        ("--model.optimizer.lrr 1", ["`model.optimizer.lrr`", "SGD has no option", "`lr`"]),
        ("--model.backbone.nam x", ["`model.backbone.nam`", "Backbone has no option", "`name`"]),
        ("stray", ["`stray` belongs to no option"]),
        # types
        ("--model.epochs many", ["`model.epochs` is `many`", "an integer"]),
        ("--model.optimizer.lr 1e-3x", ["`model.optimizer.lr` is `1e-3x`", "a number"]),
        ("--model.head foo", ["`model.head` is `foo`", "'linear', 'multi', 'cosine'"]),
        ("--seed_everything x", ["`seed_everything` is `x`", "an integer"]),
        ("--trainer.max_steps x", ["`trainer.max_steps` is `x`", "an integer"]),
        ("--data.num_tasks null --data.sizes [5,5.5]", ["`data.sizes` is `[5, 5.5]`", "a list of int"]),
        ("--data [1,2]", ["`data` is `[1, 2]`", "IncrementalDataModule"]),
        # values
        ("--model.epochs -3", ["`epochs=-3`", "at least 1"]),
        ("--data.batch_size 0", ["`batch_size=0`", "at least 1"]),
        ("--data.num_tasks 3", ["`num_tasks=3`", "does not divide 10"]),
        ("--data.num_tasks null --data.sizes [3,3]", ["`sizes", "10"]),
        ("--data.class_order [0,1,2,3,4,5,6,7,8,8]", ["class 8 more than once", "each of the 10"]),
        ("--data.class_order [0,1,2,3,4,5,6,7,8,11]", ["class 11", "0 to 9"]),
        ("--data.class_order [0,1]", ["lists 2 classes", "10"]),
        ("--data.class_order random", ["'random'", "seed:N"]),
        ("--trainer.accumulate_grad_batches 0", ["`accumulate_grad_batches=0`", "1 or more"]),
        ("--trainer.val_check_interval 0", ["`val_check_interval=0`", "`limit_val_batches=0`"]),
        ("--trainer.gradient_clip_val -1", ["`gradient_clip_val=-1", "0 or more"]),
        ("--trainer.devices 0", ["`trainer`", "devices"]),
        ("--trainer.precision foo", ["`trainer.precision` is `foo`", "bf16-mixed"]),
        ("--stop_after_task -1", ["`stop_after_task=-1`", "0 or more"]),
        ("--stop_after_task 9", ["`stop_after_task=9`", "0 to 4"]),
        ("--model.optimizer.lr -1", ["`model.optimizer`", "Invalid learning rate: -1"]),
        ("--model.backbone.in_channels 0", ["`in_channels=0`", "3 for colour"]),
        ("--model.backbone.in_channels 3", ["1 channel", "in_channels=1"]),
        ("--model.backbone.name resnet1O1", ["resnet1O1", "resnet101"]),
        ("--trainer.callbacks ReplayBuffer --trainer.callbacks.total 0", ["`total=0`", "at least 1"]),
        (
            "--trainer.callbacks ReplayBuffer --trainer.callbacks.total 5",
            ["fewer than the 10 classes", "Raise `total`"],
        ),
        # classes
        ("--model ERR", ["`model`", "no class `ERR`", "`ER`"]),
        ("--data SplitDigit", ["`data`", "no class `SplitDigit`", "`SplitDigits`"]),
        ("--trainer.callbacks ReplayBufer", ["`trainer.callbacks`", "`ReplayBufer`", "`ReplayBuffer`"]),
        ("--model.optimizer SDG", ["`model.optimizer`", "no class `SDG`", "`SGD`"]),
        ("--model torch.nn.Linear", ["torch.nn.Linear is not derived from IncrementalModule", "ER, FineTune"]),
        ("--model nomod.Foo", ["`nomod.Foo` cannot be imported", "No module named 'nomod'"]),
        ("--data ImageFolderTasks", ["`data.root`", "ImageFolderTasks needs it"]),
        ("--data ImageFolderTasks --data.root /nowhere", ["/nowhere/train", "Put the images into"]),
        ("--data SplitCIFAR100 --data.root /nowhere", ["/nowhere", "download=True"]),
        ("--data ManifestTasks --data.manifest /nowhere.csv", ["`manifest=/nowhere.csv`", "no such file"]),
        # files
        ("--config nowhere.yaml", ["`--config`", "nowhere.yaml", "expected a YAML file"]),
        ("--config results.json", ["results.json` is what a run found", "expected a YAML file"]),
        ("--config latin.yaml", ["latin.yaml` is no UTF-8 text", "byte 2 is 0xe9"]),
        ("--config", ["`--config`", "expected `--config FILE`"]),
        ("--config --model ER", ["`--config`", "expected `--config FILE`"]),
        ("--ckpt_path nowhere.ckpt", ["`ckpt_path=nowhere.ckpt`", "no such file"]),
        ("--ckpt_path best", ["`ckpt_path=best`", "expected a file or 'last'"]),
        ("--ckpt_path=", ["`ckpt_path` is empty", "Leave it out"]),
        ("--ckpt_path s3://bucket/a.ckpt", ["`ckpt_path=s3://bucket/a.ckpt` is an address", "Copy it here"]),
    ],
)
def test_a_wrong_option_is_named(run_cli: RunCli, tmp_path: Path, options: str, words: list[str]) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"# \xe9\n")
    (tmp_path / "results.json").write_text("{}")
    result = run_cli("fit", *QUICKSTART, "--trainer.default_root_dir", tmp_path / "runs", *options.split())
    refused(result, *words)
    assert not list(tmp_path.glob("runs/*"))  # nothing ran, so there is no run folder


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("model:\n  class_path: ER\n init_args: {\n", ["bad.yaml is no valid YAML", "line 3"]),
        ("- 1\n- 2\n", ["`- 1 - 2`", "the sections `trainer`, `model` and `data`"]),
        ("modell: {class_path: ER}\n", ["`modell.class_path`", "`model`"]),
        ("trainer: false\n", ["`trainer` is `False`", "a mapping"]),
        ("trainer: null\n", ["`trainer` is `null`", "a mapping"]),
        ("model: {init_args: {epochs: null}}\n", ["`model.epochs` is `null`", "an integer"]),
        ("seed_everything: -1\n", ["`seed_everything` is `-1`", "expected 0 to"]),
        ("trainer: {max_epoch: 3}\n", ["`trainer.max_epoch`", "`trainer.max_epochs`"]),
        ("trainer: {callbacks: [{class_path: ReplayBuffer, init_args: {totl: 5}}]}\n", ["'totl'", "`total`"]),
        ("trainer: {callbacks: [{class_path: ReplayBufer}]}\n", ["`trainer.callbacks`", "`ReplayBufer`"]),
        ("model: {init_args: {epochs: [1]}}\n", ["`model.epochs` is `[1]`", "an integer"]),
        ("model: {init_args: {optimizer: {class_path: SGD, init_args: {lr: 1e-3x}}}}\n", ["`model.optimizer.lr`"]),
        ("\x00", ["bad.yaml"]),
    ],
)
def test_a_wrong_config_is_named(run_cli: RunCli, tmp_path: Path, config: str, words: list[str]) -> None:
    path = write(tmp_path, "bad.yaml", config)
    refused(run_cli("fit", *QUICKSTART, "--config", path), *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ["no `data` and no `model`", "lightning-cil methods", "lightning-cil data"]),
        (("--data", "SplitDigits"), ["no `model` is given", "`--model CLASS`"]),
        (("--model", "ER"), ["no `data` is given", "`--data CLASS`"]),
    ],
)
def test_what_is_missing_is_named(run_cli: RunCli, options: tuple[str, ...], words: list[str]) -> None:
    refused(run_cli("fit", *options), *words)


OWN = """
import torch
from lightning_cil.methods import FineTune


class NoOptimizer(FineTune):
    def __init__(self, *, epochs: int = 1) -> None:
        super().__init__(epochs=epochs)


class Broken(FineTune):
    def __init__(self, *, epochs: int = 1) -> None:
        self.nothing.there


def bare(params):
    return torch.optim.SGD(params, lr=0.1)
"""


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("import not_there\n", "--model {}.Foo", ["cannot be imported", "'not_there'", "line 1"]),
        ("class Foo(:\n", "--model {}.Foo", ["cannot be imported", "SyntaxError", "line 1"]),
        ("raise OSError('no licence')\n", "--model {}.Foo", ["cannot be imported", "no licence"]),
        (OWN, "--model {}.Fooo", ["cannot be imported", "no attribute 'Fooo'"]),
        (OWN, "--model {}.Broken", ["`model`", "AttributeError", "line 13"]),
        (OWN, "--model.optimizer {}.bare", ["does not say what it returns", "-> torch.optim.Optimizer"]),
    ],
    ids=["import", "syntax", "error", "attribute", "constructor", "annotation"],
)
def test_a_class_of_ones_own_that_fails_is_named(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, source: str,
    options: str, words: list[str],
) -> None:  # fmt: skip
    name = f"own_{request.node.callspec.id}"
    write(tmp_path, f"{name}.py", source)
    monkeypatch.syspath_prepend(tmp_path)
    config = write(tmp_path, "c.yaml", "model: {class_path: FineTune}\n")
    data = ("--data", "SplitDigits")
    refused(run_cli("fit", "--config", config, *data, *options.format(name).split()), *words, name)


def test_an_option_below_one_that_a_class_lacks_is_named(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "own_lacks.py", OWN)
    monkeypatch.syspath_prepend(tmp_path)
    given = ("--data", "SplitDigits", "--model", "own_lacks.NoOptimizer", "--model.optimizer.lr", "0.1")
    refused(run_cli("fit", *given), "`model.optimizer`: NoOptimizer has no option 'optimizer'. It has: epochs.")


def test_a_shared_base_is_not_proposed(run_cli: RunCli) -> None:
    code, _, err = run_cli("fit", "--model", "FineTune", "--data", "FileListTask")
    assert code == 2
    assert "there is no class `FileListTask`" in err
    assert "FileListTasks" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(run_cli: RunCli) -> None:
    refused(run_cli("fit", *QUICKSTART, "--trainer.accelerator", "gpu"), "`accelerator=gpu`", "finds no GPU", "cpu")


def test_a_root_that_cannot_be_written_to_is_named(run_cli: RunCli, tmp_path: Path) -> None:
    root = write(tmp_path, "file", "") / "runs"
    text = refused(run_cli("fit", *QUICKSTART, "--trainer.default_root_dir", root), f"`default_root_dir={root}`")
    assert "a folder that can be written to" in text


def test_a_process_of_its_own_ends_with_the_message(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lightning_cil", "fit", "--model", "ERR", "--data", "SplitDigits"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    refused(CommandResult(done.returncode, done.stdout, done.stderr), "no class `ERR`", "`ER`", "--debug")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- data


def image_folder(root: Path, workers: int, *extra: str) -> list[str]:
    formats.write_image_folder(root, size=16)
    return [
        "fit", "--model", "FineTune", "--model.backbone", "small_cnn", "--model.epochs", "1", "--data",
        "ImageFolderTasks", "--data.root", str(root), "--data.image_size", "16", "--data.num_tasks", "2",
        "--data.batch_size", "4", "--data.in_memory", "false", "--data.num_workers", str(workers),
        "--trainer.accelerator", "cpu", "--trainer.devices", "1", *extra,
    ]  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_image_is_named(run_cli: RunCli, tmp_path: Path, workers: int) -> None:
    command = image_folder(tmp_path / "data", workers)
    broken = sorted((tmp_path / "data" / "train" / "cat").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:100])
    refused(run_cli(*command, "--data.class_order", "sorted"), str(broken), "cannot be read as an image", "Replace")


def test_an_empty_class_is_named(run_cli: RunCli, tmp_path: Path) -> None:
    command = image_folder(tmp_path / "data", 0)
    shutil.rmtree(tmp_path / "data" / "train" / "dog")
    (tmp_path / "data" / "train" / "dog").mkdir()
    refused(run_cli(*command), "no train image: ['dog']", "Add images")


def test_a_label_out_of_range_is_named(run_cli: RunCli, tmp_path: Path) -> None:
    formats.write_mnist(tmp_path / "data")
    labels = next((tmp_path / "data").rglob("train-labels*"))
    labels.write_bytes(labels.read_bytes()[:-1] + bytes([12]))
    result = run_cli("fit", *QUICKSTART, "--data", "SplitMNIST", "--data.root", tmp_path / "data")
    refused(result, "label 12", "0 to 9")


# ---------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the quickstart's network that stopped after task 1 of 0 to 4."""
    root = tmp_path_factory.mktemp("trained")
    options: dict[str, Any] = {"stop_after_task": 1, "limit_train_batches": 4}
    fit(root, make(ER), SplitDigits(num_tasks=5), [ReplayBuffer(total=200)], **options)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)
    return root / "version_0"


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


def changed(change: Callable[[dict[str, Any]], None]) -> Callable[[Path, Path], None]:
    """A writer of the checkpoint with a change."""

    def write_changed(source: Path, path: Path) -> None:
        saved = torch.load(source, weights_only=True)
        change(saved)
        torch.save(saved, path)

    return write_changed


def plain_pickle(source: Path, path: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Code(path.with_name("marker"))}))


def zipped_pickle(source: Path, path: Path) -> None:
    changed(lambda saved: saved.update(extra=Code(path.with_name("marker"))))(source, path)


FOREIGN = {"pytorch-lightning_version": "2.6.0", "state_dict": {}, "callbacks": {}, "loops": {}, "global_step": 3}
BROKEN: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "empty": (lambda source, path: path.write_bytes(b""), "it is empty"),
    "text": (lambda source, path: path.write_text("not a checkpoint"), "no file of torch.save"),
    "truncated": (lambda source, path: path.write_bytes(source.read_bytes()[:-5000]), "damaged or cut off"),
    "folder": (lambda source, path: path.mkdir(), "it is a folder"),
    "tensor": (lambda source, path: torch.save(torch.ones(2), path), "it holds a Tensor"),
    "foreign": (lambda source, path: torch.save(FOREIGN, path), "of another Lightning project"),
    "no stream": (lambda source, path: torch.save({"state_dict": {}}, path), "it has no stream"),
    "no weights": (changed(lambda s: s.pop("state_dict")), "it lacks `state_dict`"),
    "no seed": (changed(lambda s: s["callbacks"]["StreamState"].pop("seed")), "`callbacks.StreamState.seed`"),
    "newer": (changed(lambda s: s["callbacks"]["StreamState"].update(schema=99)), "schema 99"),
    "plain pickle": (plain_pickle, "no file of torch.save"),
    "zipped pickle": (zipped_pickle, "could run code, so nothing of it was loaded"),
}
COMMANDS: dict[str, tuple[str, ...]] = {
    "fit": (),
    "test": (),
    "validate": (),
    "predict": ("--images", "."),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_checkpoint_is_refused(
    run_cli: RunCli, run_folder: Path, tmp_path: Path, kind: str, command: str
) -> None:
    make_broken, words = BROKEN[kind]
    path = tmp_path / "broken.ckpt"
    make_broken(run_folder / "checkpoints" / "last.ckpt", path)
    root = ("--trainer.default_root_dir", tmp_path / "runs")
    refused(run_cli(command, *QUICKSTART, *root, "--ckpt_path", path, *COMMANDS[command]), words)
    assert not (tmp_path / "marker").exists()  # nothing in the file has run
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize("command", ["fit", "test"])
@pytest.mark.parametrize("kind", ["plain pickle", "zipped pickle", "truncated"])
def test_a_broken_last_checkpoint_is_refused(
    run_cli: RunCli, run_folder: Path, tmp_path: Path, kind: str, command: str
) -> None:
    path = tmp_path / "runs" / "version_0" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    BROKEN[kind][0](run_folder / "checkpoints" / "last.ckpt", path)
    root = ("--trainer.default_root_dir", tmp_path / "runs")
    refused(run_cli(command, *QUICKSTART, *root, "--ckpt_path", "last"), BROKEN[kind][1], str(path))
    assert not path.with_name("marker").exists()


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("fit", "--data.class_order sorted", ["another class order", "its config.yaml"]),
        ("test", "--data.class_order sorted", ["another class order", "its config.yaml"]),
        ("fit", "--data.val_fraction 0.2", ["another held-out split", "`val_fraction` is 0.0 there and 0.2 here"]),
        ("validate", "--data.val_fraction 0.2", ["another held-out split", "`val_fraction` is 0.0 there"]),
        ("fit", "--data.num_tasks 2", ["another division into tasks", "`task_sizes` is [2, 2, 2, 2, 2] there"]),
        ("fit", "--model.backbone.name resnet20", ["does not fit the network", "its config.yaml"]),
        ("test", "--model.backbone.in_channels 3", ["does not fit the network", "backbone.conv1.weight"]),
        (
            "fit",
            "--trainer.callbacks ReplayBuffer --trainer.callbacks.total 20",
            ["`total=20` exemplars, and the checkpoint holds", "a larger `total`"],
        ),
        ("test", "--model FineTune", ["written by ER", "the method given is FineTune", "`--model ER`"]),
        ("predict", "--model LwF --images .", ["written by ER", "`--model ER`"]),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(
    run_cli: RunCli, run_folder: Path, tmp_path: Path, command: str, options: str, words: list[str]
) -> None:
    given = ("--ckpt_path", run_folder / "checkpoints" / "last.ckpt", "--trainer.default_root_dir", tmp_path / "runs")
    refused(run_cli(command, *QUICKSTART, "--seed_everything", "3", *given, *options.split()), *words)
    assert not list(tmp_path.glob("runs/*"))


def test_a_checkpoint_of_other_data_is_refused(run_cli: RunCli, run_folder: Path, tmp_path: Path) -> None:
    command = image_folder(tmp_path / "data", 0, "--ckpt_path", str(run_folder / "checkpoints" / "last.ckpt"))
    refused(run_cli(*command), "other data than ImageFolderTasks", "(4) here")
    refused(run_cli("test", *command[1:], "--model", "ER"), "other data than ImageFolderTasks", "(10) there")


def test_last_of_another_method_is_refused(run_cli: RunCli, run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "runs" / "version_0")
    given = ("--trainer.default_root_dir", tmp_path / "runs", "--model", "FineTune", "--ckpt_path", "last")
    refused(run_cli("fit", *QUICKSTART, *given), "a run of ER, and the method given is FineTune")
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["version_0"]


# ---------------------------------------------------------------------- while a run goes on


NOT_A_NUMBER = """
from lightning_cil.methods import ER


class Late(ER):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.task.index == 1 and batch_idx == 2 else loss
"""


def test_a_loss_that_is_not_a_number_is_named_with_commands_that_go_on(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "not_a_number.py", NOT_A_NUMBER)
    monkeypatch.syspath_prepend(tmp_path)
    given = ("--trainer.default_root_dir", "runs", "--model", "not_a_number.Late")
    folder = "runs/version_0"
    text = refused(
        run_cli("fit", *QUICKSTART, *given), "became nan at batch 3 of epoch 1/1, task 2/5, stage 'train'",
        "learning rate 0.02", f"Last good checkpoint: {folder}/checkpoints/last.ckpt",
        f"--config {folder}/config.yaml --ckpt_path {folder}/checkpoints/last.ckpt --trainer.gradient_clip_val 1.0",
    )  # fmt: skip
    monkeypatch.setattr("not_a_number.Late.training_step", ER.training_step)
    commands = [line.split()[1:] for line in text.splitlines() if "lightning-cil fit --config" in line]
    assert len(commands) == 2
    for command in commands:  # both go on
        result = run_cli(*command, "--stop_after_task", "1")
        assert result.code == 0, result.stderr
        assert "task 1/5" not in result.stdout


def test_the_commands_start_from_the_checkpoint_and_the_config_in_use(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "goes_bad.py", NOT_A_NUMBER)
    monkeypatch.syspath_prepend(tmp_path)

    def commands(result: CommandResult) -> list[str]:
        return [line for line in result.stderr.splitlines() if line.startswith("  lightning-cil fit")]

    given = (*QUICKSTART, "--model", "goes_bad.Late", "--trainer.default_root_dir")
    assert run_cli("fit", *given, "first", "--stop_after_task", "0").code == 0
    branch = run_cli("fit", *given, "branch", "--ckpt_path", "first/version_0/checkpoints/task_0.ckpt")
    refused(branch, "from the same checkpoint as this run did")
    start = "--config branch/version_0/config.yaml --ckpt_path first/version_0/checkpoints/task_0.ckpt"
    assert [start in line for line in commands(branch)] == [True, True]
    resumed = run_cli("fit", *given, "first", "--ckpt_path", "last", "--trainer.gradient_clip_val", "0.5")
    refused(resumed, "clipped at a smaller value")
    assert ["--config first/version_0/config_resumed_1.yaml" in line for line in commands(resumed)] == [True, True]
    assert "--trainer.gradient_clip_val 0.05" in commands(resumed)[0]


def test_a_long_message_keeps_its_commands() -> None:
    commands = [f"  lightning-cil fit --config {'folder/' * 60}{i}.yaml" for i in range(2)]
    text = explain(NonFiniteError("\n".join(["a word " * 200, *commands])))
    assert text.splitlines()[1:] == commands
    assert text.splitlines()[0].endswith(" …")


FULL_DISK = """
import resource

from lightning_cil.callbacks import StreamCallback


class FullDisk(StreamCallback):
    '''From task 1 on, no file can be as large as a checkpoint.'''

    def on_stage_start(self, trainer, module, task, stage):
        if task.index == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
"""


def test_a_full_disk_leaves_the_checkpoint_before_and_is_named(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    write(tmp_path, "full_disk.py", FULL_DISK)
    monkeypatch.syspath_prepend(tmp_path)
    root = ("--trainer.default_root_dir", tmp_path / "runs")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        result = run_cli("fit", *QUICKSTART, *root, "--trainer.callbacks", "full_disk.FullDisk")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    last = tmp_path / "runs" / "version_0" / "checkpoints" / "last.ckpt"
    refused(result, f"{last} could not be written: File too large", "MiB are free", "the last one took", "is whole")
    assert sorted(p.name for p in last.parent.iterdir()) == ["last.ckpt", "task_0.ckpt"]  # no draft is left
    assert torch.load(last, weights_only=True)["callbacks"]["StreamState"]["phase"] == "boundary"
    given = ("--trainer.callbacks", "null", "--ckpt_path", "last", "--stop_after_task", "1")
    result = run_cli("fit", *QUICKSTART, *root, *given)
    assert result.code == 0, result.stderr
    assert "task 2/5" in result.stdout


def test_evaluation_prints_a_value_for_each_task_and_leaves_no_folder(
    run_cli: RunCli, run_folder: Path, tmp_path: Path
) -> None:
    given = ("--ckpt_path", run_folder / "checkpoints" / "last.ckpt", "--trainer.default_root_dir", tmp_path / "runs")
    result = run_cli("test", *QUICKSTART, *given)
    assert result.code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if line.strip()][-3:]
    assert [row[0] for row in rows] == ["1", "2", "mean"]
    for column in (1, 2):
        first, second, mean = (float(row[column]) for row in rows)
        assert mean == pytest.approx((first + second) / 2, abs=0.01)
    assert "DataLoader" not in result.stdout
    assert not (tmp_path / "runs").exists()
