"""`StreamState`: counts, times, and what a checkpoint keeps."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_cil import Stage
from lightning_cil.callbacks import StreamState
from lightning_cil.callbacks.stream_state import Counts, StageTime, stream_state
from lightning_cil.data.splits import make_tasks

TASKS = make_tasks([2, 1, 3])


@pytest.fixture
def state() -> StreamState:
    state = StreamState()
    state.begin(3, seed=7)
    return state


def through_a_file(state: StreamState) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def fill(state: StreamState) -> None:
    for row in range(-1, 2):
        state.record("class_il", row, torch.tensor([row + 1, 0, 0]), torch.tensor([4, 2, 6]))
        state.record("task_il", row, torch.tensor([3, row + 1, 2]), torch.tensor([4, 2, 6]))


def test_rows_are_tasks_and_the_first_is_before_training(state: StreamState) -> None:
    fill(state)
    assert state.counts["class_il"].before_training() == [0, 0, 0]
    assert state.counts["class_il"].matrix() == [[1 / 4, 0, 0], [2 / 4, 0, 0], [None] * 3]
    assert state.counts["task_il"].before_training() == [3 / 4, 0, 2 / 6]
    assert state.counts["task_il"].matrix() == [[3 / 4, 1 / 2, 2 / 6], [3 / 4, 1, 2 / 6], [None] * 3]


def test_what_was_not_evaluated_is_none_and_not_zero() -> None:
    counts = Counts(torch.tensor([[0, 0], [1, 0]]), torch.tensor([[0, 0], [2, 0]]))
    assert counts.before_training() == [None, None]
    assert counts.matrix() == [[0.5, None]]


def test_a_stage_then_the_boundary(state: StreamState) -> None:
    stage = Stage("train", 3)
    state.enter(TASKS[1], 1, stage, 2, resumed=False, global_step=40)
    assert (state.phase, state.task, state.stage, state.num_stages, state.first_step) == ("stage", 1, 1, 2, 40)
    assert (state.current_task, state.current_stage) == (TASKS[1], stage)
    state.finish(TASKS[1])
    assert (state.phase, state.task, state.stage) == ("boundary", 1, 0)


def test_a_new_stage_forgets_a_stop_and_where_it_began_and_a_resumed_one_keeps_them(state: StreamState) -> None:
    trainer: Any = SimpleNamespace(should_stop=False)
    state.should_stop, state.elapsed, state.first_step = True, 5.0, 10
    state.enter(TASKS[0], 0, Stage("train", 1), 1, resumed=True, global_step=13)
    state.on_train_start(trainer, None)
    assert (trainer.should_stop, state.elapsed, state.first_step) == (True, 5.0, 10)
    trainer.should_stop = False
    state.enter(TASKS[0], 1, Stage("more", 1), 2, resumed=False, global_step=20)
    state.on_train_start(trainer, None)
    assert (trainer.should_stop, state.elapsed, state.first_step) == (False, 0.0, 20)


def test_everything_comes_back_from_a_checkpoint(state: StreamState) -> None:
    fill(state)
    state.enter(TASKS[2], 1, Stage("train", 3), 2, resumed=False, global_step=40)
    state.add_time(StageTime(0, "train", 1.5, 100))
    state.should_stop = True
    saved = through_a_file(state)
    other = StreamState()
    other.load_state_dict(saved)
    for name in ("num_tasks", "phase", "task", "stage", "seed", "first_step", "should_stop", "times"):
        assert getattr(other, name) == getattr(state, name)
    for scenario, counts in state.counts.items():
        assert torch.equal(other.counts[scenario].correct, counts.correct)
        assert torch.equal(other.counts[scenario].total, counts.total)
    other.record("class_il", 2, torch.tensor([1, 1, 1]), torch.tensor([4, 2, 6]))
    assert saved["counts"]["class_il"]["total"][3].sum() == 0  # a copy


def test_a_checkpoint_is_a_copy(state: StreamState) -> None:
    saved = state.state_dict()
    fill(state)
    state.add_time(StageTime(0, "train", 1.0, 0))
    assert saved["counts"]["class_il"]["total"].sum() == 0
    assert saved["times"] == []


def test_a_resumed_stage_counts_the_seconds_before_the_checkpoint(
    state: StreamState, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    state.clock = 100.0
    now[0] = 104.0
    saved = through_a_file(state)  # 4 s into the stage
    assert saved["elapsed"] == 4.0
    resumed = StreamState()
    resumed.load_state_dict(saved)
    resumed.enter(TASKS[0], 0, Stage("train", 1), 1, resumed=True, global_step=0)
    resumed.clock = 500.0
    now[0] = 503.0
    assert through_a_file(resumed)["elapsed"] == 7.0
    resumed.add_time(StageTime(0, "train", 3.0, 0))
    assert resumed.times[0].seconds == 7.0
    assert through_a_file(resumed)["elapsed"] == 0.0


def test_a_new_stream_forgets_the_last(state: StreamState) -> None:
    fill(state)
    state.add_time(StageTime(0, "train", 1.0, 0))
    state.finish(TASKS[2])
    state.should_stop = True
    state.begin(2, seed=8)
    assert (state.num_tasks, state.seed, state.task, state.should_stop, state.times) == (2, 8, -1, False, [])
    assert {counts.total.sum().item() for counts in state.counts.values()} == {0}
    assert state.counts["class_il"].total.shape == (3, 2)


def test_a_newer_version_is_refused(state: StreamState) -> None:
    saved = {**state.state_dict(), "schema": 99}
    with pytest.raises(ValueError, match=r"stream schema 99.*Update lightning-cil"):
        StreamState().load_state_dict(saved)


def test_it_is_found_among_the_callbacks(state: StreamState) -> None:
    trainer: Any = SimpleNamespace(callbacks=[object(), state])
    assert stream_state(trainer) is state
    assert stream_state(SimpleNamespace(callbacks=[])) is None  # type: ignore[arg-type]
    assert state.state_key == "StreamState"
    assert state in {state}
