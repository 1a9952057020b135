import copy

import pytest
import torch
from torch import nn

from lightning_cil.networks import MemoBackbone, create_backbone, feature_width, set_trainable, split_backbone

BACKBONES = {
    "small_cnn": {},
    "resnet20": {},
    "resnet18": {"cifar_stem": True},
    "resnet10t": {},
}


def count(module):
    return sum(p.numel() for p in module.parameters())


def make(name, **options):
    torch.manual_seed(0)
    return create_backbone(name, **(BACKBONES[name] | options))


@pytest.mark.parametrize("name", BACKBONES)
def test_parts_in_a_row_are_the_backbone(name):
    backbone = make(name)
    image = torch.randn(2, 3, 32, 32)
    state = copy.deepcopy(backbone.state_dict())
    expected = backbone(image)
    backbone.load_state_dict(state)  # the statistics of BatchNorm
    memo = MemoBackbone(backbone)
    assert torch.equal(memo(image), expected)
    assert memo.num_features == memo.block_features == feature_width(memo) == expected.shape[1]
    assert count(memo) == count(backbone)


@pytest.mark.parametrize(
    ("name", "generalised", "specialised"),
    [
        ("resnet18", 2_775_104, 8_393_728),
        ("resnet18-7x7", 2_782_784, 8_393_728),
        ("resnet32", 112_016, 351_488),
    ],
)
def test_parameters_of_the_parts(name, generalised, specialised):
    name, _, stem = name.partition("-")
    with torch.device("meta"):
        backbone = create_backbone(name, cifar_stem=name == "resnet18" and not stem)
        parts = split_backbone(backbone)
    assert [count(part) for part in parts] == [generalised, specialised]


@pytest.mark.parametrize(
    ("blocks", "cifar_stem", "expected"),
    [
        (5, True, 44_743_744),
        (10, True, 86_712_384),
        (10, False, 86_720_064),
        (20, True, 170_649_664),
        (20, False, 170_657_344),
    ],
)
def test_parameters_of_the_body(blocks, cifar_stem, expected):
    with torch.device("meta"):
        body = MemoBackbone(create_backbone("resnet18", cifar_stem=cifar_stem), blocks)
    assert count(body) == expected
    assert body.num_features == 512 * blocks


@pytest.mark.parametrize("name", ["small_cnn", "resnet20"])
def test_growing_keeps_the_old_features_and_copies_the_newest_part(name):
    memo = MemoBackbone(make(name)).eval()
    image = torch.randn(3, 3, 16, 16)
    before = memo(image)
    memo.grow()
    after = memo(image)
    width = memo.block_features
    assert torch.equal(after[:, :width], before)
    assert torch.equal(memo.newest(after), before)
    assert after.shape[1] == memo.num_features == 2 * width
    with torch.no_grad():
        for parameter in memo.specialised[1].parameters():
            parameter.add_(1.0)  # a copy of its own
    assert torch.equal(memo(image)[:, :width], before)
    memo.grow()
    grown = memo(image)
    assert torch.equal(grown[:, width : 2 * width], memo.newest(grown))


def test_a_frozen_part_has_a_trainable_copy():
    memo = MemoBackbone(make("resnet20"))
    set_trainable(memo, ["generalised.*"])
    memo.grow()
    trained = set_trainable(memo, ["generalised.*", "specialised.1.*"])
    assert trained
    assert not any(name.startswith("specialised.0.") for name in trained)
    assert all(p.requires_grad for p in memo.specialised[1].parameters())
    assert not memo.specialised[0].training
    assert memo.specialised[1].training
    buffers = {n: b.clone() for n, b in memo.specialised[0].named_buffers()}
    memo(torch.randn(4, 3, 16, 16)).sum().backward()
    assert all(torch.equal(b, buffers[n]) for n, b in memo.specialised[0].named_buffers())
    assert all(p.grad is None for p in memo.specialised[0].parameters())
    assert all(p.grad is not None for p in memo.specialised[1].parameters())


def test_a_new_part_is_trainable_and_in_the_bodys_mode():
    memo = MemoBackbone(make("resnet20"))
    memo.requires_grad_(False).eval()
    memo.grow()
    assert all(p.requires_grad for p in memo.specialised[1].parameters())
    assert not any(m.training for m in memo.specialised[1].modules())


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_checkpoint_brings_its_number_of_parts(parts, prefix):
    stored = MemoBackbone(make("resnet20"), blocks=parts)
    for i, part in enumerate(stored.specialised):
        nn.init.constant_(next(part.parameters()), i)
    state = {prefix + name: value for name, value in stored.state_dict().items()}
    loaded = MemoBackbone(create_backbone("resnet20"), blocks=2)
    holder = nn.ModuleDict({"backbone": loaded}) if prefix else loaded
    holder.load_state_dict(state)
    image = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded.eval()(image), stored.eval()(image))
    assert loaded.num_features == 64 * parts


def test_state_without_parts_is_refused():
    memo = MemoBackbone(make("resnet20"))
    with pytest.raises(RuntimeError, match="Missing key"):
        memo.load_state_dict(create_backbone("resnet20").state_dict())
    assert len(memo.specialised) == 1


def test_hash_of_loaded_weights_is_kept():
    backbone = make("resnet20")
    backbone.weights_sha256 = "abc"
    assert MemoBackbone(backbone).weights_sha256 == "abc"


def test_other_backbones_are_refused():
    net = nn.Linear(3, 2)
    net.num_features = 2
    with pytest.raises(TypeError, match="got a Linear, expected a timm ResNet, a CIFAR ResNet or `small_cnn`"):
        MemoBackbone(net)
    with pytest.raises(ValueError, match="`blocks=0`, expected at least 1"):
        MemoBackbone(make("small_cnn"), blocks=0)
