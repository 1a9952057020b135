"""Reports on multimodal runs: accuracies, M1 and M2; figures of a real tiny run against its records and results."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_cil import IncrementalTrainer
from lightning_cil.callbacks import FeatureRecords
from lightning_cil.methods import MultimodalCIL, ZeroShotAudioCLIP
from lightning_cil.networks import MIFE, Fusion
from lightning_cil.networks.audioclip import Prompts
from lightning_cil.report import Group, Run, Runs, figures, load_runs, multimodal_figures
from lightning_cil.report.paper import Paper, read_paper
from lightning_cil.report.records import modalities_of
from tests.report.hand_made import BASE, write_run
from tests.streams import fit, spoken

CHOICES = {"M1": "the first", "M2": "the second", "c_A, c_B, c_N": [0.2, 0.2, 0.2], "NMI": "of k-means"}
FOUND: dict[str, Any] = {
    "average_accuracy": 0.7,
    "last_accuracy": 0.6,
    "M1": 35.0,
    "M1_frozen": 31.0,
    "M2": 0.7,
    "nmi": {"visual": 0.9, "audio": 0.5},
    "choices": CHOICES,
    "tasks": [{"fused_fraction": 0.25}, {"fused_fraction": 0.75}],
}
OURS = {"prompts": {"templates": 35}, "fusion": {"kind": "aavfm", "threshold": 0.8}, "loss": "crossmodal"}


def write(folder: Path, method: str = "MultimodalCIL", scores: Any = None, **changes: Any) -> Path:
    """A run with scores of its own, on two tasks of two classes."""
    options = changes.pop("options", OURS)
    config = {**BASE["config"], "method": options, "callbacks": changes.pop("callbacks", {})}
    found = {"data": "SpokenDigits", "multimodal": {**FOUND, **(scores or {})}, "config": config, **changes}
    return write_run(folder, method=method, **found)


# ---------------------------------------------------------------------- the table


def test_the_table_has_accuracies_and_both_scores_in_the_papers_units(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", seed=1, scores={"M1": 45.0, "M2": 0.8})
    write(tmp_path / "z", "ZeroShotAudioCLIP", {"nmi": {"visual": None, "audio": None}, "M2": None, "tasks": []})
    write_run(tmp_path / "er")
    table = load_runs(tmp_path).multimodal_table()
    assert table is not None
    rows = {row.label: dict(zip([c.key for c in table.columns], row.cells, strict=True)) for row in table.rows}
    assert list(rows) == ["MultimodalCIL", "ZeroShotAudioCLIP"]
    means = {name: cell.mean for name, cell in rows["MultimodalCIL"].items()}
    assert means == pytest.approx(
        {
            "Acc_avg": 0.7,
            "Acc_last": 0.6,
            "M1": 0.4,
            "M1_frozen": 0.31,
            "M2": 0.75,
            "NMI_visual": 0.9,
            "NMI_audio": 0.5,
            "fused": 0.5,
        }
    )
    assert rows["MultimodalCIL"]["M2"].std == pytest.approx(0.1 / 2**0.5)
    assert "after the last task" in rows["ZeroShotAudioCLIP"]["M2"].reason
    assert rows["ZeroShotAudioCLIP"]["fused"].reason == "no fusion that chooses"
    text = table.markdown()
    assert "| MultimodalCIL | 2 | 70.00 ± 0.00 | 60.00 ± 0.00 | 40.00 ± 7.07 | 31.00 ± 0.00 | 0.75 ± 0.07 |" in text
    assert "- M2 ↑: the second" in text
    assert "c_A, c_B, c_N = [0.2, 0.2, 0.2]" in text  # the choices stand beside the number
    assert table.warnings == ()


def test_rows_of_other_choices_are_told_and_runs_without_scores_left_out(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", "MoEClip", {"choices": {**CHOICES, "c_A, c_B, c_N": [0.5, 0.125, 0.125]}})
    write(tmp_path / "c", "MMLwF", multimodal=None)  # a task was not evaluated
    table = load_runs(tmp_path).multimodal_table()
    assert table is not None
    assert [row.label for row in table.rows] == ["MoEClip", "MultimodalCIL"]
    assert "different choices" in table.notes()[-1]
    assert load_runs(write_run(tmp_path / "er")).multimodal_table() is None


# ---------------------------------------------------------------------- the paper's tables


@pytest.fixture(scope="module")
def paper() -> Paper:
    return read_paper("mcil")


def test_tables_are_complete(paper: Paper) -> None:
    assert {name: len(table.cells) for name, table in paper.tables.items()} == {"table1": 54, "table2": 5, "table3": 4}
    assert [figure.name for figure in paper.figures] == ["fig1a", "fig3a", "fig3b", "fig4"]
    budgets = {c.protocol.config: c.memory for c in paper.tables["table1"].cells if c.label == "iCaRL"}
    assert set(budgets.values()) == {5, 20}
    assert all((memory == 20) is name.startswith("mini_aric") for name, memory in budgets.items())


@pytest.mark.parametrize(
    ("table", "row", "protocol", "printed"),
    [
        ("table1", "Zero-shot", "imagenet_esc27_t8", {"Acc": 0.1736}),
        ("table1", "Partial Fine-tune", "imagenet_esc19_t6", {"Acc": 0.7452}),
        ("table1", "LwF", "mini_aric_t3", {"Acc": 0.2795}),
        ("table1", "iCaRL", "imagenet_esc27_t5", {"Acc": 0.803}),
        ("table1", "TOPIC", "mini_aric_t5", {"Acc": 0.2795}),
        ("table1", "MoE-CLIP", "imagenet_esc19_t3", {"Acc": 0.926}),
        ("table1", "Ours", "mini_aric_t3", {"Acc": 0.6776}),
        ("table1", "Zero-shot, images alone", "mini_aric_t3", {"Acc": None}),
        ("table2", "Baseline", "mini_aric_t5", {"Avg. Acc.": 0.3806, "Last. Acc.": 0.1941, "M1": 0.2784, "M2": 0.61}),
        ("table2", "+ AAVFM", "mini_aric_t5", {"Avg. Acc.": 0.4244, "Last. Acc.": 0.2591, "M1": 0.3235, "M2": 0.64}),
        ("table2", "Ours", "mini_aric_t5", {"Avg. Acc.": 0.644, "Last. Acc.": 0.5759, "M1": 0.3513, "M2": 0.77}),
        ("table3", "Partial Fine-tune", "imagenet_esc27_t5", {"Avg. Acc.": 0.647, "Last. Acc.": 0.6174}),
        ("table3", "Baseline w/ AAVFM", "imagenet_esc19_t6", {"Avg. Acc.": 0.9512, "Last. Acc.": 0.92}),
    ],
)
def test_printed_numbers(paper: Paper, table: str, row: str, protocol: str, printed: dict[str, Any]) -> None:
    (cell,) = [c for c in paper.tables[table].cells if (c.label, c.protocol.config) == (row, protocol)]
    assert {name: stat.mean for name, stat in cell.printed.items()} == pytest.approx(printed)


def aric(folder: Path, sizes: list[int], **changes: Any) -> Path:
    """A run on a list in ARIC's form."""
    matrix = [[0.5 if j <= i else 0.0 for j in range(len(sizes))] for i in range(len(sizes))]
    shape = {s: matrix for s in ("class_il", "task_il")}
    weighted = {s: [0.5] * len(sizes) for s in ("class_il", "task_il")}
    found: dict[str, Any] = {
        "task_sizes": sizes,
        "tasks_done": len(sizes),
        "class_order": list(range(sum(sizes))),
        "class_names": [str(c) for c in range(sum(sizes))],
        "matrix": shape,
        "before_training": {s: [0.0] * len(sizes) for s in shape},
        "sample_weighted_accuracy": weighted,
    }
    return write(folder, **{**found, "data": "AricLike", **changes})


