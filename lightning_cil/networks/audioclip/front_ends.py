"""From a waveform to the "image" that the audio tower reads: `fbsp`, `stft` or `mfcc`.

Source: Guzhov et al., ESResNe(X)t-fbsp: Learning Robust Time-Frequency Transformation of Audio, 2021, section III,
https://arxiv.org/abs/2104.11587, and AudioCLIP, 2021, https://arxiv.org/abs/2106.13043; settings of
https://github.com/AndreyGuzhov/AudioCLIP.

All take float `[B, 1, S]` in the range of 16-bit integers, -32,768 to 32,767, and give decibels (`mfcc`:
coefficients) as float `[B, 3, height, frames]`. The range matters: the same wave in [-1, 1] gives values 90.3 dB lower,
which a frozen tower's BatchNorm does not absorb.
"""

import math
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from lightning_cil.networks.audioclip.weight_state import WeightState

FrontEndKind = Literal["fbsp", "stft", "mfcc"]

BANDS = 3
"""The spectrum is cut into as many bands as the first convolution has input channels."""

_POWER_FLOOR = 1e-18
_MAGNITUDE_FLOOR = 1e-30


def blackman_harris(length: int) -> Tensor:
    """The periodic four-term Blackman-Harris window, float `[length]`."""
    return torch.signal.windows.general_cosine(length, a=[0.35875, 0.48829, 0.14128, 0.01168], sym=False)


def to_unit(wave: Tensor) -> Tensor:
    """Map [-32768, 32767] affinely to [-1, 1]."""
    return (2.0 * wave + 1.0) / 65_535.0  # (wave + 32768) · 2 / 65535 - 1 without its rounding


