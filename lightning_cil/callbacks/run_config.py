"""What a run was made with, read off its objects: the same from the command line and from Python.

`results.json` keeps it under `config`, so that runs of the same settings are known as such without `config.yaml`.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from torch import nn

from lightning_cil.callbacks.stream_state import StreamState

TRAINER = ("precision", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "max_steps")
"""Attributes of the trainer that change what is learned."""

ELSEWHERE = ("class_order", "num_tasks", "base", "increment", "sizes", "protocol", "val_fraction")
"""Arguments of data that `results.json` has as `class_order`, `task_sizes` and `val_fraction`."""

PLACES = ("root", "esc_root", "image_root", "manifest", "classes_file", "download", "cache", "audio_memory")
"""Arguments of data that say where files are and how they are kept, and change nothing in what is read."""


def run_config(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Arguments of the method, the data, the callbacks that have any, and the trainer, as plain JSON types.

    Only what is plain is kept: objects of a user's own are left out, and a network is named by its class.
    """
    arguments = {**plain_arguments(module), **_plain_items(dict(module.hparams))}
    network = getattr(module, "backbone", None)
    if "backbone" not in arguments and isinstance(network, nn.Module):
        arguments["backbone"] = type(network).__name__
    arguments.update(_optimizer(module))
    trained = {name: getattr(trainer, name, None) for name in TRAINER}
    return {
        "method": arguments,
        "data": data_settings(trainer.datamodule),  # type: ignore[attr-defined]
        "callbacks": _callbacks(trainer.callbacks),  # type: ignore[attr-defined]
        "trainer": {name: value for name, value in trained.items() if value is None or _is_plain(value)},
    }


def data_settings(datamodule: object) -> dict[str, Any]:
    """Arguments of a data module that change what is trained or tested on, if they are plain."""
    found = {**_plain_items(getattr(datamodule, "arguments", {})), **plain_arguments(datamodule)}
    return {name: value for name, value in found.items() if name not in (*ELSEWHERE, *PLACES)}


def plain_arguments(thing: object) -> dict[str, Any]:
    """Arguments of an object's constructor that it keeps under the same name, if they are plain.

    Example:
        >>> plain_arguments(torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], lr=0.1), step_size=3))
        {'step_size': 3, 'gamma': 0.1}
    """
    return _plain_items({name: getattr(thing, name) for name in _parameters(thing) if hasattr(thing, name)})


def _callbacks(callbacks: Sequence[Callback]) -> dict[str, Any]:
    """Arguments by class; a second callback of a class goes by its name and number."""
    found: dict[str, Any] = {}
    for callback in callbacks:
        if _parameters(callback) and not isinstance(callback, Checkpoint | ProgressBar | StreamState):
            name, count = type(callback).__name__, 1
            while name in found:
                count += 1
                name = f"{type(callback).__name__} {count}"
            found[name] = plain_arguments(callback)
    return found


def _parameters(thing: object) -> list[str]:
    parameters = inspect.signature(type(thing).__init__).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return [name for name in named if name not in ("self", "last_epoch")]


def _optimizer(module: LightningModule) -> dict[str, Any]:
    """Class and arguments of the optimizer and the schedule that the module's factories make, from a trial of each."""
    found: dict[str, Any] = {}
    make: Any = getattr(module, "optimizer", None)
    schedule: Any = getattr(module, "lr_scheduler", None)
    try:
        optimizer = make([nn.Parameter(torch.zeros(1))])
        found["optimizer"] = {"class": type(optimizer).__name__, **_plain_items(optimizer.defaults)}
        scheduler = schedule(optimizer) if schedule else None
        found["lr_scheduler"] = scheduler and {"class": type(scheduler).__name__, **plain_arguments(scheduler)}
    except Exception as error:  # a user's own may want the real parameters; what the run found is written anyway
        unknown = f"unknown: the factory refused a trial with one parameter ({type(error).__name__})"
        return {"optimizer": unknown, "lr_scheduler": unknown, **found}
    return found


def _plain_items(values: dict[str, Any]) -> dict[str, Any]:
    return {n: _to_json(value) for n, value in values.items() if _is_plain(value) and not n.startswith("_")}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))


def _to_json(value: Any) -> Any:
    return [_to_json(v) for v in value] if isinstance(value, list | tuple) else value
