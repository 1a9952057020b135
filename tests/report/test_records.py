"""Scores and figures from records, and the references of a run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from lightning_cil.report import load_runs
from lightning_cil.report.records import RECORD_FORMULAS, record_scores
from tests.report.hand_made import write_run

TARGET = np.array([0, 0, 1, 1, 2, 2, 3, 3])
CLASS_IL = np.array([0, 2, 3, 1, 2, 2, 3, 0])
ROWS = [
    {"step": 2, "task": 0, "stage": 0, "total": [4], "class_il": [4], "task_il": [4]},
    {"step": 4, "task": 1, "stage": 0, "total": [4, 4], "class_il": [1, 2], "task_il": [3, 4]},
    {"step": 6, "task": 1, "stage": 0, "total": [4, 4], "class_il": [2, 3], "task_il": [4, 4]},
]


def recorded(folder: Path, **changes: object) -> Path:
    """A run with all kinds of records."""
    run = write_run(folder, **changes)
    (run / "records").mkdir()
    task_il = np.where(TARGET < 2, CLASS_IL % 2, CLASS_IL % 2 + 2)
    first = np.where(TARGET < 2, [0, 0, 1, 0, -1, -1, -1, -1], -1)
    np.savez(run / "records" / "task_0.npz", index=np.arange(8), target=TARGET, class_il=first, task_il=first)
    np.savez(run / "records" / "task_1.npz", index=np.arange(8), target=TARGET, class_il=CLASS_IL, task_il=task_il)
    features = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float16)
    np.savez(run / "records" / "features_task_1.npz", index=np.arange(8), target=TARGET, features=features)
    (run / "records" / "continual.json").write_text(json.dumps({"schema": 1, "every_n_steps": 2, "rows": ROWS}))
    return run


def test_the_table_of_records(tmp_path: Path) -> None:
    table = load_runs(recorded(tmp_path / "a")).record_table("class_il")
    assert [c.key for c in table.columns] == list(RECORD_FORMULAS)
    values = [cell.mean for cell in table.rows[0].cells]
    assert values == pytest.approx([2 / 4, (1 / 2 + 0) / 2, 1 / 4, 0.5 * 3 / 4 + 0.5 * 1 / 4, 3 / 4])
    other = load_runs(tmp_path / "a").record_table("task_il")
    assert [c.key for c in other.columns] == ["class AF", "min-ACC", "WC-ACC", "gap"]  # recency is of Class-IL
    assert [cell.mean for cell in other.rows[0].cells] == pytest.approx(
        [(0 - 1 / 2) / 2, 3 / 4, 0.5 + 0.5 * 3 / 4, 1 / 4]
    )
    (tmp_path / "a" / "records" / "task_0.npz").unlink()
    assert "class AF" not in [c.key for c in load_runs(tmp_path / "a").record_table("class_il").columns]


def test_runs_without_records_have_no_such_table(tmp_path: Path) -> None:
    runs = load_runs(write_run(tmp_path / "a"))
    assert runs.record_table("class_il") is None
    runs.write(tmp_path / "out")
    assert "recorded predictions" not in (tmp_path / "out" / "report.html").read_text()


def test_one_run_of_a_group_without_records_leaves_the_mean_undefined(tmp_path: Path) -> None:
    recorded(tmp_path / "a")
    write_run(tmp_path / "b", seed=1)
    recorded(tmp_path / "c", method="LwF")
    table = load_runs(tmp_path).record_table("class_il")
    cells = {row.label: row.cells for row in table.rows}
    assert list(cells) == ["LwF"]
    assert cells["LwF"][0].mean == 0.5


@pytest.mark.parametrize(("method", "why"), [("Joint", "trained anew"), ("Independent", "a network of its own")])
def test_references_have_no_stability_gap(tmp_path: Path, method: str, why: str) -> None:
    recorded(tmp_path / "er")
    recorded(tmp_path / "other", method=method)
    runs = load_runs(tmp_path)
    scores = record_scores(next(g for g in runs.groups if g.label == method), "class_il")
    for name in ("class AF", "min-ACC", "WC-ACC", "gap"):
        assert scores[name].mean is None
        assert why in scores[name].reason
    runs.write(tmp_path / "out")
    drawn = (tmp_path / "out" / "figures" / "continual_class_il.svg").read_text()
    assert ("ER" in drawn, method in drawn) == (True, False)


def test_a_joint_run_trained_once_says_so(tmp_path: Path) -> None:
    recorded(tmp_path / "joint", method="Joint", matrix__class_il=[[None, None], [0.5, 0.5]])
    (group,) = load_runs(tmp_path).groups
    assert record_scores(group, "class_il")["gap"].reason.startswith("trained on all tasks at once")


def test_a_task_without_a_measurement_is_named(tmp_path: Path) -> None:
    run = recorded(tmp_path / "a")
    (run / "records" / "continual.json").write_text(json.dumps({"schema": 1, "every_n_steps": 2, "rows": ROWS[:1]}))
    (group,) = load_runs(run).groups
    assert "nothing was measured while task 2 was learned" in record_scores(group, "class_il")["gap"].reason


def test_plots_of_records_are_methods_too(tmp_path: Path) -> None:
    recorded(tmp_path / "a")
    runs = load_runs(tmp_path)
    assert [t.get_text() for t in runs.plot_classes(ax=Figure().add_subplot())[1].get_xticklabels()] == [
        "three", "one", "zero", "two"
    ]  # fmt: skip
    assert runs.plot_confusion("ER", Figure().add_subplot())[1].images[0].get_array()[0].tolist() == [50, 0, 50, 0]
    assert len(runs.plot_features(ax=Figure().add_subplot())[1].collections) == 2
    assert runs.plot_continual(ax=Figure().add_subplot())[1].lines[0].get_ydata().tolist() == [100, 25, 50]
    write_run(tmp_path / "b", method="LwF")
    bare = load_runs(tmp_path / "b")
    for plot in (bare.plot_classes, bare.plot_confusion, bare.plot_features, bare.plot_continual):
        with pytest.raises(ValueError, match="with the callback"):
            plot()


def test_figures_and_csv_of_records(tmp_path: Path) -> None:
    load_runs(recorded(tmp_path / "a")).write(tmp_path / "out")
    figures = {p.stem for p in (tmp_path / "out" / "figures").iterdir()}
    assert {"classes_01", "confusion_01", "features_01", "continual_class_il", "continual_task_il"} <= figures
    lines = (tmp_path / "out" / "tables.csv").read_text().splitlines()
    assert len(lines) == 3  # one line for each scenario, records beside the scores
    assert "recency" in lines[0].split(",")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Class-IL: from the recorded predictions" in page


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("task_1.npz", b"", "cannot be read"),
        ("task_1.npz", b"PK half an archive", "no complete npz"),
        ("task_1.npz", b"no archive at all", "no complete npz"),
        ("features_task_1.npz", b"", "cannot be read"),
        ("continual.json", b'{"rows": [{"step": 1}]}', "cannot be read"),
        ("continual.json", b"{", "cannot be read"),
    ],
)
def test_broken_records_name_the_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    run = recorded(tmp_path / "a")
    (run / "records" / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        load_runs(run).write(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("task_1.npz", {"target": TARGET + 5, "class_il": CLASS_IL, "task_il": CLASS_IL}),
        ("task_1.npz", {"target": TARGET, "class_il": CLASS_IL + 6, "task_il": CLASS_IL}),
        ("task_1.npz", {"target": TARGET[:3], "class_il": CLASS_IL, "task_il": CLASS_IL}),
        ("task_1.npz", {"target": TARGET}),
        ("features_task_1.npz", {"features": np.zeros((3, 2)), "target": TARGET}),
    ],
)
def test_records_of_another_run_are_refused(tmp_path: Path, name: str, arrays: dict[str, np.ndarray]) -> None:
    run = recorded(tmp_path / "a")
    np.savez(run / "records" / name, **arrays)
    with pytest.raises(ValueError, match=re.escape(str(run / "records" / name))):
        load_runs(run).write(tmp_path / "out")


def test_references_of_a_run_are_found(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    last = {"matrix__class_il": [[None, None], [0.5, 0.875]], "sample_weighted_accuracy__class_il": [None, 0.6875]}
    write_run(run / "references" / "joint" / "version_0", method="Joint", **last)
    write_run(run / "references" / "independent" / "version_0", method="Independent")
    runs = load_runs(run)
    assert [g.label for g in runs.groups] == ["ER", "Independent", "Joint"]
    assert runs.groups[0].scores("class_il")["I"].mean == pytest.approx(0.875 - 1.0)


def test_each_run_is_measured_against_its_own_joint_run(tmp_path: Path) -> None:
    for name, method, bound in (("a", "ER", 0.875), ("b", "LwF", 0.75)):
        run = write_run(tmp_path / name, method=method)
        config = {"method": {"epochs": bound}, "data": {"split_seed": 0}, "callbacks": {}, "trainer": {}}
        write_run(
            run / "references" / "joint" / "version_0",
            method="Joint",
            matrix__class_il=[[None, None], [0.5, bound]],
            config=config,
        )
    groups = {g.label: g for g in load_runs([tmp_path / "a", tmp_path / "b"]).groups}
    assert groups["ER"].scores("class_il")["I"].mean == pytest.approx(0.875 - 1.0)
    assert groups["LwF"].scores("class_il")["I"].mean == pytest.approx(0.75 - 1.0)


def test_of_two_kinds_of_own_joint_runs_that_trained_once_is_the_bound(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    for kind, mode, bound in (("joint", "once", 0.875), ("joint_cumulative", "cumulative", 0.5)):
        matrix = [[None, None], [0.5, bound]]
        folder = run / "references" / kind / "version_0"
        write_run(folder, method="Joint", matrix__class_il=matrix, config__method__joint_mode=mode)
    assert load_runs(run).groups[0].scores("class_il")["I"].mean == pytest.approx(0.875 - 1.0)


def test_a_config_above_finished_runs_is_no_unstarted_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    write_run(run / "references" / "joint" / "version_0", method="Joint")
    (run / "references" / "joint" / "config.yaml").write_text("{}")
    assert load_runs(run).notes == []
