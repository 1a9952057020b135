"""FSDP2 for a network that changes between stages: shard its parts, and get whole ones back.

`fully_shard` cannot be undone and a sharded module cannot be copied. So a part's structure is kept beside it, without
the weights, and a whole part is a copy of the structure that takes the weights from all ranks.
"""

import copy
import sys
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_Part = TypeVar("_Part", bound=nn.Module)

_structures: "WeakKeyDictionary[nn.Module, nn.Module]" = WeakKeyDictionary()
"""Sharded module -> the module before, with its parameters on the meta device."""


def is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` was applied to a module."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported, hence not applied
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def shard_children(module: nn.Module, mesh: "DeviceMesh") -> None:
    """Apply `fully_shard` to each child that has parameters and is not sharded yet; repeatable.

    Args:
        module: Whose direct children are sharded, each as one unit. They are used by calling them.
        mesh: The processes, one-dimensional.

    Raises:
        ValueError: If the module has parameters of its own, whose gradients nothing would share.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    own = [name for name, _ in module.named_parameters(recurse=False)]
    if own:
        raise ValueError(
            f"{type(module).__name__} holds the parameters {own} itself, and only its children are sharded; expected "
            "all parameters in children. Put them into an `nn.Module` that is called, or use `strategy='ddp'`."
        )
    for child in module.children():
        if isinstance(child, FSDPModule):
            child.reshard()  # after a run without backward the parameters are whole, and an optimizer would take those
        elif any(p.numel() for p in child.parameters()):
            child.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # others are not sharded
            structure = _structure(child)
            fully_shard(child, mesh=mesh, reshard_after_forward=True)
            _structures[child] = structure


def unsharded(module: _Part) -> _Part:
    """A whole copy of a sharded module; any other module itself. A collective: all ranks call it together.

    Args:
        module: A part that `shard_children` sharded.

    Returns:
        The same class, weights, buffers, modes and `requires_grad`, not sharded.
    """
    if not is_sharded(module):
        return module
    whole = copy.deepcopy(_structures[module])
    sharded: Any = module
    sharded.reshard()
    parameters: dict[int, nn.Parameter] = {}
    for name, old in list(whole.named_parameters(remove_duplicate=False)):
        source: Any = sharded.get_parameter(name)
        if id(old) not in parameters:  # a shared parameter stays shared
            value = source.detach()
            value = value.full_tensor() if hasattr(value, "full_tensor") else value.clone()
            parameters[id(old)] = nn.Parameter(value, requires_grad=source.requires_grad)
        owner, _, last = name.rpartition(".")
        setattr(whole.get_submodule(owner), last, parameters[id(old)])
    for name, buffer in whole.named_buffers():
        buffer.data = module.get_buffer(name).detach().clone()
    for name, part in whole.named_modules():
        part.training = module.get_submodule(name).training
    return cast(_Part, whole)


def copy_unsharded(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy` of a module whose children may be sharded; the copy's are whole. A collective.

    Args:
        module: What to copy.
        memo: As in `copy.deepcopy`: what the copy shares, by id.
    """
    shared = {id(child): unsharded(child) for child in module.children() if is_sharded(child)}
    mesh = getattr(module, "_device_mesh", None)  # process groups cannot be copied
    return copy.deepcopy(module, {**memo, **shared, id(mesh): mesh})


def _structure(module: nn.Module) -> nn.Module:
    """A deep copy without memory for parameters."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, dict(empty))
