"""`results.json` and `matrix.csv`: what is in them, against an evaluation and formulas of one's own."""

import csv
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything

from lightning_cil import IncrementalTrainer
from lightning_cil.callbacks import ReplayBuffer
from lightning_cil.callbacks.results import readable_json, scores_of, write_atomically
from lightning_cil.callbacks.stream_state import Counts, stream_state
from lightning_cil.methods import ER, FineTune, Joint
from lightning_cil.metrics import scores as formulas
from lightning_cil.schedulers import FractionStepLR
from tests.callbacks.conftest import Recorder, TinyTasks
from tests.streams import TINY, fit, make, results

SIZES = [3, 1, 2]
FIELDS = {
    "schema": int,
    "method": str,
    "data": str,
    "seed": int,
    "class_order": list,
    "task_sizes": list,
    "matrix": dict,
    "before_training": dict,
    "scores": dict,
    "seconds": list,
    "footprint": dict,
}
"""What design 10 promises to others."""


def strict(path: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{path.name} holds {name}, which is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def predictions(module: torch.nn.Module, data: TinyTasks) -> dict[str, list[list[bool]]]:
    """Per task and test image, whether the network is right: an evaluation by hand."""
    split, labels = data.split("test"), data.labels("test").tolist()
    right: dict[str, list[list[bool]]] = {"class_il": [[] for _ in SIZES], "task_il": [[] for _ in SIZES]}
    module.eval()
    for i, label in enumerate(labels):
        with torch.no_grad():
            image = data.transform(split.stored(torch.tensor([i])))
            known, every = module(image)[0].tolist(), module.predict_logits(image)[0].tolist()
        task = int(data.task_of(torch.tensor(label)))
        classes = list(data.tasks[task].classes)
        guess = max(range(len(known)), key=known.__getitem__) if known else None
        right["class_il"][task].append(guess == label)
        right["task_il"][task].append(max(classes, key=every.__getitem__) == label)
    module.train()
    return right


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run with uneven tasks, evaluated by hand before and after each, its files read after each."""
    rows: dict[str, list[list[float]]] = {"class_il": [], "task_il": []}
    files: list[Any] = []

    def look(hook: str, trainer: Any, module: Any, *args: Any) -> None:
        if hook == "on_task_end" or (hook == "on_task_start" and args[0].is_first):
            for scenario, tasks in predictions(module, trainer.datamodule).items():
                rows[scenario].append([sum(task) / len(task) for task in tasks])
        if hook == "on_task_scored" and args[0].index:
            folder = Path(trainer.log_dir)
            files.append((strict(folder / "results.json"), (folder / "matrix.csv").read_text()))

    data = TinyTasks(sizes=SIZES, val_fraction=0.1)
    callbacks = [Recorder(look), ReplayBuffer(total=12)]
    trainer = fit(tmp_path_factory.mktemp("results"), make(ER), data, callbacks)
    folder = Path(trainer.log_dir)
    return SimpleNamespace(
        trainer=trainer, rows=rows, files=files, folder=folder, found=strict(folder / "results.json")
    )


def test_fields_that_others_rely_on(run: SimpleNamespace) -> None:
    assert {name: type(run.found.get(name)) for name in FIELDS} == FIELDS
    assert (run.found["schema"], run.found["method"], run.found["data"]) == (1, "ER", "TinyTasks")
    assert (run.found["seed"], run.found["task_sizes"], run.found["status"]) == (3, SIZES, "complete")
    assert sorted(run.found["class_order"]) == list(range(6))
    assert run.found["class_names"] == [f"class {c}" for c in run.found["class_order"]]
    for scenario in ("class_il", "task_il"):
        assert [len(row) for row in run.found["matrix"][scenario]] == [3, 3, 3]
        assert len(run.found["before_training"][scenario]) == 3
        assert set(run.found["scores"][scenario]) >= {"ACC", "AIA", "FWT", "BWT", "AF", "PS"}


def test_matrix_is_what_the_network_gets_right(run: SimpleNamespace) -> None:
    for scenario, rows in run.rows.items():
        assert run.found["before_training"][scenario] == pytest.approx(rows[0])
        for found, row in zip(run.found["matrix"][scenario], rows[1:], strict=True):
            assert found == pytest.approx(row)
    matrix = run.found["matrix"]["class_il"]
    assert all(matrix[i][j] == 0 for i in range(3) for j in range(i + 1, 3))  # classes that are not there yet


def test_scores_are_functions_of_the_files_own_matrix(run: SimpleNamespace) -> None:
    for scenario in ("class_il", "task_il"):
        matrix, found = run.found["matrix"][scenario], run.found["scores"][scenario]
        assert found["ACC"] == pytest.approx(formulas.average_accuracy(matrix))
        assert found["AIA"] == pytest.approx(formulas.average_incremental_accuracy(matrix))
        assert found["BWT"] == pytest.approx(formulas.backward_transfer(matrix))
        assert found["AF"] == pytest.approx(formulas.average_forgetting(matrix))
        assert found["PS"] == pytest.approx(formulas.plasticity_stability(matrix))
        assert found["ACC"] == pytest.approx(sum(matrix[2]) / 3)
    baseline = run.found["before_training"]["task_il"]
    expected = formulas.forward_transfer(run.found["matrix"]["task_il"], baseline)
    assert run.found["scores"]["task_il"]["FWT"] == pytest.approx(expected)


def test_undefined_scores_are_null_and_have_a_reason(run: SimpleNamespace) -> None:
    for scenario in ("class_il", "task_il"):
        undefined = {name for name, value in run.found["scores"][scenario].items() if value is None}
        assert set(run.found["undefined"][scenario]) == undefined
        assert all(run.found["undefined"][scenario].values())
    assert run.found["scores"]["class_il"]["FWT"] is None


def test_accuracy_over_samples_weighs_tasks_by_their_size(run: SimpleNamespace) -> None:
    for scenario in ("class_il", "task_il"):
        for i, row in enumerate(run.found["matrix"][scenario]):
            sizes = SIZES[: i + 1]
            expected = sum(a * n for a, n in zip(row, sizes, strict=False)) / sum(sizes)
            assert run.found["sample_weighted_accuracy"][scenario][i] == pytest.approx(expected)


def test_csv_agrees_with_the_json(run: SimpleNamespace) -> None:
    with (run.folder / "matrix.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(r["scenario"], r["after_task"]) for r in table] == [
        (scenario, after) for scenario in ("class_il", "task_il") for after in ("before", "0", "1", "2")
    ]
    for row in table:
        after, scenario = row["after_task"], row["scenario"]
        source = run.found["before_training"] if after == "before" else run.found["matrix"]
        expected = source[scenario] if after == "before" else source[scenario][int(after)]
        assert [float(row[f"task_{j}"]) for j in range(3)] == pytest.approx(expected, abs=5e-7)


def test_times_of_every_phase(run: SimpleNamespace) -> None:
    phases = [(t["task"], t["stage"]) for t in run.found["seconds"]]
    one = ["train", "task end", "evaluation"]
    assert phases == [(0, "evaluation before training"), *((task, name) for task in range(3) for name in one)]
    assert all(t["seconds"] > 0 and t["peak_memory_bytes"] > 0 for t in run.found["seconds"])


def test_footprint_counts_the_network_and_the_exemplars(run: SimpleNamespace) -> None:
    module = run.trainer.lightning_module
    body, head = (4 * sum(p.numel() for p in part.parameters()) for part in (module.backbone, module.head))
    full = run.found["footprint"]["full"]
    assert (full["body"], full["head"], full["exemplars"], full["exemplar_labels"]) == (body, head, 12 * 36, 12 * 3 * 8)
    assert run.found["footprint"]["paper"] == body + 12 * 36
    assert full["teacher"] == 0


def test_after_every_task_the_files_are_there(run: SimpleNamespace) -> None:
    """What the recorder read before `ResultsWriter` wrote anew: the state after the task before."""
    for done, (found, table) in enumerate(run.files, 1):
        assert (found["status"], found["tasks_done"]) == ("partial", done)
        for scenario in ("class_il", "task_il"):
            block = [row[:done] for row in run.found["matrix"][scenario][:done]]
            assert found["matrix"][scenario][:done] == run.found["matrix"][scenario][:done]
            assert found["matrix"][scenario][done:] == [[None] * 3] * (3 - done)
            assert found["scores"][scenario]["ACC"] == pytest.approx(sum(block[-1]) / done)
        assert table.splitlines()[-1].endswith(",,,")


def test_scores_reach_the_loggers(run: SimpleNamespace) -> None:
    run.trainer.logger.save()
    with (run.folder / "metrics.csv").open(newline="") as file:
        logged = [row["class_il/ACC"] for row in csv.DictReader(file) if row.get("class_il/ACC")]
    assert float(logged[-1]) == pytest.approx(run.found["scores"]["class_il"]["ACC"])


def test_a_run_that_stops_early_is_partial(tmp_path: Path) -> None:
    trainer = fit(tmp_path, make(FineTune), TinyTasks(), stop_after_task=1, evaluate_before_training=False)
    found = strict(Path(trainer.log_dir) / "results.json")
    assert (found["status"], found["tasks_done"]) == ("partial", 2)
    assert found["before_training"]["task_il"] == [None] * 3
    assert found["scores"]["task_il"]["FWT"] is None
    assert "untrained network was not evaluated" in found["undefined"]["task_il"]["FWT"]
    assert found["matrix"]["class_il"][2] == [None] * 3


def test_tasks_without_training_have_no_row(tmp_path: Path) -> None:
    trainer = fit(tmp_path, make(Joint), TinyTasks())
    found = strict(Path(trainer.log_dir) / "results.json")
    assert found["matrix"]["class_il"][:2] == [[None] * 3] * 2
    assert None not in found["matrix"]["class_il"][2]
    assert found["scores"]["class_il"]["ACC"] == pytest.approx(sum(found["matrix"]["class_il"][2]) / 3)
    assert {"AIA", "BWT", "AF"} <= set(found["undefined"]["class_il"])
    assert (Path(trainer.log_dir) / "matrix.csv").read_text().splitlines()[2] == "class_il,0,,,"


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    fit(tmp_path, make(FineTune), TinyTasks(), fast_dev_run=True)
    assert not list(tmp_path.rglob("results.json"))


def test_scores_of_a_hand_worked_matrix() -> None:
    """Two tasks of 4: before 1 and 2 right; then 4, 1; then 2, 3."""
    counts = Counts(torch.tensor([[1, 2], [4, 1], [2, 3]]), torch.full((3, 2), 4))
    found, undefined = scores_of(counts, 2, "task_il")
    expected = {"ACC": 0.625, "AIA": 0.8125, "FWT": -0.25, "BWT": -0.5, "AF": 0.5}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert scores_of(counts, 2, "class_il")[0]["FWT"] is None
    assert "FWT" not in undefined


# ---------------------------------------------------------------------- atomic writing


def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new and longer")
    assert path.read_text() == "old"
    monkeypatch.undo()
    write_atomically(path, "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("results.json", "new")]


def test_numbers_that_are_none_are_refused_instead_of_written(run: SimpleNamespace, tmp_path: Path) -> None:
    """A NaN can only be a mistake of ours: better no new file than one that other programs cannot read."""
    from lightning_cil.callbacks import ResultsWriter

    state = stream_state(run.trainer)
    before = (run.folder / "results.json").read_text()
    seconds, state.times[0].seconds = state.times[0].seconds, float("nan")
    try:
        with pytest.raises(ValueError, match=r"`seconds` holds NaN"):
            ResultsWriter().on_task_scored(run.trainer, run.trainer.lightning_module, run.trainer.datamodule.tasks[2])
    finally:
        state.times[0].seconds = seconds
    assert (run.folder / "results.json").read_text() == before


# ---------------------------------------------------------------------- config


def test_config_holds_what_the_run_was_made_with(run: SimpleNamespace) -> None:
    config = run.found["config"]
    assert set(config) == {"method", "data", "callbacks", "trainer"}
    module, data = run.trainer.lightning_module, run.trainer.datamodule
    assert config["method"]["epochs"] == module.epochs
    assert config["method"]["head"] == "linear"
    assert config["method"]["ce_scope"] == module.hparams["ce_scope"]
    assert config["data"]["batch_size"] == data.batch_size
    assert config["callbacks"]["ReplayBuffer"]["total"] == 12
    assert "StreamState" not in config["callbacks"]
    assert "StreamProgressBar" not in config["callbacks"]


def test_config_names_optimizer_and_schedule_with_their_numbers(tmp_path: Path) -> None:
    def slow(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.03, momentum=0.5)

    module = make(FineTune, optimizer=slow, lr_scheduler=lambda o: FractionStepLR(o, at=[0.5], factor=0.2))
    fit(tmp_path, module, TinyTasks(), stop_after_task=0)
    found = strict(next(tmp_path.rglob("results.json")))["config"]["method"]
    assert (found["optimizer"]["class"], found["optimizer"]["lr"], found["optimizer"]["momentum"]) == ("SGD", 0.03, 0.5)
    assert found["lr_scheduler"] == {"class": "FractionStepLR", "at": [0.5], "factor": 0.2}


def test_an_optimizer_that_wants_the_real_parameters_does_not_stop_the_results(tmp_path: Path) -> None:
    def of_two(parameters: Any) -> torch.optim.Optimizer:
        first, *rest = parameters
        return torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": rest or 1 / 0}], lr=0.01)

    fit(tmp_path, make(FineTune, optimizer=of_two), TinyTasks(), stop_after_task=0)
    assert "unknown" in strict(next(tmp_path.rglob("results.json")))["config"]["method"]["optimizer"]


def test_runs_of_other_settings_have_another_config(tmp_path: Path) -> None:
    found = []
    for name, seed, epochs in (("a", 1, 1), ("b", 2, 1), ("c", 1, 2)):
        seed_everything(seed, verbose=False)
        trainer = IncrementalTrainer(
            accelerator="cpu", enable_progress_bar=False, default_root_dir=tmp_path / name, stop_after_task=0
        )
        trainer.fit(FineTune(backbone=TINY, epochs=epochs), TinyTasks())
        found.append(results(trainer))
    assert [r["seed"] for r in found] == [1, 2, 1]
    assert found[0]["config"] == found[1]["config"]
    assert found[0]["config"] != found[2]["config"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_no_json_is_named(number: float) -> None:
    for value, name in (({"m": {"M1": number}}, "m.M1"), ({"m": {"rows": [[0.5], [number]]}}, "m.rows")):
        with pytest.raises(ValueError, match=rf"results\.json: `{name}` holds NaN or infinity; expected finite"):
            readable_json(value)
    assert json.loads(readable_json({"m": {"M1": None, "rows": [[0.5], []]}})) == {
        "m": {"M1": None, "rows": [[0.5], []]}
    }
