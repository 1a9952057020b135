"""`Backbone`: what a config says of a backbone, and `build` to make it."""

from dataclasses import dataclass

from torch import nn

from lightning_cil.networks.backbones import create_backbone


@dataclass(frozen=True)
class Backbone:
    """A backbone by name, with its options.

    Args:
        name: `resnet20|32|44|56|110` (CIFAR ResNets), `small_cnn`, or any timm model.
        in_channels: Channels of the images.
        cifar_stem: timm ResNets: 3x3 convolution with stride 1 and no max-pool, for images of 32 to 64 pixels.
        pretrained: timm's weights, downloaded.
        weights: A local file with weights (.pth, .pt or .safetensors).
    """

    name: str
    in_channels: int = 3
    cifar_stem: bool = False
    pretrained: bool = False
    weights: str | None = None

    def build(self) -> nn.Module:
        """Make the network; see `create_backbone`."""
        return create_backbone(
            self.name,
            in_channels=self.in_channels,
            cifar_stem=self.cifar_stem,
            pretrained=self.pretrained,
            weights=self.weights,
        )
