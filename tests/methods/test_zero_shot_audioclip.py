"""`ZeroShotAudioCLIP`: trains nothing, is scored after every task, by each modality."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cil.methods import ZeroShotAudioCLIP
from lightning_cil.networks.audioclip import TextTower, Towers, create_audioclip
from tests.streams import fit, results, spoken, weights_hash


@pytest.mark.parametrize("predict", ["sum", "image"])
def test_every_task_is_scored_and_nothing_changes(predict: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = ZeroShotAudioCLIP(towers="tiny", predict=predict)
    before = weights_hash(module.backbone)
    trainer = fit(tmp_path / "run", module, spoken(tmp_path / "fsdd"))
    assert weights_hash(module.backbone) == before
    found = results(trainer)
    assert all(value is not None for row in found["matrix"]["class_il"] for value in row)
    assert found["multimodal"]["M1"] == found["multimodal"]["M1_frozen"]
    assert (found["multimodal"]["M2"] is None) == (predict == "image")  # no NMI of sounds
    assert found["scores"]["task_il"]["FWT"] == 0  # it is what it was before


@pytest.mark.parametrize("predict", ["sum", "image", "audio"])
def test_the_score_is_the_pairwise_one(predict: Any) -> None:
    torch.manual_seed(0)
    module = ZeroShotAudioCLIP(towers="tiny", predict=predict).eval()
    module.class_names = ["dog", "sea_waves"]
    image, wave = torch.randn(3, 3, 16, 16), 0.1 * torch.randn(3, 1, 400)
    model = module.backbone
    text = module.class_prototypes()
    bare = model.encode_text(module.towers.tokenizer(model).encode(["dog", "sea waves"]))
    torch.testing.assert_close(text, bare)
    audio = model.project_audio(model.encode_audio(wave))
    with torch.no_grad():
        expected = model.match(text, image=model.encode_image(image), audio=audio, by=predict)
        found = module.features(image, None if predict == "image" else wave) @ text.T
    torch.testing.assert_close(found, expected)


def test_the_projection_is_fitted_to_the_names_of_the_first_task(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = create_audioclip("tiny")
    text = TextTower(48, width=64, blocks=1, heads=1, context_length=96, vocab_size=258)
    audio = {f"audio.{name}": value for name, value in source.audio.state_dict().items()}
    torch.save({**text.state_dict(), **audio}, tmp_path / "audioclip.pt")
    towers = Towers("tiny", audio_weights=str(tmp_path / "audioclip.pt"), projection="procrustes")
    module, data = ZeroShotAudioCLIP(towers=towers), spoken(tmp_path / "fsdd")
    start = module.backbone.projection.weight.clone()
    trainer = fit(tmp_path / "run", module, data, evaluate_before_training=False)
    expected = module.backbone.projection.weight.clone()
    assert not torch.equal(expected, start)
    module.backbone.set_projection(start)
    towers.fit_projection(module.backbone, data.class_names[:5])
    torch.testing.assert_close(expected, module.backbone.projection.weight)
    again = ZeroShotAudioCLIP.load_from_checkpoint(Path(trainer.log_dir) / "checkpoints" / "last.ckpt")
    assert torch.equal(again.backbone.projection.weight, expected)
    assert not again.backbone.projection.weight.requires_grad
