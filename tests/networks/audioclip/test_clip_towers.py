"""The image and text towers: sizes, the place for adapters, and the same numbers as two independent implementations."""

import pytest
import timm
import torch
from timm.models.byobnet import checkpoint_filter_fn
from torch import nn

from lightning_cil.networks.audioclip import (
    AudioCLIP,
    Block,
    ModifiedResNet,
    TextTower,
    VisionTransformer,
    create_audioclip,
    cut_padding,
)
from lightning_cil.networks.audioclip.transformer import QuickGELU


def size(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return create_audioclip("tiny").eval()


class TestSizes:
    def test_vit_b16(self):
        with torch.device("meta"):
            model = create_audioclip("vit_b16")
        assert size(model.image) == 86_192_640
        assert size(model.text) == 63_428_096
        assert size(model.image) + size(model.text) + model.logit_scale.numel() == 149_620_737
        assert size(model.projection) == 524_288
        assert size(model.audio) == 32_104_771

    def test_rn50(self):
        with torch.device("meta"):
            model = create_audioclip("rn50")
        assert size(model.image) + size(model.text) + model.logit_scale.numel() == 102_007_137

    def test_tiny_is_tiny(self, tiny):
        assert size(tiny) <= 100_000

    def test_unknown_preset(self):
        with pytest.raises(ValueError, match=r"`preset='vitb16'`, expected one of .* Did you mean 'vit_b16'"):
            create_audioclip("vitb16")


def test_quick_gelu():
    z = torch.tensor([-1.0, 0.0, 2.0])
    torch.testing.assert_close(QuickGELU()(z), z / (1 + torch.exp(-1.702 * z)))


class Recorder(nn.Module):
    """An adapter that adds a constant and notes what it was given."""

    def forward(self, h, gate):
        self.h, self.gate = h, gate
        return torch.full_like(h, 0.5)


class TestAdapter:
    def test_reads_the_state_before_the_second_norm_beside_the_mlp(self):
        torch.manual_seed(0)
        block, x = Block(16, 2, causal=False), torch.randn(3, 5, 16)
        h = x + block.attn(block.ln_1(x))
        plain = block(x)
        block.adapter = Recorder()
        torch.testing.assert_close(block(x), plain + 0.5)
        torch.testing.assert_close(plain, h + block.mlp(block.ln_2(h)))
        torch.testing.assert_close(block.adapter.h, h)

    def test_gate_is_the_class_token_of_images(self, tiny):
        block = tiny.image.transformer.blocks()[-1]
        block.adapter = Recorder()
        tiny.encode_image(torch.randn(2, 3, 16, 16))
        assert torch.equal(block.adapter.gate, block.adapter.h[:, 0])

    def test_gate_is_the_end_of_a_text(self, tiny):
        block = tiny.text.transformer.blocks()[-1]
        block.adapter = Recorder()
        tiny.encode_text(torch.tensor([[256, 5, 257, 0], [256, 5, 6, 257]]))
        assert torch.equal(block.adapter.gate[0], block.adapter.h[0, 2])
        assert torch.equal(block.adapter.gate[1], block.adapter.h[1, 3])

    def test_adapters_are_part_of_the_model(self, tiny):
        blocks = tiny.blocks()
        assert list(blocks) == ["image.transformer.resblocks.0", "text.transformer.resblocks.0"]
        before = size(tiny)
        blocks["text.transformer.resblocks.0"].adapter = nn.Linear(16, 16)
        assert size(tiny) == before + 16 * 17
        assert "text.transformer.resblocks.0.adapter.weight" in tiny.state_dict()


class TestText:
    def test_padding_with_zeros_or_ends_or_none(self, tiny):
        zeros = torch.tensor([[256, 9, 8, 257, 0, 0], [256, 7, 257, 0, 0, 0]])
        ends = torch.where(zeros == 0, 257, zeros)
        expected = tiny.encode_text(zeros)
        torch.testing.assert_close(tiny.encode_text(ends), expected)
        assert cut_padding(zeros).shape == (2, 4)
        torch.testing.assert_close(tiny.encode_text(cut_padding(zeros)), expected)

    def test_texts_do_not_depend_on_each_other(self, tiny):
        tokens = torch.randint(0, 256, (4, 9)).index_fill_(1, torch.tensor([8]), 257)
        torch.testing.assert_close(tiny.encode_text(tokens)[2:3], tiny.encode_text(tokens[2:3]))

    @pytest.mark.parametrize("tokens", [torch.zeros(2, 97, dtype=torch.long), torch.zeros(2, 5), torch.zeros(5).long()])
    def test_other_input(self, tiny, tokens):
        with pytest.raises(ValueError, match=r"expected token ids, long \[texts, at most 96\]"):
            tiny.encode_text(tokens)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 16, 16), (3, 16, 16)])
