"""What records hold is what the matrix was counted from, and nothing of it disturbs the training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import Logger

from lightning_cil import IncrementalTrainer
from lightning_cil.callbacks import ContinualEvaluation, FeatureRecords, LiveFigures, PredictionRecords
from lightning_cil.methods import FineTune
from lightning_cil.metrics import per_class_accuracy
from lightning_cil.run_logger import RunLogger
from tests.callbacks.conftest import NormNet, TinyTasks
from tests.streams import sgd, weights_hash

SIZES = [2, 2, 2]


class Images(Logger):
    """Takes images; writes down the step of the last task's matrix."""

    name = version = "images"

    def __init__(self, root: Path) -> None:
        self.root = root

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_image(self, key: str, images: list[Any], step: int) -> None:
        if key == "figures/matrix_01_class_il" and step >= 18:
            with (self.root / "drawn").open("a") as file:
                file.write(f"{step}\n")


def run(root: Path, callbacks: list, data: dict | None = None, **options) -> tuple[IncrementalTrainer, FineTune]:
    seed_everything(0, verbose=False)
    module = FineTune(backbone=NormNet(), epochs=2, optimizer=sgd)
    defaults = {"accelerator": "cpu", "enable_progress_bar": False, "default_root_dir": root}
    trainer = IncrementalTrainer(callbacks=callbacks, **{**defaults, **options})
    trainer.fit(module, TinyTasks(**data or {}))
    return trainer, module


def test_every_evaluation_is_recorded_and_gives_back_the_matrix(tmp_path):
    trainer, _ = run(tmp_path, [])
    assert any(isinstance(c, PredictionRecords) for c in trainer.callbacks)  # without asking for it
    found = json.loads((Path(trainer.log_dir) / "results.json").read_text())
    labels = trainer.datamodule.labels("test").numpy()
    folder = Path(trainer.log_dir) / "records"
    assert sorted(p.name for p in folder.iterdir()) == ["before.npz", "task_0.npz", "task_1.npz", "task_2.npz"]
    for k, name in enumerate(["before", "task_0", "task_1", "task_2"]):
        record = np.load(folder / f"{name}.npz")
        assert record["index"].tolist() == list(range(len(labels)))
        assert record["target"].tolist() == labels.tolist()
        for scenario in ("class_il", "task_il"):
            task = record["target"] // 2
            row = [float((record[scenario] == record["target"])[task == j].mean()) for j in range(3)]
            source = found["matrix"][scenario][k - 1] if k else found["before_training"][scenario]
            assert row == pytest.approx(source)
        assert (record["task_il"] // 2 == record["target"] // 2).all()
        assert record["class_il"].max() < 2 * k if k else (record["class_il"] == -1).all()
    accuracy = per_class_accuracy(record["target"], record["class_il"], 6)
    assert accuracy[4:].mean() == pytest.approx(found["matrix"]["class_il"][2][2])


def test_records_are_small(tmp_path):
    trainer, _ = run(tmp_path, [])
    record = np.load(Path(trainer.log_dir) / "records" / "task_2.npz")
    assert [record[name].dtype for name in ("index", "target", "class_il", "task_il")] == [np.int32] + [np.int16] * 3


def test_other_tests_than_the_streams_write_nothing(tmp_path):
    trainer, module = run(tmp_path, [FeatureRecords(3)])
    before = {p: p.stat().st_mtime_ns for p in Path(trainer.log_dir).rglob("records/*")}
    trainer.test(module, datamodule=trainer.datamodule, verbose=False)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("records/*")} == before


def test_nothing_is_written_in_a_fast_dev_run(tmp_path):
    run(tmp_path, [FeatureRecords(3), ContinualEvaluation(1)], fast_dev_run=True)
    assert not list(tmp_path.rglob("records"))


def test_features_of_the_same_images_after_every_task(tmp_path):
    trainer, module = run(tmp_path, [FeatureRecords(num_images=7)])
    folder = Path(trainer.log_dir) / "records"
    files = [np.load(folder / f"features_{name}.npz") for name in ("before", "task_0", "task_1", "task_2")]
    assert all(f["index"].tolist() == [0, 4, 8, 12, 17, 21, 25] for f in files)  # 7 of 30, evenly
    assert not np.array_equal(files[0]["features"], files[-1]["features"])
    data = trainer.datamodule
    images = data.transform(data.split("test").stored(torch.tensor(files[-1]["index"], dtype=torch.int64)))
    with torch.no_grad():
        expected = module.eval().features(images)
    assert files[-1]["features"] == pytest.approx(expected.numpy(), abs=1e-2)
    assert files[-1]["target"].tolist() == data.labels("test")[files[-1]["index"].tolist()].tolist()


