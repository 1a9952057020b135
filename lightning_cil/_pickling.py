"""Functions by value: what `pickle` cannot look up by name (lambdas, functions inside functions) goes as code.

The spawn launchers send trainer, method, data and callbacks to new processes, where defaults such as
`optimizer=lambda p: SGD(p, lr=0.1)` have no name. Both processes run the same interpreter on the same files, so the
code itself can be sent. Checkpoints never hold code.
"""

import importlib
import marshal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from types import CellType, FunctionType
from typing import Any


@contextmanager
def functions_by_value() -> Iterator[None]:
    """Inside, processes that are started are sent functions that have no name to look up."""
    ForkingPickler.reducer_override = _reduce  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del ForkingPickler.reducer_override


def _reduce(pickler: ForkingPickler, value: Any) -> Any:
    """`pickle.Pickler.reducer_override`: how a value is pickled; everything else as ever."""
    if not isinstance(value, FunctionType) or _has_name(value):
        return NotImplemented
    cells = value.__closure__ or ()
    state = {
        "names": (value.__name__, value.__qualname__),
        "defaults": (value.__defaults__, value.__kwdefaults__),
        "attributes": value.__dict__,
        "cells": [_content(cell) for cell in cells],
    }
    # the state is set after the function exists, as it may refer to it
    return _blank, (marshal.dumps(value.__code__), value.__module__, len(cells)), state, None, None, _fill


def _has_name(function: FunctionType) -> bool:
    found: Any = sys.modules.get(function.__module__)
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is function


def _content(cell: CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # a variable without a value yet
        return ()


def _blank(code: bytes, module: str, num_cells: int) -> FunctionType:
    cells = tuple(CellType() for _ in range(num_cells))
    return FunctionType(marshal.loads(code), vars(importlib.import_module(module)), closure=cells)


def _fill(function: FunctionType, state: dict[str, Any]) -> None:
    function.__name__, function.__qualname__ = state["names"]
    function.__defaults__, function.__kwdefaults__ = state["defaults"]
    function.__dict__.update(state["attributes"])
    for cell, content in zip(function.__closure__ or (), state["cells"], strict=True):
        if content:
            cell.cell_contents = content[0]
