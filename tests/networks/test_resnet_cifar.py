import pytest
import torch
from torch import nn

from lightning_cil.networks import CifarResNet
from lightning_cil.networks.resnet_cifar import _Block


def count(module):
    return sum(p.numel() for p in module.parameters())


def parameters_by_hand(blocks, in_channels=3):
    """Section 4.2 of He et al.: 3×3 convolutions without bias, each with a scale and a shift per channel."""

    def conv(old, new):
        return 3 * 3 * old * new + 2 * new

    total = conv(in_channels, 16)
    for old, new in ((16, 16), (16, 32), (32, 64)):
        total += conv(old, new) + (2 * blocks - 1) * conv(new, new)
    return total


@pytest.mark.parametrize(
    ("depth", "millions"),
    # Table 6 of He et al., classifier for 10 classes included: 650 parameters.
    [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)],
)
def test_parameter_counts_are_the_published_ones(depth, millions):
    body = count(CifarResNet(depth))
    assert body == parameters_by_hand((depth - 2) // 6)
    assert round((body + 650) / 1e6, 1 if depth == 110 else 2) == millions


def test_resnet32_body_has_463504_parameters():
    assert count(CifarResNet()) == 463_504
    assert count(CifarResNet(in_channels=1)) == 463_504 - 2 * 9 * 16


def test_depth_counts_the_weighted_layers():
    for depth in (8, 20, 32):
        convolutions = [m for m in CifarResNet(depth).modules() if isinstance(m, nn.Conv2d)]
        assert len(convolutions) + 1 == depth  # the classifier is elsewhere


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (9, 13), (64, 64)])
def test_output_shape_for_any_image_size(size):
    net = CifarResNet(8).eval()
    assert net.num_features == 64
    assert net(torch.randn(2, 3, *size)).shape == (2, 64)


def test_stages_halve_the_map():
    net = CifarResNet(8)
    x = net.conv1(torch.randn(1, 3, 32, 32))
    shapes = []
    for stage in (net.layer1, net.layer2, net.layer3):
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


@pytest.mark.parametrize("size", [8, 7])
def test_shortcut_subsamples_and_pads_with_zeros(size):
    block = _Block(2, 5, stride=2).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(1, 2, size, size)  # not negative: the last ReLU changes nothing
    expected = torch.zeros(1, 5, 4, 4)
    for channel in range(2):
        for row in range(4):
            for column in range(4):
                expected[0, channel, row, column] = x[0, channel, 2 * row, 2 * column]
    assert torch.equal(block(x.clone()), expected)


def test_block_does_not_change_its_input():
    x = torch.randn(2, 4, 8, 8)
    before = x.clone()
    _Block(4, 4, stride=1)(x)
    assert torch.equal(x, before)


def test_initialisation_is_he_normal_with_the_fan_out():
    torch.manual_seed(0)
    net = CifarResNet(32)
    for conv in (net.layer3[1].conv1, net.layer3[0].conv1, net.layer2[0].conv1):
        assert conv.weight.std().item() == pytest.approx((2 / (9 * conv.out_channels)) ** 0.5, rel=0.03)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()


def test_channels_last_stays_channels_last_and_gives_the_same():
    torch.manual_seed(0)
    net, x = CifarResNet(20).eval(), torch.randn(2, 3, 16, 16)
    expected = net(x)
    maps = []
    net.to(memory_format=torch.channels_last)
    for stage in (net.layer1, net.layer2, net.layer3):
        stage.register_forward_hook(lambda module, args, out: maps.append(out))
    torch.testing.assert_close(net(x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)
    assert [out.is_contiguous(memory_format=torch.channels_last) for out in maps] == [True] * 3


def test_gradient_reaches_every_parameter():
    net = CifarResNet(8)
    (net(torch.randn(4, 3, 8, 8)) * torch.randn(4, 64)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("depth", [2, 18, 34, 52, 0])
def test_refuses_other_depths(depth):
    with pytest.raises(ValueError, match=f"`depth={depth}`, expected 6n \\+ 2"):
        CifarResNet(depth)
