"""Figures of multi-label runs: scores of absent classes, label blocks, options; RebLL's figures from its cells."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lightning_cil.report import Group, load_runs, multilabel_figures
from lightning_cil.report.paper import read_paper
from tests.report.hand_made import results, with_matrix, write_run

HISTOGRAM = {"absent": [60, 20, 15, 5], "present": [1, 1, 1, 1]}
KNOWN = {  # 3 exemplars of task 1, 2 of task 2, 1 of task 3; tasks of 2, 2 and 2 classes
    "known_before": [[6, 6, 0], [4, 4, 0], [0, 0, 2]],
    "known_after": [[6, 6, 6], [4, 4, 4], [2, 2, 2]],
}
MATRIX = [[0.8, None, None], [0.5, 0.6, None], [0.4, 0.5, 0.6]]


def write(folder: Path, method: str = "RebLL", seed: int = 0, options: Any = None, **changes: Any) -> None:
    multi = {
        "mAP_last": 0.5,
        "mAP_avg": 0.6,
        "CF1": 0.4,
        "OF1": 0.3,
        "FPR": 0.05,
        "precision": 0.7,
        "recall": 0.2,
        "AF": 0.1,
        "threshold": 0.8,
        "histogram": HISTOGRAM,
        **changes.pop("multilabel", {}),
    }
    config = {**results()["config"], "method": options or {"alpha": 1.2}, "callbacks": {}, **changes.pop("config", {})}
    found = with_matrix(MATRIX, method=method, seed=seed, multilabel=multi, config=config)
    write_run(folder, **{**found, **changes})


def groups_of(folder: Path) -> list[Group]:
    return load_runs(folder).groups


def test_scores_of_absent_classes_are_shares_over_all_runs(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", seed=1, multilabel={"histogram": {"absent": [0, 0, 50, 50], "present": []}, "FPR": 0.15})
    write(tmp_path / "old", "MLFineTune", multilabel={"histogram": {}})
    groups = groups_of(tmp_path)
    assert [multilabel_figures.histogram_of(g) is None for g in groups] == [True, False]
    figure = multilabel_figures.draw_absent_scores(groups)
    (steps,) = figure.axes[0].patches
    values, edges, _ = steps.get_data()
    assert values == pytest.approx([30, 10, 32.5, 27.5])
    assert edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert steps.get_label() == "RebLL (n=2), FPR 10.0 %"
    assert [line.get_xdata()[0] for line in figure.axes[0].lines] == [0.8]
    assert figure.axes[0].get_ylim()[0] < 10


def test_label_blocks_are_shares_of_the_exemplars_labels(tmp_path: Path) -> None:
    empty = {name: [[0, 0], [0, 0]] for name in KNOWN}
    write(tmp_path / "a", relabelling={"tasks": [{"task": 1, **empty}, {"task": 2, **KNOWN}]})
    write(tmp_path / "b", "MLER")
    other, group = groups_of(tmp_path)
    assert multilabel_figures.label_shares(other) is None
    before, after = multilabel_figures.label_shares(group) or ()
    assert before.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert after.tolist() == [[1, 1, 1]] * 3
    figure = multilabel_figures.draw_label_blocks(group)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["before relabelling", "after relabelling"]
    shown = [np.asarray(ax.images[0].get_array()).tolist() for ax in figure.axes[:2]]
    assert shown == [(100 * before).tolist(), (100 * after).tolist()]


def test_a_task_without_exemplars_has_no_share(tmp_path: Path) -> None:
    gone = {"known_before": [[4, 0], [0, 0]], "known_after": [[4, 4], [0, 0]]}
    write(tmp_path / "a", relabelling={"tasks": [{"task": 1, **gone}]})
    (group,) = groups_of(tmp_path)
    _, after = multilabel_figures.label_shares(group) or ()
    assert np.isnan(after).tolist() == [[False, False], [True, True]]


def test_a_sweep_has_the_runs_that_differ_in_one_number_alone(tmp_path: Path) -> None:
    for alpha, last in ((2.0, 0.4), (0.5, 0.3), (1.2, 0.5)):
        for seed in (0, 1):
            score = {"mAP_last": last + 0.1 * seed}
            write(tmp_path / f"{alpha}_{seed}", seed=seed, options={"alpha": alpha, "beta": 0.7}, multilabel=score)
    write(tmp_path / "beta", options={"alpha": 1.2, "beta": 0.1})
    write(tmp_path / "both", options={"alpha": 3.0, "beta": 0.1, "memory": "none"})
    write(tmp_path / "other", "MLKD", options={"new_weight": 0.15})
    found = multilabel_figures.sweeps_of(groups_of(tmp_path))
    assert [(sweep.name, sweep.values) for sweep in found] == [("alpha", [0.5, 1.2, 2.0]), ("beta", [0.1, 0.7])]
    (bars, average) = multilabel_figures.draw_sweep(found[0]).axes[0].containers
    assert (bars.get_label(), average.get_label()) == ("mAP_last", "mAP_avg")
    x, y = bars[0].get_data()
    assert list(x) == [0.5, 1.2, 2.0]
    assert list(y) == pytest.approx([35, 55, 45])
    assert found[0].scores()["mAP_last"][0].std == pytest.approx(0.1 / 2**0.5)


def test_rebll_has_the_figures_of_the_paper(tmp_path: Path) -> None:
    akd = {"classification": "cls", "distillation": "akd", "memory": "none", "fixed_exponent": None, "network": "cnn"}
    sizes = {"task_sizes": [4, 2, 2, 2, 2, 2, 2, 2, 2], "data": "MultiLabelVOC", "class_order": list(range(20))}
    matrix = [[0.5 if j <= i else None for j in range(9)] for i in range(9)]
    nine = {**with_matrix(matrix), **sizes}
    blocks = {"relabelling": {"tasks": [{"task": 8, **{name: np.eye(9).tolist() for name in KNOWN}}]}}
    for alpha in (0.6, 1.2):
        write(tmp_path / "runs" / str(alpha), options={**akd, "alpha": alpha}, **nine)
    for beta in (0.7, 1.4):
        options = {"options": {**akd, "memory": "or_er", "beta": beta}, "config": _memory(2)}
        write(tmp_path / "runs" / f"or{beta}", **options, **nine, **blocks)
    write(tmp_path / "runs" / "five", options={**akd, "memory": "or_er", "beta": 0.7}, config=_memory(5), **nine)
    runs = load_runs(tmp_path / "runs", paper="rebll")
    pictures = read_paper("rebll").pictures(runs.groups)
    pickle.dumps(pictures)  # other processes draw them
    names = [picture.name.removeprefix("rebll_") for picture in pictures]
    assert [n for n in names if n.startswith("fig5")] == ["fig5a", "fig5b"]
    assert {n.split("_")[0] for n in names} == {"fig2", "fig3", "fig4", "fig5a", "fig5b"}
    table = next(t for t in runs.paper_tables() if t.name == "rebll_table5")
    measured = [row.label for row in table.rows if row.n]
    assert [label.split(" (alpha")[0].split(" (")[0] for label in measured] == ["RebLL"] * 2 + ["AKD + OR"] * 2
    assert "2 exemplars a class" in measured[-1]
    first = next(row for row in table.rows if row.n)
    columns = [column.key for column in table.columns]
    printed, ours = (first.cells[columns.index(k)].mean for k in ("mAP_last_printed", "mAP_last"))
    assert (printed, ours) == (pytest.approx(0.731), 0.5)
    assert (runs.write(tmp_path / "out").parent / "figures" / "rebll_fig2.svg").is_file()


@pytest.mark.parametrize(
    ("table", "row", "protocol", "printed"),
    [
        ("table1", ("CSC", None), "voc_b5c3", {"mAP_last": 0.813, "CF1": 0.63, "OF1": 0.566, "mAP_avg": 0.873}),
        ("table1", ("Joint", None), "voc_b4c2", {"mAP_last": 0.926, "CF1": 0.867, "OF1": 0.892, "mAP_avg": None}),
        ("table2", ("RebLL", 5), "coco_b0c5", {"mAP_last": 0.655, "CF1": 0.561, "OF1": 0.54, "mAP_avg": 0.725}),
        ("table3", ("RebLL GCN", 5), "coco_b20c4", {"mAP_last": 0.706, "CF1": 0.601, "OF1": 0.631, "mAP_avg": 0.755}),
        ("table4", ("KD", None), "voc_b4c2", {"mAP_last": 0.582, "CF1": 0.353, "OF1": 0.31, "mAP_avg": 0.775}),
        ("table5", ("AKD + OR (L_bce)", 2), "voc_b4c2", {"mAP_last": 0.773, "CF1": 0.674, "mAP_avg": 0.872}),
        ("table6", ("fixed exponent 2.0", None), "voc_b4c2", {"mAP_last": 0.72, "mAP_avg": 0.835, "FPR": 0.072}),
        ("fpr", ("AKD + replay (L_bce)", 2), "voc_b4c2", {"FPR": 0.067}),
    ],
)
def test_printed_numbers(table: str, row: tuple[str, int | None], protocol: str, printed: dict[str, Any]) -> None:
    found = read_paper("rebll").tables[table]
    (cell,) = [c for c in found.cells if (c.label, c.memory) == row and c.protocol.config == protocol]
    numbers = {name: cell.printed[name].mean for name in printed}
    assert numbers == pytest.approx(printed)


def test_rebll_has_all_cells() -> None:
    paper = read_paper("rebll")
    assert {name: len(table.cells) for name, table in paper.tables.items()} == {
        "table1": 22,
        "table2": 22,
        "table3": 8,
        "table4": 4,
        "table5": 4,
        "table6": 2,
        "fpr": 5,
    }
    assert all(cell.memory in (None, 2, 5) for _, cell in paper.cells)


def _memory(per_class: int) -> dict[str, Any]:
    return {"callbacks": {"ReplayBuffer": {"per_class": per_class}}}


@pytest.mark.parametrize("draw", ["curve", "sweep:", "sweep:a b"])
def test_an_unknown_figure_is_named(tmp_path: Path, draw: str) -> None:
    content = yaml.safe_load(Path(read_paper.__globals__["FOLDER"], "rebll.yaml").read_text(encoding="utf-8"))
    content["figures"]["fig2"]["draw"] = draw
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"`figures\.fig2` names .*expected one of curves"):
        read_paper(path)
