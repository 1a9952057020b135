"""`Towers` in a config, and the projection P in its three initial values."""

import jsonargparse
import pytest
import torch
import torch.nn.functional as F

from lightning_cil.networks.audioclip import (
    TextTower,
    Tokenizer,
    Towers,
    create_audioclip,
    fill,
    procrustes,
    semi_orthogonal,
)

NAMES = ["dog", "rooster", "sea waves"]


@pytest.fixture
def audio_file(tmp_path):
    """AudioCLIP's layout at the tiny preset's sizes: an audio tower and the text tower that it was trained with."""
    torch.manual_seed(5)
    text = TextTower(48, width=64, blocks=1, heads=1, context_length=96, vocab_size=258)
    audio = create_audioclip("tiny").audio
    state = {**text.state_dict(), **{f"audio.{name}": value for name, value in audio.state_dict().items()}}
    torch.save(state, tmp_path / "audioclip.pt")
    return str(tmp_path / "audioclip.pt"), text.eval(), audio


class TestSemiOrthogonal:
    @pytest.mark.parametrize("shape", [(6, 10), (10, 6), (5, 5)])
    def test_shorter_side_is_orthonormal(self, shape):
        weight = semi_orthogonal(*shape, seed=3)
        assert weight.shape == shape
        gram = weight @ weight.T if shape[0] <= shape[1] else weight.T @ weight
        torch.testing.assert_close(gram, torch.eye(min(shape)), rtol=0, atol=1e-6)

    def test_leaves_the_global_random_state_alone(self):
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        semi_orthogonal(4, 8)
        assert torch.rand(1) == expected


