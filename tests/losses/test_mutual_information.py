"""Estimators of mutual information against closed forms."""

import math

import numpy as np
import pytest
import torch

from lightning_cil.losses import MINE, GaussianInformation, InfoNCE, info_nce, make_mi_estimator


def pairs(correlation: float, size: int, seed: int = 0, dim: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal pairs with this correlation in each of `dim` independent columns."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(size, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, correlation * x + math.sqrt(1 - correlation**2) * noise


def whitened(x: torch.Tensor, y: torch.Tensor, correlation: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two columns whose sample correlation is exactly `correlation`."""
    basis, _ = torch.linalg.qr(torch.cat([x - x.mean(), y - y.mean()], dim=1))
    return basis[:, :1], correlation * basis[:, :1] + math.sqrt(1 - correlation**2) * basis[:, 1:]


@pytest.mark.parametrize("rho", [0.0, 0.5, -0.9])
def test_gaussian_of_two_numbers_has_its_closed_form(rho):
    x, y = whitened(*pairs(0.0, 50), rho)
    estimate = GaussianInformation(shrinkage=0.0)(7 * x + 1, -2 * y)  # neither scale, sign nor shift matters
    assert estimate.item() == pytest.approx(-0.5 * math.log(1 - rho**2), abs=1e-12)


def test_gaussian_adds_up_over_canonical_correlations():
    x, y = pairs(0.6, 40, dim=3)
    mix = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0], [1.0, 0.0, 1.0]], dtype=torch.float64)
    centred = [np.linalg.qr((a - a.mean(0)).numpy())[0] for a in (x, y)]
    rho = np.linalg.svd(centred[0].T @ centred[1], compute_uv=False)
    expected = -0.5 * np.log(1 - rho**2).sum()
    assert GaussianInformation(0.0)(x @ mix, y).item() == pytest.approx(expected, rel=1e-9)


def test_gaussian_shrinkage_lowers_the_estimate_and_makes_wide_features_possible():
    x, y = whitened(*pairs(0.0, 50), 0.8)
    assert GaussianInformation(0.25)(x, y).item() == pytest.approx(-0.5 * math.log(1 - (0.75 * 0.8) ** 2))
    wide, _ = pairs(0.0, 8, dim=64)
    wide = wide.float().requires_grad_()
    estimate = GaussianInformation(0.1)(wide, wide.detach())
    estimate.backward()
    assert estimate.item() > 1
    assert wide.grad.isfinite().all()
    with pytest.raises(ValueError, match="8 samples of 128 columns"):
        GaussianInformation(0.0)(wide, wide)


def test_a_constant_column_holds_no_information():
    x, y = whitened(*pairs(0.0, 50), 0.8)
    alone = GaussianInformation(0.0)(x, y)
    padded = GaussianInformation(0.0)(torch.cat([x, torch.ones_like(x)], dim=1), y)
    assert padded.item() == pytest.approx(alone.item())


def test_info_nce_heads_project_each_side_without_bias():
    estimator = InfoNCE(5, 3, dim=4, temperature=0.2, mask_same_class=True)
    assert {n: tuple(p.shape) for n, p in estimator.named_parameters()} == {
        "x_head.weight": (4, 5),
        "y_head.weight": (4, 3),
    }
    x, y, target = torch.randn(6, 5), torch.randn(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
    expected = info_nce(x @ estimator.x_head.weight.T, y @ estimator.y_head.weight.T, 0.2, target)
    torch.testing.assert_close(estimator(x, y, target), expected)
    with pytest.raises(ValueError, match="target"):
        estimator(x, y)


def literal_mine(estimator: MINE, x: torch.Tensor, y: torch.Tensor) -> float:
    """The bound from an MLP on the concatenation, pair by pair."""
    weight = torch.cat([estimator.from_x.weight, estimator.from_y.weight], dim=1)

    def score(i: int, j: int) -> float:
        hidden = (weight @ torch.cat([x[i], y[j]]) + estimator.from_x.bias).clamp(min=0)
        return (estimator.out.weight @ hidden + estimator.out.bias).item()

    size = len(x)
    joint = sum(score(i, i) for i in range(size)) / size
    others = [math.exp(score(i, j)) for i in range(size) for j in range(size) if i != j]
    return joint - math.log(sum(others) / len(others))


def test_mine_is_the_donsker_varadhan_bound():
    torch.manual_seed(0)
    estimator = MINE(3, 2, hidden=8)
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    expected = pytest.approx(literal_mine(estimator, x, y), abs=1e-5)
    assert estimator(x, y).item() == expected
    assert estimator.eval()(x, y).item() == expected


def test_mine_divides_the_gradient_by_a_moving_average_that_is_saved():
    torch.manual_seed(0)
    estimator = MINE(1, 1, hidden=4, decay=0.5)
    first, second = pairs(0.9, 6), pairs(0.9, 6, seed=1)
    estimator.double()
    estimator(*first)
    before = estimator.log_average.exp().item()
    estimator.eval()(*second)
    assert estimator.log_average.exp().item() == before  # evaluation leaves it alone
    restored = MINE(1, 1, hidden=4, decay=0.5).double()
    restored.load_state_dict(estimator.state_dict())
    bias = restored.out.bias  # T + c: d/dc of the plain bound is 0, of the corrected one 1 - mean / average
    restored.train()(*second).backward()
    after = restored.log_average.exp().item()
    batch = 2 * after - before
    assert bias.grad.item() == pytest.approx(1 - batch / after, abs=1e-5)


def test_mine_learns_the_information_of_correlated_numbers():
    torch.manual_seed(0)
    rho = 0.9
    estimator = MINE(1, 1, hidden=32, decay=0.9)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=0.02)
    for step in range(150):
        x, y = (a.float() for a in pairs(rho, 64, seed=step))
        optimizer.zero_grad()
        (-estimator(x, y)).backward()
        optimizer.step()
    x, y = (a.float() for a in pairs(rho, 512, seed=-1))
    assert estimator.eval()(x, y).item() == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.2)


@pytest.mark.parametrize("kind", ["info_nce", "mine", "gaussian"])
@pytest.mark.parametrize("size", [0, 1])
def test_fewer_than_two_samples_tell_nothing(kind, size):
    x = torch.randn(size, 3, requires_grad=True)
    estimate = make_mi_estimator(kind, 3, 2)(x, torch.randn(size, 2))
    estimate.backward()
    assert estimate.item() == 0


def test_unknown_estimators_and_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match="'mime'` is unknown; expected 'info_nce', 'mine' or 'gaussian'"):
        make_mi_estimator("mime", 3, 2)
    with pytest.raises(ValueError, match="shrinkage=1"):
        make_mi_estimator("gaussian", 3, 2, shrinkage=1.0)
    with pytest.raises(ValueError, match="decay=1"):
        make_mi_estimator("mine", 3, 2, decay=1.0)
