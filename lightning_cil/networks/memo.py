"""A body that is shared up to its last stage and has one copy of that stage for each task.

Zhou, Wang, Ye, Zhan, A Model or 603 Exemplars: Towards Memory-Efficient Class-Incremental Learning (MEMO), 2023,
https://arxiv.org/abs/2205.13218, as its code has it, https://github.com/wangkiw/ICLR23-MEMO: "generalised" blocks are
shared, "specialised" ones grow, each new one starts as a copy of the one before, their features stand side by side.

| backbone | generalised | specialised |
|---|---|---|
| timm ResNet | stem to `layer3` | `layer4`, pooling |
| CIFAR ResNet | stem to `layer2` | `layer3`, pooling |
| `small_cnn` | `conv1`, `conv2` | `conv3`, pooling |

Parameters are named `generalised.*` and `specialised.<task>.*`, so that a stage can train the newest copy alone.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cil.networks.backbones import feature_width
from lightning_cil.networks.resnet_cifar import CifarResNet, global_average
from lightning_cil.networks.small import SmallConvNet, quarter_averages

_TIMM_GENERALISED = ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3")
_TIMM_SPECIALISED = ("layer4", "global_pool")


def split_backbone(backbone: nn.Module) -> tuple[nn.Sequential, nn.Sequential]:
    """Cut a backbone in front of its last stage; its modules are used, not copied.

    Args:
        backbone: A timm ResNet, a CIFAR ResNet or `small_cnn`, from `create_backbone`.

    Returns:
        The generalised part, image to maps, and the specialised part, maps to features `[B, num_features]`.

    Raises:
        TypeError: For another kind of backbone.
    """
    parts = dict(backbone.named_children())
    if isinstance(backbone, CifarResNet):
        generalised = [(name, parts[name]) for name in ("conv1", "bn1", "act1", "layer1", "layer2")]
        specialised = [("layer3", parts["layer3"]), ("pool", _Apply(global_average))]
    elif isinstance(backbone, SmallConvNet):
        generalised = [("conv1", parts["conv1"]), ("act1", nn.SiLU()), ("conv2", parts["conv2"]), ("act2", nn.SiLU())]
        specialised = [("conv3", parts["conv3"]), ("act3", nn.SiLU()), ("pool", _Apply(quarter_averages))]
    elif parts.keys() >= {*_TIMM_GENERALISED, *_TIMM_SPECIALISED}:
        generalised = [(name, parts[name]) for name in _TIMM_GENERALISED]
        specialised = [(name, parts[name]) for name in _TIMM_SPECIALISED]
    else:
        raise TypeError(
            f"`split_backbone` got a {type(backbone).__name__}, expected a timm ResNet, a CIFAR ResNet or `small_cnn`: "
            "take 'resnet18', 'resnet32' or 'small_cnn' as the backbone."
        )
    return nn.Sequential(OrderedDict(generalised)), nn.Sequential(OrderedDict(specialised))


class MemoBackbone(nn.Module):
    """MEMO's body: one generalised part, one specialised part for each task.

    `load_state_dict` makes as many specialised parts as the checkpoint has.

    Args:
        backbone: What is split; see `split_backbone`. Its modules are used, not copied.
        blocks: How many specialised parts there are at the start, at least 1.

    Attributes:
        generalised: The shared part.
        specialised: One part for each task.
        block_features: Width of one part's features.
        num_features: Width of the output, `block_features` times the number of parts.
        weights_sha256: The backbone's, see `create_backbone`.

    Raises:
        TypeError: For a backbone that cannot be split.
        ValueError: If `blocks` is below 1.
    """

    def __init__(self, backbone: nn.Module, blocks: int = 1) -> None:
        super().__init__()
        if blocks < 1:
            raise ValueError(f"MemoBackbone got `blocks={blocks}`, expected at least 1: one for each task.")
        self.block_features = feature_width(backbone)
        self.weights_sha256: str | None = getattr(backbone, "weights_sha256", None)
        self.generalised, first = split_backbone(backbone)
        self.specialised = nn.ModuleList([first])
        for _ in range(blocks - 1):
            self.grow()

    @property
    def num_features(self) -> int:
        """Width of the output."""
        return self.block_features * len(self.specialised)

    def grow(self) -> None:
        """Append a specialised part that starts as a copy of the last one, trainable and in the body's mode."""
        self.specialised.append(copy.deepcopy(self.specialised[-1]).requires_grad_(True).train(self.training))

    def forward(self, image: Tensor) -> Tensor:
        """Map float `[B, C, H, W]` to features `[B, num_features]`, the newest part's last."""
        maps = self.generalised(image)
        return torch.cat([part(maps) for part in self.specialised], dim=1)

    def newest(self, features: Tensor) -> Tensor:
        """The newest part's share of `forward`'s output: `[B, block_features]`, for the auxiliary head."""
        return features[:, -self.block_features :]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Take the checkpoint's number of parts; the children are loaded afterwards."""
        start = f"{prefix}specialised."
        stored = {key.removeprefix(start).partition(".")[0] for key in state_dict if key.startswith(start)}
        if stored and stored == {str(i) for i in range(len(stored))}:
            while len(self.specialised) < len(stored):
                self.grow()
            del self.specialised[len(stored) :]
        super()._load_from_state_dict(state_dict, prefix, *args)


class _Apply(nn.Module):
    """A function as a module.

    Args:
        function: Tensor to tensor.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x)
