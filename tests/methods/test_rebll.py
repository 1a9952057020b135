"""`RebLL`: the golden loss through `training_step`, every row of the paper's ablations, callbacks, learning."""

from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_cil.callbacks import OnlineRelabel, ReplayBuffer, Teacher
from lightning_cil.data.splits import make_tasks
from lightning_cil.losses import decay_exponent
from lightning_cil.methods import MultiLabelModule, RebLL
from tests.losses.reference import mean, sigmoid
from tests.losses.test_asymmetric import GOLDEN, MEMORY_P, MEMORY_Y, Q_OLD, Y_NEW, P, double
from tests.methods.test_multilabel import adam, digits
from tests.streams import fit, make, results

NAN = float("nan")


class Passed(nn.Module):
    """A network whose images are its logits."""

    num_features = 6

    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1)


def method(kind: type[MultiLabelModule], sizes: list[int], **options: Any) -> MultiLabelModule:
    """At its second task, with logits that are the image."""
    module = make(kind, backbone=Passed(), **options)
    tasks = make_tasks(sizes)
    module.begin_stream(tasks, 0)
    for task in tasks[:2]:
        module.grow_to(task)
        module.begin_stage(task, module.stages(task)[0])
    with torch.no_grad():
        module.head.weight.copy_(torch.eye(6))
        module.head.bias.zero_()
    module.log_terms = lambda **terms: setattr(module, "logged", terms)
    return module.double()


def image(probabilities: Any) -> Tensor:
    return double(probabilities).logit().view(-1, 6, 1, 1)


def batch() -> dict[str, Tensor]:
    """The golden values' batch; what is not known is NaN wherever nothing may look at it."""
    memory = image([[*MEMORY_P[0], 0.5, 0.5]])
    return {
        "image": image(P),
        "target": torch.cat([torch.full((2, 4), NAN), double(Y_NEW)], dim=1),
        "known": torch.tensor([[0, 0, 0, 0, 1, 1]] * 2, dtype=torch.bool),
        "teacher_logits": double(Q_OLD).logit(),
        "replay_image": memory,
        "replay_target": torch.cat([double(MEMORY_Y), torch.full((1, 2), NAN)], dim=1),
        "replay_known": torch.tensor([[1, 1, 1, 1, 0, 0]], dtype=torch.bool),
    }


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_is_the_golden_one(reduction: Any) -> None:
    module, b = method(RebLL, [4, 2], reduction=reduction), batch()
    golden = GOLDEN[reduction]
    assert module.training_step(b, 0).item() == pytest.approx(golden["total"], abs=1e-6)
    assert module.logged["cls"].item() == pytest.approx(0.15 * golden["cls"], abs=1e-6)
    assert module.logged["akd"].item() == pytest.approx(0.85 * golden["akd"], abs=1e-6)
    assert module.logged["er"].item() == pytest.approx(0.30 * golden["er"], abs=1e-6)


def plain_bce(p: Any, y: Any) -> float:
    rows = zip(p, y, strict=True)
    return mean([mean([-t * log(q) - (1 - t) * log(1 - q) for q, t in zip(*r, strict=True)]) for r in rows])


G = GOLDEN["mean"]
OR_BCE = 0.30 * plain_bce(MEMORY_P, MEMORY_Y)
CASES: dict[str, tuple[dict[str, Any], float]] = {
    "table 4, fine-tuning": ({"classification": "bce", "distillation": "none", "memory": "none"}, G["bce"]),
    "table 4, L_cls": ({"distillation": "none", "memory": "none"}, G["cls"]),
    "table 4, KD": (
        {"classification": "bce", "distillation": "kd", "memory": "none"},
        0.15 * G["bce"] + 0.85 * G["kd"],
    ),
    "table 4, AKD": ({"memory": "none"}, 0.15 * G["cls"] + 0.85 * G["akd"]),
    "table 5, OR with L_bce": ({"memory": "or_bce"}, 0.15 * G["cls"] + 0.85 * G["akd"] + OR_BCE),
    "table 5, OR with L_er": ({}, G["total"]),
    "other weights": ({"lambda_akd": 0.5, "lambda_er": 2.0}, 0.5 * G["cls"] + 0.5 * G["akd"] + 2.0 * G["er"]),
}


@pytest.mark.parametrize("case", CASES)
def test_every_ablation_is_its_sum(case: str) -> None:
    options, expected = CASES[case]
    b = batch()
    if options.get("memory") == "none":
        b = {name: value for name, value in b.items() if not name.startswith("replay")}
    module = method(RebLL, [4, 2], **options)
    assert module.training_step(b, 0).item() == pytest.approx(expected, abs=1e-6)


