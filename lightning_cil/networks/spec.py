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
        compile: Compile the network with `torch.compile` in the first steps (a minute or more; needs a C++ compiler on
            a CPU). Steps are then faster (`benchmarks/README.md`), last digits may differ; teachers are not compiled.
    """

    name: str
    in_channels: int = 3
    cifar_stem: bool = False
    pretrained: bool = False
    weights: str | None = None
    compile: bool = False

    def build(self) -> nn.Module:
        """Make the network; see `create_backbone`."""
        backbone = create_backbone(
            self.name,
            in_channels=self.in_channels,
            cifar_stem=self.cifar_stem,
            pretrained=self.pretrained,
            weights=self.weights,
        )
        if self.compile:  # the backbone alone: heads grow, and a whole module would be compiled anew for every task
            backbone.compile()
        return backbone
