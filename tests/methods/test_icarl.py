"""`ICaRL`: losses, class means of exemplars by the new body, two classifiers scored, budgets below the classes."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything

from lightning_cil import IncrementalTrainer
from lightning_cil.callbacks import ReplayBuffer
from lightning_cil.data import SplitDigits
from lightning_cil.data.splits import make_tasks
from lightning_cil.methods import FineTune, ICaRL, IncrementalModule
from lightning_cil.replay import herding_inner_product
from tests.callbacks.conftest import Recorder
from tests.losses import reference as slow
from tests.streams import TINY, fit, make, results, sgd
from tests.trainer.test_ranks import saved

NEW, OLD = torch.tensor([4, 5, 6, 4, 5]), torch.tensor([0, 3, 2])


def third_task(**options: Any) -> ICaRL:
    module = make(ICaRL, **options)
    tasks = make_tasks([2, 2, 3, 2])
    module.begin_stream(tasks, 0)
    module.grow_to(tasks[2])
    module.log_terms = lambda **terms: None
    return module.double()


def batch(teacher_width: int = 4) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "image": torch.randn(5, 1, 8, 8).double(),
        "target": NEW,
        "teacher_logits": 3 * torch.randn(5, teacher_width).double(),
        "replay_image": torch.randn(3, 1, 8, 8).double(),
        "replay_target": OLD,
        "replay_teacher_logits": 3 * torch.randn(3, teacher_width).double(),
    }


def outputs(module: ICaRL, b: dict[str, torch.Tensor]) -> tuple[list[list[float]], list[list[float]], list[int]]:
    """Logits, teacher logits and labels of all eight samples as lists."""
    logits = [*module(b["image"]).tolist(), *module(b["replay_image"]).tolist()]
    return logits, [*b["teacher_logits"].tolist(), *b["replay_teacher_logits"].tolist()], [*NEW.tolist(), *OLD.tolist()]


def slow_binary(logits: list[list[float]], teacher: list[list[float]], target: list[int]) -> float:
    total = 0.0
    for z, h, y in zip(logits, teacher, target, strict=True):
        for c, o in enumerate(z):
            q, p = (slow.sigmoid(h[c]) if c < 4 else float(c == y)), slow.sigmoid(o)
            total -= q * math.log(p) + (1 - q) * math.log(1 - p)
    return total / (len(logits) * len(logits[0]))


@pytest.mark.parametrize(("full_head", "columns"), [(False, 7), (None, 9), (True, 9)])
def test_the_binary_loss_is_the_papers(full_head: bool | None, columns: int) -> None:
    module, b = third_task(full_head=full_head), batch(4 if full_head is False else columns)
    logits, teacher, target = outputs(module, b)
    assert {len(row) for row in logits} == {columns}
    assert module.training_step(b, 0).item() == pytest.approx(slow_binary(logits, teacher, target), rel=1e-9)


def test_the_softmax_loss_is_pycils() -> None:
    module, b = third_task(loss="softmax", distillation_weight=0.7, temperature=3.0), batch()
    logits, teacher, target = outputs(module, b)
    kd = slow.distillation([row[:4] for row in logits], teacher, 3.0)
    expected = slow.cross_entropy(logits, target, 0, 7) + 0.7 * kd
    assert module.training_step(b, 0).item() == pytest.approx(expected, rel=1e-9)


def test_the_first_task_has_no_distillation() -> None:
    module, b = make(ICaRL), batch()
    tasks = make_tasks([7])
    module.begin_stream(tasks, 0)
    module.grow_to(tasks[0])
    module.log_terms = lambda **terms: None
    only = {"image": b["image"].float(), "target": NEW}
    one_hot = torch.nn.functional.one_hot(NEW, 7).float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(module(only["image"]), one_hot)
    assert torch.allclose(module.training_step(only, 0), expected)


def unit_mean(vectors: torch.Tensor) -> torch.Tensor:
    """Mean of the normalised vectors, normalised, one by one."""
    total = torch.zeros(vectors.shape[1], dtype=torch.float64)
    for v in vectors.double():
        total += v / v.norm()
    return total / total.norm()


@pytest.mark.parametrize("mirrored", [False, True])
def test_means_and_predictions_are_those_of_the_paper(tmp_path: Path, mirrored: bool) -> None:
    module, data = make(ICaRL, mirrored_means=mirrored), SplitDigits(sizes=[3, 4, 3])
    buffer = ReplayBuffer(total=25, selection="herding")
    found = results(fit(tmp_path, module, data, [buffer]))
    store = buffer.store
    assert store.column("target").bincount().tolist() == [3] * 5 + [2] * 5  # 25 = 10 · 2 + 5
    assert found["nme_fallback"] == []
    module.eval()
    with torch.no_grad():
        images = data.transform(store.column("image"))
        views = [images, images.flip(-1)] if mirrored else [images]
        features = [module.features(view) for view in views]
        of = store.column("target")
        means = torch.stack([unit_mean(torch.cat([f[of == c] for f in features])) for c in range(10)])
        test = module.features(data.transform(data.split("test").images)).double()
    assert torch.allclose(module.means.means.double(), means, atol=1e-6)
    labels = data.labels("test")
    unit = test / test.norm(dim=1, keepdim=True)
    distance = torch.stack([(unit - mean).norm(dim=1) for mean in means], dim=1)
    for j, task in enumerate(data.tasks):
        mine = torch.isin(labels, torch.tensor(task.classes))
        right = distance[mine].argmin(1) == labels[mine]
        inside = distance[mine][:, task.first_class : task.num_seen].argmin(1) + task.first_class == labels[mine]
        assert found["matrix"]["class_il"][2][j] == right.double().mean().item()
        assert found["matrix"]["task_il"][2][j] == inside.double().mean().item()


def run(
    root: Path, method: type[IncrementalModule], seed: int, *callbacks: Callback, **options: Any
) -> IncrementalTrainer:
    seed_everything(seed, verbose=False)
    module = method(backbone=TINY, epochs=3, optimizer=sgd, **options)
    trainer = IncrementalTrainer(
        callbacks=list(callbacks), default_root_dir=root, accelerator="cpu", enable_progress_bar=False
    )
    trainer.fit(module, SplitDigits())
    return trainer


@pytest.mark.parametrize("loss", ["binary", "softmax"])
def test_it_remembers_what_fine_tuning_forgets_and_scores_both_classifiers(tmp_path: Path, loss: str) -> None:
    for seed in (0, 1):
        trainer = run(tmp_path / f"icarl{seed}", ICaRL, seed, ReplayBuffer(total=50, selection="herding"), loss=loss)
        found, plain = results(trainer), results(run(tmp_path / f"plain{seed}", FineTune, seed))
        other = found["other_classifier"]
        assert found["scores"]["class_il"]["ACC"] > plain["scores"]["class_il"]["ACC"] + 0.4
        assert found["scores"]["class_il"]["ACC"] > 0.75
        assert other["name"] == "linear"
        if loss == "softmax":  # three epochs are few for the sigmoids
            assert other["scores"]["class_il"]["ACC"] > plain["scores"]["class_il"]["ACC"] + 0.4
        for matrix in (found["matrix"], other["matrix"]):
            assert (torch.tensor(matrix["class_il"]) <= torch.tensor(matrix["task_il"])).all()
        assert found["scores"]["task_il"]["FWT"] is None
        assert "no exemplars" in found["undefined"]["task_il"]["FWT"]
        assert other["scores"]["task_il"]["FWT"] is not None
        assert found["footprint"]["full"]["prototypes"] == 10 * module_width(trainer) * 4
        stored = [len(saved(trainer, f"task_{k}")["lightning_cil.ReplayBuffer"]["store"]["index"]) for k in range(5)]
        assert stored == [50] * 5


def module_width(trainer: Any) -> int:
    return trainer.lightning_module.head.in_features


def test_the_linear_head_predicts_on_request(tmp_path: Path) -> None:
    runs = {}
    for classifier in ("nme", "linear"):
        buffer = ReplayBuffer(total=20, selection="herding")
        module = make(ICaRL, classifier=classifier)
        runs[classifier] = results(fit(tmp_path / classifier, module, SplitDigits(num_tasks=2), [buffer]))
    for one, two in (("nme", "linear"), ("linear", "nme")):
        assert runs[one]["other_classifier"]["name"] == two
        for key in ("matrix", "before_training", "scores"):
            assert runs[one]["other_classifier"][key] == runs[two][key]
        assert runs[one]["other_classifier"]["undefined"]["task_il"]["FWT"] if one == "linear" else True
    assert runs["nme"]["matrix"] != runs["linear"]["matrix"]


@pytest.mark.parametrize("full_head", [False, True])
def test_classes_without_exemplars_fall_back_to_the_mean_they_were_learned_with(
    tmp_path: Path, full_head: bool
) -> None:
    buffer = ReplayBuffer(total=6, selection="herding", allow_missing_classes=True)
    module, data = make(ICaRL, full_head=full_head), SplitDigits(num_tasks=5)
    found = results(fit(tmp_path, module, data, [buffer]))
    assert found["nme_fallback"] == [6, 7, 8, 9]
    assert len(buffer) == 6
    index = data.train_indices([4])
    with torch.no_grad():
        features = module.eval().features(data.transform(data.stored_images(index)))
    labels = data.labels("train")[index]
    for c in (8, 9):  # learned last, by this very body
        assert torch.allclose(module.means.means[c].double(), unit_mean(features[labels == c]), atol=1e-6)
    assert found["matrix"]["task_il"][4][4] > 0.9
    assert found["footprint"]["full"]["prototypes"] == 2 * 10 * module.head.in_features * 4


def test_shares_rounded_down_leave_all_classes_to_their_stored_means(tmp_path: Path) -> None:
    """The paper's m = ⌊K / C⌋: of 7 exemplars 4 classes have one each, 8 classes none."""
    sizes: list[int] = []

    def look(hook: str, trainer: Any, module: Any, *args: Any) -> None:
        if hook == "on_task_scored":
            sizes.append(len(buffer))

    buffer = ReplayBuffer(total=7, selection="herding", allow_missing_classes=True, remainder="unused")
    found = results(fit(tmp_path, make(ICaRL), SplitDigits(num_tasks=5), [buffer, Recorder(look)]))
    assert sizes == [6, 4, 6, 0, 0]
    assert found["nme_fallback"] == list(range(10))
    assert found["matrix"]["task_il"][4][4] > 0.9


