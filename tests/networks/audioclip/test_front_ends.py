"""The audio front ends against literal loops in double precision, and the numbers of the published one."""

import copy
import math

import numpy as np
import pytest
import torch

from lightning_cil.networks.audioclip import front_ends
from lightning_cil.networks.audioclip.audio import ESResNeXt
from lightning_cil.networks.audioclip.front_ends import FBSP, blackman_harris, decibels, frame, split_bands, to_unit


def literal_wavelets(m, fb, fc, points):
    """W_k[n] as written in the paper, with complex powers."""
    rows = np.zeros((len(m), points), dtype=complex)
    for k in range(len(m)):
        for n in range(points):
            t = math.pi * (-1 + 2 * n / (points - 1)) + 1e-8
            u = fb[k] * t / (m[k] + 1e-8)
            rows[k, n] = math.sqrt(fb[k]) * complex(math.sin(u) / u) ** m[k] * np.exp(-1j * fc[k] * t)
    return rows


def literal_power(wave, m, fb, fc, n_fft, win, hop):
    """The power spectrum of one int16 wave, frame by frame: [bins, frames]."""
    signal = [2 * (x + 32768) / 65535 - 1 for x in wave]
    count = 1 if len(signal) <= win else 1 + math.ceil((len(signal) - win) / hop)
    missing = (count - 1) * hop + win - len(signal)
    signal = [0.0] * (missing // 2) + signal + [0.0] * (missing - missing // 2)
    a = (0.35875, 0.48829, 0.14128, 0.01168)
    window = [sum((-1) ** i * a[i] * math.cos(2 * math.pi * i * n / win) for i in range(4)) for n in range(win)]
    wavelets = literal_wavelets(m, fb, fc, n_fft)
    left = (n_fft - win) // 2
    power = np.zeros((len(m), count))
    for f in range(count):
        framed = np.zeros(n_fft)
        framed[left : left + win] = [signal[f * hop + n] * window[n] for n in range(win)]
        power[:, f] = np.abs(wavelets @ framed / math.sqrt(n_fft)) ** 2
    return power


def tower(front_end="fbsp", **options):
    sizes = {"n_fft": 32, "win_length": 26, "hop_length": 9, "width": 4, "layers": (1, 1, 1, 1), "groups": 4}
    return ESResNeXt(8, front_end=front_end, **{**sizes, **options})


class TestFBSP:
    @pytest.mark.parametrize("samples", [10, 26, 100])
    @pytest.mark.parametrize("trained", [False, True])
    def test_is_the_literal_transform(self, samples, trained):
        audio, generator = tower(), torch.Generator().manual_seed(0)
        if trained:  # as published: anything near the initial values, m also off 0
            with torch.no_grad():
                audio.fbsp.m.copy_(torch.rand(17, generator=generator) * 2)
                audio.fbsp.fb.copy_(0.5 + torch.rand(17, generator=generator))
                audio.fbsp.fc.add_(torch.rand(17, generator=generator))
        wave = torch.rand(2, 1, samples, generator=generator).mul(2).sub(1).mul(20_000)
        found = audio.spectrogram(wave).detach()
        parameters = [p.tolist() for p in (audio.fbsp.m, audio.fbsp.fb, audio.fbsp.fc)]
        for b in range(2):
            power = literal_power(wave[b, 0].tolist(), *parameters, n_fft=32, win=26, hop=9)
            assert found.shape[1:] == (3, 5, power.shape[1])
            expected = torch.from_numpy(power[:15]).view(3, 5, -1)  # 17 bins: the lowest 15, band 0 the lowest
            torch.testing.assert_close(10 ** (found[b].double() / 10), expected, rtol=1e-4, atol=1e-4)
            loud = expected > 1e-4
            assert loud.float().mean() > 0.5
            torch.testing.assert_close(found[b].double()[loud], 10 * expected.log10()[loud], rtol=0, atol=1e-2)

    def test_starts_near_the_fourier_transform(self):
        fbsp, noise = FBSP(129, 256), torch.randn(1, 50, 256, generator=torch.Generator().manual_seed(0))
        real, imaginary = fbsp(noise).detach()
        fourier = torch.fft.rfft(noise).abs().square() / 256
        ratio = (real.square() + imaginary.square()) / fourier
        assert ratio.median().item() == pytest.approx(1, abs=0.05)

    def test_exact_zero_under_the_power_is_no_nan(self):
        fbsp = FBSP(2, 4)
        with torch.no_grad():
            fbsp.fb.fill_(0.0)  # sinc(0) = 1 by definition
        assert fbsp.kernel().isfinite().all()
        fbsp.kernel().sum().backward()
        assert fbsp.m.grad.isfinite().all()

    def test_gradients_are_finite_at_the_initial_values(self):
        fbsp = FBSP(5, 16, normalize_gradients=False)
        fbsp(torch.randn(1, 3, 16)).square().sum().backward()
        assert all(p.grad.isfinite().all() for p in fbsp.parameters())

    def test_gradients_are_divided_by_their_largest(self):
        torch.manual_seed(0)
        plain, divided = FBSP(5, 16, normalize_gradients=False), FBSP(5, 16)
        divided = copy.deepcopy(divided)  # a copy has the hooks, too
        frames = torch.randn(1, 3, 16)
        for fbsp in (plain, divided):
            with torch.no_grad():
                fbsp.m.fill_(1.0)
            (fbsp(frames).square().sum() + fbsp.norm_loss()).backward()
        for name in ("m", "fb", "fc"):
            expected = getattr(plain, name).grad
            torch.testing.assert_close(getattr(divided, name).grad, expected / expected.abs().max())

    def test_norm_loss(self):
        fbsp = FBSP(4, 16)
        kernel = fbsp.kernel() / 4  # over √points
        expected = (kernel.square().sum(dim=(0, 2)).sqrt() - 1).square().mean()
        torch.testing.assert_close(fbsp.norm_loss(), expected)


class TestKernelIsKept:
    def test_while_nothing_changes(self):
        fbsp = FBSP(4, 16).requires_grad_(False)
        assert fbsp.kernel() is fbsp.kernel()
        assert not fbsp.kernel().is_inference()

    def test_in_inference_mode_too(self):
        fbsp = FBSP(4, 16)
        with torch.inference_mode():
            kept = fbsp.kernel()
            assert fbsp.kernel() is kept
        assert not kept.is_inference()

    @pytest.mark.parametrize("change", ["in place", "load", "cast"])
    def test_until_a_parameter_changes(self, change):
        fbsp = FBSP(4, 16).requires_grad_(False)
        before = fbsp.kernel().clone()
        if change == "in place":
            fbsp.fc.add_(1)
        elif change == "load":
            fbsp.load_state_dict({**fbsp.state_dict(), "fc": fbsp.fc + 1})
        else:
            fbsp.double().fc.add_(1)
        assert not torch.allclose(fbsp.kernel(), before)

    def test_not_while_it_trains(self):
        fbsp = FBSP(4, 16)
        assert fbsp.kernel() is not fbsp.kernel()
        assert fbsp.kernel().requires_grad

    def test_a_copy_has_its_own(self):
        fbsp = FBSP(4, 16).requires_grad_(False)
        kept = fbsp.kernel()
        other = copy.deepcopy(fbsp)
        other.fc.add_(1)
        assert not torch.allclose(other.kernel(), kept)
        assert fbsp.kernel() is kept


class TestFrames:
    def test_five_seconds_are_392_frames(self):
        with torch.device("meta"):
            assert frame(torch.empty(1, 220_500), 1654, 561).shape == (1, 392, 1654)

    def test_five_seconds_through_the_published_front_end(self):
        """Sizes as published; the network behind it is small."""
        audio = ESResNeXt(8, width=4, layers=(1, 1, 1, 1), groups=4).requires_grad_(False)
        wave = torch.randn(1, 1, 220_500, generator=torch.Generator().manual_seed(0)) * 0.1
        loud, quiet = audio.spectrogram(wave * 32_768), audio.spectrogram(wave)
        assert loud.shape == (1, 3, 341, 392)
        # The trap: a wave in [-1, 1] that nobody brought to the range of 16-bit integers is 90.3 dB lower. The affine
        # map adds 1/65535 to both, which the lowest bins show.
        difference = (loud - quiet)[:, :, 4:]
        assert difference.median().item() == pytest.approx(20 * math.log10(32_768), abs=0.05)
        assert 20 * math.log10(32_768) == pytest.approx(90.3, abs=0.01)

    @pytest.mark.parametrize("samples", [1, 9, 10])
    def test_short_wave_is_one_frame_filled_from_both_sides(self, samples):
        wave = torch.arange(1.0, samples + 1)[None]
        left = (10 - samples) // 2
        found = frame(wave, 10, 4)
        assert found.shape == (1, 1, 10)
        expected = torch.zeros(10)
        expected[left : left + samples] = wave[0]
        torch.testing.assert_close(found[0, 0], expected)

    def test_odd_shortfall_goes_to_the_right(self):
        # 11 samples, frames of 10 every 4: two frames end at 14, so one zero to the left and two to the right.
        found = frame(torch.arange(1.0, 12)[None], 10, 4)[0]
        assert found.shape == (2, 10)
        assert found[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
        assert found[1].tolist() == [4, 5, 6, 7, 8, 9, 10, 11, 0, 0]


def test_int16_is_mapped_to_unit():
    torch.testing.assert_close(to_unit(torch.tensor([-32_768.0, 32_767.0])), torch.tensor([-1.0, 1.0]))


def test_silence_is_180_decibels_down():
    torch.testing.assert_close(decibels(torch.tensor([0.0, 1e-3])), torch.tensor([-180.0, -30.0]))


def test_bands():
    power = torch.arange(11.0).view(1, 11, 1)
    assert split_bands(power).flatten(1).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8]]
    assert split_bands(power)[0, :, :, 0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_window_is_periodic_blackman_harris():
    scipy_windows = pytest.importorskip("scipy.signal").get_window
    expected = torch.from_numpy(scipy_windows("blackmanharris", 1654)).float()
    torch.testing.assert_close(blackman_harris(1654), expected, rtol=0, atol=1e-6)


class TestOtherFrontEnds:
    def test_stft_is_centred(self):
        wave = torch.randn(2, 1, 180, generator=torch.Generator().manual_seed(0)) * 3000
        found = tower("stft").spectrogram(wave)
        assert found.shape == (2, 3, 5, 1 + 180 // 9)
        window = torch.zeros(32)
        window[3:29] = blackman_harris(26)
        padded = torch.nn.functional.pad(to_unit(wave), (16, 16), mode="reflect")[:, 0]
        spectrum = torch.fft.rfft(padded.unfold(1, 32, 9) * window).abs().square() / 32
        torch.testing.assert_close(found, decibels(split_bands(spectrum.transpose(1, 2))), rtol=1e-3, atol=1e-2)

    def test_five_seconds_are_394_frames(self):
        audio = ESResNeXt(8, front_end="stft", width=4, layers=(1, 1, 1, 1), groups=4)
        assert audio.spectrogram(torch.rand(1, 1, 220_500)).shape == (1, 3, 341, 394)

    def test_mfcc_and_its_differences(self):
        audio = tower("mfcc", sample_rate=16_000)
        wave = torch.randn(2, 1, 4_000, generator=torch.Generator().manual_seed(0)) * 3000
        found = audio.spectrogram(wave)
        assert found.shape == (2, 3, 40, 21)
        inner = found[..., 4:-4]
        # torchaudio's difference over five frames: (2 (x[+2] - x[-2]) + x[+1] - x[-1]) / 10.
        x = found[:, 0]
        expected = (2 * (x[..., 4:] - x[..., :-4]) + x[..., 3:-1] - x[..., 1:-3]) / 10
        torch.testing.assert_close(inner[:, 1], expected[..., 2:-2], rtol=1e-3, atol=1e-3)
        assert audio(wave).shape == (2, 8)

    @pytest.mark.parametrize("front_end", ["stft", "mfcc"])
    def test_have_nothing_of_the_wavelets(self, front_end):
        assert not any(name.startswith("fbsp") for name, _ in tower(front_end).named_parameters())

    @pytest.mark.parametrize("front_end", ["stft", "mfcc"])
    def test_need_torchaudio(self, front_end, monkeypatch):
        monkeypatch.setattr(front_ends, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"needs torchaudio.*pip install lightning-cil\[audio\]"):
            tower(front_end)

    def test_unknown(self):
        with pytest.raises(ValueError, match="`front_end='mel'`, expected one of fbsp, stft, mfcc"):
            tower("mel")
