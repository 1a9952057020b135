"""What all methods share: growth, seeds, optimizer, evaluation in both scenarios, hyper-parameters."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_cil import Stage
from lightning_cil.callbacks import ReplayBuffer
from lightning_cil.data import SplitDigits
from lightning_cil.data.splits import make_tasks
from lightning_cil.methods import ER, NFL, FineTune, Joint, LwF
from lightning_cil.schedulers import FractionStepLR
from tests.callbacks.conftest import TinyTasks
from tests.streams import ROUND, TINY, fit, make, results, sgd


def test_growth_is_idempotent_and_depends_on_seed_and_task_only() -> None:
    tasks = make_tasks([2, 3, 5])
    one, other = make(FineTune), make(FineTune)
    for module in (one, other):
        module.begin_stream(tasks, seed=11)
    for task in tasks:
        one.grow_to(task)
        one.grow_to(task)
    torch.manual_seed(99)
    other.grow_to(tasks[2])  # at once, as a resumed run does
    assert one.head.sizes.tolist() == other.head.sizes.tolist() == [2, 3, 5]
    assert one.head.weight.equal(other.head.weight)


def test_the_optimizer_holds_the_stage_and_its_schedule_knows_the_stages_length() -> None:
    module = make(FineTune, lr_scheduler=FractionStepLR)
    task = make_tasks([2])[0]
    module.begin_stream([task], 0)
    module.grow_to(task)
    module.begin_stage(task, Stage("head", 4, train=["head.*"]))
    made = module.configure_optimizers()
    assert [p.shape for g in made["optimizer"].param_groups for p in g["params"]] == [(2, 256), (2,)]
    scheduler, rates = made["lr_scheduler"]["scheduler"], []
    for _ in range(4):
        rates.append(scheduler.get_last_lr()[0])
        made["optimizer"].step()
        scheduler.step()
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.0005])


def test_task_il_is_never_below_class_il_and_both_equal_a_slow_reference(tmp_path: Path) -> None:
    module, data = make(FineTune, epochs=2), SplitDigits(sizes=[3, 3, 4])
    found = results(fit(tmp_path, module, data))
    images, labels = data.split("test").images, data.labels("test")
    with torch.no_grad():
        logits = module.eval()(data.transform(images))
    for j, task in enumerate(data.tasks):
        mine = torch.tensor([int(y) in task.classes for y in labels])
        class_il = sum(int(z.argmax()) == int(y) for z, y in zip(logits[mine], labels[mine], strict=True))
        block = logits[mine][:, task.first_class : task.num_seen]
        task_il = sum(int(z.argmax()) + task.first_class == int(y) for z, y in zip(block, labels[mine], strict=True))
        assert found["matrix"]["class_il"][2][j] == class_il / int(mine.sum())
        assert found["matrix"]["task_il"][2][j] == task_il / int(mine.sum())
        assert task_il >= class_il


def test_future_tasks_are_scored_with_the_outputs_they_will_start_from(tmp_path: Path) -> None:
    data = SplitDigits(num_tasks=2)
    module = make(FineTune)
    data.setup("fit")
    module.begin_stream(data.tasks, 5)
    image = data.transform(data.split("test").images[:7])
    before = module.predict_logits(image)
    assert before.shape == (7, 10)
    module.grow_to(data.tasks[1])
    assert torch.allclose(module(image), before, atol=1e-6)


@pytest.mark.parametrize("method", [FineTune, Joint, LwF, ER])
def test_bad_arguments_are_named(method: type[FineTune]) -> None:
    with pytest.raises(ValueError, match=r"`epochs=0`.*at least 1"):
        make(method, epochs=0)
    with pytest.raises(ValueError, match=r"`head='linnear'`"):
        make(method, head="linnear")
    with pytest.raises(ValueError, match=r"`scenario='domain_il'`"):
        make(method, scenario="domain_il")


def test_hyperparameters_are_plain_and_rebuild_the_module() -> None:
    module = make(LwF, distillation_weight=2.5)
    assert module.hparams["backbone"] == {
        "name": "small_cnn", "in_channels": 1, "cifar_stem": False, "pretrained": False, "weights": None,
        "compile": False,
    }  # fmt: skip
    assert "optimizer" not in module.hparams  # a function; the optimizer of a rebuilt module is its default
    again = LwF(**module.hparams)
    assert again.distillation_weight == 2.5
    assert type(again.backbone) is type(module.backbone)


def test_a_module_as_backbone_needs_its_width() -> None:
    with pytest.raises((ValueError, TypeError), match="num_features"):
        make(FineTune, backbone=nn.Flatten())


def test_a_backbone_module_is_used_as_it_is() -> None:
    backbone = TINY.build()
    assert make(FineTune, backbone=backbone, optimizer=sgd).backbone is backbone


def test_logits_are_compared_in_float32_under_mixed_precision() -> None:
    """In bfloat16, logits that differ by less than 1/256 of their size are equal, and the first class wins."""
    module = make(FineTune)
    tasks = make_tasks([2, 2])
    module.begin_stream(tasks, seed=0)
    module.grow_to(tasks[0])
    image = torch.randn(16, 1, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features, logits = module.features(image), module.predict_logits(image)
    assert features.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    expected = features.float() @ module.head.weight.T + module.head.bias
    torch.testing.assert_close(logits[:, :2], expected)
    assert not logits.equal(logits.bfloat16().float())


@pytest.mark.parametrize("method", [FineTune, Joint, LwF, NFL])
def test_a_memory_that_changes_nothing_is_said(method: type, tmp_path: Path) -> None:
    options = {**ROUND, "epochs": 1} if method is NFL else {}
    memory = ReplayBuffer(total=10)
    with pytest.warns(UserWarning, match=f"{method.__name__} uses no exemplars: those of the callback `ReplayBuffer`"):
        fit(tmp_path, make(method, **options), TinyTasks(), [memory], fast_dev_run=1)


def test_a_subclass_that_may_replay_is_not_warned_of(tmp_path: Path) -> None:
    class Own(FineTune):
        pass

    fit(tmp_path, make(Own), TinyTasks(), [ReplayBuffer(total=10)], fast_dev_run=1)
    Own.uses_exemplars = False
    with pytest.warns(UserWarning, match="Own uses no exemplars"):
        fit(tmp_path, make(Own), TinyTasks(), [ReplayBuffer(total=10)], fast_dev_run=1)
