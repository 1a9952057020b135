"""The gate, the three readings of the attention, what masking does, and what a checkpoint keeps."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_cil.networks.counters import merge_counters
from lightning_cil.networks.fusion import AAVFM, ConcatFusion, pearson_correlation


def features(batch: int = 5, dim: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, dim, generator=generator), torch.randn(batch, dim, generator=generator)


def unit(x):
    return F.normalize(x, dim=1)


def trained(fusion: AAVFM) -> AAVFM:
    """Other values than those at the start."""
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return fusion


def test_correlation_is_pearsons():
    x, y = features()
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    torch.testing.assert_close(pearson_correlation(3 * x + 2, y - 7), torch.tensor(expected, dtype=torch.float32))
    assert pearson_correlation(x, torch.ones_like(x)).tolist() == [0.0] * 5
    assert not pearson_correlation(x.requires_grad_(), y).requires_grad


def test_random_features_do_not_reach_the_papers_threshold():
    generator = torch.Generator().manual_seed(0)
    r = pearson_correlation(*(torch.randn(1000, 512, generator=generator) for _ in range(2)))
    assert r.std().item() == pytest.approx(1 / math.sqrt(512), rel=0.1)
    assert r.abs().max().item() < 0.8


def test_first_attention_weights_are_nearly_equal_with_unit_features():
    visual = torch.eye(1, 512)
    audio = torch.eye(2, 512)[1:]
    fused = AAVFM(512, threshold=-1.0)(visual, 10 * audio)
    weights = F.softmax(torch.tensor([1 / math.sqrt(512), 0.0]), dim=0)
    torch.testing.assert_close(fused[0, :2], weights)
    assert weights[0].item() == pytest.approx(0.51, abs=2e-3)


def literal(fusion: AAVFM, v, a, fuse: bool) -> torch.Tensor:
    """Eq. 2 of one sample with strong visual features, in one attention head, with the MLP."""
    w_v, w_a = fusion.modality_weights()
    factor = fusion.scale if fusion.temperature is None else fusion.temperature
    if fusion.attention == "channel":
        zero = torch.zeros_like(a)
        cat = torch.cat([w_v * v, w_a * a if fuse or fusion.mask_mode == "attn" else zero])
        if not fuse and fusion.mask_mode == "attn":
            cat = cat[: len(v)]
        out = torch.stack([F.softmax(x * cat * factor, dim=0) @ cat for x in v])
    else:
        rows = [w_v * v, w_a * a]
        if not fuse:
            rows = [rows[0]] if fusion.mask_mode == "attn" else [rows[0], torch.zeros_like(a)]
        query = fusion.query(v)
        scores = torch.stack([query @ fusion.key(row) * factor for row in rows])
        out = sum(p * fusion.value(row) for p, row in zip(F.softmax(scores, dim=0), rows, strict=True))
    if not fuse and fusion.mask_mode == "bypass":
        return v
    if fusion.mlp is None:
        return out
    return out + fusion.mlp(out) if fusion.residual else fusion.mlp(out)


@pytest.mark.parametrize("mask_mode", ["attn", "zero_pad", "bypass"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"softmax_weights": True, "learnable_temperature": True},
        {"mlp": False},
        {"residual": False},
        {"attention": "projected"},
        {"attention": "channel", "learnable_temperature": True},
    ],
)
def test_fusion_equals_equation_2_sample_by_sample(mask_mode, options):
    torch.manual_seed(0)
    fusion = trained(AAVFM(6, threshold=0.0, mask_mode=mask_mode, **options))
    visual, audio = features()
    fuse = (pearson_correlation(visual, audio) >= 0).tolist()
    assert set(fuse) == {True, False}
    expected = [literal(fusion, v, a, f) for v, a, f in zip(unit(visual), unit(audio), fuse, strict=True)]
    fused = fusion(2 * visual, 5 * audio)
    torch.testing.assert_close(fused, torch.stack(expected))
    fused.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fusion.parameters())


def test_heads_attend_apart():
    torch.manual_seed(0)
    fusion = trained(AAVFM(6, threshold=-1.0, attention="projected", heads=2, mlp=False))
    visual, audio = (unit(x) for x in features())
    rows = torch.stack([visual, audio], dim=1) * fusion.modality_weights().unsqueeze(1)
    expected = F.scaled_dot_product_attention(
        *(part.unflatten(-1, (2, 3)).transpose(1, 2)
          for part in (fusion.query(visual).unsqueeze(1), fusion.key(rows), fusion.value(rows)))
    )  # fmt: skip
    torch.testing.assert_close(fusion(visual, audio), expected.transpose(1, 2).flatten(1))


def test_projected_attention_starts_as_the_stacked_one():
    visual, audio = features()
    first, second = (AAVFM(6, threshold=-1.0, attention=kind) for kind in ("stacked", "projected"))
    torch.testing.assert_close(first(visual, audio), second(visual, audio))


def test_threshold_of_minus_1_fuses_all_and_of_1_nothing_but_equal_features():
    visual, audio = features()
    plain = {"mlp": False}
    everything = AAVFM(6, threshold=-1.0, **plain).train()
    everything(visual, -visual)  # a correlation of -1 itself
    assert everything.counter.pending.tolist() == [5, 5]
    nothing = AAVFM(6, threshold=1.0, **plain).train()
    torch.testing.assert_close(nothing(visual, audio), unit(visual))
    nothing.eval()(visual, audio)
    assert nothing.counter.pending.tolist() == [0, 5]


def test_a_strong_audio_modality_is_kept_below_the_threshold():
    visual, audio = features()
    for mask_mode in ("attn", "bypass"):
        fusion = AAVFM(6, threshold=1.0, strong="audio", mask_mode=mask_mode)
        torch.testing.assert_close(fusion(visual, audio), unit(audio))


def test_training_starts_from_what_the_attention_gives():
    fusion = AAVFM(512, threshold=1.0)
    assert sum(p.numel() for p in fusion.mlp.parameters()) == 525_312
    visual, audio = features(dim=512)
    torch.testing.assert_close(fusion(visual, audio), unit(visual))
    assert sum(p.numel() for p in ConcatFusion(512).parameters()) == 1024 * 512 + 512
    assert ConcatFusion(6)(*features()).shape == (5, 6)


def test_calibration_chooses_once_and_is_kept_by_checkpoints():
    fusion = AAVFM(6, threshold="quantile:0.75", strong="auto", mlp=False).eval()
    assert fusion.needs_calibration
    visual, audio = features(batch=41)
    torch.testing.assert_close(fusion(visual, audio), unit(visual))  # nothing is fused before
    fusion.calibrate(visual, audio, visual_accuracy=0.2, audio_accuracy=0.3)
    r = pearson_correlation(visual, audio)
    torch.testing.assert_close(fusion.threshold, r.quantile(0.75))
    fusion.train()(visual, audio)
    merge_counters(fusion)
    assert fusion.counter.total.tolist() == [11, 41]
    assert fusion.fused_fraction().item() == pytest.approx(11 / 41)
    other = AAVFM(6, threshold="quantile:0.75", strong="auto", mlp=False)
    other.load_state_dict(fusion.state_dict())
    torch.testing.assert_close(other(visual, audio), fusion(visual, audio))
    assert other.counter.total.tolist() == [11, 41]
    below = r < fusion.threshold
    torch.testing.assert_close(other(visual, audio)[below], unit(audio)[below])
    other.calibrate(visual, audio, visual_accuracy=0.3, audio_accuracy=0.3)
    torch.testing.assert_close(other(visual, audio)[below], unit(visual)[below])


@pytest.mark.parametrize("attention", ["stacked", "projected", "channel"])
def test_nothing_is_read_back_from_another_device(attention):
    """On the meta device there are no values: `.item()` or a branch on them would fail."""
    with torch.device("meta"):
        fusion = AAVFM(6, attention=attention, mask_mode="bypass")
        assert fusion(torch.empty(5, 6), torch.empty(5, 6)).device.type == "meta"


def test_half_precision_fuses():
    fusion = trained(AAVFM(6, threshold=0.0))
    visual, audio = features()
    with torch.autocast("cpu", torch.bfloat16):
        half = fusion(visual, audio)
    torch.testing.assert_close(half.float(), fusion(visual, audio), atol=0.1, rtol=0.1)


def test_predictions_do_not_depend_on_the_batch():
    fusion = trained(AAVFM(6, threshold=0.0))
    visual, audio = features()
    alone = torch.cat([fusion(visual[i : i + 1], audio[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(alone, fusion(visual, audio))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"threshold": "quantile:2"}, "'quantile:2'"),
        ({"threshold": "half"}, "'half'"),
        ({"strong": "text"}, "`strong='text'`, expected one of visual, audio, auto"),
        ({"attention": "dot"}, "'dot'"),
        ({"mask_mode": "none"}, "'none'"),
        ({"heads": 4, "attention": "projected"}, "heads=4"),
        ({"heads": 2}, "heads=2"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AAVFM(6, **options)