def test_exemplars_by_the_scripts_rule(tmp_path: Path) -> None:
    module, data = make(ICaRL), SplitDigits(sizes=[10])
    buffer = ReplayBuffer(per_class=12, selection="herding_inner_product")
    fit(tmp_path, module, data, [buffer])
    index, labels = data.train_indices([0]), data.labels("train")
    with torch.no_grad():
        features = module.eval().features(data.transform(data.stored_images(index)))
    expected = []
    for c in range(10):
        members = index[labels[index] == c]
        expected.append(members[herding_inner_product(features[labels[index] == c], 12)])
    assert buffer.store.column("index").equal(torch.cat(expected))


def test_a_checkpoint_predicts_as_the_run_did(tmp_path: Path) -> None:
    buffer = ReplayBuffer(total=20, selection="herding")
    trainer = fit(tmp_path, make(ICaRL), SplitDigits(num_tasks=5), [buffer], stop_after_task=2)
    path = Path(trainer.log_dir or "") / "checkpoints" / "task_1.ckpt"
    module = make(ICaRL)
    found = trainer.test(module, datamodule=SplitDigits(num_tasks=5), ckpt_path=path, verbose=False)[0]
    row = results(trainer)["matrix"]["class_il"][1]
    assert [found[f"test/class_il/task_{j}"] for j in range(2)] == pytest.approx(row[:2])
    assert module.predict_step(torch.zeros(3, 1, 8, 8), 0).shape == (3, 4)


def test_inside_a_task_the_head_predicts() -> None:
    module = third_task()
    features = torch.randn(3, module.head.in_features).double()
    assert module.classify(features, 0).equal(module.head(features))
    assert module.means.means.shape == (0, module.head.in_features)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "bce"}, "`loss='bce'`"),
        ({"classifier": "knn"}, "`classifier='knn'`"),
        ({"temperature": 0.0}, "`temperature=0.0`"),
        ({"distillation_weight": -1.0}, "`distillation_weight=-1.0`"),
        ({"full_head": True, "loss": "softmax"}, "Give `loss='binary'`"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(ICaRL, **options)
