"""`Joint`: one training on everything, or a fresh network for every task."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from lightning_cil.data import SplitDigits
from lightning_cil.data.splits import make_tasks
from lightning_cil.methods import Joint
from tests.streams import fit, make, results


def test_final_trains_once_on_all_data(tmp_path: Path) -> None:
    module = make(Joint, epochs=2)
    trainer = fit(tmp_path, module, SplitDigits(num_tasks=5))
    found = results(trainer)
    assert trainer.global_step == 2 * (1438 // 32)
    assert all(v is None for row in found["matrix"]["class_il"][:4] for v in row)
    assert found["scores"]["class_il"]["ACC"] > 0.9
    for name in ("AIA", "BWT", "AF"):
        assert found["scores"]["class_il"][name] is None
        assert "not evaluated" in found["undefined"]["class_il"][name]
    assert [s["stage"] for s in found["seconds"]] == ["evaluation before training", "joint", "task end", "evaluation"]


def test_cumulative_starts_every_task_from_the_same_network(tmp_path: Path) -> None:
    starts: list[torch.Tensor] = []

    class Watched(Joint):
        def on_train_start(self) -> None:
            starts.append(self.backbone.conv1.weight.detach().clone())

    data = SplitDigits(sizes=[4, 6])
    module = make(Watched, joint_mode="cumulative")
    found = results(fit(tmp_path, module, data))
    assert len(starts) == 2
    assert starts[0].equal(starts[1])
    assert found["scores"]["class_il"]["AIA"] is not None
    assert found["scores"]["class_il"]["BWT"] > -0.2  # nothing is forgotten, classes only get more


def test_task_il_uses_each_samples_own_task() -> None:
    module = make(Joint, scenario="task_il")
    tasks = make_tasks([2, 3])
    module.begin_stream(tasks, 0)
    module.grow_to(tasks[1])
    module.log_terms = lambda **terms: None
    image = torch.randn(4, 1, 8, 8)
    target, task = torch.tensor([0, 1, 2, 4]), torch.tensor([0, 0, 1, 1])
    logits = module(image)
    expected = (
        cross_entropy(logits[:2, :2], target[:2], reduction="sum")
        + cross_entropy(logits[2:, 2:], target[2:] - 2, reduction="sum")
    ) / 4
    found = module.training_step({"image": image, "target": target, "task": task}, 0)
    assert torch.allclose(found, expected)


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match="`joint_mode='once'`"):
        make(Joint, joint_mode="once")
