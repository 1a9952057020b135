"""`PartialFineTune`: trains the scope and nothing else."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cil.callbacks import StreamCallback
from lightning_cil.data.splits import make_tasks
from lightning_cil.methods import MMICaRL, PartialFineTune
from lightning_cil.methods._multimodal import ScoreOptions
from tests.streams import fit, results, spoken

LAST = ("image.transformer.resblocks.0.", "text.transformer.resblocks.0.", "image.proj", "text.text_proj", "audio.fc.")


@pytest.mark.parametrize(
    ("scope", "parts"), [("last_block", LAST), ("audio", ("audio.",)), (["image.proj"], ("image.proj",))]
)
def test_the_scope_is_trained_and_nothing_else(scope: Any, parts: tuple[str, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    optimizer = partial(torch.optim.SGD, lr=0.01)
    module = PartialFineTune(towers="tiny", scope=scope, epochs=1, optimizer=optimizer)
    before = {name: p.detach().clone() for name, p in module.backbone.named_parameters()}
    data = spoken(tmp_path / "fsdd")
    trainer = fit(tmp_path / "run", module, data)
    changed = {name for name, p in module.backbone.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(name.startswith(parts) for name in changed)
    assert {part for part in parts if any(name.startswith(part) for name in changed)} == set(parts)
    assert results(trainer)["multimodal"]["M1"] is not None


def test_lora_alone_changes_the_features_by_its_rank(tmp_path: Path) -> None:
    torch.manual_seed(0)
    optimizer = partial(torch.optim.SGD, lr=0.1)
    module = PartialFineTune(
        towers="tiny", scope="none", lora_rank=2, lora_scale=3.0, filter_norm_weight=0.0, epochs=1, optimizer=optimizer
    )
    before = {name: p.detach().clone() for name, p in module.backbone.named_parameters()}
    fit(tmp_path / "run", module, spoken(tmp_path / "fsdd"))
    changed = {name for name, p in module.backbone.named_parameters() if not torch.equal(p, before[name])}
    assert {name.split(".")[0] for name in changed} == {"image", "text"}
    assert all("adapter.experts.0.lora_" in name for name in changed)
    block = module.backbone.image.transformer.resblocks[0].eval()
    x = torch.randn(1, 5, block.ln_2.normalized_shape[0])
    pair = block.adapter.experts[0]
    assert pair.lora_A.weight.shape[0] == 2
    with torch.no_grad():
        h = x + block.attn(block.ln_1(x))
        expected = h + block.mlp(block.ln_2(h)) + 3 * pair.lora_B(pair.lora_A(h))
        torch.testing.assert_close(block(x), expected)
    with pytest.raises(ValueError, match="lora_rank=0"):
        PartialFineTune(towers="tiny", lora_rank=0)


def test_wavelets_in_training_are_kept_near_norm_1() -> None:
    losses = []
    for scope in ("audio", "last_block"):
        for weight in (0.0, 2.0):
            torch.manual_seed(0)
            module = PartialFineTune(towers="tiny", scope=scope, filter_norm_weight=weight)
            with torch.no_grad():
                module.backbone.audio.fbsp.fb *= 0.5
            tasks = make_tasks([2])
            module.begin_stream(tasks, 0)
            module.class_names = ["zero", "one"]
            module.grow_to(tasks[0])
            module.begin_stage(tasks[0], module.stages(tasks[0])[0])
            module.log_terms = lambda **terms: None
            generator = torch.Generator().manual_seed(1)
            image, wave = torch.randn(2, 3, 16, 16, generator=generator), torch.rand(2, 1, 400, generator=generator)
            loss = module.training_step({"image": image, "audio": wave, "target": torch.tensor([0, 1])}, 0)
            losses.append(loss.item())
    norm = module.backbone.audio.fbsp.norm_loss().item()
    assert norm > 0.01
    assert losses[1] - losses[0] == pytest.approx(2 * norm, rel=1e-3)
    assert losses[3] == losses[2]  # frozen


class Ahead(StreamCallback):
    """Accuracy on both tasks with all classes up to each as candidates, before training and after the first task."""

    def __init__(self) -> None:
        self.found: list[list[float]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if not self.found:
            self.score(trainer.datamodule, pl_module)

    def on_task_scored(self, trainer: Any, module: Any, task: Any) -> None:
        if task.is_first:
            self.score(trainer.datamodule, module)

    def score(self, data: Any, module: Any) -> None:
        label, split = data.labels("test"), data.split("test")
        wave = data.transform_audio(split.sounds.load(torch.arange(len(label))))
        module.eval()
        with torch.no_grad():
            features = module.features(data.transform(split.images), wave)
            scores = features @ module.class_prototypes().T
        module.train()
        right = [scores[:, :end].argmax(1) == label for end in (5, 10)]
        of = data.task_of(label)
        self.found.append([right[t][of == t].double().mean().item() for t in (0, 1)])


def test_the_forward_transfer_of_gem_is_what_the_first_task_gave_to_the_second(tmp_path: Path) -> None:
    torch.manual_seed(0)
    scores, ahead = ScoreOptions(forward="gem"), Ahead()
    options: dict[str, Any] = {"towers": "tiny", "scope": "image", "scores": scores}
    module = PartialFineTune(**options, epochs=2, optimizer=partial(torch.optim.SGD, lr=0.02))
    found = results(fit(tmp_path / "run", module, spoken(tmp_path / "fsdd"), [ahead]))["multimodal"]
    (_, untrained), (_, later) = ahead.found
    assert later != untrained
    assert found["forward"] == pytest.approx([0.5, (1 + later - untrained) / 2])
    assert "zero-shot" in found["choices"]["FWT_t"]
    module = MMICaRL(**options, epochs=1)
    found = results(fit(tmp_path / "nme", module, spoken(tmp_path / "fsdd")))["multimodal"]
    assert found["forward"] == [None, None]  # classes to come have no exemplars
    assert found["M2"] is None


@pytest.mark.parametrize("options", [{"forward": "far"}, {"nmi": "none"}, {"coefficients": (1.0, 1.0, 1.0)}])
def test_bad_scores(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ScoreOptions(**options)
