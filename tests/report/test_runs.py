"""Reading, checking and grouping runs; means against a slow reference in NumPy."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_cil.report import load_runs
from lightning_cil.report.groups import mean_of
from lightning_cil.report.runs import SCHEMA
from tests.report.hand_made import BASE, random_matrix, results, with_matrix, write_run


def slow_scores(rows: list[list[float]], before: list[float], joint: float) -> dict[str, float]:
    """The formulas, one loop for each sum."""
    a, t = np.array(rows), len(rows)
    drifts = [a[t - 1, j] - a[j, j] for j in range(t - 1)]
    gains = [a[j, j] - a[j - 1, j] for j in range(1, t)]
    return {
        "ACC": sum(a[t - 1]) / t,
        "AIA": sum(sum(a[i, : i + 1]) / (i + 1) for i in range(t)) / t,
        "FWT": sum(a[j - 1, j] - before[j] for j in range(1, t)) / (t - 1),
        "BWT": sum(drifts) / (t - 1),
        "AF": sum(max(a[:-1, j]) - a[t - 1, j] for j in range(t - 1)) / (t - 1),
        "I": joint - a[t - 1, t - 1],
        "PS": sum(gains) / (t - 1) / abs(sum(drifts)),
    }


def test_means_are_those_of_a_slow_reference(tmp_path: Path) -> None:
    matrices = [random_matrix(4, seed) for seed in range(3)]
    for seed, matrix in enumerate(matrices):
        write_run(tmp_path / f"runs/{seed}", seed=seed, **with_matrix(matrix))
    bounds: list[list[Any]] = [[[None] * 4] * 3 + [[0.9, 0.9, 0.9, last]] for last in (0.95, 0.85)]
    for seed, bound in enumerate(bounds):
        write_run(tmp_path / f"joint/{seed}", method="Joint", seed=seed, **with_matrix(bound))
    runs = load_runs(tmp_path / "runs", joint=tmp_path / "joint")
    group = next(g for g in runs.groups if g.label == "ER")
    found = group.scores("task_il")
    expected = [slow_scores(matrix, [0.0] * 4, 0.9) for matrix in matrices]
    for name in expected[0]:
        values = [e[name] for e in expected]
        assert found[name].mean == pytest.approx(np.mean(values), abs=1e-12)
        assert found[name].std == pytest.approx(np.std(values, ddof=1), abs=1e-12)
        assert found[name].n == 3
    curves = [[np.mean(m[i][: i + 1]) for i in range(4)] for m in matrices]
    assert [s.mean for s in group.curve("class_il")] == pytest.approx(np.mean(curves, axis=0))
    assert [s.std for s in group.curve("class_il")] == pytest.approx(np.std(curves, axis=0, ddof=1))
    assert np.array(group.matrix("class_il")) == pytest.approx(np.mean(matrices, axis=0))
    forgetting = group.forgetting("class_il")
    assert np.mean([s.mean for s in forgetting]) == pytest.approx(found["AF"].mean)
    gains = [np.mean([m[j][j] - m[j - 1][j] for j in range(1, 4)]) for m in matrices]
    assert group.plasticity("class_il").mean == pytest.approx(np.mean(gains))


def test_scores_are_those_that_the_run_wrote(tmp_path: Path) -> None:
    """Of a file as `ResultsWriter` makes it."""
    from lightning_cil.callbacks.results import scores_of
    from lightning_cil.callbacks.stream_state import Counts

    counts = Counts(torch.tensor([[1, 2], [4, 1], [2, 3]]), torch.full((3, 2), 4))
    folder = write_run(
        tmp_path / "run",
        matrix={s: counts.matrix() for s in ("class_il", "task_il")},
        before_training={s: counts.before_training() for s in ("class_il", "task_il")},
    )
    (group,) = load_runs(folder).groups
    for scenario in ("class_il", "task_il"):
        written, _ = scores_of(counts, 2, scenario)
        assert {name: stat.mean for name, stat in group.scores(scenario).items()} == written


def test_seconds_and_bytes(tmp_path: Path) -> None:
    (run,) = load_runs(write_run(tmp_path / "run")).runs
    assert run.seconds == {"training": 5.0, "evaluation": 1.0}
    parts = {"model": 1_234_000, "exemplars": 111_000, "other": 21_000}
    assert run.bytes == {**parts, "total": 1_366_000, "paper": 1_100_000, "images": 100_000}
    assert sum(parts.values()) == 1_366_000


# ---------------------------------------------------------------------- finding


def test_a_run_is_named_by_its_folder_its_file_or_a_folder_above(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs/deep/version_0")
    for path in (folder, folder / "results.json", tmp_path / "runs", str(tmp_path)):
        assert [run.folder for run in load_runs(path).runs] == [folder]
    assert len(load_runs([folder, tmp_path / "runs", folder / "results.json"])) == 1


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_a_path_without_runs_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"{name} (has no|does not exist).*expected a run folder"):
        load_runs(tmp_path / name)


def test_no_path_is_an_error() -> None:
    with pytest.raises(ValueError, match="`paths` names no run"):
        load_runs([])


def test_runs_that_finished_no_task_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/a")
    (tmp_path / "runs/b").mkdir()
    (tmp_path / "runs/b/config.yaml").write_text("{}")
    assert [n for n in load_runs(tmp_path / "runs").notes if "runs/b: not one task is finished" in n]


def test_an_order_of_arguments_changes_nothing(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / name, method=method, seed=seed, **with_matrix(random_matrix(3, k)))
        for k, (name, method, seed) in enumerate([("a", "LwF", 1), ("b", "ER", 0), ("c", "LwF", 0), ("d", "Joint", 0)])
    ]
    pages = set()
    for order in itertools.permutations(folders):
        runs = load_runs(order)
        tables = [runs.table(s).markdown() + runs.table(s).latex() for s in ("class_il", "task_il")]
        pages.add(json.dumps([tables, runs.notes, [str(r.path) for r in runs.runs]]))
    assert len(pages) == 1


# ---------------------------------------------------------------------- refusals


def test_half_written_files_are_named(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run") / "results.json"
    path.write_text(path.read_text()[:500])
    with pytest.raises(ValueError, match=r"run/results\.json is no complete JSON.*half-written"):
        load_runs(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"schema": 1}', '"text"', '{"version": 3, "results": []}'])
def test_foreign_files_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=r"results\.json was not written by lightning-cil"):
        load_runs(tmp_path)


def test_other_schema_versions_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "run", schema=SCHEMA + 1)
    with pytest.raises(ValueError, match=r"results\.json has `schema` 2, this lightning-cil reads 1.*0\.1\.0"):
        load_runs(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": 3}, "`method` is 3, expected a string"),
        ({"task_sizes": [2, 0]}, "`task_sizes`"),
        ({"task_sizes": "2"}, "`task_sizes` is"),
        ({"tasks_done": 3}, "`tasks_done` is 3"),
        ({"matrix__class_il": [[1.0]]}, "`matrix.class_il`"),
        ({"matrix__class_il": [[1.0, "x"], [0, 0]]}, "`matrix.class_il`"),
        ({"matrix__task_il": [[95.0, 0.0], [0, 0]]}, "fractions"),
        ({"before_training": {"class_il": [0, 0]}}, "`before_training.task_il`"),
        ({"sample_weighted_accuracy__class_il": [1]}, "`sample_weighted_accuracy.class_il`"),
        ({"seconds": [{"task": 0}]}, "`seconds` holds"),
        ({"footprint": {"paper": 1}}, "`footprint.full`"),
        ({"footprint__full__total": "many"}, "`footprint.full`"),
        ({"seed": "zero"}, "`seed`"),
        ({"config": []}, "`config`"),
        ({"class_order": [3, 1, 0]}, "`class_order` has 3 classes, `task_sizes` 4"),
        ({"schema": 7, "versions": []}, "not recorded"),
    ],
)
def test_damaged_content_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    write_run(tmp_path / "run", **changes)
    with pytest.raises(ValueError, match=r"run/results\.json(: | has)") as caught:
        load_runs(tmp_path)
    assert words in str(caught.value)


def replaced(value: Any, path: list[Any], new: Any) -> Any:
    """A copy of nested JSON with another value at a path."""
    if not path:
        return new
    copied = list(value) if isinstance(value, list) else dict(value)
    copied[path[0]] = replaced(value[path[0]], path[1:], new)
    return copied


def paths_of(value: Any) -> list[list[Any]]:
    items = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else []
    return [[]] + [[key, *rest] for key, child in items for rest in paths_of(child)]


@settings(max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    path=st.sampled_from(paths_of(BASE)),
    new=st.one_of(st.none(), st.booleans(), st.integers(-2, 3), st.just(1e300), st.text(max_size=3))
    | st.sampled_from([[], {}, [None], {"a": 1}]),
)
def test_any_damage_is_read_or_refused_in_words(tmp_path: Path, path: list[Any], new: Any) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(replaced(BASE, path, new)), encoding="utf-8")
    try:
        runs = load_runs(tmp_path)
        assert runs.table().markdown()
        assert runs.groups[0].curve("class_il")
    except ValueError as error:
        assert str(file) in str(error)  # noqa: PT017


# ---------------------------------------------------------------------- grouping


def test_seeds_are_averaged_and_settings_are_not(tmp_path: Path) -> None:
    for k, (epochs, seed) in enumerate([(1, 0), (1, 1), (9, 0)]):
        write_run(tmp_path / str(k), seed=seed, config__method__epochs=epochs)
    groups = load_runs(tmp_path).groups
    assert {(g.label, len(g.runs)) for g in groups} == {("ER (epochs=1)", 2), ("ER (epochs=9)", 1)}
    assert [run.seed for g in groups if len(g.runs) == 2 for run in g.runs] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "grouped"),
    [
        ({"data": "SplitMNIST"}, False),
        ({"task_sizes": [1, 3]}, False),
        ({"scenario": "task_il"}, False),
        ({"world_size": 2}, False),
        ({"config__callbacks__ReplayBuffer__total": 100}, False),
        ({"config__data__root": "elsewhere"}, True),
        ({"hardware": {}}, True),
        ({"config__callbacks__FeatureRecords": {"samples": 9}}, True),
        ({"config__callbacks": {"ReplayBuffer": {"total": 200}, "LiveFigures 2": {"dpi": 90}}}, True),
        ({"config__callbacks__EarlyStopping": {"patience": 3}}, False),
        ({"config__callbacks__MyOwn": {"a": 3}}, False),
    ],
)
def test_what_makes_a_group(tmp_path: Path, changes: dict[str, Any], grouped: bool) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", seed=1, **changes)
    assert len(load_runs(tmp_path).groups) == (1 if grouped else 2)


def test_only_watchers_beside_no_callbacks_tell_nothing_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config__callbacks={})
    write_run(tmp_path / "b", seed=1, config__callbacks={"PredictionRecords": {}, "LiveFigures": {"dpi": 90}})
    assert len(load_runs(tmp_path).groups) == 1


def test_labels_say_what_is_not_recorded_and_what_a_class_is_of(tmp_path: Path) -> None:
    old = results(seed=1)
    del old["config"]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.json").write_text(json.dumps(old))
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", config__method__optimizer={"class": "Adam", "lr": 0.1})
    runs = load_runs(tmp_path)
    labels = {g.label for g in runs.groups}
    assert labels == {"ER (optimizer=SGD)", "ER (optimizer=Adam)", "ER (settings not recorded)"}
    assert not any("different class orders or splits" in note for note in runs.notes)


def test_files_of_older_versions_group_by_what_they_have(tmp_path: Path) -> None:
    optional = ("config", "status", "tasks_done", "scenario", "data_fingerprint", "versions", "hardware", "undefined")
    optional += ("sample_weighted_accuracy", "class_order_hash", "val_fraction", "formulas")
    for seed in (0, 1):
        old = {k: v for k, v in results(seed=seed).items() if k not in optional}
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "results.json").write_text(json.dumps(old))
    runs = load_runs(tmp_path)
    assert [(g.label, len(g.runs)) for g in runs.groups] == [("ER", 2)]
    assert [s.mean for s in runs.groups[0].curve("class_il")] == [0.75, 0.625]
    assert any("without settings; the runs are averaged" in note for note in runs.notes)
    assert "without settings: ER" in runs.write(tmp_path / "out").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "changes",
    [
        {"class_order": [0, 1, 2, 3]},
        {"data_fingerprint": "0000000000000000"},
        {"val_fraction": 0.1},
        {"config__data__split_seed": 7},
    ],
)
def test_other_orders_and_splits_are_averaged_only_when_asked(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", seed=1, **changes)
    with pytest.raises(ValueError, match="average_different_orders") as caught:
        load_runs(tmp_path)
    assert str(tmp_path / "a") in str(caught.value)
    assert str(tmp_path / "b") in str(caught.value)
    runs = load_runs(tmp_path, average_different_orders=True)
    assert [len(g.runs) for g in runs.groups] == [2]
    assert any("different class orders or splits, as was asked for" in note for note in runs.notes)


def test_unfinished_runs_have_a_row_of_their_own(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"done{seed}", seed=seed)
    part = {"matrix": {s: [[0.5, 0.1], [None, None]] for s in ("class_il", "task_il")}, "tasks_done": 1}
    write_run(tmp_path / "part", seed=2, status="partial", **part)
    runs = load_runs(tmp_path)
    whole, unfinished = sorted(runs.groups, key=lambda g: not g.complete)
    assert (whole.label, len(whole.runs)) == ("ER", 2)
    assert (unfinished.label, len(unfinished.runs)) == ("ER, 1 of 2 tasks", 1)
    assert unfinished.scores("class_il")["ACC"].mean == 0.5
    assert unfinished.scores("class_il")["BWT"].reason == "needs at least 2 tasks"
    assert any("unfinished" in note for note in runs.notes)


def test_repeated_seeds_and_mixed_versions_are_told(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", versions={"torch": "2.12.0"})
    notes = " ".join(load_runs(tmp_path).notes)
    assert "several runs have the seed 0" in notes
    assert "different versions" in notes


# ---------------------------------------------------------------------- joint


JOINT = {"class_il": [[None, None], [0.9, 0.8]], "task_il": [[None, None], [0.9, 0.9]]}


def test_intransigence_is_measured_against_joint_runs_among_the_runs_or_given(tmp_path: Path) -> None:
    write_run(tmp_path / "er")
    write_run(tmp_path / "joint", method="Joint", matrix=JOINT)
    for runs in (load_runs(tmp_path), load_runs(tmp_path / "er", joint=tmp_path / "joint")):
        assert [g.label for g in runs.groups] == ["ER", "Joint"]
        assert runs.groups[0].scores("class_il")["I"].mean == pytest.approx(0.8 - 1.0)
        assert runs.groups[0].scores("task_il")["I"].mean == pytest.approx(0.9 - 1.0)
        assert "the bound itself" in runs.groups[1].scores("class_il")["I"].reason
    alone = load_runs(tmp_path / "er").groups[0].scores("class_il")["I"]
    assert (alone.mean, alone.reason) == (None, "needs a Joint run (--joint)")


@pytest.mark.parametrize("changes", [{"class_order": [0, 1, 2, 3]}, {"data": "Other"}, {"val_fraction": 0.5}])
def test_a_joint_run_of_another_problem_is_no_bound(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_run(tmp_path / "er")
    write_run(tmp_path / "joint", method="Joint", matrix=JOINT, **changes)
    groups = load_runs(tmp_path / "er", joint=tmp_path / "joint").groups
    found = next(g for g in groups if g.label == "ER").scores("class_il")["I"]
    assert found.mean is None
    assert "no Joint run has the same" in found.reason


def test_several_kinds_of_joint_must_be_chosen_from(tmp_path: Path) -> None:
    write_run(tmp_path / "er")
    for epochs in (1, 2):
        write_run(tmp_path / f"joint{epochs}", method="Joint", matrix=JOINT, config__method__epochs=epochs)
    assert "--joint" in load_runs(tmp_path).groups[0].scores("class_il")["I"].reason
    chosen = load_runs(tmp_path, joint=tmp_path / "joint1").groups[0]
    assert chosen.scores("class_il")["I"].mean == pytest.approx(-0.2)


@pytest.mark.parametrize("changes", [{"method": "ER"}, {"method": "Joint", "tasks_done": 1}])
def test_joint_must_be_a_finished_joint_run(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_run(tmp_path / "er")
    write_run(tmp_path / "other", **changes)
    with pytest.raises(ValueError, match=r"`joint`: .*other.*expected a finished run of the method Joint"):
        load_runs(tmp_path / "er", joint=[tmp_path / "other"])


def test_joint_says_in_plain_words_why_it_has_no_forgetting(tmp_path: Path) -> None:
    write_run(tmp_path / "joint", method="Joint", matrix=JOINT)
    found = load_runs(tmp_path).groups[0].scores("class_il")
    for name in ("AIA", "BWT", "AF", "PS"):
        assert found[name].mean is None
        assert found[name].reason.startswith("trained on all tasks at once")
    assert found["ACC"].mean == pytest.approx(0.85)


def test_of_independent_networks_only_the_diagonal_counts(tmp_path: Path) -> None:
    write_run(tmp_path / "er")
    write_run(tmp_path / "alone", method="Independent", matrix__task_il=[[0.75, 0.5], [0.5, 0.5]])
    runs = load_runs(tmp_path)
    group = next(g for g in runs.groups if g.is_independent)
    for scenario in ("class_il", "task_il"):
        assert {(s.mean, "a network of its own" in s.reason) for s in group.scores(scenario).values()} == {(None, True)}
    assert (group.alone("class_il").mean, group.alone("task_il").mean) == (0.875, 0.625)
    assert any("on each task alone: Class-IL 87.50 %, Task-IL 62.50 %" in note for note in runs.notes)
    runs.write(tmp_path / "out")
    for name in ("curves_class_il", "forgetting_class_il", "plasticity_class_il"):
        assert "Independent" not in (tmp_path / "out" / "figures" / f"{name}.svg").read_text()


# ---------------------------------------------------------------------- means


def test_a_mean_over_some_runs_only_is_undefined() -> None:
    stat = mean_of([0.5, None, 0.7], ["", "why", ""])
    assert (stat.mean, stat.std, stat.reason) == (None, None, "undefined in 1 of 3 runs: why")
    assert mean_of([None, None], ["why", "why"]).reason == "why"
    assert mean_of([0.5]).std is None
