"""Which parameters a stage trains, chosen by name, and evaluation in between."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch
from torch import nn


def set_trainable(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Train the parameters whose names match a pattern, freeze all others, and set the modules' modes to match.

    A module whose parameters, its children's included, are all frozen goes to eval mode with everything inside it, so
    that BatchNorm statistics stay and Dropout is off; every other module goes to train mode. A module without
    parameters (Dropout, BatchNorm without affine) has the mode of the module that holds it.

    Args:
        module: Whose `named_parameters()` the patterns are matched against.
        patterns: Shell-style patterns (`fnmatch`, case-sensitive; `*` crosses dots), such as `head.*` or
            `backbone.layer3.*`. An empty list freezes everything.

    Returns:
        The trained parameters' names, in the module's order. A shared parameter goes by its first name; a match of
        any of its names trains it.

    Raises:
        TypeError: If `patterns` is one string.
        ValueError: If a pattern matches no parameter; nothing is changed then.
    """
    if isinstance(patterns, str):
        raise TypeError(f"set_trainable got `patterns={patterns!r}`, expected a list of patterns: [{patterns!r}].")
    parameters = list(module.named_parameters(remove_duplicate=False))
    names = [name for name, _ in parameters]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(_no_match_message(module, pattern, names))

    matched = {id(p) for name, p in parameters if any(fnmatchcase(name, pattern) for pattern in patterns)}
    for _, parameter in parameters:
        parameter.requires_grad_(id(parameter) in matched)
    _set_modes(module, mode=True)
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; afterwards every part has the mode it had."""
    modes = [part.training for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in zip(module.modules(), modes, strict=True):
            part.training = mode


def _set_modes(module: nn.Module, mode: bool) -> None:
    """Set the modes from the outside in; `mode` is that of the holder."""
    parameters = list(module.parameters())
    module.training = any(p.requires_grad for p in parameters) if parameters else mode
    for child in module.children():
        _set_modes(child, module.training)


def _no_match_message(module: nn.Module, pattern: str, names: Sequence[str]) -> str:
    """What was given, what is near it, and how to see the rest."""
    parts = {".".join(name.split(".")[:depth]) + ".*" for name in names for depth in range(1, name.count(".") + 1)}
    close = get_close_matches(pattern, [*names, *sorted(parts)], n=3, cutoff=0.5)
    hint = f"Close to it: {', '.join(map(repr, close))}. " if close else ""
    return (
        f"The pattern {pattern!r} matches no parameter of {type(module).__name__} ({len(names)} parameters), expected "
        f"at least one. {hint}`[name for name, _ in module.named_parameters()]` lists the names."
    )
