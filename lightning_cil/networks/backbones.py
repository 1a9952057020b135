"""Feature extractors by name: ours for small images, timm's for everything else, and weights from a local file.

Every backbone maps float `[B, C, H, W]` to features `[B, num_features]` and has no classifier; heads are apart so that
they can grow. timm is imported only when one of its models is asked for.
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from lightning_cil.networks.resnet_cifar import CifarResNet
from lightning_cil.networks.small import SmallConvNet
from lightning_cil.networks.weight_files import cause, read_state_dict, sha256, some

_OWN = {f"resnet{depth}": partial(CifarResNet, depth) for depth in (20, 32, 44, 56, 110)} | {"small_cnn": SmallConvNet}
"""What timm does not have; all start with a 3×3 convolution of stride 1."""

_MOST_CHANNELS = 65_536

_PREFIXES = ("module.", "backbone.")
"""What DDP and an `IncrementalModule` put before a backbone's names."""

_CLASSIFIERS = ("fc", "classifier", "head")
"""How torchvision and timm name the layer that a backbone does not have."""


def create_backbone(
    name: str,
    *,
    in_channels: int = 3,
    cifar_stem: bool = False,
    pretrained: bool = False,
    weights: str | None = None,
) -> nn.Module:
    """Make a feature extractor.

    Without weights, timm's ResNets start as in He et al. 2015: normal with the fan-out, all BatchNorm weights 1. timm's
    own default starts each block's last BatchNorm at 0 instead. Values are drawn from the global random state.

    Args:
        name: `resnet20`, `resnet32`, `resnet44`, `resnet56`, `resnet110` (CIFAR, 64 features), `small_cnn` (256
            features), or any name that `timm.list_models()` has, such as `resnet18` or `vit_base_patch16_224`, also
            with a weights tag (`resnet18.a1_in1k`).
        in_channels: Channels of the image.
        cifar_stem: For timm's ResNets: a 3×3 convolution of stride 1 and no max-pool in place of the 7×7 convolution
            and the max-pool, for images of 32 to 64 pixels. Our own backbones start like this anyway.
        pretrained: Whether timm downloads its published weights.
        weights: A local file of weights instead: `.safetensors`, or what `torch.save` made of a state dict, bare or
            under the key `state_dict` or `model`. The prefixes `module.` and `backbone.` are taken off, and the
            classifier's entries (`fc.`, `classifier.`, `head.`) left out; all others must fit.

    Returns:
        A module with `num_features: int`, the width of its output, and `weights_sha256: str | None`, the hash of the
        file given as `weights`.

    Raises:
        ValueError: For an unknown name, a combination that does not exist, or weights that do not fit or could run
            code when loaded.
        FileNotFoundError: If `weights` is no file.
        RuntimeError: If the download fails, as it does offline.
    """
    if pretrained and weights is not None:
        raise ValueError(
            f"create_backbone got `pretrained=True` and `weights={weights!r}`, expected one of them: "
            "leave out `pretrained` to start from the file."
        )
    if pretrained and cifar_stem:
        raise ValueError(
            "create_backbone got `pretrained=True` and `cifar_stem=True`, but the published weights are for the 7×7 "
            "stem. Leave one of them out, or give `weights=` with a file that was trained with the 3×3 stem."
        )
    if not 1 <= in_channels <= _MOST_CHANNELS:
        raise ValueError(
            f"create_backbone got `in_channels={in_channels}`, expected the images' channels: 3 for colour, 1 for grey."
        )
    if name in _OWN:
        if pretrained:
            raise ValueError(
                f"create_backbone got `pretrained=True` for {name!r}, which has no published weights, expected a timm "
                "name such as 'resnet18'. Your own weights come in with `weights=`."
            )
        backbone: nn.Module = _OWN[name](in_channels=in_channels)
    else:
        backbone = _from_timm(name, in_channels, cifar_stem, pretrained)
    sha256 = None if weights is None else load_weights(backbone, weights)
    cast(Any, backbone).weights_sha256 = sha256
    return backbone


def feature_width(backbone: nn.Module) -> int:
    """The width of a backbone's output, also for a backbone of the user's own.

    Raises:
        TypeError: If it has no usable `num_features`.
    """
    width: object = getattr(backbone, "num_features", None)
    if not isinstance(width, int) or width < 1:
        raise TypeError(
            f"The backbone {type(backbone).__name__} has `num_features={width!r}`, expected the width of its output "
            "[B, num_features] as an int: set it in the backbone's `__init__`."
        )
    return width


