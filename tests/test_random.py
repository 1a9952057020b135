"""Counter-based randomness: reference values of SplitMix64, statistics, and independence of shape and order."""

import math

import pytest
import torch
from torch import Tensor

from lightning_cil._random import counter_hash, counter_uniform, counter_uniforms, fold_seed, permutation, uniform

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


def mix(state: int) -> int:
    """One output of SplitMix64 in Python's unbounded integers."""
    z = (state + GAMMA) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def slow_hash(counter: int, *words: int) -> int:
    state = mix(counter & MASK)
    for word in words:
        state = mix(state ^ (mix(word & MASK) >> 1))
    return state


COUNTERS = [0, 1, 2, 1234567, -1, -2, -1234567, 2**62, 2**63 - 1, -(2**63)]


@pytest.mark.parametrize(
    ("seed", "outputs"),
    [
        (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]),
        (1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]),
    ],
)
def test_published_splitmix64_sequences(seed: int, outputs: list[int]) -> None:
    """Java's SplittableRandom and https://prng.di.unimi.it/splitmix64.c: output k mixes seed + k · gamma."""
    assert [mix((seed + k * GAMMA) & MASK) for k in range(4)] == outputs
    counters = torch.tensor([signed((seed + k * GAMMA) & MASK) for k in range(4)])
    assert counter_hash(counters).tolist() == [signed(value) for value in outputs]


@pytest.mark.parametrize("words", [(), (0,), (7,), (-7,), (1, 2, 3), (2**63, 2**64 + 5)])
def test_hash_equals_python_integers(words: tuple[int, ...]) -> None:
    expected = [signed(slow_hash(counter, *words)) for counter in COUNTERS]
    assert counter_hash(torch.tensor(COUNTERS), *words).tolist() == expected


@pytest.mark.parametrize("words", [(), (3, -4)])
def test_uniform_is_the_hashs_first_53_bits(words: tuple[int, ...]) -> None:
    uniform = counter_uniform(torch.tensor(COUNTERS), *words)
    assert uniform.dtype == torch.float64
    assert uniform.tolist() == [(slow_hash(counter, *words) >> 11) * 2.0**-53 for counter in COUNTERS]


def test_uniform_lies_in_the_half_open_unit_interval() -> None:
    uniform = counter_uniform(torch.arange(-500_000, 500_000), 1)
    assert uniform.min() >= 0
    assert uniform.max() < 1


@pytest.mark.parametrize(
    "counter",
    [
        pytest.param(torch.arange(1_000_000), id="counted"),
        pytest.param(torch.arange(1_000_000) * 2**32, id="high bits only"),
        pytest.param(-torch.arange(1, 1_000_001), id="negative"),
    ],
)
@pytest.mark.parametrize("words", [(), (0,), (12345, 6)])
def test_uniform_is_uniform_and_uncorrelated(counter: Tensor, words: tuple[int, ...]) -> None:
    uniform = counter_uniform(counter, *words)
    n = len(uniform)
    assert abs(uniform.mean() - 0.5) < 5 * math.sqrt(1 / 12 / n)
    assert abs(uniform.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / n)
    cells = (uniform * 1000).long().bincount(minlength=1000)
    chi_square = ((cells - n / 1000).square() / (n / 1000)).sum()
    assert abs(chi_square - 999) < 5 * math.sqrt(2 * 999)
    for lag in (1, 2, 64, 1000):
        correlation = ((uniform[lag:] - 0.5) * (uniform[:-lag] - 0.5)).mean() * 12
        assert abs(correlation) < 5 / math.sqrt(n)


