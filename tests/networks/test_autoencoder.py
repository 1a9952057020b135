import pytest
import torch
from torch import nn

from lightning_cil.networks import Autoencoder


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_nfl_plus():
    """ResNet-18 without classifier has 11,168,832; the paper prints 11.56 million with the autoencoder."""
    assert count(Autoencoder(512)) == 393_216
    assert 11_168_832 + count(Autoencoder(512)) == 11_562_048
    assert count(Autoencoder(512, bias=True)) == 394_112
    assert 11_168_832 + count(Autoencoder(512, bias=True)) == 11_562_944


@pytest.mark.parametrize(("width", "code"), [(512, 384), (64, 48), (256, 192), (2, 1), (3, 2), (5, 3)])
def test_default_code_is_three_quarters(width, code):
    assert Autoencoder(width).encoder.weight.shape == (code, width)
    assert Autoencoder(width).decoder.weight.shape == (width, code)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_forward_is_the_equation(activation, bias):
    net = Autoencoder(4, 2, bias=bias, activation=activation).double()
    features = torch.randn(3, 4, dtype=torch.float64)
    code = features @ net.encoder.weight.T + (net.encoder.bias if bias else 0)
    code = {"sigmoid": 1 / (1 + (-code).exp()), "tanh": code.tanh(), "relu": code.clamp(min=0)}[activation]
    torch.testing.assert_close(net.encode(features), code)
    torch.testing.assert_close(net(features), code @ net.decoder.weight.T + (net.decoder.bias if bias else 0))


def test_first_values_depend_on_the_seed_alone():
    state = torch.get_rng_state()
    first, again, other = Autoencoder(8, 5), Autoencoder(8, 5), Autoencoder(8, 5, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.encoder.weight, other.encoder.weight)
    bound = 8**-0.5
    assert 0.5 * bound < first.encoder.weight.abs().max() <= bound


def test_made_on_the_default_device():
    with torch.device("meta"):
        assert Autoencoder(8).encoder.weight.is_meta


def test_it_learns_a_plane():
    """Features on a plane of 2 dimensions fit through a code of 3."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(64, 2, generator=generator) @ torch.randn(2, 6, generator=generator)
    net = Autoencoder(6, 3, bias=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    errors = []
    for _ in range(300):
        error = nn.functional.mse_loss(net(features), features)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.1 * errors[0]


@pytest.mark.parametrize(("width", "code"), [(4, 4), (4, 5), (4, 0), (1, None)])
def test_code_must_be_narrower(width, code):
    with pytest.raises(ValueError, match=rf"`code_features={code}` for features of width {width}, expected at least 1"):
        Autoencoder(width, code)


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="`activation='gelu'`, expected one of sigmoid, tanh, relu"):
        Autoencoder(4, activation="gelu")
