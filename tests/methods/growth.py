"""What methods with networks of their own must stand: growth that is trained, and a resume inside a task."""

from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_cil import Task
from lightning_cil.methods import MultiLabelModule
from tests.callbacks.conftest import Recorder
from tests.methods.test_multilabel import digits
from tests.streams import fit, make, results


class FirstStep(NamedTuple):
    task: Task
    before: dict[str, Tensor]
    """All parameters and buffers."""
    after: dict[str, Tensor]
    trained: set[str]
    """Names of the optimizer's parameters."""


def first_steps(root: Path, module: MultiLabelModule, callbacks: Any = (), **options: Any) -> list[FirstStep]:
    """Run a stream of one step a task."""
    before: dict[str, Tensor] = {}

    def values(module: Any) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in module.state_dict().items()}

    def look(hook: str, trainer: Any, module: Any, *rest: Any) -> FirstStep | None:
        if hook == "on_train_batch_start":
            before.clear()
            before.update(values(module))
        if hook != "on_train_batch_end":
            return None
        held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
        names = {name for name, p in module.named_parameters() if id(p) in held}
        return FirstStep(module.task, dict(before), values(module), names)

    seen = Recorder(look)
    fit(root, module, digits(), [*callbacks, seen], limit_train_batches=1, **options)
    assert len(seen.seen) == 3
    return seen.seen


def check_growth(steps: list[FirstStep]) -> set[str]:
    """Whatever a task added is in the optimizer, and has changed after one step, every row of it.

    Returns:
        Names of the parameters that a task added or made larger.
    """
    grown = set()
    for earlier, step in pairwise(steps):
        old = {name: value.shape for name, value in earlier.after.items()}
        for name in step.before.keys() & step.trained:
            shape = step.before[name].shape
            if old.get(name) == shape:
                continue
            grown.add(name)
            changed = step.before[name] != step.after[name]
            first = old[name][0] if name in old else 0
            assert changed[first:].flatten(1).any(1).all() if changed.ndim > 1 else changed[first:].all(), name
            if name in old and len(shape) > 1 and old[name][1] != shape[1]:  # new columns of old rows
                assert changed[:, old[name][1] :].any(0).all(), name
        added = {name for name in step.before if name not in old or old[name] != step.before[name].shape}
        parameters = {name for name in added if name.rpartition(".")[2] not in BUFFERS}
        assert parameters <= step.trained
    return grown


def check_resume(root: Path, kind: type[MultiLabelModule], **options: Any) -> None:
    """A run that goes on from the middle of its second task ends as the one that ran through."""
    path = root / "inside.ckpt"

    def look(hook: str, trainer: Any, module: Any, *rest: Any) -> None:
        if hook == "on_train_batch_end" and module.task.index == 1 and rest[1] == 1 and not path.exists():
            trainer.save_checkpoint(path)

    ends, found = [], []
    for name in ("straight", "resumed"):
        module = make(kind, **options)
        data = digits(train_images=60, test_images=30, batch_size=8)
        ckpt_path = str(path) if name == "resumed" else None
        trainer = fit(root / name, module, data, [Recorder(look)], ckpt_path=ckpt_path)
        ends.append(module.state_dict())
        found.append({key: results(trainer).get(key) for key in ("matrix", "pseudo_labels")})
    assert found[0] == found[1]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def check_refusal(root: Path, module: MultiLabelModule, callback: Any) -> None:
    """A memory or an old model that the method would not use is an error before anything is trained."""
    name = type(module).__name__
    with pytest.raises(ValueError, match=rf"{name} (uses no exemplars|got a `Teacher` with `outputs=).*Take"):
        fit(root, module, digits(train_images=60, test_images=30), [callback])


BUFFERS = {"sizes", "vectors", "matrix", "counts", "previous"}


def unchanged(step: FirstStep, prefix: str) -> bool:
    """Whether all tensors of a part are bit-equal after the step."""
    names = [name for name in step.before if name.startswith(prefix)]
    assert names
    return all(torch.equal(step.before[name], step.after[name]) for name in names)
