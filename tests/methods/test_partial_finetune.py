"""`PartialFineTune`: trains the scope and nothing else."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cil.callbacks import StreamCallback
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
