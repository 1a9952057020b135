"""`RandomState`: generators of Python, NumPy and torch after a checkpoint."""

import io
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint

from lightning_cil.callbacks import RandomState
from lightning_cil.methods import FineTune
from tests.callbacks.conftest import Recorder, TinyTasks
from tests.streams import fit, make


@pytest.fixture(autouse=True)
def _generators_as_before() -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def numbers() -> list[float]:
    """Draws of every kind, also of those that generators make in pairs and keep the second of."""
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        float(torch.rand(())),
        float(torch.randn(())),
    ]


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def trainer(rank: int = 0) -> Any:
    return SimpleNamespace(global_rank=rank, global_step=3, callbacks=[])


@pytest.mark.parametrize("before", [0, 1, 2])
def test_restored_generators_give_the_same_numbers(before: int) -> None:
    for _ in range(before):
        numbers()  # a second normal number is now kept, or not
    state = through_a_file(RandomState().state_dict())
    expected = [numbers() for _ in range(3)]
    restored = RandomState()
    restored.load_state_dict(state)
    assert [numbers() for _ in range(3)] != expected  # nothing before training starts
    restored.on_train_start(trainer(), None)
    assert [numbers() for _ in range(3)] == expected


def test_saving_draws_nothing() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    RandomState().state_dict()
    assert torch.equal(torch.rand(3), expected)


def test_a_state_is_used_once() -> None:
    restored = RandomState()
    restored.load_state_dict(RandomState().state_dict())
    restored.on_train_start(trainer(), None)
    first = numbers()
    restored.on_train_start(trainer(), None)
    assert numbers() != first


def test_a_stage_that_starts_anew_drops_the_state() -> None:
    """A checkpoint from the end of a stage: the next stage has been seeded, and keeps that."""
    restored = RandomState()
    restored.load_state_dict(RandomState().state_dict())
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    restored.on_stage_start(trainer(), None, None, None)
    restored.on_train_start(trainer(), None)
    assert torch.equal(torch.rand(2), expected)


def test_every_rank_takes_its_own() -> None:
    states = []
    for rank in range(2):
        torch.manual_seed(rank)
        states += RandomState().state_dict()["ranks"]
    for rank in (1, 0):
        restored = RandomState()
        restored.load_state_dict(through_a_file({"ranks": states}))
        restored.on_train_start(trainer(rank), None)
        found = torch.rand(2)
        torch.manual_seed(rank)
        assert torch.equal(found, torch.rand(2))


def test_a_rank_that_the_checkpoint_did_not_have_is_seeded_anew() -> None:
    drawn = []
    for before in (7, 8):  # whatever was drawn before
        restored = RandomState()
        restored.load_state_dict(RandomState().state_dict())
        torch.manual_seed(before)
        restored.on_train_start(trainer(rank=1), None)
        drawn.append(numbers())
        restored.load_state_dict(RandomState().state_dict())
        restored.on_train_start(trainer(rank=2), None)
        drawn.append(numbers())
    assert drawn[0] == drawn[2]
    assert drawn[0] != drawn[1]


def test_a_resumed_stream_draws_the_same_numbers(tmp_path: Path) -> None:
    """Every step of every stage draws; the run is resumed from inside the second task."""
    drawn: dict[str, list[Any]] = {"straight": [], "resumed": []}

    class Keep(Checkpoint):
        def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "four.ckpt")

    def look(name: str) -> Any:
        def note(hook: str, trainer: Any, module: Any, *args: Any) -> None:
            if hook == "on_train_batch_start":
                drawn[name].append((trainer.global_step, numbers()))

        return note

    fit(tmp_path / "a", make(FineTune), TinyTasks(), [Recorder(look("straight")), Keep()])
    numbers()
    resume = {"ckpt_path": str(tmp_path / "four.ckpt")}
    fit(tmp_path / "b", make(FineTune), TinyTasks(), [Recorder(look("resumed"))], **resume)
    assert [step for step, _ in drawn["resumed"]] == [4, 5, 6, 7, 8]
    assert drawn["resumed"] == drawn["straight"][4:]
