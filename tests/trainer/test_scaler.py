"""`16-mixed`: a stream with a loss scaler. What a kill does to it is in tests/resume/test_kill.py."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from lightning_cil.data import SplitDigits
from lightning_cil.methods import FineTune, LwF, PartialFineTune
from tests.ranks import all_well, run_ranks
from tests.resume import cases
from tests.resume.test_kill import OVERFLOWING
from tests.streams import fit, make, results, spoken, weights_hash


class Scaled(MixedPrecision):
    """A loss scaler without lower precision: powers of two leave the digits of a number as they are."""

    def __init__(self, scale: float) -> None:
        super().__init__("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))

    def autocast_context_manager(self) -> torch.autocast:
        return torch.autocast("cpu", enabled=False)


def test_gradients_that_are_divided_by_their_own_size_are_not_unscaled(tmp_path: Path) -> None:
    """Those of AudioCLIP's wavelets: scaled and plain losses train the same weights."""
    found = []
    for plugins in ([], [Scaled(1024.0)]):
        torch.manual_seed(0)
        module = PartialFineTune(towers="tiny", scope="audio", epochs=1, optimizer=partial(torch.optim.SGD, lr=0.01))
        fit(tmp_path, module, spoken(tmp_path / "fsdd"), plugins=plugins, accumulate_grad_batches=2)
        found.append(weights_hash(module))
    assert found[0] == found[1]


class Scales(Callback):
    """Scale and growth tracker of every batch's end, and the number of each optimizer's steps that were taken."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str, float, int]] = []
        self.steps = 0

    def state(self, trainer: Any) -> tuple[float, int]:
        state = trainer.precision_plugin.state_dict()
        return state["scale"], state["_growth_tracker"]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        assert not self.seen or self.state(trainer) == self.seen[-1][2:]  # it goes on from stage to stage
        trainer.optimizers[0].register_step_post_hook(self.count)

    def count(self, *args: Any) -> None:
        self.steps += 1

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.seen.append((pl_module.task.index, pl_module.stage.name, *self.state(trainer)))


def test_the_scale_goes_on_from_stage_to_stage(tmp_path: Path) -> None:
    scales = Scales()
    case = {"name": "stages", "scaler": OVERFLOWING, "checkpoint": None}
    trainer = cases.fit(case, tmp_path, None, [scales])
    left_out = [now[:2] for old, now in zip(scales.seen, scales.seen[1:], strict=False) if now[2] < old[2]]
    assert {task for task, _ in left_out} == {0, 1, 2}
    assert {stage for _, stage in left_out} == {"head", "body", "all"}
    assert scales.steps == len(scales.seen) - len(left_out) == trainer.global_step - len(left_out)


def test_half_precision_learns_with_a_teacher(tmp_path: Path) -> None:
    trainer = fit(tmp_path, make(LwF, epochs=2), SplitDigits(num_tasks=2), plugins=[MixedPrecision("16-mixed", "cpu")])
    assert results(trainer)["config"]["trainer"]["precision"] == "16-mixed"
    assert min(results(trainer)["matrix"]["task_il"][-1]) > 0.9


class OneRankOverflows(FineTune):
    """At its third step the gradient of rank 1 times 2⁴⁰ is too large for 32 bits."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.global_step == 2 and self.global_rank == 1:
            loss.register_hook(lambda gradient: gradient * 1e30)
        return loss


def test_a_step_that_overflows_on_one_rank_is_left_out_on_all(tmp_path: Path) -> None:
    def train() -> None:
        plugin, module = Scaled(2.0**40), make(OneRankOverflows)
        fit(tmp_path, module, SplitDigits(num_tasks=2), devices=2, plugins=[plugin], limit_train_batches=5)
        assert plugin.state_dict()["scale"] == 2.0**39
        assert all(p.isfinite().all() for p in module.parameters())
        (tmp_path / os.environ["RANK"]).write_text(weights_hash(module))

    assert all_well(run_ranks(train, tmp_path))
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()
