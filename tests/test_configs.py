"""What a reader copies: files below examples/ and Python of the documents, on tiny data; the quickstart in full.

Configs are found by glob. `<folder>/methods/*.yaml` and `<folder>/protocols/*.yaml` go in pairs: each method with the
folder's protocol `digits` (or its first one), each protocol with the first method; those of a paper's tables are in
test_papers.py. Large backbones are built, but a small one is trained.
"""

import dataclasses
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from matplotlib import pyplot
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from lightning_cil import IncrementalTrainer
from lightning_cil.data import SplitDigits
from lightning_cil.methods import IncrementalModule
from lightning_cil.networks import Backbone
from lightning_cil.networks.audioclip import Towers
from lightning_cil.report.paper import paper_names, read_paper
from tests.data import formats

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
QUICKSTART = EXAMPLES / "quickstart.yaml"
SEEDS = (0, 1, 2)
FIELDS = [
    "schema",
    "method",
    "data",
    "seed",
    "class_order",
    "task_sizes",
    "matrix",
    "before_training",
    "scores",
    "seconds",
    "footprint",
]
SCORES = {"ACC", "AIA", "FWT", "BWT", "AF", "PS"}


def manifest(root: Path) -> dict[str, Any]:
    return {"manifest": formats.write_manifest(root)[0], "num_workers": 0}


def written(write: Callable[..., Any], **options: Any) -> Callable[[Path], dict[str, Any]]:
    """A maker of data that are chosen by `root`."""

    def make(root: Path) -> dict[str, Any]:
        write(root, **options)
        return {"root": root}

    return make


FITTED = {
    "AGCN": {"graph_width": "32"},
    "CSC": {"graph_width": "32"},
    "KRT": {"positions": "16", "width": "32"},
    "L2P": {"backbone": '{"name": "test_vit", "in_channels": 1}'},
}
"""What a method's network needs to fit the tiny pictures, and the test's time."""

SMALL = Backbone("small_cnn", in_channels=1)


class Plain(LightningModule):
    """A module of somebody who does not know this package."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        x, y = batch
        return torch.nn.functional.cross_entropy(self.layer(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader_of(labels: range) -> DataLoader:
    """`[x, y]` batches of the digits with these labels."""
    x, y = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    keep = torch.isin(y, torch.tensor(labels))
    return DataLoader(TensorDataset(x[keep].float() / 16, y[keep]), batch_size=32)


def imagenet_esc(root: Path) -> dict[str, Any]:
    formats.write_esc50(root / "esc")
    formats.write_imagenet_esc(root / "images", num_classes=27, train=1)
    return {"esc_root": root / "esc", "image_root": root / "images", "image_size": 16, "num_workers": 0, **TINY_SOUND}


SIX = ("reading", "writing", "standing", "sleeping", "talking", "walking")
TINY_SOUND = {"sample_rate": 8_000, "seconds": 0.05}
MFCC_SOUND = {**TINY_SOUND, "sample_rate": 16_000}

TINY_DATA: dict[str, Callable[[Path], dict[str, Any]]] = {
    "AricLike": lambda root: {"root": formats.write_aric(root, SIX), "image_size": 16, "num_workers": 0, **MFCC_SOUND},
    "ImageFolderTasks": lambda root: {**written(formats.write_image_folder)(root), "num_workers": 0},
    "ImageNetESC": imagenet_esc,
    "ManifestTasks": manifest,
    "MultiLabelCOCO": lambda root: {**written(formats.write_coco)(root), "image_size": 16, "num_workers": 0},
    "MultiLabelDigits": lambda root: {"train_images": 200, "test_images": 60},
    "MultiLabelVOC": lambda root: {**written(formats.write_voc)(root), "image_size": 16, "num_workers": 0},
    "SplitCIFAR10": written(formats.write_cifar10, train=4, test=2),
    "SplitCIFAR100": written(formats.write_cifar100, train=2, test=1),
    "SplitDigits": lambda root: {},
    "SplitFashionMNIST": written(formats.write_mnist, folder="FashionMNIST/raw"),
    "SplitImageNet": lambda root: {**written(formats.write_imagenet, test=1)(root), "num_workers": 0},
    "SplitMNIST": written(formats.write_mnist),
    "SpokenDigits": lambda root: {
        "root": formats.write_fsdd(root),
        "test_takes": "[0]",
        "image_size": 16,
        "max_pairs": 8,
        **TINY_SOUND,
    },
    "SplitTinyImageNet": written(formats.write_tiny_imagenet, size=16),
}
"""Class of a config's data -> writes them below a folder and returns the arguments to read them from there."""