def test_all_printed_columns_stand_beside_ours(tmp_path: Path) -> None:
    aric(tmp_path / "runs/ours", [7, 7, 6, 6, 6])
    aric(tmp_path / "runs/base", [7, 7, 6, 6, 6], options={**OURS, "prompts": {"templates": 1}, "loss": "ce"})
    aric(tmp_path / "runs/uneven", [8, 6, 6, 6, 6], seed=4)  # another division into five tasks
    aric(tmp_path / "runs/three", [11, 11, 10])
    aric(tmp_path / "runs/lwf", [7, 7, 6, 6, 6], method="MMLwF", options={"scope": "last_block"})
    runs = load_runs(tmp_path / "runs", paper="mcil")
    tables = {table.name: table for table in runs.paper_tables()}
    two = tables["mcil_table2"]
    rows = {row.label: row for row in two.rows}
    assert {label: row.n for label, row in rows.items() if row.n} == {"+ AAVFM": 1, "Ours": 1}
    assert [column.head for column in two.columns] == [
        "Avg. Acc. (%) ↑ printed",
        "Acc_avg (%) ours",
        "Last. Acc. (%) ↑ printed",
        "Acc_last (%) ours",
        "M1 (%) ↑ printed",
        "M1 (%) ours",
        "M1_frozen (%) ours",
        "M2 ↑ printed",
        "M2 ours",
    ]
    line = "| Ours | 1 | 64.40 | 70.00 | 57.59 | 60.00 | 35.13 | 35.00 | 31.00 | 0.77 | 0.70 |"
    assert line in two.markdown(formulas=False)
    assert "M2's coefficients cannot be read" in two.markdown()
    five, three = (tables[f"mcil_table1_mini_aric_t{k}"] for k in (5, 3))
    assert {row.label for row in five.rows if row.n} == {"LwF", "Ours"}
    assert {row.label for row in three.rows if row.n} == {"Ours"}
    assert any("MultimodalCIL" in note and "no cell" in note for note in runs.notes)  # the uneven one


