import pytest
import torch
from torch import nn

from lightning_cil.networks import CifarResNet, MultiHead, set_trainable


def model():
    net = nn.Module()
    net.backbone = CifarResNet(8)
    net.head = MultiHead(64)
    for size in (2, 3):
        net.head.grow(size)
    return net


def modes(module):
    return {name: child.training for name, child in module.named_modules()}


def test_star_trains_everything():
    net = model().requires_grad_(False).eval()
    assert set_trainable(net, ["*"]) == [name for name, _ in net.named_parameters()]
    assert all(p.requires_grad for p in net.parameters())
    assert all(modes(net).values())


def test_head_only():
    net = model()
    names = set_trainable(net, ["head.*"])
    assert names == [f"head.blocks.{task}.{kind}" for task in (0, 1) for kind in ("weight", "bias")]
    assert names == [name for name, p in net.named_parameters() if p.requires_grad]
    found = modes(net)
    assert found[""]
    assert found["head"]
    assert found["head.blocks.1"]
    assert not any(mode for name, mode in found.items() if name.startswith("backbone"))


def test_patterns_add_up_in_the_modules_order():
    net = model()
    assert set_trainable(net, ["head.blocks.1.bias", "backbone.conv1.*"]) == [
        "backbone.conv1.weight",
        "head.blocks.1.bias",
    ]


def test_modes_follow_partly_trained_parents():
    net = model()
    set_trainable(net, ["backbone.layer3.*", "head.blocks.1.weight"])
    found = modes(net)
    assert found["backbone"]
    assert not found["backbone.layer1"]
    assert not found["backbone.bn1"]
    assert found["backbone.layer3.0.bn1"]
    assert not found["head.blocks.0"]
    assert found["head.blocks.1"]


def test_last_call_wins():
    net = model()
    set_trainable(net, ["head.*"])
    set_trainable(net, ["backbone.*"])
    assert not any(p.requires_grad for p in net.head.parameters())
    assert all(p.requires_grad for p in net.backbone.parameters())
    assert net.backbone.bn1.training
    assert not net.head.training


def test_frozen_batchnorm_statistics_and_parameters_stay_bit_for_bit():
    torch.manual_seed(0)
    net, image = model(), torch.randn(8, 3, 8, 8)
    net.backbone(image)  # statistics other than the first ones
    names = set_trainable(net, ["head.blocks.1.*"])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        net.head(net.backbone(image)).square().sum().backward()
        optimizer.step()
    changed = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == names


def test_unfrozen_batchnorm_statistics_move():
    net = model()
    set_trainable(net, ["head.*"])
    set_trainable(net, ["*"])
    before = net.backbone.bn1.running_mean.clone()
    net.backbone(torch.randn(8, 3, 8, 8))
    assert not torch.equal(net.backbone.bn1.running_mean, before)


def test_modules_without_parameters_follow_their_holder():
    net = nn.ModuleDict(
        {
            "body": nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2, affine=False)),
            "head": nn.Sequential(nn.Dropout(), nn.Linear(2, 2), nn.Linear(2, 2)),
        }
    )
    set_trainable(net, ["head.1.*"])
    assert [child.training for child in net["body"]] == [False, False, False]
    assert [child.training for child in net["head"]] == [True, True, False]


def test_no_pattern_freezes_everything():
    net = model()
    assert set_trainable(net, []) == []
    assert not any(p.requires_grad for p in net.parameters())
    assert not any(modes(net).values())


@pytest.mark.parametrize("pattern", ["first.weight", "second.weight"])
def test_shared_parameter_is_found_by_each_name(pattern):
    net = nn.ModuleDict({"first": nn.Linear(2, 2, bias=False), "second": nn.Linear(2, 2, bias=False)})
    net["second"].weight = net["first"].weight
    net.requires_grad_(False)
    assert set_trainable(net, [pattern]) == ["first.weight"]
    assert net["second"].weight.requires_grad


@pytest.mark.parametrize(
    ("pattern", "close"),
    [
        ("haed.*", "'head.*'"),
        ("backbone.layr3.*", "'backbone.layer3.*'"),
        ("backbone.conv1.wieght", "'backbone.conv1.weight'"),
        ("Head.*", "'head.*'"),
    ],
)
def test_unknown_pattern_changes_nothing_and_names_what_is_close(pattern, close):
    net = model()
    set_trainable(net, ["head.*"])
    before = {name: p.requires_grad for name, p in net.named_parameters()}, modes(net)
    with pytest.raises(ValueError, match="matches no parameter of Module") as caught:
        set_trainable(net, ["*", pattern])
    assert repr(pattern) in str(caught.value)
    assert close in str(caught.value)
    assert ({name: p.requires_grad for name, p in net.named_parameters()}, modes(net)) == before


def test_pattern_like_nothing_gets_no_suggestion():
    with pytest.raises(ValueError, match="expected at least one") as caught:
        set_trainable(model(), ["zzzzzzzzzzzz"])
    assert "Close to it" not in str(caught.value)


def test_refuses_a_single_string():
    with pytest.raises(TypeError, match=r"expected a list of patterns: \['head.\*'\]"):
        set_trainable(model(), "head.*")
