"""`MultimodalCIL`: its loss is Eq. 9, what is frozen stays, ranks and resumed runs agree, scores are complete."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback

from lightning_cil.callbacks import StreamCheckpoint
from lightning_cil.data.splits import make_tasks
from lightning_cil.losses import info_nce
from lightning_cil.methods import MultimodalCIL
from lightning_cil.networks import MIFE, Fusion
from lightning_cil.networks.audioclip import Prompts
from tests.streams import fit, results, spoken, weights_hash

PLAIN = MIFE(rank=4, noisy=False, dropout=0.0, router_std=1.0)
NAMES = ["zero", "one", "two", "three"]


def model(**options: Any) -> MultimodalCIL:
    torch.manual_seed(3)
    defaults: dict[str, Any] = {
        "towers": "tiny",
        "epochs": 1,
        "mife": PLAIN,
        "prompts": Prompts(templates=3),
        "optimizer": partial(torch.optim.SGD, lr=0.05),
        "lr_scheduler": None,
    }
    return MultimodalCIL(**{**defaults, **options})


def second_task(**options: Any) -> MultimodalCIL:
    module = model(**options)
    tasks = make_tasks([2, 2])
    module.begin_stream(tasks, 0)
    module.class_names = NAMES
    module.grow_to(tasks[0])
    module.grow_to(tasks[1])
    module.begin_stage(tasks[1], module.stages(tasks[1])[0])
    module.log_terms = lambda **terms: None
    return module


def batch(size: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(size, 3, 16, 16, generator=generator),
        "audio": 0.1 * torch.randn(size, 1, 400, generator=generator),
        "target": torch.tensor([2, 3, 2, 0, 1, 3, 2])[:size],
    }


def test_the_loss_is_equation_9() -> None:
    module = second_task(fusion=Fusion(threshold=-1.0))
    given = batch()
    with torch.no_grad():
        found = float(module.training_step(given, 0))
        visual = module.backbone.encode_image(given["image"])
        audio = module.backbone.project_audio(module.backbone.encode_audio(given["audio"]))
        fused = module.fusion(visual, audio)
        prototypes = module.class_prototypes()
        logits = module.backbone.scale() * F.normalize(fused, dim=1) @ prototypes.T
        errors = F.cross_entropy(logits, given["target"], reduction="none")
        weighted = 0.0
        for i in range(5):
            weights = [0.5 + 0.5 * float(visual[i] @ visual[j]) for j in range(5)]
            weighted += sum(weights) / 5 * float(errors[i]) / 5
        shared = 0.0
        for estimator, other in ((module.mi_visual, visual), (module.mi_sound, audio)):
            shared += float(info_nce(estimator.x_head(fused), estimator.y_head(other)))
    assert found == pytest.approx(0.7 * weighted - 0.3 * shared, rel=1e-4)


@pytest.mark.parametrize("options", [{"loss": "ce"}, {"alpha": 1.0}])
def test_alpha_one_and_equal_weights_are_plain_cross_entropy(options: dict[str, Any]) -> None:
    module = second_task(**options)
    given = batch(4)
    given["image"] = given["image"][:1].expand(4, -1, -1, -1)  # all similarities are 1
    with torch.no_grad():
        expected = F.cross_entropy(module(given["image"], given["audio"]), given["target"])
        assert float(module.training_step(given, 0)) == pytest.approx(float(expected), rel=1e-5)
    assert module.mi_visual is None


@pytest.mark.parametrize("estimator", ["info_nce", "mine", "gaussian"])
def test_a_batch_of_one_and_every_parameter_of_the_stage_has_a_gradient(estimator: Any) -> None:
    module = second_task(mi_estimator=estimator, fusion=Fusion(threshold=-1.0))
    assert module.training_step(batch(1), 0).isfinite()
    module.training_step(batch(5), 0).backward()
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert all(module.get_parameter(name).grad is not None for name in trained)  # what DDP waits for
    assert {name.split(".")[0] for name in trained} >= {"backbone", "fusion"}
    assert all("adapter" in name for name in trained if name.startswith("backbone"))


def test_only_the_new_classes_take_part_if_asked_for() -> None:
    module = second_task(ce_scope="new")
    logits, first = module.training_logits(torch.randn(3, 32))
    assert (logits.shape[1], first) == (2, 2)


def frozen(module: MultimodalCIL) -> str:
    kept = torch.nn.ParameterDict(
        {n.replace(".", "_"): p.detach() for n, p in module.backbone.named_parameters() if "adapter" not in n}
    )
    return weights_hash(kept)


def test_a_stream_changes_no_frozen_parameter_and_writes_every_score(tmp_path: Path) -> None:
    module = model(mife=MIFE(rank=4), fusion=Fusion(threshold="quantile:0.5", strong="auto"))
    before = frozen(module)
    buffers = {n: b.clone() for n, b in module.backbone.audio.named_buffers()}
    experts = weights_hash(module.backbone.image)
    data = spoken(tmp_path / "fsdd")
    trainer = fit(tmp_path / "run", module, data)
    assert frozen(module) == before
    assert all(torch.equal(b, buffers[n]) for n, b in module.backbone.audio.named_buffers())
    assert weights_hash(module.backbone.image) != experts
    assert data.clips().num_read == len(data.clips())  # each sound once in the whole run
    scores = results(trainer)["multimodal"]
    assert 0 <= scores["M1"] <= 100
    assert 0 <= scores["M1_frozen"] <= 100
    assert 0 <= scores["M2"] <= 1
    assert len(scores["accuracy"]) == len(scores["similarity"]) == len(scores["tasks"]) == 2
    assert 0.2 < scores["tasks"][0]["fused_fraction"] < 0.8  # half of them, but for the training that goes on
    assert 0 <= scores["tasks"][1]["gate_entropy"] <= 0.7
    for shares in scores["tasks"][1]["expert_usage"].values():
        assert sum(shares) == pytest.approx(2)  # two experts of each sample
    counts = trainer.strategy.lightning_module.evaluation_counts("class_il")[0]
    assert counts.shape == (3, 2)


def test_prediction_never_sees_the_task(tmp_path: Path) -> None:
    module = second_task()
    given = {**batch(), "task": torch.tensor([1, 1, 1, 0, 0])}
    module.eval()
    with torch.no_grad():
        ours = module.predicted_labels(given)["class_il"]
        other = module.predicted_labels({**given, "task": 1 - given["task"]})["class_il"]
        alone = torch.cat([module.predicted_labels({k: v[i : i + 1] for k, v in given.items()})["class_il"]
                           for i in range(5)])  # fmt: skip
    assert ours.tolist() == other.tolist() == alone.tolist()


def test_two_ranks_train_what_one_process_trains_also_with_experts_that_nobody_takes(tmp_path: Path) -> None:
    found = []
    many = MIFE(num_experts=8, top_k=1, rank=2, noisy=False, dropout=0.0, router_std=1.0)
    for name, size, more in (("one", 16, {}), ("two", 8, {"devices": 2, "strategy": "ddp_fork"})):
        module = model(mife=many, fusion=Fusion(threshold="quantile:0.5"))
        trainer = fit(tmp_path / name, module, spoken(tmp_path / "fsdd", batch_size=size), **more)
        found.append((module, results(trainer)))
    (ours, one), (theirs, two) = found
    for name, value in ours.state_dict().items():
        if "counter" not in name:
            torch.testing.assert_close(value, theirs.state_dict()[name], atol=1e-5, rtol=0, msg=name)
    assert one["matrix"] == two["matrix"]
    assert one["multimodal"]["M1"] == pytest.approx(two["multimodal"]["M1"], abs=1e-3)
    for mine, other in zip(one["multimodal"]["tasks"], two["multimodal"]["tasks"], strict=True):
        assert mine["fused_fraction"] == other["fused_fraction"]
        for block, shares in mine["expert_usage"].items():
            assert shares == pytest.approx(other["expert_usage"][block])
            assert 0 in shares  # in the whole task


class BreakOff(Callback):
    """Ends the run before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("broken off")


