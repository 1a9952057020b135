"""`L2P`: its loss, what is frozen, and what it learns."""

from functools import partial
from pathlib import Path

import pytest
import timm
import torch

from lightning_cil.callbacks import ReplayBuffer
from lightning_cil.data.splits import make_tasks
from lightning_cil.losses import known_bce
from lightning_cil.methods import L2P
from lightning_cil.networks import Backbone
from tests.methods.growth import check_growth, check_refusal, check_resume, first_steps, unchanged
from tests.methods.test_multilabel import digits
from tests.streams import fit, make, results

CHANCE = (0.362, 0.417, 0.429)
"""Share of a task's classes in its test images: the mAP of a guess."""


def small(**options):
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "in_chans": 1, "num_classes": 0, "embed_dim": 32, "depth": 2}
    vit = timm.models.VisionTransformer(**sizes, num_heads=4)
    return make(L2P, **{"backbone": vit, "optimizer": partial(torch.optim.Adam, lr=0.03), **options})


def test_the_loss_is_its_terms():
    module = small(key_weight=0.3)
    tasks = make_tasks([3, 2])
    module.begin_stream(tasks, 0)
    for task in tasks:
        module.grow_to(task)
        module.begin_stage(task, module.stages(task)[0])
    module.log_terms = lambda **terms: None
    known = torch.tensor([[False] * 3 + [True] * 2] * 4)
    batch = {"image": torch.randn(4, 1, 16, 16), "target": (torch.rand(4, 5) < 0.5).float() * known, "known": known}
    features, cosines = module.backbone(batch["image"], with_cosines=True)
    assert cosines.shape == (4, 5)
    expected = known_bce(module.head(features), batch["target"], known) - 0.3 * cosines.sum(1).mean()
    torch.testing.assert_close(module.training_step(batch, 0), expected)


def test_only_pool_and_head_are_trained(tmp_path: Path):
    steps = first_steps(tmp_path, small())
    assert check_growth(steps) == {"head.weight", "head.bias"}
    for step in steps:
        assert step.trained == {"backbone.pool.prompts", "backbone.pool.keys", "head.weight", "head.bias"}
        assert unchanged(step, "backbone.transformer.")
        assert all(not torch.equal(step.before[n], step.after[n]) for n in step.trained)


def test_it_learns(tmp_path: Path):
    module = small(epochs=8)
    before = {name: value.clone() for name, value in module.backbone.transformer.state_dict().items()}
    found = results(fit(tmp_path, module, digits(train_images=200, batch_size=16)))
    learned = [row[i] for i, row in enumerate(found["matrix"]["task_il"])]  # from a transformer that knows nothing
    assert all(a > b for a, b in zip(learned, CHANCE, strict=True))
    assert sum(learned) / 3 > sum(CHANCE) / 3 + 0.05
    assert all(torch.equal(value, before[name]) for name, value in module.backbone.transformer.state_dict().items())


def test_it_goes_on_inside_a_task(tmp_path: Path):
    check_resume(tmp_path, L2P, backbone=Backbone("test_vit", in_channels=1))


def test_callbacks_that_it_does_not_use_are_refused(tmp_path: Path):
    for callback in [ReplayBuffer(total=4)]:
        check_refusal(tmp_path, small(), callback)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"`key_weight=-1\.0`"):
        small(key_weight=-1.0)
    with pytest.raises(TypeError, match="takes no prompts"):
        make(L2P)
