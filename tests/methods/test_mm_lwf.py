"""`MMLwF`: the teacher is the old towers on the same pictures and sounds."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback

from lightning_cil.callbacks import ReplayBuffer, Teacher
from lightning_cil.losses import soft_cross_entropy
from lightning_cil.methods import MMLwF
from tests.streams import fit, spoken


class Look(Callback):
    def __init__(self) -> None:
        self.gap: list[float] = []
        self.loss: list[tuple[float, float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if "teacher_logits" in batch:
            with torch.no_grad():
                logits = pl_module(*pl_module.inputs(batch))
            student = logits[:, : batch["teacher_logits"].shape[1]]
            self.gap.append(float((student - batch["teacher_logits"]).abs().max()))
            old = soft_cross_entropy(student, batch["teacher_logits"], 3.0)
            self.expected = float(F.cross_entropy(logits, batch["target"]) + 0.7 * 9 * old)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if "teacher_logits" in batch:
            self.loss.append((float(outputs["loss"]), self.expected))


@pytest.mark.parametrize("scope", ["last_block", ["image.proj"]])  # with a trained audio tower, and with the table
def test_the_teacher_is_the_old_model(scope: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"distillation_weight": 0.7, "temperature": 3.0}
    module = MMLwF(towers="tiny", scope=scope, epochs=1, optimizer=partial(torch.optim.SGD, lr=0.01), **options)
    look = Look()
    fit(tmp_path / "run", module, spoken(tmp_path / "fsdd", batch_size=8), [Teacher(), look])
    assert len(look.gap) == 2  # 20 samples, the rest is left out
    assert look.gap[0] < 1e-4  # before the first step of the second task
    assert look.gap[1] > 1e-3
    for found, expected in look.loss:
        assert found == pytest.approx(expected, rel=1e-4)


class Exemplars(Callback):
    """The old model's logits of exemplars, and those of their own pictures and sounds, in the first step with both."""

    def __init__(self) -> None:
        self.found: list[tuple[torch.Tensor, torch.Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if "replay_teacher_logits" in batch and not self.found:
            data = trainer.datamodule
            wave = data.transform_audio(data.load_audio(batch["replay_index"]))
            with torch.no_grad():
                student = pl_module.eval()(batch["replay_image"], wave)
            pl_module.train()
            old = batch["replay_teacher_logits"]
            self.found.append((student[:, : old.shape[1]], old))


@pytest.mark.filterwarnings("ignore:MMLwF uses no exemplars")
@pytest.mark.parametrize("scope", ["last_block", ["image.proj"]])
def test_exemplars_have_the_sounds_of_their_own_samples(scope: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = MMLwF(towers="tiny", scope=scope, epochs=1, optimizer=partial(torch.optim.SGD, lr=0.01))
    exemplars = Exemplars()
    callbacks = [ReplayBuffer(total=10, selection="balanced"), Teacher(), exemplars]
    fit(tmp_path / "run", module, spoken(tmp_path / "fsdd", batch_size=8), callbacks)
    ((ours, theirs),) = exemplars.found
    assert theirs.std(dim=0).min() > 1e-3  # each exemplar its own
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match=r"`temperature=0\.0`"):
        MMLwF(towers="tiny", temperature=0.0)
