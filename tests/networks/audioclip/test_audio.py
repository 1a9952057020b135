"""The audio tower: sizes, gates, what stays frozen."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from lightning_cil.networks.audioclip import ESResNeXt, create_audioclip
from lightning_cil.networks.audioclip.audio import BatchNorm2d, Gate


def size(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def small(**options):
    sizes = {"n_fft": 64, "win_length": 50, "hop_length": 20, "width": 4, "layers": (1, 1, 1, 1), "groups": 4}
    return ESResNeXt(8, **{**sizes, **options})


def shake(module):
    """Statistics and affine values that differ from channel to channel, as after training."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)


class TestSizes:
    def test_published(self):
        with torch.device("meta"):
            audio = ESResNeXt()
        parts = dict(audio.named_children())
        assert size(audio) == 32_104_771
        assert size(audio.conv1, audio.bn1) == 9_536
        assert size(*(parts[f"layer{i}"] for i in range(1, 5))) == 22_970_368
        assert size(*(parts[f"att{i}"] for i in range(1, 6))) == 7_023_616
        assert size(audio.fc) == 2_098_176
        assert size(audio.fbsp) == 3_075

    def test_published_entries(self):
        with torch.device("meta"):
            state = ESResNeXt().state_dict()
        assert len(state) == 370
        assert state["window"].shape == (1654,)
        assert state["fbsp.bias"].shape == (0,)
        assert state["att5.conv_depth.weight"].shape == (2048, 1, 3, 5)
        assert state["layer2.0.conv2.weight"].shape == (256, 8, 3, 3)


def literal_gate(gate, x, height, width):
    """The gate with one loop for each step."""
    batch, channels = x.shape[:2]
    pooled = x.new_zeros(batch, channels, height, width)
    for i in range(height):
        for j in range(width):
            rows = slice(i * x.shape[2] // height, -(-(i + 1) * x.shape[2] // height))
            columns = slice(j * x.shape[3] // width, -(-(j + 1) * x.shape[3] // width))
            pooled[:, :, i, j] = x[:, :, rows, columns].amax(dim=(2, 3))
    (ph, pw), (kh, kw) = gate.conv_depth.padding, gate.conv_depth.kernel_size
    padded = F.pad(pooled, (pw, pw, ph, ph))
    depth = torch.zeros_like(pooled)
    for i in range(height):
        for j in range(width):
            patch = padded[:, :, i : i + kh, j : j + kw]
            depth[:, :, i, j] = (patch * gate.conv_depth.weight[:, 0]).sum(dim=(2, 3)) + gate.conv_depth.bias
    mixed = torch.einsum("oc,bchw->bohw", gate.conv_point.weight[:, :, 0, 0], depth)
    mixed = mixed + gate.conv_point.bias[:, None, None]
    bn = gate.bn
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    normed = (mixed - bn.running_mean[:, None, None]) * scale[:, None, None] + bn.bias[:, None, None]
    return 1 / (1 + torch.exp(-normed))


@pytest.mark.parametrize(("kernel", "padding"), [((3, 1), (1, 0)), ((1, 5), (0, 2)), ((3, 5), (1, 2))])
@pytest.mark.parametrize("out", [(4, 5), (1, 1), (9, 7)])
@torch.no_grad()
def test_gate_is_the_literal_one(kernel, padding, out):
    torch.manual_seed(0)
    gate = Gate(3, 6, kernel, padding).eval()
    shake(gate)
    x = torch.randn(2, 3, 9, 7)
    torch.testing.assert_close(gate(x, out), literal_gate(gate, x, *out), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_network_is_torchvisions_resnext_with_gates():
    """One forward, with the layers of torchvision's ResNeXt and literal gates."""
    torch.manual_seed(0)
    audio = ESResNeXt(8, n_fft=64, win_length=50, hop_length=20, layers=(1, 1, 1, 1)).eval()
    shake(audio)
    theirs = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=8, groups=32, width_per_group=4
    ).eval()
    own = {name: value for name, value in audio.state_dict().items() if name in theirs.state_dict()}
    theirs.load_state_dict(own)
    wave = torch.rand(2, 1, 700).mul(2).sub(1).mul(20_000)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(audio.spectrogram(wave)))))
    for layer, gate in zip(
        (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4),
        (audio.att1, audio.att2, audio.att3, audio.att4),
        strict=True,
    ):
        out = layer(x)
        x = out * literal_gate(gate, x, *out.shape[2:])
    pooled = x.mean(dim=(2, 3), keepdim=True) * literal_gate(audio.att5, x, 1, 1)
    torch.testing.assert_close(audio(wave), theirs.fc(pooled.flatten(1)), rtol=1e-4, atol=1e-4)


