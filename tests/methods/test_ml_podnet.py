"""`MLPODNet`: its loss on images and exemplars, growth, and what it remembers."""

from pathlib import Path

import pytest
import torch

from lightning_cil.callbacks import ReplayBuffer, Teacher
from lightning_cil.data.splits import make_tasks
from lightning_cil.losses import asymmetric_focal_loss, cosine_preservation, pod_spatial
from lightning_cil.methods import MLPODNet
from tests.methods.growth import check_growth, check_refusal, check_resume, first_steps
from tests.methods.test_multilabel import adam, digits
from tests.streams import fit, make, results


def second_task(**options):
    module = make(MLPODNet, optimizer=adam, **options)
    tasks = make_tasks([3, 2])
    module.begin_stream(tasks, 0)
    for task in tasks:
        module.grow_to(task)
        module.begin_stage(task, module.stages(task)[0])
    module.log_terms = lambda **terms: None
    return module


@pytest.mark.parametrize(
    ("replay", "options", "classes"),
    [
        (False, {}, 1),
        (True, {}, 1),
        (True, {"reduction": "mean"}, 2),
        (False, {"reduction": "mean", "replay_labels": "leaky_krt"}, 5),
    ],
)
def test_the_loss_is_its_terms(replay, options, classes):
    """`mean`: weights are divided by the number of classes over which the loss is averaged."""
    module, old = second_task(spatial_weight=5.0, flat_weight=18.0, **options), second_task()
    for parameter in old.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    known = torch.tensor([[False] * 3 + [True] * 2] * 4)
    batch = {"image": torch.randn(4, 1, 16, 16), "target": (torch.rand(4, 5) < 0.5).float() * known, "known": known}
    image, target = batch["image"], batch["target"]
    if replay:
        more = {
            "image": torch.randn(2, 1, 16, 16),
            "target": torch.tensor([[1.0, 0, 1, 0, 0]] * 2),
            "known": ~known[:2],
        }
        batch |= {f"replay_{name}": value for name, value in more.items()}
        image, target, known = (
            torch.cat([a, more[n]]) for a, n in ((image, "image"), (target, "target"), (known, "known"))
        )
    with torch.no_grad():
        features, maps = old.backbone(image, stages=True)
        given = {"logits": old.head(features)[:, :3], "features": features}
        given |= {f"map{i}": m for i, m in enumerate(maps)}
        batch |= {f"teacher_{name}": value[:4] for name, value in given.items()}
        batch |= {f"replay_teacher_{name}": value[4:] for name, value in given.items() if replay}
    now, new_maps = module.backbone(image, stages=True)
    factor = (5 / 2) ** 0.5 / 64 / classes
    known = None if "replay_labels" in options else known
    expected = asymmetric_focal_loss(module.head(now), target, known=known, reduction=module.reduction)
    expected = expected + 5 * factor * pod_spatial(maps, new_maps) + 18 * factor * cosine_preservation(features, now)
    assert len(maps) == 3
    torch.testing.assert_close(module.training_step(batch, 0), expected)


def test_labels_that_are_not_annotated_do_not_count():
    module = second_task()
    known = torch.tensor([[False] * 3 + [True] * 2] * 4)
    batch = {"image": torch.randn(4, 1, 16, 16), "target": torch.zeros(4, 5), "known": known}
    module.training_step(batch, 0).backward()
    assert not module.head.weight.grad[:3].any()
    assert module.head.weight.grad[3:].any()


class Look(MLPODNet):
    def training_step(self, batch, batch_idx):
        function = self.asymmetric_loss

        def keep(logits, labels, known):
            names = ("index", "target", *(n for n in ("replay_index", "replay_task") if n in batch))
            self.seen = {name: batch[name] for name in names}, labels, known
            return function(logits, labels, known=known)

        self.asymmetric_loss = keep
        loss = super().training_step(batch, batch_idx)
        self.asymmetric_loss = function
        return loss


def test_labels_as_in_krts_code(tmp_path: Path):
    """Exemplars have the true labels of their own and all later tasks; whatever else is seen counts as absent."""
    data, module = digits(train_images=100), make(Look, optimizer=adam, replay_labels="leaky_krt", reduction="mean")
    fit(tmp_path, module, data)
    batch, labels, known = module.seen
    assert known is None
    current = len(batch["index"])
    assert labels[:current].equal(batch["target"])
    assert not labels[:current, :7].any()
    first = torch.tensor([0, 4, 7])[batch["replay_task"]]
    truth = data.hidden_labels(batch["replay_index"])
    expected = truth & (torch.arange(10) >= first.unsqueeze(1))
    assert labels[current:].equal(expected.float())
    assert expected[first < 7, 7:].any()  # a later task's classes
    assert (truth & ~expected).any()


def test_everything_that_grows_is_trained(tmp_path: Path):
    assert check_growth(first_steps(tmp_path, make(MLPODNet, optimizer=adam))) == {"head.weight", "head.bias"}


def test_it_remembers(tmp_path: Path):
    module = make(MLPODNet, epochs=4, optimizer=adam)
    memory = ReplayBuffer(per_class=10, repeat=False)
    found = results(fit(tmp_path, module, digits(train_images=300), [memory]))["multilabel"]
    assert found["mAP_last"] > 0.5  # MLFineTune: 0.36 after 6 epochs
    assert found["AF"] < 0.45


def test_it_goes_on_inside_a_task(tmp_path: Path):
    check_resume(tmp_path, MLPODNet, optimizer=adam)


def test_callbacks_that_it_does_not_use_are_refused(tmp_path: Path):
    for callback in [Teacher(), Teacher(outputs=True, exemplars=False)]:
        check_refusal(tmp_path, make(MLPODNet), callback)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"`spatial_weight=-1\.0`, `flat_weight=180\.0`"):
        make(MLPODNet, spatial_weight=-1.0)
    with pytest.raises(ValueError, match="`replay_labels='true'`"):
        make(MLPODNet, replay_labels="true")
    with pytest.raises(TypeError, match="gives no feature maps"):
        make(MLPODNet, backbone="test_vit")
