import pytest
import torch

from lightning_cil.losses import gamma_terms, identity_penalty
from lightning_cil.networks import Autoencoder, BiasCorrection

READINGS = ["sample", "class", "task", "literal"]
DIM, CODE, SIZES = 5, 4, [1, 3]


def count(module):
    return sum(p.numel() for p in module.parameters())


def random_inputs(batch=6):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(batch, DIM), draw(CODE, DIM), draw(batch, sum(SIZES))


def slow_gamma(net, features, encoder):
    """Eq. 18, number by number; one factor for each old class."""
    w, b = net.weight.tolist(), net.bias.tolist()
    result = []
    for x in features.tolist():
        code = [sum(e * v for e, v in zip(row, x, strict=True)) for row in encoder.tolist()]
        if net.reading == "literal":
            masked = [
                sum(m * e * v for m, e, v in zip(*rows, x, strict=True))
                for rows in zip(w, encoder.tolist(), strict=True)
            ]
            vector = [z + sum(offset) / len(offset) for z, offset in zip(masked, b, strict=True)]
            factors = [sum(vector) / len(vector)]
        else:
            factors = [sum(m * c for m, c in zip(row, code, strict=True)) + o for row, o in zip(w, b, strict=True)]
        per_class = {
            "sample": [0, 0, 0, 0],
            "literal": [0, 0, 0, 0],
            "task": [0, 1, 1, 1],
            "class": [0, 1, 2, 3],
        }[net.reading]
        result.append([factors[i] for i in per_class])
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize("reading", READINGS)
def test_factors_and_corrected_logits_are_the_equations(reading):
    features, encoder, logits = random_inputs()
    net = BiasCorrection(DIM, CODE, SIZES, reading).double()
    torch.nn.init.normal_(net.bias, generator=torch.Generator().manual_seed(1))
    gamma = net(features, encoder)
    assert gamma.shape == (6, {"sample": 1, "literal": 1, "task": 2, "class": 4}[reading])
    torch.testing.assert_close(net.correct(gamma, logits), slow_gamma(net, features, encoder) * logits)


def test_sizes_of_the_readings():
    """512 features; the literal reading with a code of 256 has the paper's overhead, encoder included."""
    ten = [10] * 9
    assert count(BiasCorrection(512, 384, ten)) == 385
    assert count(BiasCorrection(512, 384, ten, "class")) == 90 * 385
    assert count(BiasCorrection(512, 384, ten, "task")) == 9 * 385
    encoder = Autoencoder(512, 256).encoder
    assert count(BiasCorrection(512, 256, ten, "literal")) + count(encoder) == 393_216
    assert round((11_168_832 + count(Autoencoder(512)) + 385) / 1e6, 2) == 11.56


@pytest.mark.parametrize("reading", READINGS)
def test_eq_20_alone_leads_to_factors_of_one(reading):
    """The trivial minimum, w = 0 and b = 1, which gradient descent finds: H' = H."""
    features, encoder, logits = random_inputs(batch=64)
    net = BiasCorrection(DIM, CODE, SIZES, reading).double()
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=0.0
    )

    def closure():
        optimizer.zero_grad()
        loss = identity_penalty(net(features, encoder))
        loss.backward()
        return loss

    optimizer.step(closure)
    gamma = net(features, encoder)
    assert identity_penalty(gamma) < 1e-12
    torch.testing.assert_close(net.correct(gamma, logits), logits, atol=1e-5, rtol=0)


def test_gradient_descent_at_the_recommended_rate():
    """SGD, lr 0.1: the residual of Eq. 20 falls below 5e-15 without any other term."""
    features, encoder, _ = random_inputs(batch=64)
    features, encoder = 8 * torch.linalg.qr(features).Q, torch.linalg.qr(encoder.T).Q.T  # codes of variance 1
    net = BiasCorrection(DIM, CODE, SIZES).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss = identity_penalty(net(features, encoder))
        loss.backward()
        optimizer.step()
    assert loss < 5e-15
    assert net.weight.abs().max() < 1e-6
    assert net.bias.item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("tau", [0.1, 10.0])
def test_penalty_is_the_only_brake_of_the_distillation_form(tau):
    """On a student that ranks as the teacher, Γ grows above 1, the less the heavier the penalty."""
    features, encoder, logits = random_inputs(batch=64)
    net = BiasCorrection(DIM, CODE, SIZES).double()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(150):
        gamma = net(features, encoder)
        loss = sum(gamma_terms(gamma, net.correct(gamma, logits), logits, objective="kd", tau=tau).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mean = gamma.mean().item()
    assert mean > 1.2 if tau == 0.1 else 1.0 < mean < 1.05


def test_first_values():
    state = torch.get_rng_state()
    net = BiasCorrection(512, 384, [10])
    assert torch.equal(torch.get_rng_state(), state)
    assert net.bias.item() == 0
    assert net.weight.std().item() == pytest.approx(384**-0.5, rel=0.1)
    assert not torch.equal(net.weight, BiasCorrection(512, 384, [10], seed=1).weight)


def test_encoder_and_features_get_no_say_when_frozen():
    features, encoder, _ = random_inputs()
    net = BiasCorrection(DIM, CODE, SIZES).double()
    identity_penalty(net(features, encoder)).backward()
    assert net.weight.grad is not None
    assert encoder.grad is None


@pytest.mark.parametrize("sizes", [[], [3, 0]])
def test_no_old_class_is_refused(sizes):
    with pytest.raises(ValueError, match=r"`sizes=.*expected the classes of each old task"):
        BiasCorrection(DIM, CODE, sizes)


def test_unknown_reading_is_refused():
    with pytest.raises(ValueError, match="`reading='scalar'`, expected one of sample, class, task, literal"):
        BiasCorrection(DIM, CODE, SIZES, reading="scalar")
