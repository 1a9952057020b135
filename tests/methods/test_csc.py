"""`CSC`: its loss, the graph's growth, and what it remembers."""

from pathlib import Path

import pytest
import torch

from lightning_cil.callbacks import ReplayBuffer
from lightning_cil.data.splits import make_tasks
from lightning_cil.losses import binary_distillation, known_bce, negative_entropy
from lightning_cil.methods import CSC, RebLL
from tests.methods.growth import check_growth, check_refusal, first_steps
from tests.methods.test_multilabel import adam, digits
from tests.streams import fit, make, results

SMALL = {"graph_width": 32, "optimizer": adam}


def second_task(**options):
    module = make(CSC, **SMALL, **options)
    tasks = make_tasks([3, 2])
    module.begin_stream(tasks, 0)
    for task in tasks:
        module.grow_to(task)
        module.begin_stage(task, module.stages(task)[0])
    module.log_terms = lambda **terms: None
    return module


def batch_of(module, teacher=True):
    known = torch.tensor([[False] * 3 + [True] * 2] * 4)
    batch = {"image": torch.randn(4, 1, 16, 16), "target": (torch.rand(4, 5) < 0.5).float() * known, "known": known}
    return {**batch, "teacher_logits": torch.randn(4, 3)} if teacher else batch


@pytest.mark.parametrize("alpha", [0.15, 0.5])
def test_the_loss_is_its_terms(alpha):
    module = second_task(alpha=alpha, entropy_weight=0.3)
    batch = batch_of(module)
    logits = module(batch["image"])
    expected = alpha * known_bce(logits, batch["target"], batch["known"])
    expected = expected + (1 - alpha) * binary_distillation(logits[:, :3], batch["teacher_logits"])
    expected = expected + 0.3 * negative_entropy(logits)
    torch.testing.assert_close(module.training_step(batch, 0), expected)
    first = batch_of(module, teacher=False)
    only = known_bce(module(first["image"]), first["target"], first["known"])
    torch.testing.assert_close(module.training_step(first, 0), only)


def test_everything_that_grows_is_trained(tmp_path: Path):
    steps = first_steps(tmp_path, make(CSC, **SMALL))
    assert check_growth(steps) == {
        "head.activation.weight",
        "head.graph.weight",
        "head.edges.weight",
        "head.edges.bias",
        "head.classifier.weight",
        "head.classifier.bias",
    }
    for step in steps:  # the network is in training: BatchNorm counts
        assert step.after["head.norm.num_batches_tracked"] == step.before["head.norm.num_batches_tracked"] + 1


def test_batch_norm_can_keep_what_it_measured_in_the_first_task(tmp_path: Path):
    first, *later = first_steps(tmp_path, make(CSC, freeze_bn_after_task1=True, **SMALL))
    names = [name for name in first.before if "running" in name or "num_batches" in name]
    assert names
    assert all(not torch.equal(first.before[name], first.after[name]) for name in names)
    for step in later:
        assert all(torch.equal(step.before[name], step.after[name]) for name in names)
        assert not torch.equal(step.before["head.norm.weight"], step.after["head.norm.weight"])


def test_it_remembers(tmp_path: Path):
    found = results(fit(tmp_path, make(CSC, epochs=4, **SMALL), digits(train_images=300)))
    assert found["multilabel"]["mAP_last"] > 0.7  # MLFineTune: 0.36 after 6 epochs
    assert found["multilabel"]["AF"] < 0.2


def test_rebll_on_the_same_graph(tmp_path: Path):
    module = make(RebLL, network="gcn", graph_width=32, memory="none", epochs=4, optimizer=adam)
    found = results(fit(tmp_path, module, digits(train_images=300)))
    assert type(module.head).__name__ == "ClassGCN"
    assert found["multilabel"]["mAP_last"] > 0.6


def test_callbacks_that_it_does_not_use_are_refused(tmp_path: Path):
    for callback in [ReplayBuffer(total=4)]:
        check_refusal(tmp_path, make(CSC, **SMALL), callback)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"`alpha=1\.5`, `entropy_weight=0\.04`"):
        make(CSC, alpha=1.5)
    with pytest.raises(ValueError, match="`norm='group'`"):
        make(CSC, graph_norm="group")
    with pytest.raises(ValueError, match="`network='vit'`"):
        make(RebLL, network="vit")
