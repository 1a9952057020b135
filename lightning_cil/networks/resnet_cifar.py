"""ResNets for 32×32 images: the family of the CIFAR experiments, of which class-incremental papers use ResNet-32.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015, section 4.2,
https://arxiv.org/abs/1512.03385. Convolutions start as in He et al.: Delving Deep into Rectifiers, 2015,
equation 14 (normal, fan-out), https://arxiv.org/abs/1502.01852.

Departures: the paper does not say which channels of the option A shortcut are the zero ones; here the last.
Layers are named as in timm's ResNet (`conv1`, `bn1`, `layer1` …), with activations that can be replaced by name.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64)
"""Channels of the three stages (section 4.2)."""


class _Block(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters (option A of section 3.3).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, at least `in_channels`.
        stride: Of the first convolution and of the shortcut's subsampling.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = out_channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to `[B, out_channels, ⌈H/stride⌉, ⌈W/stride⌉]`."""
        shortcut = x
        if self.stride > 1:
            shortcut = shortcut[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels))
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        out: Tensor = self.act2(x + shortcut)
        return out


class CifarResNet(nn.Module):
    """Body of a CIFAR ResNet, without classifier.

    Args:
        depth: 6n + 2 layers, n at least 1; the paper has 20, 32, 44, 56 and 110.
        in_channels: Channels of the image.

    Attributes:
        num_features: Width of the output, 64.

    Raises:
        ValueError: If the depth is not 6n + 2.
    """

    def __init__(self, depth: int = 32, in_channels: int = 3) -> None:
        super().__init__()
        blocks, remainder = divmod(depth - 2, 6)
        if remainder or blocks < 1:
            raise ValueError(
                f"CifarResNet got `depth={depth}`, expected 6n + 2 layers with n ≥ 1: take 20, 32, 44, 56 or 110."
            )
        self.num_features = WIDTHS[-1]
        self.conv1 = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], blocks)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], blocks)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Map float `[B, in_channels, H, W]` of any size to features `[B, 64]`."""
        x: Tensor = self.act1(self.bn1(self.conv1(image)))
        return global_average(self.layer3(self.layer2(self.layer1(x))))


def global_average(x: Tensor) -> Tensor:
    """Map `[B, C, H, W]` to the mean of each channel, `[B, C]`."""
    return x.mean(dim=(2, 3))


def _stage(in_channels: int, out_channels: int, blocks: int) -> nn.Sequential:
    """Blocks of one width; the first one halves the image where the width grows."""
    widths = [in_channels] + [out_channels] * blocks
    return nn.Sequential(*(_Block(old, new, stride=1 if old == new else 2) for old, new in pairwise(widths)))
