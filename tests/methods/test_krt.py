"""`KRT`: pseudo-labels, the loss, what is frozen, and what it remembers."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity

from lightning_cil.callbacks import ReplayBuffer, Teacher
from lightning_cil.data.splits import make_tasks
from lightning_cil.losses import asymmetric_focal_loss
from lightning_cil.methods import KRT
from tests.callbacks.conftest import Recorder
from tests.methods.growth import check_growth, check_refusal, check_resume, first_steps, unchanged
from tests.methods.test_multilabel import digits
from tests.streams import fit, make, results

SMALL = {
    "positions": 16,
    "width": 32,
    "num_heads": 4,
    "weight_std": 0.1,
    "optimizer": partial(torch.optim.Adam, lr=3e-3),
}


def second_task(**options):
    module = make(KRT, **SMALL, **options)
    tasks = make_tasks([3, 2])
    module.begin_stream(tasks, 0)
    for task in tasks:
        module.grow_to(task)
        module.begin_stage(task, module.stages(task)[0])
    module.log_terms = lambda **terms: None
    return module


def old_of(module):
    """The model before its second task: the same weights, one task."""
    old = make(KRT, **SMALL)
    task = make_tasks([3, 2])[0]
    old.begin_stream([task], 0)
    old.grow_to(task)
    state = {name: value for name, value in module.state_dict().items() if not name.startswith("head.tasks.1.")}
    old.load_state_dict({**state, "head.sizes": torch.tensor([3])})
    return old.eval()


@pytest.mark.parametrize(("reduction", "scale"), [("sum", 1.0), ("mean", 5.0)])
def test_the_loss_is_its_terms(reduction, scale):
    module = second_task(distillation_weight=80.0, reduction=reduction)
    module._found = [{"threshold": 0.6, "positives_per_image": 0.0, "expected": 0.0}]
    image = torch.randn(6, 1, 16, 16)
    target = torch.zeros(6, 5)
    target[:, 3:] = (torch.rand(6, 2) < 0.5).float()
    old = old_of(second_task())
    with torch.no_grad():
        given = {f"teacher_{name}": value for name, value in old.teacher_outputs(image).items()}
    given["teacher_logits"] = torch.tensor([[1.0, 0.3, -2.0]]).repeat(6, 1)  # .73, .57 and .12
    logits, embeddings = module.head(module.features(image), with_embeddings=True)
    labels = torch.cat([torch.tensor([[1.0, 0.0, 0.0]]).repeat(6, 1), target[:, 3:]], dim=1)
    expected = asymmetric_focal_loss(logits, labels, reduction=reduction)
    kept = given["teacher_embeddings"]
    assert kept.shape == (6, 32)
    apart = 1 - cosine_similarity(kept, embeddings[:, 0])
    expected = expected + 80 / 64 / scale * (5 / 2) ** 0.5 * apart.mean()
    torch.testing.assert_close(module.training_step({"image": image, "target": target, **given}, 0), expected)


def test_old_tokens_and_classifiers_are_frozen_and_new_ones_trained(tmp_path: Path):
    steps = first_steps(tmp_path, make(KRT, **SMALL))
    parts = {"token", "norm.weight", "norm.bias", "linear.weight", "linear.bias"}
    assert check_growth(steps) == {f"head.tasks.{k}.{part}" for k in (1, 2) for part in parts}
    for step in steps:
        assert all(unchanged(step, f"head.tasks.{k}.") for k in range(step.task.index))
        shared = {n for n in step.before if not n.startswith(("head.tasks.", "head.sizes"))}
        assert all(not torch.equal(step.before[n], step.after[n]) for n in shared)


@pytest.mark.parametrize("density", [None, 2.3])
def test_thresholds_meet_what_is_expected(tmp_path: Path, density):
    """The old model's positives per image, counted by hand, on all images of the task."""
    seen = {}

    def look(hook, trainer, module, *rest):
        if hook == "on_train_batch_start" and module.task.index and module.task.index not in seen:
            network = copy.deepcopy(next(c for c in trainer.callbacks if isinstance(c, Teacher)).network)
            data = trainer.datamodule
            index = data.stage_indices()
            with torch.no_grad():
                q = network(data.transform(data.stored_images(index))).sigmoid()
            labels, known = data.task_labels(index)
            seen[module.task.index] = (q, labels[known].sum() / len(index), module._found[-1])

    module = make(KRT, epochs=2, density=density, **SMALL)
    trainer = fit(tmp_path, module, digits(), [Recorder(look)])
    assert sorted(seen) == [1, 2]
    for task, (q, own, found) in seen.items():
        positives = (q > found["threshold"]).sum().item() / len(q)
        assert positives == pytest.approx(found["positives_per_image"])
        given = own.item() if density is None else density
        assert found["expected"] == pytest.approx(given * (4, 7)[task - 1] / 10)
    assert results(trainer)["pseudo_labels"] == [seen[1][2], seen[2][2]]


def test_it_remembers(tmp_path: Path):
    data = digits(train_images=200, batch_size=8)
    found = results(fit(tmp_path, make(KRT, epochs=4, **SMALL), data))
    assert found["matrix"]["task_il"][0][0] > 0.6  # a guess: 0.36
    assert found["multilabel"]["mAP_last"] > 0.4  # MLFineTune: 0.36 after 6 epochs of 300 images
    assert found["multilabel"]["AF"] < 0.2


def test_it_goes_on_inside_a_task(tmp_path: Path):
    check_resume(tmp_path, KRT, **SMALL)


def test_callbacks_that_it_does_not_use_are_refused(tmp_path: Path):
    for callback in [ReplayBuffer(total=4), Teacher()]:
        check_refusal(tmp_path, make(KRT, **SMALL), callback)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"`distillation_weight=-1\.0`, `density=None`"):
        make(KRT, distillation_weight=-1.0)
    with pytest.raises(ValueError, match=r"`clip=1\.0`"):
        make(KRT, clip=1.0)
    with pytest.raises(ValueError, match=r"`start=1\.0`"):
        make(KRT, threshold_start=1.0)