class TestFrozen:
    def statistics(self, module):
        return copy.deepcopy(module.state_dict())

    def test_tower_stays_in_eval_mode(self):
        model = create_audioclip("tiny")
        before = self.statistics(model.audio)
        model.train()
        assert model.image.training
        assert not any(part.training for part in model.audio.modules())
        model.encode_audio(torch.rand(2, 1, 600))
        assert all(torch.equal(value, before[name]) for name, value in model.audio.state_dict().items())

    def test_thawed_tower_trains(self):
        model = create_audioclip("tiny")
        model.audio.fc.requires_grad_(True)
        model.train()
        assert model.audio.bn1.training
        before = self.statistics(model.audio)
        assert model.encode_audio(torch.rand(2, 1, 600)).requires_grad
        assert not torch.equal(model.audio.bn1.running_mean, before["bn1.running_mean"])

    def test_frozen_tower_builds_no_graph(self):
        model = create_audioclip("tiny")
        wave = torch.rand(2, 1, 600, requires_grad=True)
        assert not model.encode_audio(wave).requires_grad

    def test_features_do_not_depend_on_the_batch(self):
        model = create_audioclip("tiny").train()
        wave = torch.rand(3, 1, 600)
        torch.testing.assert_close(model.encode_audio(wave)[1:2], model.encode_audio(wave[1:2]))


class TestBatchStatistics:
    def test_are_used_in_eval_mode_and_leave_the_running_ones(self):
        torch.manual_seed(0)
        audio = small(batch_norm="batch").requires_grad_(False).eval()
        before = copy.deepcopy(audio.state_dict())
        wave = torch.rand(3, 1, 600).mul(20_000)
        together = audio(wave)
        assert not torch.allclose(together[:2], audio(wave[:2]))
        assert all(torch.equal(value, before[name]) for name, value in audio.state_dict().items())

    def test_normalise_the_batch(self):
        norm, x = BatchNorm2d(2).eval(), torch.randn(8, 2, 3, 3) * 5 + 2
        norm.use_batch = True
        torch.testing.assert_close(norm(x).mean(dim=(0, 2, 3)), torch.zeros(2), rtol=0, atol=1e-5)

    def test_unknown_choice(self):
        with pytest.raises(ValueError, match="`batch_norm='train'`, expected 'running' or 'batch'"):
            small(batch_norm="train")


@pytest.mark.parametrize("shape", [(2, 600), (2, 2, 600), (2, 1, 0)])
def test_other_waves(shape):
    with pytest.raises(ValueError, match=r"expected float mono waves \[B, 1, samples\]"):
        create_audioclip("tiny").encode_audio(torch.zeros(shape))


def test_integers_are_no_wave():
    with pytest.raises(ValueError, match="int16"):
        create_audioclip("tiny").encode_audio(torch.zeros(2, 1, 600, dtype=torch.int16))


def test_encode_audio_brings_the_wave_to_the_range_of_integers():
    model, wave = create_audioclip("tiny"), torch.rand(2, 1, 600) - 0.5
    torch.testing.assert_close(model.encode_audio(wave), model.audio(wave * 32_768))


@pytest.mark.parametrize("samples", [1, 50, 2_000])
def test_clips_of_any_length(samples):
    assert create_audioclip("tiny").encode_audio(torch.rand(1, 1, samples)).shape == (1, 48)


def test_spectrum_is_single_precision_under_autocast():
    audio, wave = small().requires_grad_(False).eval(), torch.rand(1, 1, 600) * 20_000
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(audio.spectrogram(wave), audio.spectrogram(wave.float()))
        found = audio.spectrogram(wave)
    torch.testing.assert_close(found, audio.spectrogram(wave))