def config_pairs() -> list[tuple[Path, ...]]:
    """The configs of each run."""
    files = sorted(EXAMPLES.rglob("*.yaml"))
    found: list[tuple[Path, ...]] = [(p,) for p in files if p.parent.name not in ("methods", "protocols")]
    papers = [read_paper(name) for name in paper_names()]
    elsewhere = {ROOT / path for paper in papers for _, cell in paper.cells for path in cell.configs(paper.examples)}
    for folder in sorted({p.parents[1] for p in files if p.parent.name in ("methods", "protocols")}):
        methods, protocols = sorted(folder.glob("methods/*.yaml")), sorted(folder.glob("protocols/*.yaml"))
        usual = next((p for p in protocols if p.stem == "digits"), protocols[0])
        found += [(m, usual) for m in methods if m not in elsewhere]
        found += [(methods[0], p) for p in protocols if p not in elsewhere and (methods[0], p) not in found]
    return found


def run_id(configs: tuple[Path, ...]) -> str:
    return "+".join(p.relative_to(EXAMPLES).with_suffix("").as_posix() for p in configs)


def section(configs: tuple[Path, ...], key: str) -> dict[str, Any]:
    """`class_path` and `init_args` of `model` or `data`, merged as the command line merges configs."""
    merged: dict[str, Any] = {"class_path": "", "init_args": {}}
    for path in configs:
        part = yaml.safe_load(path.read_text(encoding="utf-8")).get(key) or {}
        merged["class_path"] = part.get("class_path", merged["class_path"])
        merged["init_args"].update(part.get("init_args") or {})
    return merged


@cache
def build_once(backbone: Backbone) -> None:
    backbone.build()


def shortened(configs: tuple[Path, ...]) -> list[str]:
    """Options that cut every number of epochs to 1 and take a small backbone in place of a large one."""
    model = section(configs, "model")
    arguments = model["init_args"]
    module, _, name = model["class_path"].rpartition(".")
    method = getattr(importlib.import_module(module or "lightning_cil.methods"), name)
    if "epochs" in inspect.signature(method).parameters:
        arguments.setdefault("epochs", None)
    long = [n for n, v in arguments.items() if n == "epochs" or (n.endswith("_epochs") and v and v > 1)]
    options = [part for name in long for part in (f"--model.init_args.{name}", "1")]
    options += [part for key, value in FITTED.get(name, {}).items() for part in (f"--model.init_args.{key}", value)]
    if "towers" in inspect.signature(method).parameters:
        return [*options, *tiny_towers(method, arguments)]
    backbone = arguments.get("backbone", "resnet32")
    backbone = Backbone(**backbone) if isinstance(backbone, dict) else Backbone(backbone)
    if backbone.name == "small_cnn":
        return options
    build_once(dataclasses.replace(backbone, pretrained=False, weights=None))
    return [*options, "--model.init_args.backbone", "small_cnn"]


def tiny_towers(method: type, arguments: dict[str, Any]) -> list[str]:
    """Options for towers and experts of a width of 16."""
    towers = arguments.get("towers", {})
    Towers(**towers if isinstance(towers, dict) else {"preset": towers})
    experts = ["--model.init_args.mife.rank", "2"] if "mife" in inspect.signature(method).parameters else []
    front_end = towers.get("front_end", "fbsp") if isinstance(towers, dict) else "fbsp"
    return ["--model.init_args.towers.preset", "tiny", "--model.init_args.towers.front_end", front_end, *experts]


