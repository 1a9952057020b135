"""Take the last ReLU out of a ResNet, so that features have both signs, as a cosine classifier wants them.

Hou, Pan, Loy, Wang, Lin: Learning a Unified Classifier Incrementally via Rebalancing, CVPR 2019, section 3.2 (no
equation); for Coil in https://github.com/LAMDA-CL/PyCIL, whose residual blocks before a cosine classifier end without.
"""

from torch import nn

_ACTIVATIONS = ("act3", "act2")
"""Of a block with three and with two convolutions; both our ResNets and timm's call them so."""


def remove_last_activation(backbone: nn.Module) -> bool:
    """Replace the activation that ends the last residual block by nothing, in place.

    Args:
        backbone: A CIFAR ResNet or one of timm's ResNets, from `create_backbone`; others stay as they are.

    Returns:
        Whether there was one.

    Example:
        >>> from lightning_cil.networks import CifarResNet
        >>> backbone = CifarResNet(20)
        >>> remove_last_activation(backbone), type(backbone.layer3[-1].act2).__name__
        (True, 'Identity')
    """
    parts = dict(backbone.named_children())
    last = parts.get("layer4", parts.get("layer3"))
    if not isinstance(last, nn.Sequential) or not len(last):
        return False
    block = last[-1]
    found = next((name for name in _ACTIVATIONS if isinstance(getattr(block, name, None), nn.Module)), None)
    if found is None:
        return False
    setattr(block, found, nn.Identity())
    return True
