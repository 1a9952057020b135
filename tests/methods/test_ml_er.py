"""`MLER`: one loss on current images and exemplars, over what is known of each."""

import pytest
import torch

from lightning_cil.callbacks import ReplayBuffer
from lightning_cil.methods import MLER
from tests.losses.test_asymmetric import MEMORY_P, MEMORY_Y, Y_NEW, P
from tests.methods.test_rebll import NAN, batch, method, plain_bce
from tests.streams import make


def test_the_loss_is_a_mean_over_samples_of_the_mean_over_what_is_known() -> None:
    b = batch()
    del b["teacher_logits"]
    b["replay_known"] = torch.tensor([[0, 1, 1, 0, 0, 0]], dtype=torch.bool)
    b["replay_target"] = torch.where(b["replay_known"], b["replay_target"], NAN)
    module, sizes = method(MLER, [4, 2]), []
    module.backbone.register_forward_hook(lambda *args: sizes.append(len(args[2])))
    rows = [plain_bce([p[4:]], [y]) for p, y in zip(P, Y_NEW, strict=True)]
    rows.append(plain_bce([MEMORY_P[0][1:3]], [MEMORY_Y[0][1:3]]))
    assert module.training_step(b, 0).item() == pytest.approx(sum(rows) / 3, abs=1e-6)
    assert sizes == [3]


def test_it_asks_for_a_reservoir_of_the_papers_size() -> None:
    (memory,) = make(MLER).required_callbacks()
    assert isinstance(memory, ReplayBuffer)
    assert (memory.per_class, memory.selection, memory.update, memory.repeat) == (2, "reservoir", "task", False)
