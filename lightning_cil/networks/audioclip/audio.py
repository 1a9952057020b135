"""ESResNeXt: the audio tower of AudioCLIP, a ResNeXt-50 with time and frequency gates over a spectrogram.

Source: Guzhov et al., ESResNe(X)t-fbsp, 2021, https://arxiv.org/abs/2104.11587; AudioCLIP, 2021,
https://arxiv.org/abs/2106.13043; sizes and names of https://github.com/AndreyGuzhov/AudioCLIP.

Departure: the kernel of the transform is kept while nothing trains it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from lightning_cil.networks.audioclip.front_ends import (
    BANDS,
    FBSP,
    FrontEndKind,
    MFCCFrontEnd,
    blackman_harris,
    check_front_end,
    fbsp_spectrogram,
    stft_spectrogram,
)


class BatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that can be told to use the batch's statistics and to leave the running ones alone.

    Attributes:
        use_batch: Whether to do so, in eval mode too.
    """

    use_batch = False

    def forward(self, input: Tensor) -> Tensor:
        """Same shape out as in."""
        if self.use_batch:
            return F.batch_norm(input, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return super().forward(input)


class Gate(nn.Module):
    """A sigmoid mask from what went into a stage, for what comes out of it.

    Args:
        in_channels: Of the stage's input.
        out_channels: Of its output.
        kernel_size: Of the depthwise convolution: (3, 1) looks along frequency, (1, 5) along time.
        padding: Of the depthwise convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: tuple[int, int], padding: tuple[int, int]
    ) -> None:
        super().__init__()
        self.conv_depth = nn.Conv2d(in_channels, in_channels, kernel_size, padding=padding, groups=in_channels)
        self.conv_point = nn.Conv2d(in_channels, out_channels, 1)
        self.bn = BatchNorm2d(out_channels)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Map `[B, in_channels, H, W]` to `[B, out_channels, *size]` in (0, 1)."""
        x = F.adaptive_max_pool2d(x, [int(side) for side in size])
        return torch.sigmoid(self.bn(self.conv_point(self.conv_depth(x))))


class _Bottleneck(nn.Module):
    """1×1, grouped 3×3 with the stride, 1×1."""

    def __init__(self, in_channels: int, inner: int, out_channels: int, groups: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


_GATES: tuple[tuple[tuple[int, int], tuple[int, int]], ...] = (
    ((3, 1), (1, 0)),
    ((1, 5), (0, 2)),
    ((3, 1), (1, 0)),
    ((1, 5), (0, 2)),
    ((3, 5), (1, 2)),
)
"""Kernel and padding of the gates of the four stages and of the pooling."""


class ESResNeXt(nn.Module):
    """Waveform to feature.

    While all its parameters are frozen it stays in eval mode whatever `train()` says, so that nothing changes its
    BatchNorm statistics.

    Args:
        embed_dim: Width of the feature.
        front_end: `fbsp`, the published one; `stft`, a plain spectrogram; `mfcc`. Only `fbsp` fits published weights.
        sample_rate: Of the wave in hertz; `mfcc` needs to know it.
        n_fft: Points of the transform (`fbsp`, `stft`).
        win_length: Samples in a frame (`fbsp`, `stft`).
        hop_length: Samples from frame to frame (`fbsp`, `stft`).
        width: Channels of the first convolution.
        layers: Blocks of the four stages.
        groups: Of the 3×3 convolutions; divide `2 · width`.
        batch_norm: `running` uses the running statistics in eval mode, as usual. `batch` always uses the batch's, for
            comparison with code that extracts features so: predictions then depend on the batch.
        normalize_gradients: See `FBSP`.

    Raises:
        ValueError: If a choice is unknown.
        ImportError: If the front end needs torchaudio, which is not installed.
    """

    window: Tensor

    def __init__(
        self,
        embed_dim: int = 1024,
        *,
        front_end: FrontEndKind = "fbsp",
        sample_rate: int = 44_100,
        n_fft: int = 2048,
        win_length: int = 1654,
        hop_length: int = 561,
        width: int = 64,
        layers: Sequence[int] = (3, 4, 6, 3),
        groups: int = 32,
        batch_norm: str = "running",
        normalize_gradients: bool = True,
    ) -> None:
        super().__init__()
        check_front_end(front_end)
        if batch_norm not in ("running", "batch"):
            raise ValueError(f"ESResNeXt got `batch_norm={batch_norm!r}`, expected 'running' or 'batch'.")
        self.front_end = front_end
        self.sample_rate = sample_rate
        self.n_fft, self.hop_length = n_fft, hop_length
        if front_end == "mfcc":
            self.mfcc = MFCCFrontEnd(sample_rate)
        else:
            self.register_buffer("window", blackman_harris(win_length))
        if front_end == "fbsp":
            self.fbsp = FBSP(n_fft // 2 + 1, n_fft, normalize_gradients=normalize_gradients)
        self.conv1 = nn.Conv2d(BANDS, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = BatchNorm2d(width)
        channels = width
        for stage, count in enumerate(layers):
            out_channels, stride = 4 * width * 2**stage, 2 if stage else 1
            blocks = [_Bottleneck(channels, out_channels // 2, out_channels, groups, stride)]
            blocks += [_Bottleneck(out_channels, out_channels // 2, out_channels, groups, 1) for _ in range(count - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            self.add_module(f"att{stage + 1}", Gate(channels, out_channels, *_GATES[stage]))
            channels = out_channels
        self.att5 = Gate(channels, channels, *_GATES[4])
        self.fc = nn.Linear(channels, embed_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, BatchNorm2d):
                module.use_batch = batch_norm == "batch"

    @property
    def frozen(self) -> bool:
        """Whether no parameter is trained."""
        return not any(p.requires_grad for p in self.parameters())

    def train(self, mode: bool = True) -> Self:
        """As usual, but a frozen tower stays in eval mode."""
        return super().train(mode and not self.frozen)

    def spectrogram(self, wave: Tensor) -> Tensor:
        """What the network reads: `[B, 1, S]` in the range of 16-bit integers to `[B, 3, height, frames]`."""
        check_wave(wave)
        # Tensor methods under autocast would lose what distinguishes quiet bins.
        with torch.autocast(wave.device.type, enabled=False):
            if self.front_end == "mfcc":
                features: Tensor = self.mfcc(wave)
                return features
            if self.front_end == "stft":
                return stft_spectrogram(wave, self.window, self.n_fft, self.hop_length)
            return fbsp_spectrogram(wave, self.window, self.fbsp, self.hop_length)

    def forward(self, wave: Tensor) -> Tensor:
        """Map float `[B, 1, S]` in the range of 16-bit integers to features `[B, embed_dim]`."""
        x = F.relu(self.bn1(self.conv1(self.spectrogram(wave))))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for stage in range(1, 5):
            out = self.get_submodule(f"layer{stage}")(x)
            x = out * self.get_submodule(f"att{stage}")(x, out.shape[-2:])
        pooled = F.adaptive_avg_pool2d(x, 1) * self.att5(x, (1, 1))
        features: Tensor = self.fc(pooled.flatten(1))
        return features


def check_wave(wave: Tensor) -> None:
    """Refuse what is no batch of mono waves.

    Raises:
        ValueError: Unless it is float `[B, 1, S]` with samples.
    """
    if wave.ndim != 3 or wave.shape[1] != 1 or wave.shape[2] < 1 or not wave.is_floating_point():
        raise ValueError(
            f"The audio tower got {wave.dtype} {list(wave.shape)}, expected float mono waves [B, 1, samples]: let the "
            "data mix the channels down and pad or cut all clips to one length."
        )