@pytest.mark.parametrize(("one", "other"), [((0,), (1,)), ((0, 1), (1, 0)), ((5,), (5, 0)), ((), (0,)), ((1,), (-1,))])
def test_words_select_uncorrelated_sequences(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    counter = torch.arange(200_000)
    a, b = counter_uniform(counter, *one), counter_uniform(counter, *other)
    assert abs(((a - 0.5) * (b - 0.5)).mean() * 12) < 5 / math.sqrt(len(counter))
    assert not (a == b).any()


def test_every_bit_is_fair_and_flips_with_every_bit_of_the_counter() -> None:
    """Avalanche: each of 64 input bits changes each of 64 output bits half of the time."""
    counter = torch.arange(20_000) * 7919
    shifts = torch.arange(64)
    plain = counter_hash(counter, 3)
    fair = ((plain.unsqueeze(1) >> shifts) & 1).double().mean(dim=0)
    assert (fair - 0.5).abs().max() < 5 * 0.5 / math.sqrt(20_000)
    for bit in range(64):
        flipped = plain ^ counter_hash(counter ^ signed(1 << bit), 3)
        share = ((flipped.unsqueeze(1) >> shifts) & 1).double().mean(dim=0)
        assert (share - 0.5).abs().max() < 6 * 0.5 / math.sqrt(20_000)


def test_no_two_counters_collide() -> None:
    assert len(counter_hash(torch.arange(-300_000, 300_000), 9).unique()) == 600_000


def test_result_does_not_depend_on_shape_order_or_memory_layout() -> None:
    counter = torch.arange(-60, 60)
    flat = counter_hash(counter, 4)
    assert torch.equal(counter_hash(counter.reshape(2, 3, 20), 4), flat.reshape(2, 3, 20))
    assert torch.equal(counter_hash(counter.reshape(10, 12).t(), 4), flat.reshape(10, 12).t())
    assert torch.equal(counter_hash(counter.flip(0), 4), flat.flip(0))
    assert torch.equal(counter_hash(counter[::7], 4), flat[::7])
    assert torch.equal(torch.stack([counter_hash(value, 4) for value in counter]), flat)
    assert torch.equal(counter_hash(counter.to(torch.int32), 4), flat)
    assert counter_hash(torch.zeros(0, dtype=torch.int64), 4).shape == (0,)
    assert torch.equal(counter, torch.arange(-60, 60))


@pytest.mark.parametrize("words", [(), (0,), (1, 2), (-5, 2**70)])
def test_folded_seed_is_a_generator_seed(words: tuple[int, ...]) -> None:
    state = 0
    for word in words:
        state = mix(state ^ (word & MASK))
    assert fold_seed(*words) == state >> 1
    torch.Generator().manual_seed(fold_seed(*words))


def test_folded_seeds_differ_by_value_order_and_number_of_words() -> None:
    seeds = [fold_seed(*words) for words in [(), (0,), (0, 0), (1,), (0, 1), (1, 0), (1, 1), (-1,)]]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("size", [0, 1, 10, 1000])
def test_permutation_holds_every_item_once_and_leaves_the_global_generator(size: int) -> None:
    state = torch.random.get_rng_state()
    order = permutation(size, 3, 4)
    assert order.sort().values.tolist() == list(range(size))
    assert torch.equal(order, permutation(size, 3, 4))
    assert torch.equal(state, torch.random.get_rng_state())


def test_permutations_of_different_words_differ() -> None:
    assert not torch.equal(permutation(100, 0, 1), permutation(100, 0, 2))


def test_first_item_of_a_permutation_is_uniform() -> None:
    counts = torch.stack([permutation(10, 0, epoch)[0] for epoch in range(5000)]).bincount(minlength=10)
    assert (counts - 500).abs().max() < 5 * math.sqrt(500)


@pytest.mark.parametrize("streams", [(0,), (0, 1, 2, 3), (7, -7, 2**63)])
def test_streams_hashed_at_once_equal_single_ones(streams: tuple[int, ...]) -> None:
    counters = torch.tensor(COUNTERS)
    together = counter_uniforms(counters, streams)
    assert torch.equal(together, torch.stack([counter_uniform(counters, s) for s in streams]))
    assert torch.equal(counter_uniforms(counters.view(2, 5), streams), together.view(-1, 2, 5))


def test_plain_uniform_is_spread_over_the_unit_interval_and_a_function_of_its_words() -> None:
    values = torch.tensor([uniform(5, i) for i in range(4000)], dtype=torch.float64)
    assert ((values >= 0) & (values < 1)).all()
    assert abs(values.mean() - 0.5) < 5 / math.sqrt(12 * 4000)
    assert len(set(values.tolist())) == 4000
    assert uniform(5, 17) == values[17].item()
    assert uniform(6, 17) != values[17].item()