@pytest.mark.parametrize("step", [1, 4])  # in the first task, in the second
def test_a_run_that_was_broken_off_ends_as_one_that_was_not(step: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"mife": MIFE(rank=4, freeze_after_task=1), "epochs": 2}
    data = {"batch_size": 8, "max_pairs": 4}
    whole = model(**options)
    trainer = fit(tmp_path / "whole", whole, spoken(tmp_path / "fsdd", **data))
    expected = results(trainer)
    assert trainer.global_step > step
    saver = StreamCheckpoint(every_n_train_steps=1)
    with pytest.raises(RuntimeError, match="broken off"):
        fit(tmp_path / "run", model(**options), spoken(tmp_path / "fsdd", **data), [saver, BreakOff(step)])
    path = str(next((tmp_path / "run").rglob("last.ckpt")))
    again = model(**options)
    found = results(fit(tmp_path / "rest", again, spoken(tmp_path / "fsdd", **data), [saver], ckpt_path=path))
    for name, value in whole.state_dict().items():  # counters, too
        assert torch.equal(value, again.state_dict()[name]), name
    assert found["matrix"] == expected["matrix"]
    assert found["multimodal"] == expected["multimodal"]


def test_a_router_for_each_task_is_chosen_by_the_image(tmp_path: Path) -> None:
    module = model(mife=MIFE(rank=4, router="per_task"), router_selector="nearest")
    trainer = fit(tmp_path / "run", module, spoken(tmp_path / "fsdd"))
    assert len(module.router_selector.means) == 2
    assert results(trainer)["status"] == "complete"


def test_options_reach_the_selector() -> None:
    options: dict[str, Any] = {"code": 5, "threshold": 0.0655, "iterations": 7, "lr": 0.1}
    module = model(mife=MIFE(rank=4, router="per_task"), router_selector="ddas", router_options=options)
    assert {name: getattr(module.router_selector, name) for name in options} == options
    with pytest.raises(ValueError, match="`iterations=0`"):
        model(mife=MIFE(rank=4, router="per_task"), router_selector="ddas", router_options={"iterations": 0})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"router_options": {"code": 3}}, r"router_options` has \['code'\]"),
        ({"alpha": 2.0}, "`alpha=2.0`"),
        ({"loss": "mse"}, "loss='mse'"),
        ({"router_selector": "nearest"}, "router: per_task"),
        ({"mi_audio": "fused_only", "fusion": Fusion(kind="concat")}, "fused_only"),
        ({"first_task_scope": "head"}, "first_task_scope='head'"),
        ({"first_task_scope": ["nothing.*"]}, r"nothing\.\*"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        model(**options)


def test_data_without_sounds_are_refused(tmp_path: Path) -> None:
    module = second_task()
    with pytest.raises(ValueError, match="without `audio`"):
        module.training_step({k: v for k, v in batch().items() if k != "audio"}, 0)


def test_sounds_of_another_rate_than_the_tower_reads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sounds of 16000 Hz, but the audio tower reads 8000 Hz.*sample_rate: 8000"):
        fit(tmp_path / "run", model(), spoken(tmp_path / "data", sample_rate=16_000))
