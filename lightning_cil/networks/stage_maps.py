"""A backbone that gives its feature maps: the last one in place of pooled features, or those of every stage.

| backbone | stages |
|---|---|
| CIFAR ResNet | `layer1`, `layer2`, `layer3` |
| `small_cnn` | its three convolutions |
| timm's convolutional networks | the last four of `forward_intermediates` |
| your own | what its method `stage_maps(image)` returns, first to last |
"""

from typing import Any, Literal, cast

from torch import Tensor, nn
from torch.nn.functional import silu

from lightning_cil.networks.backbones import feature_width
from lightning_cil.networks.resnet_cifar import CifarResNet, global_average
from lightning_cil.networks.small import SmallConvNet, quarter_averages

MapOutput = Literal["last", "pooled"]


class MapBackbone(nn.Module):
    """A body with maps, around a convolutional backbone.

    Args:
        backbone: What is used, not copied; see the table above.
        output: What `forward` gives: `last`: the last stage's map; `pooled`: the backbone's own features.

    Attributes:
        body: The backbone.
        num_features: Channels of the last map, or the width of the pooled features.
        weights_sha256: The backbone's, see `create_backbone`.

    Raises:
        TypeError: For a backbone without maps, such as a transformer.
        ValueError: For another `output`.
    """

    def __init__(self, backbone: nn.Module, output: MapOutput = "last") -> None:
        super().__init__()
        if output not in ("last", "pooled"):
            raise ValueError(f"MapBackbone got `output={output!r}`, expected 'last' or 'pooled'.")
        self.body = backbone
        self.output = output
        channels = map_channels(backbone)
        self.num_features = feature_width(backbone) if output == "pooled" else channels
        self.weights_sha256: str | None = getattr(backbone, "weights_sha256", None)

    def forward(self, image: Tensor, stages: bool = False) -> Any:
        """Compute the output of images `[B, C, H, W]`.

        Args:
            image: float `[B, C, H, W]`.
            stages: Whether the maps of all stages are given, too.

        Returns:
            `[B, num_features, h, w]` or, if pooled, `[B, num_features]`; with `stages` a pair of this and a list of
            maps, first stage first.
        """
        maps, pooled = _maps(self.body, image, self.output == "pooled")
        out = maps[-1] if pooled is None else pooled
        return (out, maps) if stages else out


def map_channels(backbone: nn.Module) -> int:
    """Channels of a backbone's last map.

    Raises:
        TypeError: As in `MapBackbone`.
    """
    if isinstance(backbone, CifarResNet):
        return backbone.num_features
    if isinstance(backbone, SmallConvNet):
        return backbone.conv3.out_channels
    own: Any = backbone
    if hasattr(backbone, "stage_maps"):
        channels = getattr(backbone, "map_channels", None)
        if not isinstance(channels, int) or channels < 1:
            raise TypeError(
                f"The backbone {type(backbone).__name__} has `map_channels={channels!r}`, expected the channels of the "
                "last map of `stage_maps` as an int: set it in the backbone's `__init__`."
            )
        return channels
    if _is_convolutional(backbone):
        return int(own.feature_info[-1]["num_chs"])
    raise TypeError(
        f"The backbone {type(backbone).__name__} gives no feature maps, expected a CIFAR ResNet, 'small_cnn', one of "
        "timm's convolutional networks such as 'resnet18' or 'tresnet_m', or a module of your own with "
        "`stage_maps(image) -> [maps]`, `map_channels` and `num_features`."
    )


def _maps(backbone: nn.Module, image: Tensor, pool: bool) -> tuple[list[Tensor], Tensor | None]:
    """The maps of all stages and, if asked for, the backbone's own features."""
    body: Any = backbone
    if isinstance(backbone, CifarResNet):
        maps = [body.layer1(body.act1(body.bn1(body.conv1(image))))]
        maps += [body.layer2(maps[-1])]
        maps += [body.layer3(maps[-1])]
        return maps, global_average(maps[-1]) if pool else None
    if isinstance(backbone, SmallConvNet):
        maps = [silu(body.conv1(image))]
        maps += [silu(body.conv2(maps[-1]))]
        maps += [silu(body.conv3(maps[-1]))]
        return maps, quarter_averages(maps[-1]) if pool else None
    if hasattr(backbone, "stage_maps"):
        return list(body.stage_maps(image)), cast(Tensor, body(image)) if pool else None
    last, intermediates = body.forward_intermediates(image)
    maps = [*intermediates[-4:-1], last]
    return maps, cast(Tensor, body.forward_head(last, pre_logits=True)) if pool else None


def _is_convolutional(backbone: nn.Module) -> bool:
    """Whether it is a network of timm whose stages halve the map."""
    info: Any = getattr(backbone, "feature_info", None)
    halving = isinstance(info, list) and len({stage["reduction"] for stage in info}) > 1
    return halving and hasattr(backbone, "forward_intermediates")
