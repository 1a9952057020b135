"""Class-incremental learning for PyTorch Lightning. Names are loaded when they are first used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_cil.trainer import IncrementalTrainer, fit_stream
    from lightning_cil.types import Batch, Scenario, Stage, Task

_HOME = {
    "IncrementalTrainer": "trainer",
    "fit_stream": "trainer",
    "Batch": "types",
    "Scenario": "types",
    "Stage": "types",
    "Task": "types",
}

__all__ = ["Batch", "IncrementalTrainer", "Scenario", "Stage", "Task", "__version__", "fit_stream"]


def __getattr__(name: str) -> Any:
    from importlib import import_module, metadata

    if name == "__version__":
        return metadata.version("lightning-cil")
    if name in _HOME:
        return getattr(import_module(f"lightning_cil.{_HOME[name]}"), name)
    raise AttributeError(f"module 'lightning_cil' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