def test_plain_replay_reads_the_labels_of_the_exemplars_own_tasks() -> None:
    b = batch()
    known = torch.tensor([[1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    b["replay_known"], b["replay_target"] = known, torch.where(known, b["replay_target"], NAN)
    expected = 0.15 * G["cls"] + 0.85 * G["akd"] + 0.30 * plain_bce([MEMORY_P[0][:2]], [MEMORY_Y[0][:2]])
    found = method(RebLL, [4, 2], memory="replay_bce").training_step(b, 0)
    assert found.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("options", "g"), [({"fixed_exponent": 2.0}, 2.0), ({"alpha": 0.5}, decay_exponent(0.5, 6))])
def test_the_exponent_is_fixed_or_adaptive(options: Any, g: float) -> None:
    module = method(RebLL, [4, 2], memory="none", distillation="none", **options)
    b = {name: value for name, value in batch().items() if not name.startswith("replay")}
    expected = sum(-((1 - p) ** g) * log(p) for p in (0.7, 0.9))  # the two positives
    expected += sum(-log(1 - p) for p in (0.3, 0.2))
    assert module.training_step(b, 0).item() == pytest.approx(expected / 4, abs=1e-6)


def test_the_first_task_has_the_new_labels_loss_alone() -> None:
    module = method(RebLL, [4, 2])
    module.begin_stage(module.tasks[0], module.stages(module.tasks[0])[0])
    b = {"image": image(P), "target": double([[1, 0, 0, 1, NAN, NAN], [0, 1, 0, 0, NAN, NAN]]), "known": None}
    g = decay_exponent(1.2, 4)
    terms = module.terms(b, module(b["image"])[:, :4], None)  # type: ignore[arg-type]
    rows = []
    for z, y in zip(b["image"].view(2, 6).tolist(), b["target"].tolist(), strict=True):
        pairs = [(sigmoid(v), t) for v, t in zip(z[:4], y[:4], strict=True)]
        rows.append(mean([-((1 - p) ** g) * log(p) if t else -log(1 - p) for p, t in pairs]))
    assert list(terms) == ["cls"]
    assert terms["cls"].item() == pytest.approx(mean(rows), abs=1e-6)


def test_current_images_and_exemplars_go_through_the_network_together() -> None:
    module, sizes = method(RebLL, [4, 2]), []
    module.backbone.register_forward_hook(lambda *args: sizes.append(len(args[2])))
    module.training_step(batch(), 0)
    assert sizes == [3]


def test_gradients_reach_only_what_each_term_may_teach() -> None:
    """L_er leaves the new classes' outputs alone, L_cls the old ones'."""
    module, b = method(RebLL, [4, 2]), batch()
    module.training_step(b, 0)
    for name, columns in (("cls", slice(4, 6)), ("akd", slice(0, 4)), ("er", slice(0, 4))):
        module.training_step(b, 0)
        (gradient,) = torch.autograd.grad(module.logged[name], module.head.bias)
        taught = torch.zeros(6, dtype=torch.bool)
        taught[columns] = True
        assert gradient[taught].all(), name
        assert not gradient[~taught].any(), name


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({}, [ReplayBuffer, OnlineRelabel, Teacher]),
        ({"memory": "or_bce", "distillation": "none"}, [ReplayBuffer, OnlineRelabel, Teacher]),
        ({"memory": "replay_bce"}, [ReplayBuffer, Teacher]),
        ({"memory": "replay_bce", "distillation": "none"}, [ReplayBuffer]),
        ({"memory": "none"}, [Teacher]),
        ({"memory": "none", "distillation": "none"}, []),
    ],
)
def test_it_asks_for_what_its_terms_need(options: Any, kinds: list[type]) -> None:
    assert [type(c) for c in make(RebLL, **options).required_callbacks()] == kinds


def test_without_distillation_the_old_model_relabels_and_no_more(tmp_path: Path) -> None:
    keys = []

    class Look(RebLL):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            keys.append(set(batch))
            return super().training_step(batch, batch_idx)

    module = make(Look, distillation="none", optimizer=adam)
    trainer = fit(tmp_path, module, digits(train_images=60))
    assert not any("teacher_logits" in k for k in keys)
    assert any("replay_image" in k for k in keys)
    assert results(trainer)["relabelling"]["tasks"][-1]["labels"] > 0


def test_a_memory_that_is_not_used_is_refused(tmp_path: Path) -> None:
    for options, callback in (({"memory": "none"}, ReplayBuffer(per_class=2)), ({"memory": "replay_bce"}, None)):
        callbacks = [callback] if callback else [ReplayBuffer(per_class=2), OnlineRelabel(), Teacher()]
        with pytest.raises(ValueError, match="which it does not use"):
            fit(tmp_path, make(RebLL, **options), digits(), callbacks)


@pytest.mark.parametrize("memory", ["or_er", "or_bce"])
def test_exemplars_that_nobody_has_relabelled_yet_are_refused(tmp_path: Path, memory: Any) -> None:
    buffer = ReplayBuffer(per_class=2, update="batch", repeat=False)
    with pytest.raises(ValueError, match=r"no labels of old classes yet.*`update='task'`"):
        fit(tmp_path, make(RebLL, memory=memory), digits(), [buffer])


@pytest.mark.parametrize(
    "options",
    [
        {"classification": "ce"},
        {"distillation": "kl"},
        {"memory": "er"},
        {"alpha": -1.0},
        {"fixed_exponent": -1.0},
        {"lambda_akd": 1.5},
        {"lambda_er": -0.1},
    ],
)
def test_settings_that_cannot_be(options: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        make(RebLL, **options)
