"""`MoEClip`: cross-entropy over the current task's names, trained by the adapters alone."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback

from lightning_cil.data.splits import make_tasks
from lightning_cil.methods import MoEClip
from lightning_cil.networks import MIFE
from tests.streams import fit, results, spoken

SMALL = MIFE.moe_clip(rank=4)


def test_the_loss_is_over_the_new_names() -> None:
    torch.manual_seed(0)
    module = MoEClip(towers="tiny", mife=MIFE.moe_clip(rank=4, noisy=False, dropout=0.0))
    tasks = make_tasks([2, 2])
    module.begin_stream(tasks, 0)
    module.class_names = ["zero", "one", "two", "three"]
    for task in tasks:
        module.grow_to(task)
    module.log_terms = lambda **terms: None
    given = {"image": torch.randn(3, 3, 16, 16), "audio": 0.1 * torch.randn(3, 1, 400)}
    target = torch.tensor([2, 3, 3])
    with torch.no_grad():
        found = module.training_step({**given, "target": target}, 0)
        expected = F.cross_entropy(module(given["image"], given["audio"])[:, 2:], target - 2)
    torch.testing.assert_close(found, expected)


def test_a_stream_trains_the_adapters(tmp_path: Path) -> None:
    module = MoEClip(towers="tiny", mife=SMALL)
    trainer = fit(tmp_path / "run", module, spoken(tmp_path / "fsdd"))
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert trained
    assert all(".adapter." in name for name in trained)
    usage = results(trainer)["multimodal"]["tasks"][1]["expert_usage"]
    assert all(shares == [1.0, 1.0] for shares in usage.values())  # both experts of every sample


class Rates(Callback):
    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self.found.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_the_rate_rises_and_falls_step_by_step_in_each_task(tmp_path: Path) -> None:
    rates = Rates()
    optimizer = partial(torch.optim.AdamW, lr=0.1)
    module = MoEClip(towers="tiny", mife=SMALL, warmup_steps=2, optimizer=optimizer)
    fit(tmp_path / "run", module, spoken(tmp_path / "fsdd", batch_size=4), [rates])
    task = [0.1 / 3, 0.2 / 3, *(0.05 * (1 + math.cos(math.pi * step / 3)) for step in range(3))]  # 20 samples
    assert rates.found == pytest.approx(task + task)
    with pytest.raises(ValueError, match="warmup_steps=-1"):
        MoEClip(towers="tiny", mife=SMALL, warmup_steps=-1)
