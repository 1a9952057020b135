"""Stock fits in processes that end with them, and in processes that last: what callbacks carry to the next fit."""

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.utils.data import DataLoader

from lightning_cil import IncrementalTrainer
from lightning_cil.callbacks import (
    ActivationMapRecords,
    FeatureRecords,
    OtherClassifier,
    PredictionRecords,
    RandomState,
    ReplayBuffer,
    StreamState,
    Teacher,
)
from lightning_cil.launch import ProcessDiedError
from lightning_cil.methods import LwF
from tests.callbacks.conftest import Net, TinyTasks, stock_fit, vectors
from tests.ranks import all_well, run_ranks
from tests.streams import fit, make, results

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:LwF uses no exemplars"),
]

REFUSED = (
    r"`{}` got a stock fit in spawned or forked processes .*'ddp_fork'.*: {} would be lost with them when the fit ends"
    r".*`strategy='ddp'` in a script, torchrun, one process .*`IncrementalTrainer`"
)


class Listener(Net):
    """Leaves a file when training starts; keeps what a teacher appended."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.folder = folder

    def on_train_start(self) -> None:
        if self.folder is not None:
            (self.folder / "trained").touch()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch[:2], batch_idx) + 0 * sum(part.sum() for part in batch[2:])

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch[0])


@pytest.mark.parametrize(
    ("callback", "lost"),
    [
        (ReplayBuffer(total=5), "the exemplars"),
        (ReplayBuffer(total=5, update="batch"), "the exemplars"),
        (Teacher(), "the old model"),
    ],
)
@pytest.mark.parametrize("devices", [1, 2])
def test_processes_that_end_with_a_stock_fit_are_refused_before_it_trains(
    tmp_path: Path, callback: Any, lost: str, devices: int
) -> None:
    name = type(callback).__name__
    with pytest.raises(ProcessRaisedException, match=REFUSED.format(name, lost)):
        stock_fit(Listener(tmp_path), vectors([0, 1]), [callback], devices=devices, strategy="ddp_fork")
    assert not (tmp_path / "trained").exists()


def test_they_are_refused_in_a_stream_trainer_without_a_stream(tmp_path: Path) -> None:
    options: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "default_root_dir": tmp_path}
    trainer = IncrementalTrainer(callbacks=[Teacher()], strategy="ddp_fork", logger=False, **options)
    with pytest.raises(ProcessDiedError, match="^rank 0: ValueError: " + REFUSED.format("Teacher", "the old model")):
        trainer.fit(Listener(tmp_path), DataLoader(vectors([0, 1]), batch_size=8))
    assert not (tmp_path / "trained").exists()


def test_where_nothing_is_lost_they_are_not_refused(tmp_path: Path) -> None:
    records = [PredictionRecords(), FeatureRecords(), ActivationMapRecords(), OtherClassifier("other")]
    stock_fit(
        Listener(tmp_path), vectors([0, 1]), [*records, RandomState(), StreamState()], devices=1, strategy="ddp_fork"
    )
    assert (tmp_path / "trained").exists()
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, strategy="ddp_fork", callbacks=[ReplayBuffer(total=5), Teacher(), *records],
        logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    assert trainer.test(Listener(), DataLoader(vectors([0, 1]), batch_size=8), verbose=False) == [{}]


def test_a_stream_in_forked_processes_keeps_exemplars_and_teacher(tmp_path: Path) -> None:
    callbacks = [ReplayBuffer(total=12), Teacher()]
    trainer = fit(tmp_path, make(LwF), TinyTasks(), callbacks, devices=2, strategy="ddp_fork")
    footprint = results(trainer)["footprint"]["full"]
    assert results(trainer)["status"] == "complete"
    assert footprint["exemplars"] == 12 * 36
    assert footprint["teacher"] > 0


def test_two_ranks_of_a_stock_trainer_carry_the_same_to_the_next_fit(tmp_path: Path) -> None:
    """Each rank's network ends with BatchNorm statistics of its own last batch."""

    def rank() -> None:
        pl.seed_everything(0, verbose=False)
        net, memory, teacher, found = Listener(), ReplayBuffer(total=7, selection="herding"), Teacher(), []
        for number, classes in enumerate(([0, 1], [2, 3])):
            stock_fit(net, vectors(classes, 23, seed=number), [memory, teacher], devices=2, strategy="ddp")
            old = {name: value.clone() for name, value in teacher.network.state_dict().items()}
            found.append((memory.digest(), old, net.body[1].running_mean.clone()))
        assert {len(x) for x, _ in net.batches[3:]} == {16, 14}
        assert {label for _, y in net.batches[3:] for label in y[len(y) // 2 :].tolist()} <= {0, 1}
        torch.save(found, tmp_path / f"{os.environ['RANK']}.pt")

    assert all_well(run_ranks(rank, tmp_path))
    for one, two in zip(*(torch.load(tmp_path / f"{r}.pt") for r in (0, 1)), strict=True):
        assert one[0] == two[0]
        assert all(torch.equal(value, two[1][name]) for name, value in one[1].items())
        assert not torch.equal(one[2], two[2])
        assert torch.equal(one[1]["body.1.running_mean"], one[2])  # rank 0's, from which the next fit starts