def load_weights(backbone: nn.Module, path: str | Path) -> str:
    """Load a file into a backbone; see `create_backbone` for what the file may hold.

    Args:
        backbone: Takes the values; it is unchanged if the file does not fit.
        path: `.safetensors`, else a file of `torch.save`; it is read without running any code in it.

    Returns:
        The file's SHA-256, 64 hexadecimal digits.

    Raises:
        ValueError: If the file could run code, is damaged or does not fit.
        FileNotFoundError: If there is no such file.
    """
    path = Path(path).expanduser()
    state = _bare_names(read_state_dict(path), backbone.state_dict().keys(), path)
    _check_fit(backbone, state, path)
    backbone.load_state_dict(state)
    return sha256(path)


def _from_timm(name: str, in_channels: int, cifar_stem: bool, pretrained: bool) -> nn.Module:
    import timm

    _check_name(name, pretrained)
    try:
        backbone: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, in_chans=in_channels)
    except Exception as error:  # the hub's client raises what its HTTP library raises
        if not pretrained:
            raise
        raise RuntimeError(
            f"`pretrained=True` could not load the published weights of {name!r} "
            f"({cause(error)}), expected the network or timm's cache. Without a network, copy the weights' file here "
            "and give it as `weights=`."
        ) from error
    if isinstance(backbone, timm.models.ResNet) and not pretrained:
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                nn.init.ones_(module.weight)
    if cifar_stem:
        _set_cifar_stem(backbone, name, in_channels)
    # In some families `num_features` is the width before a last layer that even a model without classes has.
    cast(Any, backbone).num_features = getattr(backbone, "head_hidden_size", backbone.num_features)
    return backbone


def _check_name(name: str, pretrained: bool) -> None:
    """Refuse a name that timm does not know, or has no weights of."""
    import timm

    tagged = "." in name
    if not timm.is_model(name) or (tagged and not timm.models.is_model_pretrained(name)):
        known = timm.list_pretrained() if tagged else timm.list_models()
        raise ValueError(
            f"create_backbone got `name={name!r}`, expected one of {', '.join(_OWN)} or a timm model. "
            f"{_close(name, [*_OWN, *known])}`timm.list_models('*part*')` searches."
        )
    if pretrained and not timm.models.is_model_pretrained(name):
        raise ValueError(
            f"create_backbone got `pretrained=True` for {name!r}, of which timm has no weights, expected a model that "
            f"has them. {_close(name, timm.list_models(pretrained=True))}`timm.list_pretrained()` lists them all."
        )


def _close(name: str, known: Sequence[str]) -> str:
    """A sentence with the names that are near, or nothing."""
    close = get_close_matches(name.lower(), known, n=3)
    return f"Close to it: {', '.join(map(repr, close))}. " if close else ""


def _set_cifar_stem(backbone: nn.Module, name: str, in_channels: int) -> None:
    """Make the stem 3×3 with stride 1 and take the max-pool out, in place."""
    import timm

    plain = isinstance(backbone, timm.models.ResNet) and type(backbone.conv1) is nn.Conv2d
    if not plain or type(backbone.maxpool) is not nn.MaxPool2d:
        raise ValueError(
            f"create_backbone got `cifar_stem=True` for {name!r}, expected a timm ResNet with the plain stem (7×7 "
            "convolution, max-pool) such as 'resnet18', 'resnet50' or 'seresnet18', or leave `cifar_stem` out."
        )
    backbone.conv1 = nn.Conv2d(in_channels, cast(nn.Conv2d, backbone.conv1).out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
    backbone.maxpool = nn.Identity()


def _bare_names(stored: Mapping[str, Tensor], expected: Iterable[str], path: Path) -> dict[str, Tensor]:
    """The entries under the backbone's own names, without the classifier's."""
    own = set(expected)
    state: dict[str, Tensor] = {}
    for key, value in stored.items():
        name = key
        while name not in own and name.startswith(_PREFIXES):
            name = name.partition(".")[2]
        if name not in own and name.partition(".")[0] in _CLASSIFIERS:
            continue
        if name in state:
            raise ValueError(
                f"`weights={str(path)!r}` holds several entries for `{name}`, expected one: {key!r} and another that "
                "is the same without its prefix. Save the state dict of one model."
            )
        state[name] = value
    return state


def _check_fit(backbone: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a state that lacks entries, has others or has other shapes."""
    own = backbone.state_dict()
    # Files from before PyTorch 0.4.1 have no counter; PyTorch sets it to 0.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {list(state[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(problems.values()):
        details = "; ".join(f"{len(names)} {what}: {some(names)}" for what, names in problems.items() if names)
        raise ValueError(
            f"`weights={str(path)!r}` does not fit {type(backbone).__name__} with its {len(own)} entries: {details}. "
            "Give the `name`, `in_channels` and `cifar_stem` that the weights were trained with."
        )
