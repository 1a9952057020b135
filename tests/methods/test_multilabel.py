"""`MultiLabelModule`: mAP of every task by hand, the rule of the test images, optimizer, kinds of labels."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import Tensor

from lightning_cil import IncrementalTrainer
from lightning_cil.callbacks import ContinualEvaluation, FeatureRecords, ReplayBuffer, StreamCallback
from lightning_cil.data import MultiLabelDigits, SplitDigits
from lightning_cil.data.splits import make_tasks
from lightning_cil.methods import (
    MLER,
    MLKD,
    FineTune,
    MLDERPlusPlus,
    MLFineTune,
    MLJoint,
    MLLwF,
    MultiLabelModule,
    RebLL,
)
from lightning_cil.metrics import class_f1, false_positive_rate, overall_f1
from tests.callbacks.conftest import Recorder
from tests.resume.cases import PlainNet
from tests.streams import TINY, fit, make, results, weights_hash

SIZES = [3, 2, 1]
bce = torch.nn.functional.binary_cross_entropy_with_logits


def digits(**options: Any) -> MultiLabelDigits:
    return MultiLabelDigits(**{"train_images": 160, "test_images": 90, "sizes": [4, 3, 3], **options})


def adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=1e-2, weight_decay=1e-4)


class Multi(MLFineTune):
    """Keeps what the network says of all test images after every task."""

    found: list[tuple[Tensor, Tensor]]

    def on_stream_start(self, resumed: bool) -> None:
        self.found = []

    def on_task_scored(self, task: Any) -> None:
        data = self.trainer.datamodule
        everything = torch.arange(len(data.split("test")))
        image = data.transform(data.split("test").stored(everything))
        self.eval()
        with torch.no_grad():
            self.found.append((self(image), data.labels("test")))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Multi]]:
    done = {}
    for rule in ("seen", "all"):
        module = make(Multi, epochs=2, optimizer=adam)
        done[rule] = fit(tmp_path_factory.mktemp(rule), module, digits(test_rule=rule)), module
    return done


def ap(logits: Tensor, target: Tensor, columns: range) -> float:
    return sum(average_precision_score(target[:, c], logits[:, c]) for c in columns) / len(columns)


@pytest.mark.parametrize("rule", ["seen", "all"])
def test_the_matrix_and_all_scores_are_those_of_an_evaluation_by_hand(runs: Any, rule: str) -> None:
    trainer, module = runs[rule]
    found = results(trainer)
    scores = found["multilabel"]
    for i, (logits, target) in enumerate(module.found):
        seen = [4, 7, 10][i]
        keep = target[:, :seen].any(dim=1)
        assert i == 2 or keep.sum() < len(target)
        z, y = logits[keep].double(), target[keep, :seen]
        entry = scores["after_task"][i]
        assert entry["images"] == len(z)
        assert entry["mAP"] == pytest.approx(ap(z, y, range(seen)), rel=1e-6)
        assert entry["mAP"] == pytest.approx(found["sample_weighted_accuracy"]["class_il"][i])
        assert entry["0.5"]["OF1"] == pytest.approx(overall_f1(z.sigmoid(), y, 0.5).item())
        for task in make_tasks([4, 3, 3]):
            values = [found["matrix"][s][i][task.index] for s in ("class_il", "task_il")]
            if task.index > i:
                assert values == [None, None]
                continue
            own = y[:, task.classes].any(dim=1)
            assert values == pytest.approx([ap(z, y, task.classes), ap(z[own], y[own], task.classes)], rel=1e-6)
        if rule == "all":
            everything = entry["unfiltered"]
            assert everything["images"] == len(target)
            assert everything["mAP"] == pytest.approx(ap(logits, target, range(seen)), rel=1e-6)
    assert scores["mAP_avg"] == pytest.approx(sum(e["mAP"] for e in scores["after_task"]) / 3)
    assert scores["mAP_last"] == scores["after_task"][-1]["mAP"]
    assert scores["CF1"] == pytest.approx(class_f1(z.sigmoid(), y).item())
    assert scores["FPR"] == pytest.approx(false_positive_rate(z.sigmoid(), y).item())
    assert scores["sweep"]["CF1"][15] == pytest.approx(scores["CF1"])
    for name, best in scores["best"].items():
        place = scores["sweep"]["threshold"].index(best["threshold"])
        assert best["value"] == max(scores["sweep"][name]) == scores["sweep"][name][place]
    matrix = found["matrix"]["class_il"]
    fallen = [max(matrix[0][0], matrix[1][0]) - matrix[2][0], matrix[1][1] - matrix[2][1]]
    assert scores["AF"] == pytest.approx(sum(fallen) / 2)
    assert found["before_training"] == {"class_il": [None] * 3, "task_il": [None] * 3}
    assert found["scores"]["class_il"]["AF"] is None
    assert "A[0,1] was not evaluated" in found["undefined"]["class_il"]["AF"]
    assert ("unfiltered" in scores["after_task"][0]) == (rule == "all")
    assert not list(Path(trainer.log_dir).glob("records/*"))


def test_what_a_run_says_names_the_score(runs: Any, capsys: Any, tmp_path: Path) -> None:
    fit(tmp_path, make(MLFineTune, optimizer=adam), digits(train_images=60, sizes=[5, 5]))
    text = capsys.readouterr().out
    assert "Class-IL: mAP in % on task (column)" in text
    assert "Multi-label: mAP_last " in text
    assert "accuracy" not in text


def test_a_checkpoint_is_tested_and_predicts(runs: Any, tmp_path: Path) -> None:
    trainer, _ = runs["seen"]
    path = Path(trainer.log_dir) / "checkpoints" / "task_1.ckpt"
    module = make(Multi)
    found = trainer.test(module, datamodule=digits(), ckpt_path=path, verbose=False)[0]
    expected = results(trainer)
    assert found["test/mAP"] == pytest.approx(expected["multilabel"]["mAP"][1], rel=1e-6)
    assert found["test/CF1"] == pytest.approx(expected["multilabel"]["after_task"][1]["0.8"]["CF1"], rel=1e-6)
    assert found["test/task_il/task_1"] == pytest.approx(expected["matrix"]["task_il"][1][1], rel=1e-6)
    batch = {"image": torch.randn(2, 1, 16, 16)}
    assert module.eval().predict_step(batch, 0).equal(module(batch["image"]).sigmoid())
    with pytest.raises(TypeError, match="no single label"):
        module.predicted_labels(batch)


def test_held_out_images_are_scored_while_training(tmp_path: Path) -> None:
    seen = Recorder(lambda hook, trainer, *rest: dict(trainer.callback_metrics) if hook == "on_task_end" else None)
    fit(tmp_path, make(MLFineTune, optimizer=adam), digits(val_fraction=0.3, sizes=[5, 5]), [seen])
    for metrics in seen.seen:
        assert 0 < metrics["val/class_il"] < 1
        assert 0 < metrics["val/task_il"] <= 1
        assert 0 < metrics["val/loss"] < 2 * math.log(2)


@pytest.mark.parametrize("kind", ["val", "test"])
def test_scores_of_no_image_are_undefined_and_not_logged(kind: str) -> None:
    module, logged = second_task(), {}
    module.log_dict = lambda values, **options: logged.update(values)
    module._trainer = SimpleNamespace()  # type: ignore[assignment]
    scores, end = module._scores[kind], module.on_validation_epoch_end if kind == "val" else module.on_test_epoch_end
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]] * 3)
    scores.update(logits, torch.zeros(3, 5), torch.arange(3))
    with pytest.warns(UserWarning, match=r"No (held-out|test) image has a class seen so far"):
        end()
    assert list(logged) == (["val/loss"] if kind == "val" else [])
    scores.update(logits, torch.tensor([[1.0, 0, 0, 0, 0]] * 2 + [[0] * 5]), torch.arange(3))  # none of task 1
    end()
    assert all(math.isfinite(value) for value in logged.values())
    per_task = [name for name in logged if name.count("/") == 2]
    assert per_task == (["test/class_il/task_0", "test/task_il/task_0"] if kind == "test" else [])
    assert logged[f"{kind}/class_il"] == 1.0


@pytest.mark.parametrize(("method", "data"), [(FineTune, MultiLabelDigits), (MLFineTune, SplitDigits)])
def test_the_other_kind_of_labels_is_refused(tmp_path: Path, method: Any, data: Any) -> None:
    words = f"{method.__name__} is for data with .*, and {data.__name__} has .*Choose another method"
    with pytest.raises(ValueError, match=words):
        fit(tmp_path, make(method), data())


@pytest.mark.parametrize("method", [MLFineTune, MLJoint, MLLwF, MLKD])
def test_a_memory_that_is_not_used_is_refused(tmp_path: Path, method: type[MultiLabelModule]) -> None:
    with pytest.raises(ValueError, match=f"{method.__name__} uses no exemplars"):
        fit(tmp_path, make(method), digits(train_images=40), [ReplayBuffer(per_class=1)])


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (ContinualEvaluation(), "`ContinualEvaluation` counts correct labels"),
        (FeatureRecords(), "`FeatureRecords` keeps one label for each image"),
    ],
)
def test_callbacks_for_one_label_an_image_are_refused(tmp_path: Path, callback: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit(tmp_path, make(MLFineTune), digits(train_images=40), [callback])


def test_a_checkpoint_is_validated_on_all_tasks_and_predicts_labels(tmp_path: Path, capsys: Any) -> None:
    data = digits(train_images=60, test_images=30, sizes=[5, 5], val_fraction=0.2)
    module = make(MLFineTune)
    fit(tmp_path, module, data)
    trainer = IncrementalTrainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[])
    capsys.readouterr()
    trainer.validate(module, datamodule=data)
    assert "held-out data of task 1 to 2:  Class-IL" in capsys.readouterr().out
    Image.new("L", (16, 16)).save(tmp_path / "a.png")
    file = tmp_path / "p.csv"
    (probabilities,) = trainer.predict(module, datamodule=data, images=str(tmp_path), output=str(file))
    header, row = [line.split(",") for line in file.read_text().splitlines()]
    assert header == ["image", "labels", *data.class_names]
    present = [name for name, p in zip(data.class_names, probabilities[0].tolist(), strict=True) if p > 0.5]
    assert row[1] == "|".join(present)


# ---------------------------------------------------------------------- learning

LEARNERS: dict[str, tuple[type[MultiLabelModule], dict[str, Any]]] = {
    "MLLwF": (MLLwF, {}),
    "MLKD": (MLKD, {}),
    "MLER": (MLER, {"per_class": 10}),
    "MLDERPlusPlus": (
        MLDERPlusPlus,
        {"per_class": 10, "update": "batch", "columns": ["logits"], "num_draws": 2, "dedupe": True},
    ),
    "RebLL": (RebLL, {}),
}


def learned(root: Path, kind: type[MultiLabelModule], memory: dict[str, Any], epochs: int = 4) -> dict[str, Any]:
    callbacks = [ReplayBuffer(**memory)] if memory else []
    module = make(kind, epochs=epochs, optimizer=adam)
    return results(fit(root, module, digits(train_images=300), callbacks))["multilabel"]


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return learned(tmp_path_factory.mktemp("plain"), MLFineTune, {})


def at_half(scores: dict[str, Any]) -> float:
    return scores["after_task"][-1]["0.5"]["FPR"]


@pytest.mark.parametrize("name", LEARNERS)
def test_methods_remember_what_fine_tuning_forgets(tmp_path: Path, forgetful: dict[str, Any], name: str) -> None:
    found = learned(tmp_path, *LEARNERS[name])
    assert found["mAP_last"] > forgetful["mAP_last"] + 0.15
    assert found["AF"] < forgetful["AF"] - 0.2
    assert at_half(found) < at_half(forgetful)
    if name == "RebLL":
        assert at_half(found) < 0.1  # MLKD: 0.14 to 0.20
    if name == "MLKD":
        assert at_half(found) > 0.1


@pytest.mark.parametrize(("name", "devices"), [*((name, 1) for name in LEARNERS), ("RebLL", 2)])
def test_one_step_on_a_new_task_changes_every_trained_tensor(tmp_path: Path, name: str, devices: int) -> None:
    """Outputs that an optimizer or DDP does not know of stay as they were drawn."""

    class Look(StreamCallback):
        def on_stage_start(self, trainer: Any, module: Any, task: Any, stage: Any) -> None:
            self.before = {n: p.detach().clone() for n, p in module.named_parameters()}

        def on_stage_end(self, trainer: Any, module: Any, task: Any, stage: Any) -> None:
            if task.index:
                new = slice(task.first_class, task.num_seen)
                changed = [bool((p != self.before[n]).any()) for n, p in module.named_parameters()]
                outputs = (module.head.weight != self.before["head.weight"])[new].any(dim=1)
                biases = (module.head.bias != self.before["head.bias"])[new]
                found = [*changed, *outputs.tolist(), *biases.tolist()]
                (tmp_path / f"rank_{trainer.global_rank}").write_text(json.dumps([found, weights_hash(module)]))

    kind, memory = LEARNERS[name]
    callbacks = [ReplayBuffer(**memory)] if memory else []
    more: dict[str, Any] = {"devices": 2, "strategy": "ddp_fork"} if devices == 2 else {}
    data = digits(train_images=80, test_images=40, sizes=[5, 5], batch_size=8)
    fit(tmp_path, make(kind, optimizer=adam), data, [*callbacks, Look()], limit_train_batches=1, **more)
    ranks = [json.loads((tmp_path / f"rank_{r}").read_text()) for r in range(devices)]
    assert all(ranks[0][0])
    assert len(ranks[0][0]) > 14
    assert ranks[-1] == ranks[0]


def test_joint_training_bounds_them(tmp_path: Path, forgetful: dict[str, Any]) -> None:
    found = learned(tmp_path, MLJoint, {}, epochs=12)
    assert found["mAP_last"] > 0.8 > forgetful["mAP_last"] + 0.3


# ---------------------------------------------------------------------- optimizer


def second_task(**options: Any) -> MultiLabelModule:
    module = make(MLFineTune, **{"optimizer": adam, **options})
    tasks = make_tasks(SIZES)
    module.begin_stream(tasks, 0)
    for task in tasks[:2]:
        module.grow_to(task)
        module.begin_stage(task, module.stages(task)[0])
    return module


def test_biases_and_vectors_have_no_weight_decay_and_grown_outputs_are_trained() -> None:
    module = second_task()
    optimizer = module.configure_optimizers()
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (1e-4, 0)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in module.parameters()}
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim < 2 for p in plain["params"])
    assert module.head.weight.shape[0] == 5
    assert any(p is module.head.weight for p in decayed["params"])


@pytest.mark.parametrize(("given", "first", "later"), [(None, 1e-2, 1e-2), (5e-3, 1e-2, 5e-3)])
def test_later_tasks_have_a_learning_rate_of_their_own(given: Any, first: float, later: float) -> None:
    module = second_task(increment_lr=given)
    for task, expected in zip(module.tasks, (first, later, later), strict=True):
        module.begin_stage(task, module.stages(task)[0])
        assert [group["lr"] for group in module.configure_optimizers().param_groups] == [expected] * 2


def test_one_cycle_goes_up_and_down_within_each_task(tmp_path: Path) -> None:
    def rate(hook: str, trainer: Any, *rest: Any) -> Any:
        return (trainer.optimizers[0].param_groups[0]["lr"],) if hook == "on_train_batch_start" else None

    seen = Recorder(rate)
    module = make(MLFineTune, epochs=5, one_cycle=True, increment_lr=0.02, optimizer=adam, backbone=TINY)
    fit(tmp_path, module, digits(train_images=200, sizes=[5, 5]), [seen])
    rates = [r for (r,) in seen.seen]
    cut = next(i for i in range(10, len(rates)) if rates[i] > rates[i - 1] and rates[i - 1] < 1e-3)
    for part, highest in ((rates[: cut - 1], 0.01), (rates[cut - 1 :], 0.02)):
        assert max(part) == pytest.approx(highest, rel=0.1)
        assert 0.1 < part.index(max(part)) / len(part) < 0.3
        assert part[-1] < 0.1 * highest


@pytest.mark.parametrize("steps", range(1, 8))
def test_one_cycle_takes_any_number_of_steps(steps: int) -> None:
    module = second_task(one_cycle=True)
    module._trainer = SimpleNamespace(estimated_stepping_batches=steps)  # type: ignore[assignment]
    found = module.configure_optimizers()
    optimizer, scheduler = found["optimizer"], found["lr_scheduler"]["scheduler"]
    for _ in range(steps):
        assert all(0 < group["lr"] <= 1e-2 for group in optimizer.param_groups)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"increment_lr": 0.0}, "increment_lr"),
        ({"one_cycle": True, "lr_scheduler": torch.optim.lr_scheduler.ConstantLR}, "one_cycle"),
        ({"reduction": "none"}, "reduction"),
    ],
)
def test_what_cannot_be_is_refused(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(MLFineTune, **options)


def test_the_loss_runs_over_the_known_labels_in_one_forward() -> None:
    module = second_task(backbone=PlainNet()).double()
    logged = []
    module.log_terms = lambda **terms: logged.append(terms)
    calls = []
    module.backbone.register_forward_hook(lambda *args: calls.append(len(args[2])))
    known = torch.tensor([[0, 0, 0, 1, 1, 0]] * 4, dtype=torch.bool)
    batch = {"image": torch.randn(4, 1, 6, 6).double(), "target": known.double().roll(1, 1), "known": known}
    loss = module.training_step(batch, 0)
    expected = bce(module(batch["image"])[:, 3:5], batch["target"][:, 3:5])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert logged == [{"bce": loss}]
    assert calls[0] == 4


def test_losses_are_computed_in_full_precision() -> None:
    module = second_task()
    image = torch.randn(3, 1, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(image).dtype == torch.bfloat16
        assert module.precise_logits(image).dtype == torch.float32


def test_results_are_strict_json(runs: Any) -> None:
    text = (Path(runs["all"][0].log_dir) / "results.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["multilabel"]["formulas"]["CF1"]
