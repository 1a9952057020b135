"""`FineTune`: the loss runs over the classes that the scenario says, and it forgets."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from lightning_cil.data import SplitDigits
from lightning_cil.data.splits import make_tasks
from lightning_cil.methods import FineTune
from tests.streams import fit, make, results


@pytest.mark.parametrize(
    ("scenario", "scope", "first"),
    [("class_il", "auto", 0), ("task_il", "auto", 2), ("class_il", "new", 2), ("task_il", "seen", 0)],
)
def test_the_softmax_runs_over_the_scope(scenario: str, scope: str, first: int) -> None:
    module = make(FineTune, scenario=scenario, ce_scope=scope)
    tasks = make_tasks([2, 3])
    module.begin_stream(tasks, 0)
    module.grow_to(tasks[1])
    module.log_terms = lambda **terms: None  # no trainer
    image, target = torch.randn(6, 1, 8, 8), torch.tensor([2, 3, 4, 2, 3, 4])
    expected = cross_entropy(module(image)[:, first:5], target - first)
    assert torch.allclose(module.training_step({"image": image, "target": target}, 0), expected)


def test_task_il_leaves_old_outputs_untouched(tmp_path: Path) -> None:
    module = make(FineTune, scenario="task_il")
    data = SplitDigits(num_tasks=2)
    old: list[torch.Tensor] = []
    module.on_task_start = lambda task: old.append(module.head.weight.detach().clone())  # type: ignore[attr-defined]
    fit(tmp_path, module, data, limit_train_batches=5)
    # weight decay is off in the tests' SGD, so that nothing else moves them
    assert module.head.weight[:5].equal(old[1])


def test_it_forgets_in_class_il(tmp_path: Path) -> None:
    found = results(fit(tmp_path, make(FineTune, epochs=3), SplitDigits(num_tasks=2)))
    assert found["matrix"]["class_il"][0][0] > 0.9
    assert found["matrix"]["class_il"][1][0] < 0.1
    assert found["scores"]["class_il"]["AF"] > 0.8


def test_unknown_scope() -> None:
    with pytest.raises(ValueError, match="`ce_scope='all'`"):
        make(FineTune, ce_scope="all")