class TestProcrustes:
    def test_finds_the_map_where_there_is_one(self):
        generator = torch.Generator().manual_seed(0)
        weight, source = torch.randn(4, 6, generator=generator), torch.randn(20, 6, generator=generator)
        torch.testing.assert_close(procrustes(source, source @ weight.T), weight, rtol=1e-4, atol=1e-5)

    def test_fewer_texts_than_features(self):
        generator = torch.Generator().manual_seed(0)
        source, target = torch.randn(3, 6, generator=generator), torch.randn(3, 4, generator=generator)
        weight = procrustes(source, target)
        torch.testing.assert_close(source @ weight.T, target, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(weight, (torch.linalg.pinv(source) @ target).T, rtol=1e-4, atol=1e-5)

    def test_orthogonal(self):
        weight, source = semi_orthogonal(6, 6, seed=1), torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(procrustes(source, source @ weight.T, orthogonal=True), weight, rtol=1e-4, atol=1e-5)
        narrow = procrustes(source, torch.randn(20, 4), orthogonal=True)
        torch.testing.assert_close(narrow @ narrow.T, torch.eye(4), rtol=0, atol=1e-5)

    def test_features_of_different_texts(self):
        with pytest.raises(ValueError, match="expected features of the same texts"):
            procrustes(torch.zeros(3, 6), torch.zeros(4, 6))

    def test_orthogonal_to_more_features(self):
        with pytest.raises(ValueError, match="not wider than the source"):
            procrustes(torch.zeros(3, 4), torch.zeros(3, 6), orthogonal=True)


class TestTowers:
    def test_a_config_reaches_every_part(self, audio_file):
        parser = jsonargparse.ArgumentParser()
        parser.add_argument("--towers", type=Towers)
        options = {"preset": "tiny", "projection_seed": 3, "activation": "gelu", "audio_weights": audio_file[0]}
        towers = Towers(**parser.parse_object({"towers": options}).towers.as_dict())
        model = towers.build()
        assert torch.equal(model.projection.weight, semi_orthogonal(32, 48, seed=3))
        assert isinstance(model.text.transformer.blocks()[0].mlp.gelu, torch.nn.GELU)
        assert torch.equal(model.audio.fc.weight, audio_file[2].fc.weight)
        assert [report.loaded for report in model.load_reports] == [{"audio": len(model.audio.state_dict())}]
        assert towers.tokenizer(model).source == "bytes"

    def test_audio_options(self):
        model = Towers(preset="tiny", front_end="mfcc", batch_norm="batch").build()
        assert model.sample_rate == 16_000
        assert model.audio.bn1.use_batch

    def test_image_and_text_from_one_file_audio_from_another(self, audio_file, tmp_path):
        source = create_audioclip("tiny")
        flat = {n.replace("image.", "visual.").removeprefix("text."): v for n, v in source.state_dict().items()}
        flat = {n: v for n, v in flat.items() if not n.startswith(("audio.", "projection."))}
        torch.save(flat, tmp_path / "clip.pt")
        towers = Towers(preset="tiny", clip_weights=str(tmp_path / "clip.pt"), audio_weights=audio_file[0])
        model = towers.build()
        assert torch.equal(model.image.proj, source.image.proj)
        assert torch.equal(model.text.text_projection, source.text.text_projection)
        assert torch.equal(model.audio.fc.weight, audio_file[2].fc.weight)

    def test_errors_name_the_option(self, audio_file):
        with pytest.raises(FileNotFoundError, match=r"`clip_weights='nowhere\.pt'` is no file"):
            Towers(preset="tiny", clip_weights="nowhere.pt").build()
        with pytest.raises(ValueError, match=r"`clip_weights=.* has no image tower|`clip_weights=.* has no image"):
            Towers(preset="tiny", clip_weights=audio_file[0]).build()

    def test_published_weights_are_for_fbsp(self, audio_file):
        with pytest.raises(ValueError, match="`front_end='mfcc'`, but published weights are for `fbsp`"):
            Towers(preset="tiny", front_end="mfcc", audio_weights=audio_file[0]).build()


class TestProjection:
    def test_procrustes_maps_the_prompts_of_one_text_tower_to_those_of_the_other(self, audio_file):
        path, text, _ = audio_file
        towers = Towers(preset="tiny", audio_weights=path, projection="procrustes")
        model, templates = towers.build(), ["a {}.", "the {} there"]
        towers.fit_projection(model, NAMES, templates)
        tokens = Tokenizer(258, 96).encode(fill(NAMES, templates))
        with torch.no_grad():
            source, target = F.normalize(text(tokens), dim=1), model.encode_text(tokens)
        torch.testing.assert_close(source @ model.projection.weight.T, target, rtol=1e-3, atol=1e-4)
        assert not model.projection.weight.requires_grad

    def test_other_projections_are_left_alone(self):
        towers = Towers(preset="tiny")
        model = towers.build()
        before = model.projection.weight.clone()
        towers.fit_projection(model, NAMES)
        assert torch.equal(model.projection.weight, before)

    def test_procrustes_needs_a_file(self):
        with pytest.raises(ValueError, match="`projection='procrustes'` without `audio_weights`"):
            Towers(preset="tiny", projection="procrustes").build()

    @pytest.mark.parametrize("name", ["projection.weight", "weight", "P"])
    def test_file(self, tmp_path, name):
        weight = torch.randn(32, 48)
        torch.save({name: weight}, tmp_path / "p.pt")
        model = Towers(preset="tiny", projection=str(tmp_path / "p.pt")).build()
        assert torch.equal(model.projection.weight, weight)

    def test_file_of_another_shape(self, tmp_path):
        torch.save({"weight": torch.randn(48, 32)}, tmp_path / "p.pt")
        with pytest.raises(ValueError, match=r"got a projection \[48, 32\], expected .* \[32, 48\]"):
            Towers(preset="tiny", projection=str(tmp_path / "p.pt")).build()

    def test_file_of_more(self, tmp_path):
        torch.save({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "p.pt")
        with pytest.raises(ValueError, match="holds 2 tensors, expected one matrix"):
            Towers(preset="tiny", projection=str(tmp_path / "p.pt")).build()

    def test_neither_word_nor_file(self):
        with pytest.raises(FileNotFoundError, match=r"`projection='orthogonal'` is neither"):
            Towers(preset="tiny", projection="orthogonal").build()
