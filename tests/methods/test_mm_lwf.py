"""`MMLwF`: the teacher is the old towers on the same pictures and sounds."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lightning_cil.callbacks import Teacher
from lightning_cil.losses import soft_cross_entropy
from lightning_cil.methods import MMLwF
from tests.streams import fit, spoken


class Look(Callback):
    def __init__(self) -> None:
        self.gap: list[float] = []
        self.loss: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if "teacher_logits" in batch:
            with torch.no_grad():
                student = pl_module(*pl_module.inputs(batch))[:, : batch["teacher_logits"].shape[1]]
            self.gap.append(float((student - batch["teacher_logits"]).abs().max()))
            self.loss.append(float(soft_cross_entropy(student, batch["teacher_logits"], 2.0)))


@pytest.mark.parametrize("scope", ["last_block", ["image.proj"]])  # with a trained audio tower, and with the table
def test_the_teacher_is_the_old_model(scope: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = MMLwF(towers="tiny", scope=scope, epochs=1, optimizer=partial(torch.optim.SGD, lr=0.01))
    look = Look()
    fit(tmp_path / "run", module, spoken(tmp_path / "fsdd", batch_size=8), [Teacher(), look])
    assert len(look.gap) == 2  # 20 samples, the rest is left out
    assert look.gap[0] < 1e-4  # before the first step of the second task
    assert look.gap[1] > 1e-3


def test_bad_options() -> None:
    with pytest.raises(ValueError, match=r"`temperature=0\.0`"):
        MMLwF(towers="tiny", temperature=0.0)
