import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from lightning_cil.networks import LinearHead, SmallConvNet


def test_size():
    net = SmallConvNet()
    assert net.num_features == 256
    # 3×3 kernels and biases: 1 → 16 → 32 → 64 channels.
    assert sum(p.numel() for p in net.parameters()) == (9 * 16 + 16) + (9 * 16 * 32 + 32) + (9 * 32 * 64 + 64)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 1), (28, 28), (32, 20)])
def test_any_image_size(size):
    net = SmallConvNet(in_channels=2, width=4)
    assert net(torch.randn(3, 2, *size)).shape == (3, net.num_features)
    assert net.num_features == 32


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 1), (28, 20), (33, 9)])
def test_pools_the_quarters_as_adaptive_pooling_does(size):
    torch.manual_seed(0)
    net, image = SmallConvNet(), torch.rand(2, 1, *size)
    silu = torch.nn.functional.silu
    maps = silu(net.conv3(silu(net.conv2(silu(net.conv1(image))))))
    pooled = F.adaptive_avg_pool2d(maps, 2)  # [B, channels, 2, 2]
    expected = pooled.permute(0, 2, 3, 1).flatten(1)
    torch.testing.assert_close(net(image), expected)


def test_samples_do_not_depend_on_their_batch():
    torch.manual_seed(0)
    net, x = SmallConvNet(), torch.randn(6, 1, 8, 8)
    assert not list(net.buffers())
    together = net.train()(x)
    torch.testing.assert_close(torch.cat([net.eval()(x[:2]), net(x[2:])]), together)


@pytest.fixture
def one_thread():
    """More threads only wait for one another on maps this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_learns_digits():
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(1))
    images = torch.tensor(data.images / 16, dtype=torch.float32)[order].unsqueeze(1)
    target = torch.tensor(data.target)[order]
    torch.manual_seed(0)
    net = SmallConvNet()
    head = LinearHead(net.num_features)
    head.grow(10)
    model = nn.Sequential(net, head)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(8):
        for batch in torch.randperm(1437).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), target[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        accuracy = (model(images[1437:]).argmax(1) == target[1437:]).float().mean().item()
    assert accuracy > 0.96


@pytest.mark.parametrize("width", [0, 1, 7, -2])
def test_refuses_odd_widths(width):
    with pytest.raises(ValueError, match=f"`width={width}`, expected an even number"):
        SmallConvNet(width=width)