def test_all_images_where_there_are_fewer(tmp_path):
    trainer, _ = run(tmp_path, [FeatureRecords(num_images=500)])
    assert len(np.load(Path(trainer.log_dir) / "records" / "features_before.npz")["index"]) == 30


def test_continual_evaluation_leaves_training_as_it_is(tmp_path):
    _, plain = run(tmp_path / "plain", [])
    trainer, watched = run(tmp_path / "watched", [ContinualEvaluation(every_n_steps=1)])
    assert weights_hash(plain) == weights_hash(watched)
    assert json.loads((Path(trainer.log_dir) / "records" / "continual.json").read_text())["every_n_steps"] == 1


def test_its_last_row_of_a_task_is_the_matrix_row(tmp_path):
    trainer, _ = run(tmp_path, [ContinualEvaluation(every_n_steps=1, images_per_task=None)])
    rows = json.loads((Path(trainer.log_dir) / "records" / "continual.json").read_text())["rows"]
    found = json.loads((Path(trainer.log_dir) / "results.json").read_text())["matrix"]
    assert [r["step"] for r in rows] == list(range(1, trainer.global_step + 1))
    for task in range(3):
        last = [r for r in rows if r["task"] == task][-1]
        assert last["total"] == [10] * (task + 1)
        for scenario in ("class_il", "task_il"):
            share = [c / n for c, n in zip(last[scenario], last["total"], strict=True)]
            assert share == pytest.approx(found[scenario][task][: task + 1])


def test_it_takes_a_share_of_the_images_and_every_few_steps(tmp_path):
    trainer, _ = run(tmp_path, [ContinualEvaluation(every_n_steps=4, images_per_task=3)], accumulate_grad_batches=2)
    rows = json.loads((Path(trainer.log_dir) / "records" / "continual.json").read_text())["rows"]
    assert [r["step"] for r in rows] == list(range(4, trainer.global_step + 1, 4))
    assert all(r["total"] == [3] * (r["task"] + 1) for r in rows)


def test_a_resumed_run_keeps_its_rows(tmp_path):
    whole, _ = run(tmp_path / "whole", [ContinualEvaluation(every_n_steps=2)])
    run(tmp_path / "cut", [ContinualEvaluation(every_n_steps=2)], stop_after_task=0)
    seed_everything(0, verbose=False)
    module = FineTune(backbone=NormNet(), epochs=2, optimizer=sgd)
    second = IncrementalTrainer(
        callbacks=[ContinualEvaluation(every_n_steps=2)],
        accelerator="cpu",
        enable_progress_bar=False,
        default_root_dir=tmp_path / "cut",
    )
    second.fit(module, TinyTasks(), ckpt_path="last")
    files = [json.loads((Path(t.log_dir) / "records" / "continual.json").read_text()) for t in (whole, second)]
    assert files[0] == files[1]


@pytest.mark.parametrize("options", [{"every_n_steps": 0}, {"images_per_task": 0}])
def test_numbers_below_one_are_refused(options):
    with pytest.raises(ValueError, match="expected at least 1"):
        ContinualEvaluation(**options)


def test_no_image_is_refused():
    with pytest.raises(ValueError, match="num_images=0"):
        FeatureRecords(0)


def test_two_processes_record_what_one_does(tmp_path):
    def callbacks() -> list:
        return [ContinualEvaluation(every_n_steps=1), FeatureRecords(7), LiveFigures()]

    one, _ = run(tmp_path / "one", callbacks(), logger=[RunLogger(tmp_path / "one"), Images(tmp_path)])
    loggers = [RunLogger(tmp_path / "two"), Images(tmp_path)]
    run(tmp_path / "two", callbacks(), data={"batch_size": 4}, devices=2, strategy="ddp_fork", logger=loggers)
    folders = [tmp_path / name / "version_0" / "records" for name in ("one", "two")]
    assert sorted(p.name for p in folders[0].iterdir()) == sorted(p.name for p in folders[1].iterdir())
    for name in ("task_0.npz", "task_2.npz", "features_task_1.npz"):
        with np.load(folders[0] / name) as first, np.load(folders[1] / name) as second:
            assert first["index"].tolist() == second["index"].tolist()
            assert first["target"].tolist() == second["target"].tolist()
    rows = [json.loads((folder / "continual.json").read_text())["rows"] for folder in folders]
    assert [(r["step"], r["total"]) for r in rows[0]] == [(r["step"], r["total"]) for r in rows[1]]
    assert (tmp_path / "drawn").read_text().split() == [str(one.global_step)] * 2