def test_images_of_another_size(tiny, shape):
    with pytest.raises(ValueError, match=r"expected normalised float \[B, 3, 16, 16\]: .*CLIP_MEAN"):
        tiny.encode_image(torch.rand(shape))


def test_bytes_are_no_image(tiny):
    with pytest.raises(ValueError, match="uint8"):
        tiny.encode_image(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_patches_must_tile():
    with pytest.raises(ValueError, match="a multiple of `patch_size`"):
        VisionTransformer(image_size=30, patch_size=16, width=16, blocks=1)


def test_resnet_agrees_with_timm():
    """timm has the same network in other names, and a function that renames OpenAI's."""
    torch.manual_seed(0)
    ours = ModifiedResNet(64, image_size=64).eval()
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):  # else the last one of a block is 0
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.running_mean, std=0.1)
    theirs = timm.create_model("resnet50_clip", pretrained=False, num_classes=64, img_size=64).eval()
    published = {f"visual.{name}": value for name, value in ours.state_dict().items()}
    theirs.load_state_dict(checkpoint_filter_fn(published, theirs))
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image), rtol=1e-4, atol=1e-4)


class TestMatch:
    def features(self):
        return (nn.functional.normalize(torch.randn(n, 32), dim=1) for n in (3, 2, 2))

    def test_halves_of_both(self, tiny):
        text, image, audio = self.features()
        tiny.logit_scale.data.fill_(torch.tensor(20.0).log())
        expected = 0.5 * (20 * image @ text.T + 100 * audio @ text.T)
        torch.testing.assert_close(tiny.match(text, image=image, audio=audio), expected)
        torch.testing.assert_close(tiny.match(text, image=image, by="image"), 20 * image @ text.T)
        torch.testing.assert_close(tiny.match(text, audio=audio, by="audio"), 100 * audio @ text.T)

    @pytest.mark.parametrize(("log_scale", "scale"), [(7.0, 100.0), (-3.0, 1.0), (2.0, 7.389056)])
    def test_scales_are_clamped(self, tiny, log_scale, scale):
        tiny.logit_scale.data.fill_(log_scale)
        assert tiny.scale("image_text").item() == pytest.approx(scale)

    def test_starts_as_published(self, tiny):
        assert tiny.scale("image_text").item() == pytest.approx(1 / 0.07)
        assert tiny.scale("audio_text").item() == pytest.approx(100)
        assert tiny.scale("audio_image").item() == pytest.approx(100)

    def test_what_is_missing(self, tiny):
        text, image, _ = self.features()
        with pytest.raises(ValueError, match="`by='sum'` without `audio`"):
            tiny.match(text, image=image)
        with pytest.raises(ValueError, match="expected one of sum, image, audio"):
            tiny.match(text, image=image, by="both")


def test_features_have_length_one_but_audio_has_not(tiny):
    image, tokens = torch.randn(2, 3, 16, 16), torch.tensor([[256, 5, 257]])
    audio = tiny.encode_audio(torch.rand(2, 1, 500))
    assert audio.shape == (2, tiny.audio_dim)
    for features in (tiny.encode_image(image), tiny.encode_text(tokens), tiny.project_audio(audio)):
        assert features.shape[1] == tiny.embed_dim
        torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))
    torch.testing.assert_close(tiny.project_audio(audio, normalize=False), audio @ tiny.projection.weight.T)


def test_projection_is_frozen_seeded_and_saved():
    first, same, other = (create_audioclip("tiny", projection_seed=seed) for seed in (1, 1, 2))
    weight = first.state_dict()["projection.weight"]
    assert torch.equal(weight, same.projection.weight)
    assert not torch.equal(weight, other.projection.weight)
    assert not first.projection.weight.requires_grad
    torch.testing.assert_close(weight @ weight.T, torch.eye(32), rtol=0, atol=1e-6)


def test_identity_needs_equal_widths():
    parts = create_audioclip("tiny")
    with pytest.raises(ValueError, match="features of width 48 and others of width 32"):
        AudioCLIP(parts.image, parts.text, parts.audio, embed_dim=32, audio_dim=48, projection_seed=None)


def test_text_tower_of_other_sizes():
    tower = TextTower(8, width=16, blocks=1, heads=2, context_length=5, vocab_size=11)
    assert tower(torch.tensor([[9, 1, 10]])).shape == (1, 8)
