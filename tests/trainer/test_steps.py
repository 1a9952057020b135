"""What happens in a training step: nothing that waits for the device, and nothing that grows with the tasks."""

import copy
import itertools
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

import lightning_cil
from lightning_cil.callbacks import ReplayBuffer
from lightning_cil.data import SplitDigits
from lightning_cil.methods import ER, NFL, DERPlusPlus, FineTune, ICaRL, LwF
from lightning_cil.networks import Backbone
from tests.streams import ROUND, fit, make

PACKAGE = str(Path(lightning_cil.__file__).parent)
SHORT_NFL = partial(NFL, **ROUND, targets="recorded")
WAITING = ("item", "cpu", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__")
"""What makes the host wait for a GPU."""
CHECKED_ON_THE_CPU = {"classification.py", "distillation.py"}
"""Losses look at labels where that costs nothing: on the CPU only, as their docstrings say."""


class Watch(Callback):
    """Notes which lines of the package call one of `WAITING` between the first and the last step of a stage."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.found: list[str] = []
        self.steps = 0
        self.on = False
        for name in WAITING:
            patch.setattr(Tensor, name, self._watched(name, getattr(Tensor, name)))

    def _watched(self, name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1)
            path = Path(caller.f_code.co_filename)
            if self.on and str(path).startswith(PACKAGE) and path.name not in CHECKED_ON_THE_CPU:
                self.found.append(f"{path.name}:{caller.f_lineno} {name}")
            return function(*args, **kwargs)

        return call

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps += self.on
        self.on = not trainer.is_last_batch  # with the epoch's last batch come the checkpoint and the next loader


def memory_of(method: Any) -> list[ReplayBuffer]:
    if method in (ER, ICaRL):
        return [ReplayBuffer(total=40, selection="reservoir" if method is ER else "herding")]
    return []


@pytest.mark.parametrize("method", [FineTune, ER, LwF, ICaRL, SHORT_NFL], ids=["FineTune", "ER", "LwF", "iCaRL", "NFL"])
def test_no_step_waits_for_the_device(method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    memory = memory_of(method)
    fit(tmp_path, make(method), SplitDigits(sizes=[4, 6]), [*memory, watch], log_every_n_steps=10_000)
    assert watch.steps > 30
    assert watch.found == []


def test_a_reservoir_that_is_filled_batch_by_batch_waits_only_to_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storing needs the host; a reservoir of K takes K/n of the n-th sample on."""
    watch = Watch(monkeypatch)
    buffer = ReplayBuffer(total=4, update="batch", columns=["logits"], num_draws=2, allow_missing_classes=True)
    steps: list[tuple[bool, bool]] = []

    class Note(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            self.waits, self.stored = len(watch.found), buffer.store.state_dict()

        def on_train_batch_end(self, *args: Any) -> None:
            now = buffer.store.state_dict()
            changed = any(not now[name].equal(self.stored.get(name, now[name][:0])) for name in now)
            if watch.on:
                steps.append((len(watch.found) > self.waits, changed))

    fit(tmp_path, make(DERPlusPlus), SplitDigits(sizes=[4, 6]), [buffer, Note(), watch], log_every_n_steps=10_000)
    assert len(steps) > 30
    assert all(waited == changed for waited, changed in steps)
    assert 0 < sum(waited for waited, _ in steps) < len(steps) / 2


def test_the_watch_sees_a_step_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    monkeypatch.setitem(globals(), "PACKAGE", str(Path(__file__).parent))

    class Waits(FineTune):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            assert loss.item() > 0
            return loss

    fit(tmp_path, make(Waits), SplitDigits(num_tasks=2), [watch])
    assert len(watch.found) == watch.steps > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", [FineTune, ER, LwF, ICaRL, SHORT_NFL], ids=["FineTune", "ER", "LwF", "iCaRL", "NFL"])
def test_cuda_reports_no_synchronisation_in_a_step(method: Any, tmp_path: Path) -> None:
    class Strict(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            torch.cuda.set_sync_debug_mode("error" if batch_idx > 1 else "default")

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.is_last_batch:
                torch.cuda.set_sync_debug_mode("default")

    memory = memory_of(method)
    try:
        fit(
            tmp_path,
            make(method),
            SplitDigits(num_tasks=2),
            [Strict(), *memory],
            accelerator="gpu",
            devices=1,
            log_every_n_steps=10_000,
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---------------------------------------------------------------------- growth


class Calls(Callback):
    """Counts the package's function calls in one step of each task, and the modules there are."""

    def __init__(self) -> None:
        self.steps: list[Counter[str]] = []
        self.modules: list[int] = []
        self.callbacks: list[int] = []
        self._step: Counter[str] = Counter()

    def _profile(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            self._step[frame.f_code.co_name] += 1

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:  # counts the next step
            self._step = Counter()
            sys.setprofile(self._profile)
        elif batch_idx == 2:
            sys.setprofile(None)
            self.steps.append(self._step)
            self.modules.append(sum(1 for _ in module.modules()))
            self.callbacks.append(len(trainer.callbacks))


@pytest.mark.filterwarnings("ignore:LwF uses no exemplars")  # with a teacher and a memory, whoever uses them
def test_a_step_of_the_last_task_does_what_the_second_ones_does(tmp_path: Path) -> None:
    """Ten tasks of one class: no call, no module and no callback more."""
    calls = Calls()
    memory = ReplayBuffer(total=40)
    fit(tmp_path, make(LwF), SplitDigits(num_tasks=10, batch_size=16), [memory, calls], log_every_n_steps=10_000)
    assert len(calls.steps) == 10
    assert calls.steps[1]
    assert calls.steps[9] == calls.steps[1]
    assert len(set(calls.modules)) == 1
    assert len(set(calls.callbacks)) == 1


@pytest.mark.parametrize("selection", ["reservoir", "herding"])
def test_checkpoints_grow_by_head_and_exemplars_only(selection: Any, tmp_path: Path) -> None:
    """A class more is a row of the head, of its momentum, and what its exemplars take; else some bytes of numbers."""
    memory = ReplayBuffer(per_class=3, selection="herding") if selection == "herding" else ReplayBuffer(total=30)
    trainer = fit(tmp_path, make(ER), SplitDigits(num_tasks=10), [memory])
    folder = Path(trainer.log_dir or "") / "checkpoints"
    sizes = [(folder / f"task_{k}.ckpt").stat().st_size for k in range(10)]
    row = 4 * (256 + 1)
    exemplars = 3 * (64 + 3 * 8) if selection == "herding" else 0
    growth = [b - a for a, b in itertools.pairwise(sizes[1:])]  # the first ones fill the reservoir
    expected = row + exemplars
    assert sum(growth) == pytest.approx(8 * expected, abs=8 * 1024)
    assert max(growth) - min(growth) < 1024, growth  # linear: the same for every task


def test_loaders_are_made_once_a_stage_and_images_are_never_copied(tmp_path: Path) -> None:
    made: Counter[str] = Counter()

    class Counted(SplitDigits):
        def train_dataloader(self) -> Any:
            made["train"] += 1
            return super().train_dataloader()

        def test_dataloader(self) -> Any:
            made["test"] += 1
            return super().test_dataloader()

        def load_split(self, train: bool) -> Any:
            made["splits"] += 1
            return super().load_split(train)

    data = Counted(num_tasks=5)
    fit(tmp_path, make(FineTune), data)
    assert made == {"train": 5, "test": 6, "splits": 2}  # one test before training
    images = {loader.split.images.data_ptr() for loader in [data.train_dataloader(), *data.test_dataloader()]}
    assert len(images) == 2


def test_a_compiled_backbone_is_asked_for_by_name_and_its_teacher_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)  # its compiler takes seconds to import
    backbone = Backbone("small_cnn", in_channels=1, compile=True).build()
    assert backbone._compiled_call_impl is not None
    assert Backbone("small_cnn", in_channels=1).build()._compiled_call_impl is None
    assert copy.deepcopy(backbone)._compiled_call_impl is None
    assert list(backbone.state_dict()) == list(Backbone("small_cnn", in_channels=1).build().state_dict())