def frame(wave: Tensor, length: int, hop: int) -> Tensor:
    """Cut a wave into frames, without centring.

    The last frame is filled up with zeros: the floor of half of what is missing goes to the left of the wave, the rest
    to its right.

    Args:
        wave: Float `[B, S]`.
        length: Samples in a frame.
        hop: Samples from one frame's start to the next's.

    Returns:
        Float `[B, frames, length]` with 1 + ⌈(S - length) / hop⌉ frames, at least one.
    """
    samples = wave.shape[-1]
    frames = 1 + max(0, math.ceil((samples - length) / hop))
    missing = (frames - 1) * hop + length - samples
    return F.pad(wave, (missing // 2, missing - missing // 2)).unfold(-1, length, hop)


def decibels(power: Tensor) -> Tensor:
    """10 · log10 of a power; zeros count as 1e-18."""
    return 10.0 * torch.where(power > 0, power, _POWER_FLOOR).log10()


def split_bands(power: Tensor) -> Tensor:
    """Map `[B, bins, frames]` to `[B, 3, bins // 3, frames]`, band 0 the lowest; bins that are left over fall away."""
    height = power.shape[1] // BANDS
    return power[:, : BANDS * height].reshape(len(power), BANDS, height, power.shape[2])


class FBSP(nn.Module):
    """The complex frequency B-spline wavelets of ESResNeXt-fbsp, one row for each bin.

    `W_k[n] = √fb_k · sinc(fb_k t_n / m_k)^m_k · exp(-i fc_k t_n)` with `t = π · linspace(-1, 1, N)`, as a principal
    complex power of a real base. The initial values m = 0, fb = 1, fc = 0, 1, 2 … make it nearly a Fourier transform.

    Args:
        bins: Rows.
        points: N, samples under each wavelet.
        normalize_gradients: Whether the gradients of m, fb and fc are each divided by their own largest magnitude, as
            AudioCLIP trains them. With a `GradScaler` call `undo_unscaling` before each step.
    """

    bias: Tensor

    def __init__(self, bins: int, points: int, *, normalize_gradients: bool = True) -> None:
        super().__init__()
        self.points = points
        self.normalize_gradients = normalize_gradients
        self.m = nn.Parameter(torch.zeros(bins))
        self.fb = nn.Parameter(torch.ones(bins))
        self.fc = nn.Parameter(torch.arange(bins, dtype=torch.float32))
        self.register_buffer("bias", torch.empty(0))  # published checkpoints have this entry
        self._cached: tuple[WeightState, Tensor] | None = None
        self._watched: list[nn.Parameter] = []

    def kernel(self) -> Tensor:
        """The wavelets, float `[2, bins, points]`: real and imaginary parts.

        While no gradient is asked for, the same tensor is returned until m, fb or fc change.
        """
        own = (self.m, self.fb, self.fc)
        if torch.is_grad_enabled() and any(p.requires_grad for p in own):
            self._watch_gradients(own)
            return _wavelets(*own, self.points)
        if self._cached is None or not self._cached[0].matches(own):
            with torch.inference_mode(False), torch.no_grad():
                self._cached = WeightState(own), _wavelets(*own, self.points)
        return self._cached[1]

    def forward(self, frames: Tensor) -> Tensor:
        """Map `[B, frames, points]` to the spectrum `[2, B, frames, bins]` divided by √points, real and imaginary."""
        spectrum = torch.einsum("bfn,ckn->cbfk", frames, self.kernel())
        return spectrum / math.sqrt(self.points)

    def norm_loss(self) -> Tensor:
        """Mean squared distance of the wavelets' norms to 1, which AudioCLIP adds when its audio tower trains."""
        norms = self.kernel().square().sum(dim=(0, 2)).div(self.points).sqrt()
        return F.mse_loss(norms, torch.ones_like(norms))

    def undo_unscaling(self, scaler: GradScaler) -> None:
        """Multiply by the loss scale again: divided by their own size, gradients were free of it before `unscale_`."""
        for parameter in self._watched:
            if parameter.requires_grad and parameter.grad is not None:
                parameter.grad = scaler.scale(parameter.grad)

    def _watch_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Hook the parameters; a copy of the module has none, so it is done when gradients are first asked for."""
        for parameter in parameters:
            if self.normalize_gradients and not any(parameter is known for known in self._watched):
                parameter.register_hook(_divide_by_largest)  # type: ignore[no-untyped-call]
                self._watched.append(parameter)

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this very object: the kernel and the hooks."""
        return {**self.__dict__, "_cached": None, "_watched": []}


def _wavelets(m: Tensor, fb: Tensor, fc: Tensor, points: int) -> Tensor:
    m, fb, fc = (p.float().unsqueeze(1) for p in (m, fb, fc))  # [bins, 1]
    t = math.pi * torch.linspace(-1.0, 1.0, points, device=m.device) + 1e-8
    argument = fb * t / (m + 1e-8)
    divisor = torch.where(argument == 0, 1.0, argument)
    base = torch.where(argument == 0, 1.0, torch.sin(argument) / divisor)
    # base^m for a negative base turns by π m; a base of exactly 0 has no logarithm.
    magnitude = base.square().clamp(min=_MAGNITUDE_FLOOR).pow(0.5 * m)
    phase = math.pi * m * (base < 0) - fc * t
    scale = fb.sqrt() * magnitude
    return torch.stack([scale * phase.cos(), scale * phase.sin()])


def _divide_by_largest(gradient: Tensor) -> Tensor:
    largest = gradient.abs().amax()
    return torch.where(largest > 0, gradient / largest, gradient)


def fbsp_spectrogram(wave: Tensor, window: Tensor, fbsp: FBSP, hop_length: int) -> Tensor:
    """Windowed frames under the wavelets, in decibels and three bands.

    Args:
        wave: Float `[B, 1, S]` in the range of 16-bit integers.
        window: Float `[win_length]`; zeros on both sides fill a frame up to the wavelets' length.
        fbsp: The transform.
        hop_length: Samples from frame to frame.

    Returns:
        Float `[B, 3, bins // 3, frames]`.
    """
    frames = frame(to_unit(wave.flatten(0, 1).float()), len(window), hop_length) * window
    short = fbsp.points - len(window)
    real, imaginary = fbsp(F.pad(frames, (short // 2, short - short // 2)))
    return decibels(split_bands((real.square() + imaginary.square()).transpose(1, 2)))


def stft_spectrogram(wave: Tensor, window: Tensor, n_fft: int, hop_length: int) -> Tensor:
    """A centred short-time Fourier transform with reflected ends, in decibels and three bands.

    Args:
        wave: Float `[B, 1, S]` in the range of 16-bit integers, S more than `n_fft // 2`.
        window: Float `[win_length]`.
        n_fft: Points of the transform; `n_fft // 2 + 1` bins.
        hop_length: Samples from frame to frame.

    Returns:
        Float `[B, 3, bins // 3, 1 + S // hop_length]`.
    """
    from torchaudio.functional import spectrogram

    unit = to_unit(wave.flatten(0, 1).float())
    power = spectrogram(unit, 0, window, n_fft, hop_length, len(window), power=2.0, normalized="frame_length")
    return decibels(split_bands(power))


class MFCCFrontEnd(nn.Module):
    """Mel-frequency cepstral coefficients and their first and second differences over time as the three channels.

    torchaudio's defaults: 40 coefficients (DCT-II, orthonormal) of 128 mel bands (HTK), Hann window of 400 samples, hop
    200, decibels cut 80 below the loudest. Published weights do not fit this input.

    Args:
        sample_rate: Of the wave, in hertz.
        coefficients: Height of the result, at most 128.
    """

    def __init__(self, sample_rate: int, coefficients: int = 40) -> None:
        super().__init__()
        from torchaudio.transforms import MFCC

        with warnings.catch_warnings():  # the defaults leave some of the lowest bands empty, and warn of it
            warnings.filterwarnings("ignore", "At least one mel filterbank has all zero values", UserWarning)
            self.transform = MFCC(sample_rate, coefficients)

    def forward(self, wave: Tensor) -> Tensor:
        """Map float `[B, 1, S]`, S at least 201, to `[B, 3, coefficients, 1 + S // 200]`."""
        from torchaudio.functional import compute_deltas

        coefficients = self.transform(to_unit(wave.flatten(0, 1).float()))
        first = compute_deltas(coefficients)
        return torch.stack([coefficients, first, compute_deltas(first)], dim=1)


def check_front_end(front_end: str) -> None:
    """Refuse a front end that is unknown or that lacks what it needs.

    Raises:
        ValueError: If it is unknown.
        ImportError: If it needs torchaudio, which is imported only where it is needed.
    """
    if front_end not in get_args(FrontEndKind):
        raise ValueError(
            f"ESResNeXt got `front_end={front_end!r}`, expected one of {', '.join(get_args(FrontEndKind))}."
        )
    if front_end != "fbsp" and find_spec("torchaudio") is None:
        raise ImportError(
            f"`front_end={front_end!r}` needs torchaudio, which is not installed: `pip install lightning-cil[audio]`, "
            "or take `front_end: fbsp`."
        )
