"""`TOPIC`: its loss is CE + λ₁ L_AL + λ₂ L_MML, old nodes stay, new ones are trained, options do what they say."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback

from lightning_cil.callbacks import Teacher
from lightning_cil.data import SpokenDigits
from lightning_cil.losses import min_max_terms
from lightning_cil.methods import TOPIC
from tests.streams import fit, results, spoken


def model(**options: Any) -> TOPIC:
    torch.manual_seed(3)
    small: dict[str, Any] = {"num_nodes": 8, "new_nodes": 6, "anchors_per_step": 100, "scope": ["image.proj"]}
    defaults = {"towers": "tiny", "epochs": 1, "optimizer": partial(torch.optim.SGD, lr=0.01), **small}
    return TOPIC(**{**defaults, **options})


class Look(Callback):
    """The loss of every step, beside the sum of its terms from their definitions."""

    def __init__(self) -> None:
        self.pairs: list[tuple[float, float]] = []
        self.nodes: list[tuple[int, int]] = []
        self.old: list[torch.Tensor] = []
        self.new: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: Any, pl_module: TOPIC, batch: Any, batch_idx: int) -> None:
        gas = pl_module.gas
        self.nodes.append((gas.num_nodes, len(gas.fresh)))
        self.old.append(gas.centroids.clone())
        self.new.append(gas.fresh.detach().clone())
        with torch.no_grad():
            self.expected = float(literal(pl_module, trainer.datamodule, batch))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.pairs.append((float(outputs["loss"]), self.expected))


def literal(module: TOPIC, data: SpokenDigits, batch: Any) -> torch.Tensor:
    """The loss of a step that draws all nodes."""
    logits = module(*module.inputs(batch))
    total = F.cross_entropy(logits, batch["target"])
    gas = module.gas
    if not gas.num_nodes:
        return total
    if module.replay:
        every, label = gas.samples, gas.labels[: gas.num_nodes]
        images, waves = data.transform(data.stored_images(every)), data.transform_audio(data.load_audio(every))
        both = torch.cat([logits, module(images, waves)])
        total = F.cross_entropy(both, torch.cat([batch["target"], label]))
    for j in range(gas.num_nodes):
        index = gas.samples[j : j + 1]
        image, wave = data.transform(data.stored_images(index)), data.transform_audio(data.load_audio(index))
        feature = F.normalize(module.features(image, wave)[0], dim=0)
        weight = 1 / (gas.variances[j] + module.variance_floor)
        if module.anchor_precision == "relative":
            weight = weight / weight.mean()
        where = gas.centroids[j] if module.anchor_target == "centroid" else module.gas.sample_features[j]
        total += module.anchor_weight * (weight * (feature - where) ** 2).sum()
    features = F.normalize(module.features(*module.inputs(batch)), dim=1)
    terms = min_max_terms(features, batch["target"], gas.positions(), gas.labels, gas.linked, margin=module.margin)
    total += module.min_max_weight * terms["pull"] + module.push_weight * terms["push"]
    if module.distillation_weight:
        log_q = F.log_softmax(logits[:, :5] / module.temperature, dim=1)
        p = F.softmax(batch["teacher_logits"] / module.temperature, dim=1)
        total += module.distillation_weight * module.temperature**2 * -(p * log_q).sum(dim=1).mean()
    return total


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"anchor_target": "features", "anchor_precision": "inverse", "margin": 3.0, "push_weight": 0.5, "replay": True},
        {"distillation_weight": 2.0, "scope": "last_block"},  # with a trained audio tower
    ],
)
def test_the_loss_is_that_of_the_paper(options: dict[str, Any], tmp_path: Path) -> None:
    module, look = model(**options), Look()
    data = spoken(tmp_path / "fsdd", batch_size=8)
    teacher = [Teacher()] if options.get("distillation_weight") else []
    trainer = fit(tmp_path / "run", module, data, [*teacher, look])
    assert look.nodes == [(0, 0)] * 2 + [(8, 6)] * 2
    for found, expected in look.pairs:
        assert found == pytest.approx(expected, rel=1e-4)
    assert torch.equal(look.old[2], look.old[3])  # old nodes stay
    assert torch.equal(module.gas.centroids[:8], look.old[3])
    assert not torch.equal(look.new[2], look.new[3])  # new ones are trained
    assert module.gas.num_nodes == 14
    assert module.gas.labels[:8].unique().tolist() == [0, 1, 2, 3, 4]
    assert module.gas.labels[8:].unique().tolist() == [5, 6, 7, 8, 9]
    train = data.labels("train")
    assert torch.equal(train[module.gas.samples], module.gas.labels)
    found = results(trainer)
    assert found["neural_gas"]["nodes"] == 14
    assert found["neural_gas"]["edges"] > 0
    assert found["neural_gas"]["classes_without_node"] == []
    samples = len(module.gas.samples.unique())
    assert found["footprint"]["full"]["exemplars"] == samples * 3 * 16 * 16
    assert found["multimodal"]["tasks"][0]["nodes"] == 8


def test_anchors_hold_the_old_features(tmp_path: Path) -> None:
    moved = []
    for weight in (0.0, 20.0):
        options = {"anchor_weight": weight, "min_max_weight": 0.0, "epochs": 4, "anchor_precision": "equal"}
        module = model(**options, scope="image", optimizer=partial(torch.optim.SGD, lr=0.03))
        data = spoken(tmp_path / "fsdd", batch_size=8)
        fit(tmp_path / f"run{weight}", module, data)
        index = module.gas.samples[:8]
        with torch.no_grad():
            module.eval()
            image, wave = data.transform(data.stored_images(index)), data.transform_audio(data.load_audio(index))
            features = F.normalize(module.features(image, wave), dim=1)
        moved.append(float((features - module.gas.centroids[:8]).norm(dim=1).mean()))
    assert moved[1] < 0.6 * moved[0]


def test_the_letter_of_the_gas_may_leave_a_class_without_a_node(tmp_path: Path) -> None:
    module = model(gas_ranking="all", gas_rate=0.5, gas_neighbourhood=20.0, gas_passes=1, num_nodes=5, new_nodes=5)
    found = results(fit(tmp_path / "run", module, spoken(tmp_path / "fsdd")))
    bare = set(range(10)) - set(module.gas.labels.tolist())
    assert bare  # all nodes follow all samples
    assert found["neural_gas"]["classes_without_node"] == sorted(bare)
    assert found["status"] == "complete"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_nodes": 0}, "`num_nodes=0`"),
        ({"anchor_target": "mean"}, "anchor_target='mean'"),
        ({"anchor_precision": "best"}, "precision='best'"),
        ({"temperature": 0.0}, r"`temperature=0\.0`"),
        ({"centroid_lr": 0.0}, "centroid_lr"),
        ({"gas_ranking": "best"}, "ranking='best'"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        model(**options)
