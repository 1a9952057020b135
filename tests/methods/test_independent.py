"""`Independent`: every task alone, from the same fresh network."""

from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from lightning_cil.data import SplitDigits
from lightning_cil.data.splits import make_tasks
from lightning_cil.methods import FineTune, Independent
from tests.streams import fit, make, results


def test_a_task_does_not_depend_on_those_before_it(tmp_path: Path) -> None:
    """Task 2 has the same classes in both streams, tasks 0 and 1 have not."""
    orders = [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [3, 2, 1, 0, 4, 5, 6, 7, 8, 9]]
    modules = [make(Independent) for _ in orders]
    runs = [
        fit(tmp_path / str(i), module, data(order), stop_after_task=2)
        for i, (module, order) in enumerate(zip(modules, orders, strict=True))
    ]
    first, second = (module.backbone.state_dict() for module in modules)
    assert all(value.equal(second[name]) for name, value in first.items())
    matrices = [results(run)["matrix"]["task_il"] for run in runs]
    assert matrices[0][2][2] == matrices[1][2][2] > 0.9
    assert matrices[0][1][1] != matrices[1][1][1]


def data(order: list[int]) -> SplitDigits:
    return SplitDigits(num_tasks=5, class_order=order)


def test_the_first_task_is_plain_training(tmp_path: Path) -> None:
    alone = results(fit(tmp_path / "a", make(Independent), stop_after_task=0))
    plain = results(fit(tmp_path / "b", make(FineTune, ce_scope="new"), stop_after_task=0))
    assert alone["matrix"] == plain["matrix"]


def test_the_loss_runs_over_the_tasks_own_classes() -> None:
    module = make(Independent)
    tasks = make_tasks([2, 3])
    module.begin_stream(tasks, 0)
    module.grow_to(tasks[1])
    module.log_terms = lambda **terms: None
    image, target = torch.randn(4, 1, 8, 8), torch.tensor([2, 4, 3, 3])
    expected = cross_entropy(module(image)[:, 2:], target - 2)
    found = module.training_step({"image": image, "target": target, "task": torch.ones(4).long()}, 0)
    assert torch.allclose(found, expected)