def check_results(folder: Path) -> dict[str, Any]:
    """`results.json` of a complete run, with everything that others rely on."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert [name for name in FIELDS if name not in results] == []
    size = len(results["task_sizes"])
    assert results["status"] == "complete"
    assert sorted(results["class_order"]) == list(range(sum(results["task_sizes"])))
    for scenario in ("class_il", "task_il"):
        matrix = results["matrix"][scenario]
        assert [len(row) for row in matrix] == [size] * size
        assert len(results["before_training"][scenario]) == size
        assert all(v is None or 0 <= v <= 1 for row in matrix for v in row)
        assert set(results["scores"][scenario]) >= SCORES
        undefined = {name for name, value in results["scores"][scenario].items() if value is None}
        assert undefined == set(results["undefined"][scenario])
    assert results["seconds"]
    return results


@pytest.mark.parametrize("configs", config_pairs(), ids=run_id)
def test_config_runs(configs, run_cli, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(configs[0].parent)  # a class that is defined beside the config
    name = section(configs, "data")["class_path"].rpartition(".")[2]
    assert name in TINY_DATA, f"{name}: say in TINY_DATA how its tiny data are written"
    options = [part for key, value in TINY_DATA[name](tmp_path / "data").items() for part in (f"--data.{key}", value)]
    options += [*shortened(configs), "--trainer.default_root_dir", tmp_path / "runs"]
    options += ["--trainer.accelerator", "cpu", "--trainer.devices", 1]
    code, _, stderr = run_cli("fit", *(part for c in configs for part in ("--config", c)), *options)
    assert code == 0, stderr
    (folder,) = (tmp_path / "runs").iterdir()
    results = check_results(folder)
    assert results["data"] == name
    checkpoints = sorted(folder.rglob("*.ckpt"))
    assert {p.name for p in checkpoints} >= {"last.ckpt", f"task_{len(results['task_sizes']) - 1}.ckpt"}
    for path in checkpoints:
        torch.load(path, map_location="cpu", weights_only=True)


@pytest.mark.parametrize("script", sorted(EXAMPLES.rglob("*.py")), ids=lambda p: p.stem)
def test_script_runs(script, runs, tmp_path):
    code = runs(None, tmp_path, script=str(script), env={"LIGHTNING_CIL_FAST": "1"})
    assert code == 0, (tmp_path / "output.txt").read_text()


def test_script_runs_by_itself(tmp_path):
    env = {**os.environ, "LIGHTNING_CIL_FAST": "1"}
    command = [sys.executable, EXAMPLES / "own_method.py"]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def python_in(document: str) -> list[str]:
    """The Python of a document's fenced blocks."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def execute(source: str, **names: Any) -> dict[str, Any]:
    names["__name__"] = "document"
    exec(source, names)
    return names


def fit_digits(method: IncrementalModule, root: Path) -> dict[str, Any]:
    """The results of a stream of two tasks."""
    trainer = IncrementalTrainer(accelerator="cpu", default_root_dir=root)
    trainer.fit(method, SplitDigits(num_tasks=2))
    return check_results(Path(trainer.log_dir))


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script, report, method, callback = python_in("README.md")
    execute(script.replace("epochs=8", "epochs=1"))
    check_results(tmp_path / "runs" / "version_0")
    figure = execute(report)["figure"]
    assert figure.axes[0].get_ylabel() == "accuracy on them (%)"
    pyplot.close("all")
    smoothing = execute(method)["Smoothing"](backbone=SMALL, epochs=1)
    assert fit_digits(smoothing, tmp_path / "smoothing")["method"] == "Smoothing"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a stock trainer with tiny data has many
        names = execute(callback, loaders=[loader_of(range(5)), loader_of(range(5, 10))], module=Plain())
    assert len(names["replay"]) == 200


def test_the_method_of_contributing_runs(tmp_path):
    (source,) = [block for block in python_in("CONTRIBUTING.md") if "(IncrementalModule)" in block]
    freeze = execute(source)["Freeze"](backbone=SMALL, epochs=1)
    assert [t["stage"] for t in fit_digits(freeze, tmp_path)["seconds"] if t["stage"] in ("train", "head")] == [
        "train",
        "head",
    ]


@pytest.mark.filterwarnings("ignore:FineTune uses no exemplars")  # the quickstart's memory stays in the config
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("method", "low", "high"), [("ER", 0.85, 1.0), ("FineTune", 0.0, 0.35)])
def test_quickstart_remembers_with_replay_and_forgets_without(method, low, high, seed, run_cli, tmp_path):
    code, stdout, stderr = run_cli("fit", "--config", QUICKSTART, "--model", method, "--seed_everything", seed)
    assert code == 0, stderr
    results = check_results(tmp_path / "runs" / "quickstart" / "version_0")
    assert (results["method"], results["seed"]) == (method, seed)
    assert low <= results["scores"]["class_il"]["ACC"] <= high
    assert results["matrix"]["class_il"][-1][-1] > 0.9  # the last task is learned: forgetting, not divergence
    assert "Run folder: runs/quickstart/version_0" in stdout
