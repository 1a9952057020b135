"""`MMICaRL`: both losses, exemplars with their sounds, class means of fused features, two classifiers scored."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback

from lightning_cil.callbacks import ReplayBuffer, Teacher
from lightning_cil.data.splits import make_tasks
from lightning_cil.losses import icarl_binary_terms, icarl_softmax_terms
from lightning_cil.methods import MMICaRL
from lightning_cil.replay import herding
from tests.methods.test_icarl import unit_mean
from tests.streams import fit, results, spoken


def model(**options: Any) -> MMICaRL:
    torch.manual_seed(3)
    return MMICaRL(**{"towers": "tiny", "epochs": 1, "optimizer": partial(torch.optim.SGD, lr=0.01), **options})


@pytest.mark.parametrize("loss", ["binary", "softmax"])
def test_the_loss_counts_new_samples_and_exemplars(loss: Any) -> None:
    module = model(loss=loss, distillation_weight=0.7, temperature=3.0, logit_offset=2.5)
    tasks = make_tasks([2, 2])
    module.begin_stream(tasks, 0)
    module.class_names = ["zero", "one", "two", "three"]
    for task in tasks:
        module.grow_to(task)
    module.log_terms = lambda **terms: None
    image, wave = torch.randn(5, 3, 16, 16), 0.1 * torch.randn(5, 1, 400)
    target, teacher = torch.tensor([2, 3, 3, 0, 1]), 3 * torch.randn(5, 2)
    given = {"image": image[:3], "audio": wave[:3], "target": target[:3], "teacher_logits": teacher[:3]}
    module.inputs = lambda batch, prefix="": (batch[f"{prefix}image"], batch[f"{prefix}audio"])
    given |= {"replay_image": image[3:], "replay_audio": wave[3:], "replay_target": target[3:]}
    given |= {"replay_teacher_logits": teacher[3:]}
    with torch.no_grad():
        found = module.training_step(given, 0)
        logits = module(image, wave)
        if loss == "binary":
            expected = icarl_binary_terms(logits - 2.5, teacher - 2.5, target)
        else:
            expected = icarl_softmax_terms(logits, teacher, target, distillation_weight=0.7, temperature=3.0)
    torch.testing.assert_close(found, sum(expected.values()))


class Look(Callback):
    """Whether an exemplar's sound is the one that its picture was paired with, and what the first teacher says."""

    def __init__(self) -> None:
        self.same: list[bool] = []
        self.gap: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if "replay_image" not in batch:
            return
        _, sound = pl_module.inputs(batch, "replay_")
        data = trainer.datamodule
        with torch.no_grad():
            wave = data.transform_audio(data.load_audio(batch["replay_index"]))
            own = sound if sound.ndim == 2 else pl_module.backbone.encode_audio(sound)
            self.same.append(torch.allclose(own, pl_module.backbone.encode_audio(wave), atol=1e-5))
            student = pl_module(*pl_module.inputs(batch, "replay_"))
        old = batch["replay_teacher_logits"]
        self.gap.append(float((student[:, : old.shape[1]] - old).abs().max()))


def test_exemplars_come_with_their_sounds(tmp_path: Path) -> None:
    look, module, memory = Look(), model(), ReplayBuffer(per_class=5, selection="herding")
    fit(tmp_path / "run", module, spoken(tmp_path / "fsdd", batch_size=8), [memory, Teacher(), look])
    assert look.same == [True, True]
    assert look.gap[0] < 1e-3 < look.gap[1]  # the old model's pairwise scores, not its nearest means


def test_means_and_scores_are_those_of_the_exemplars_fused_features(tmp_path: Path) -> None:
    module, data = model(), spoken(tmp_path / "fsdd")
    buffer = ReplayBuffer(per_class=2, selection="herding")
    found = results(fit(tmp_path / "run", module, data, [buffer]))
    index, of = buffer.store.column("index"), buffer.store.column("target")
    assert of.bincount().tolist() == [2] * 10
    module.eval()

    def features(split: str, index: torch.Tensor) -> torch.Tensor:
        part = data.split(split)
        wave = data.transform_audio(part.sounds.load(index))
        with torch.no_grad():
            return module.features(data.transform(part.stored(index)), wave)

    exemplars = features("train", index)
    means = torch.stack([unit_mean(exemplars[of == c]) for c in range(10)])
    torch.testing.assert_close(module.exemplar_means.current.means.double(), means, atol=1e-5, rtol=0)
    last = data.train_indices([1])
    last = last[data.labels("train")[last] == 9]
    chosen = last[herding(features("train", last), 2)]
    assert index[of == 9].tolist() == chosen.tolist()
    label = data.labels("test")
    test = features("test", torch.arange(len(label)))
    nme = (F.normalize(test.double(), dim=1) @ means.T).argmax(1)
    text = (test @ module.class_prototypes().T).argmax(1)
    assert found["other_classifier"]["name"] == "text"
    for predicted, matrix in ((nme, found["matrix"]), (text, found["other_classifier"]["matrix"])):
        right = [(predicted == label)[data.task_of(label) == t].double().mean().item() for t in (0, 1)]
        assert matrix["class_il"][1] == pytest.approx(right)
    assert found["multimodal"]["M2"] is not None
    assert "nearest mean" in found["multimodal"]["choices"]["predict"]


def test_the_offset_is_half_way_between_right_and_wrong_logits(tmp_path: Path) -> None:
    still = partial(torch.optim.SGD, lr=0.0)
    module, data = model(scope=["image.proj"], optimizer=still, classifier="text"), spoken(tmp_path / "fsdd")
    found = results(fit(tmp_path / "run", module, data))
    assert found["other_classifier"]["name"] == "nme"
    assert "nearest mean" not in found["multimodal"]["choices"]["predict"]
    index = data.train_indices([0])
    module.eval()
    with torch.no_grad():
        images = data.transform(data.split("train").stored(index))
        logits = module(images, data.transform_audio(data.load_audio(index)))[:, :5]
    right = F.one_hot(data.labels("train")[index], 5).bool()
    expected = (logits[right].mean() + logits[~right].mean()) / 2
    torch.testing.assert_close(module.offset, expected, atol=1e-3, rtol=0)
    assert abs(float(expected)) > 0.1
    label = data.labels("test")
    part = data.split("test")
    with torch.no_grad():
        scores = module(data.transform(part.images), data.transform_audio(part.sounds.load(torch.arange(len(label)))))
    right = (scores.argmax(1) == label)[data.task_of(label) == 1].double().mean().item()
    assert found["matrix"]["class_il"][1][1] == pytest.approx(right)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "mse"}, "loss='mse'"),
        ({"classifier": "linear"}, "classifier='linear'"),
        ({"temperature": 0.0}, r"temperature=0\.0"),
        ({"logit_offset": "mean"}, "logit_offset='mean'"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        model(**options)
