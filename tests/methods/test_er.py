"""`ER`: cross-entropy on the union of batch and exemplars; replay cures forgetting."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from lightning_cil.callbacks import ReplayBuffer
from lightning_cil.data import SplitDigits
from lightning_cil.data.splits import make_tasks
from lightning_cil.methods import ER, FineTune
from tests.streams import fit, make, results, weights_hash


def module_at_second_task(**options: object) -> ER:
    module = make(ER, **options)
    tasks = make_tasks([2, 3])
    module.begin_stream(tasks, 0)
    module.grow_to(tasks[1])
    module.log_terms = lambda **terms: None
    return module


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "image": torch.randn(4, 1, 8, 8),
        "target": torch.tensor([2, 3, 4, 2]),
        "task": torch.tensor([1, 1, 1, 1]),
        "replay_image": torch.randn(3, 1, 8, 8),
        "replay_target": torch.tensor([0, 1, 0]),
        "replay_task": torch.tensor([0, 0, 0]),
    }


def test_the_loss_is_the_mean_over_the_union() -> None:
    module, b = module_at_second_task(), batch()
    terms = [cross_entropy(module(b[f"{part}image"]), b[f"{part}target"], reduction="sum") for part in ("", "replay_")]
    assert torch.allclose(module.training_step(b, 0), sum(terms) / 7, atol=1e-6)


def test_task_scope_masks_other_tasks() -> None:
    module, b = module_at_second_task(ce_scope="task"), batch()
    new = cross_entropy(module(b["image"])[:, 2:], b["target"] - 2, reduction="sum")
    old = cross_entropy(module(b["replay_image"])[:, :2], b["replay_target"], reduction="sum")
    assert torch.allclose(module.training_step(b, 0), (new + old) / 7, atol=1e-6)


def test_the_first_task_is_plain_training(tmp_path: Path) -> None:
    er, plain = make(ER), make(FineTune)
    fit(tmp_path / "er", er, SplitDigits(num_tasks=2), stop_after_task=0)
    fit(tmp_path / "plain", plain, SplitDigits(num_tasks=2), stop_after_task=0)
    assert weights_hash(er) == weights_hash(plain)


@pytest.mark.parametrize("selection", ["reservoir", "balanced", "herding"])
def test_replay_cures_forgetting_whatever_the_selection(tmp_path: Path, selection: str) -> None:
    buffer = ReplayBuffer(total=100, selection=selection)  # type: ignore[arg-type]
    found = results(fit(tmp_path, make(ER, epochs=3), SplitDigits(num_tasks=5), [buffer]))
    assert len(buffer) == 100
    assert found["scores"]["class_il"]["ACC"] > 0.7
    assert found["scores"]["class_il"]["AF"] < 0.35
    assert found["footprint"]["full"]["exemplars"] == 100 * 64


def test_the_default_memory_is_added_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        trainer = fit(tmp_path, make(ER), SplitDigits(num_tasks=2), fast_dev_run=True)
    buffers = [c for c in trainer.callbacks if isinstance(c, ReplayBuffer)]
    assert [b.total for b in buffers] == [2000]


def test_online_update_fills_the_buffer_batch_by_batch(tmp_path: Path) -> None:
    buffer = ReplayBuffer(total=64, update="batch")
    fit(tmp_path, make(ER), SplitDigits(num_tasks=2), [buffer], limit_train_batches=4)
    assert buffer.num_offered == 2 * 4 * 32
    assert len(buffer) == 64
    assert buffer.store.column("task").unique().tolist() == [0, 1]


def test_unknown_scope() -> None:
    with pytest.raises(ValueError, match="`ce_scope='new'`"):
        make(ER, ce_scope="new")