def test_the_papers_figures_are_of_their_protocols(paper: Paper, tmp_path: Path) -> None:
    for name, sizes in {"three": [2, 1, 1], "five": [1] * 5}.items():
        folder = aric(tmp_path / name, sizes) / "records"
        folder.mkdir()
        label = np.array([0, 1, 1, 2])
        np.savez(folder / "task_1.npz", index=np.arange(4), target=label, class_il=label % 2, task_il=label)
    found = {p.name.removeprefix("mcil_"): p for p in paper.pictures(load_runs(tmp_path).groups)}
    assert set(found) == {"fig3a_class_il_mini_aric_t3", "fig3a_class_il_mini_aric_t5", "fig3b"}
    assert "after task 2, Ours" in found["fig3b"].title
    shown = np.asarray(found["fig3b"].draw().axes[0].images[0].get_array())
    assert shown.tolist() == [[100, 0], [0, 100]]  # after two of five tasks with a class each


SMALL = """\
title: A paper
source: https://example.org
examples: here
budget: per_class
methods: {iCaRL: {class: MMICaRL, config: icarl}}
protocols: {two: {title: Two, data: SpokenDigits, task_sizes: 2 tasks}, one: {title: One, data: A, task_sizes: [4]}}
tables:
  table1:
    title: Scores
    scenario: class_il
    protocols: [two, one]
    scores: [{printed: Acc, unit: percent, ours: [Acc_avg]}]
    rows: [{method: iCaRL, memory: [5, 20], mean: [50, 60]}]
figures: {fig1: {title: Confusion, draw: confusion, tables: [table1], protocols: [two], after: 2}}
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("2 tasks", "two tasks", "`protocols.two.task_sizes` is 'two tasks', expected 10×10, "),
        ("[5, 20]", "[5]", r"\(iCaRL\) has 1 budgets, expected one, or 2"),
        ("after: 2", "after: 0", "`figures.fig1` has `after: 0`, expected a number of tasks"),
        ("draw: confusion", "draw: curves", "`figures.fig1` has `after: 2`, expected .* a figure of similarity, "),
        (
            "protocols: [two], after",
            "protocols: [three], after",
            "`figures.fig1` names 'three', expected one of two, one",
        ),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    assert [(c.memory, c.protocol.num_tasks) for _, c in read_paper(path).cells] == [(5, 2), (20, 1)]
    assert old in SMALL
    path.write_text(SMALL.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        read_paper(path)


# ---------------------------------------------------------------------- figures of a real run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[IncrementalTrainer, Run]:
    """Two tasks of five digits, learned with everything that the method has."""
    root = tmp_path_factory.mktemp("multimodal")
    torch.manual_seed(3)
    module = MultimodalCIL(
        towers="tiny", epochs=2, mife=MIFE(rank=4), prompts=Prompts(templates=2), fusion=Fusion(threshold=-1.0)
    )
    data = spoken(root / "fsdd", eval_batch_size=3)
    trainer = fit(root / "runs", module, data, [FeatureRecords(num_images=60)])
    return trainer, load_runs(trainer.log_dir).runs[0]


@pytest.fixture(scope="module")
def runs(trained: tuple[IncrementalTrainer, Run]) -> Runs:
    return load_runs(trained[1].folder)


def arrays(run: Run, name: str) -> dict[str, Any]:
    with np.load(run.folder / "records" / name) as file:
        return dict(file)


def unit(table: Any) -> Any:
    return table / np.linalg.norm(table, axis=-1, keepdims=True)


def test_records_are_what_the_method_makes_of_the_samples(trained: tuple[IncrementalTrainer, Run]) -> None:
    trainer, run = trained
    module: Any = trainer.lightning_module
    module.eval()
    found = modalities_of(run)
    assert found is not None
    assert found.audio is not None
    file = arrays(run, "features_task_1.npz")
    index = torch.tensor(file["index"], dtype=torch.int64)
    split = trainer.datamodule.split("test")
    image = trainer.datamodule.transform(split.stored(index))
    wave = trainer.datamodule.transform_audio(split.sounds.load(index))
    with torch.no_grad():
        visual, audio = module.encode(image, wave)
        assert found.visual == pytest.approx(visual.numpy(), abs=2e-3)
        assert found.audio == pytest.approx(audio.numpy(), abs=2e-3)
        assert found.fused == pytest.approx(module.fuse(visual, audio).numpy(), rel=2e-3, abs=0.05)
        assert found.prototypes == pytest.approx(module.class_prototypes().numpy(), abs=2e-3)
    assert found.target.tolist() == trainer.datamodule.labels("test")[index].tolist()
    assert set(found.target.tolist()) == set(range(10))
    before = modalities_of(run, 0)
    assert before is not None
    assert not np.array_equal(before.visual, found.visual)  # trained in between


def test_the_heat_map_has_mean_cosines(trained: tuple[IncrementalTrainer, Run]) -> None:
    _, run = trained
    found = modalities_of(run, 1)
    assert found is not None
    figure = multimodal_figures.draw_similarity(run, 1)
    panels = figure.axes[:6]
    titles = [ax.get_title().splitlines()[0] for ax in panels]
    whens = ("before training", "after task 1")
    assert titles == [f"{what}, {when}" for when in whens for what in ("images", "sounds", "fused")]
    shown = np.asarray(panels[5].images[0].get_array())
    assert shown.shape == (5, 5)  # the classes of the first task
    for c in range(5):
        for other in range(5):
            cosines = [
                float(unit(f.astype(float)) @ unit(found.prototypes[other].astype(float)))
                for f in found.fused[found.target == c]
            ]
            assert shown[c, other] == pytest.approx(np.mean(cosines))
    own, others = shown[np.eye(5, dtype=bool)].mean(), shown[~np.eye(5, dtype=bool)].mean()
    assert multimodal_figures.margin(shown) == pytest.approx(own - others)
    assert len({image.get_clim() for ax in panels for image in ax.images}) == 1  # one scale
    assert figure.axes[-1].get_ylabel() == "mean cosine (no unit)"
    assert [t.get_text() for t in panels[3].get_yticklabels()] == run.results["class_names"][:5]
    assert [t.get_text() for t in panels[5].get_xticklabels()] == run.results["class_names"][:5]
    assert [ax.get_ylabel() for ax in panels] == ["class of the sample", "", ""] * 2
    assert [ax.get_xlabel() for ax in panels] == [""] * 3 + ["class of the prototype"] * 3


def test_a_class_without_samples_is_no_number() -> None:
    found = multimodal_figures.Modalities(np.array([0, 0]), np.eye(2), np.eye(2), None, np.eye(2))
    shown = multimodal_figures.similarities(found, 2)
    assert list(shown) == ["images", "fused"]
    assert np.isnan(shown["images"]).tolist() == [[False, False], [True, True]]
    assert multimodal_figures.margin(shown["images"]) == pytest.approx(0.0)
    assert multimodal_figures.silhouette(found, 2) is None


def test_visual_features_before_and_after(trained: tuple[IncrementalTrainer, Run]) -> None:
    _, run = trained
    figure = multimodal_figures.draw_visual_features(run, 1)
    assert [ax.get_title().split(",")[0] for ax in figure.axes] == ["before training", "after task 1"]
    found = modalities_of(run, 1)
    assert found is not None
    for ax in figure.axes:
        assert [len(points.get_offsets()) for points in ax.collections] == [
            int((found.target == c).sum()) for c in range(5)
        ]
        assert len({str(points.get_paths()[0].vertices.tolist()) for points in ax.collections}) == 5  # markers
        light = [float(np.dot(points.get_facecolor()[0][:3], (0.2126, 0.7152, 0.0722))) for points in ax.collections]
        assert light == sorted(light)
        assert min(np.diff(light)) > 0.05
        assert "no unit" in ax.get_xlabel()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == run.results["class_names"][:5]
    apart = multimodal_figures.Modalities(
        np.repeat([0, 1], 4), np.zeros((8, 2)), np.repeat(np.eye(2), 4, axis=0), None, np.eye(2)
    )
    assert multimodal_figures.silhouette(apart, 2) == pytest.approx(1.0)


def test_confusion_after_a_task_has_the_classes_seen_by_then(trained: tuple[IncrementalTrainer, Run]) -> None:
    _, run = trained
    file = arrays(run, "task_0.npz")
    figure = multimodal_figures.draw_stage_confusion(Group("ours", (run,)), 1)
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert shown.shape == (5, 5)
    assert shown.sum(axis=1) == pytest.approx([100] * 5)
    seen = file["target"] < 5
    right = np.diag(shown) * [(file["target"] == c).sum() for c in range(5)]
    assert right.sum() / 100 == pytest.approx((file["target"] == file["class_il"])[seen].sum())
    assert right.sum() / 100 / seen.sum() == pytest.approx(run.matrix("class_il")[0][0])
    assert np.asarray(load_runs(run.folder).plot_confusion()[1].images[0].get_array()).shape == (10, 10)


def test_the_curve_is_the_papers_accuracy_after_each_task(runs: Runs) -> None:
    figure = figures.draw_curves(runs.groups, "class_il")
    found = runs.runs[0].results["multimodal"]["accuracy"]
    assert list(figure.axes[0].lines[0].get_ydata()) == pytest.approx([100 * a for a in found])
    assert figure.axes[0].get_ylabel() == "accuracy on them (%)"


def test_report_and_paper_draw_what_there_is_to_draw(runs: Runs, tmp_path: Path) -> None:
    pictures = multimodal_figures.pictures(runs.groups, "1_")
    pickle.dumps(pictures)  # other processes draw them
    names = [picture.name for picture in pictures]
    assert names == ["1_similarity", "1_visual_features"]
    drawn = multimodal_figures.figure_of_paper("similarity", "fig1a", "cosines", runs.groups * 2, 2)
    assert [picture.name for picture in drawn] == ["fig1a", "fig1a_2"]
    assert drawn[0].title == "cosines, after task 2, MultimodalCIL, seed 3"
    assert "Own class minus others, before training: images " in drawn[0].alt
    (one,) = multimodal_figures.figure_of_paper("confusion", "fig3b", "", runs.groups, 2)
    assert f"Right: {100 * runs.runs[0].curve('class_il')[-1]:.1f} %." in one.alt  # type: ignore[operator]
    (tsne,) = multimodal_figures.figure_of_paper("visual_features", "fig4", "t-SNE", runs.groups, 1)
    assert "Silhouette before training " in tsne.alt
    for draw in multimodal_figures.FIGURES:
        assert multimodal_figures.figure_of_paper(draw, "x", "", runs.groups, 3) == []  # there is no third task
        assert multimodal_figures.figure_of_paper(draw, "x", "", load_runs(write_run(tmp_path / draw)).groups) == []


def test_a_method_that_hears_nothing_has_no_panel_of_sounds(tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = ZeroShotAudioCLIP(towers="tiny", predict="image")
    trainer = fit(tmp_path / "runs", module, spoken(tmp_path / "fsdd"), [FeatureRecords(num_images=4)])
    run = load_runs(trainer.log_dir).runs[0]
    figure = multimodal_figures.draw_similarity(run)
    assert [ax.get_title().split(",")[0] for ax in figure.axes[:4]] == ["images", "fused"] * 2
    assert "1_visual_features" not in [p.name for p in multimodal_figures.pictures(load_runs(run.folder).groups, "1_")]


@pytest.mark.parametrize(
    "change",
    [
        {"visual": np.zeros((3, 2))},
        {"prototypes": np.zeros((2, 32))},
        {"target": np.full(60, 10)},
    ],
)
def test_foreign_records_are_named(
    trained: tuple[IncrementalTrainer, Run], change: dict[str, Any], tmp_path: Path
) -> None:
    _, run = trained
    name = "features_task_1.npz"
    (tmp_path / "records").mkdir()
    np.savez(tmp_path / "records" / name, **{**arrays(run, name), **change})
    with pytest.raises(ValueError, match=name):
        modalities_of(Run(tmp_path / "results.json", run.results))
