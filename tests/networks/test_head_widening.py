import copy

import pytest
import torch

from lightning_cil.networks import CosineHead, LinearHead

DIM = 6
HEADS = [LinearHead, CosineHead]


def grown(cls, *sizes, **kwargs):
    head = cls(DIM, **kwargs)
    for size in sizes:
        head.grow(size)
    return head


@pytest.mark.parametrize("cls", HEADS)
class TestWiden:
    def test_keeps_all_old_values(self, cls):
        head = grown(cls, 2, 3)
        before = {name: value.clone() for name, value in head.state_dict().items()}
        head.widen(4)
        assert head.in_features == DIM + 4
        assert head.weight.shape == (5, DIM + 4)
        assert torch.equal(head.weight[:, :DIM], before.pop("weight"))
        assert all(torch.equal(head.state_dict()[name], value) for name, value in before.items())

    def test_new_columns_are_of_the_new_layers_scale(self, cls):
        head = grown(cls, 50)
        head.widen(DIM)
        new = head.weight[:, DIM:].abs()
        bound = (2 * DIM) ** -0.5
        assert 0.9 * bound < new.max() <= bound
        assert new.mean().item() == pytest.approx(bound / 2, rel=0.15)

    def test_rows_that_grow_later_have_the_new_width(self, cls):
        head = grown(cls, 2)
        head.widen(3)
        head.grow(4)
        assert head.weight.shape == (6, DIM + 3)
        assert head.sizes.tolist() == [2, 4]
        assert head(torch.randn(5, DIM + 3)).shape == (5, 6)

    def test_is_a_function_of_the_seed_and_the_width(self, cls):
        state = torch.get_rng_state()
        first, again, other = grown(cls, 3), grown(cls, 3), grown(cls, 3, seed=1)
        for head in (first, again, other):
            head.widen(2)
            head.widen(2)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(first.weight, again.weight)
        new = first.weight[:, DIM:]
        assert not torch.equal(new[:, :2], new[:, 2:])
        assert not torch.equal(new, other.weight[:, DIM:])

    def test_keeps_dtype_and_requires_grad(self, cls):
        head = grown(cls, 3).double()
        head.weight.requires_grad_(False)
        head.widen(2)
        assert head.weight.dtype == torch.float64
        assert not head.weight.requires_grad
        assert isinstance(head.weight, torch.nn.Parameter)

    def test_checkpoint_of_a_wide_head_fits_a_wide_head_only(self, cls):
        stored = grown(cls, 2, 3)
        stored.widen(4)
        fresh = cls(DIM)
        with pytest.raises(RuntimeError, match=r"`in_features=6`: `weight` is \[5, 10\], expected \[5, 6\]"):
            copy.deepcopy(fresh).load_state_dict(stored.state_dict())
        fresh.widen(4)
        fresh.load_state_dict(stored.state_dict())
        assert torch.equal(fresh.weight, stored.weight)
        assert fresh.sizes.tolist() == [2, 3]

    def test_copies_are_wide(self, cls):
        head = grown(cls, 2)
        head.widen(2)
        assert torch.equal(head.unsharded().weight, head.weight)

    @pytest.mark.parametrize("columns", [0, -1])
    def test_nothing_to_add_is_refused(self, cls, columns):
        with pytest.raises(ValueError, match=f"{cls.__name__} got `num_columns={columns}`, expected at least 1"):
            grown(cls, 2).widen(columns)


def test_memo_head_of_ten_tasks():
    """The full head on 512 features a task: 5,120 · 100 weights and 100 biases, as MEMO's has."""
    head = LinearHead(512)
    for task in range(10):
        if task:
            head.widen(512)
        head.grow(10)
    assert sum(p.numel() for p in head.parameters()) == 512_100


def test_frozen_copy_of_nfls_old_heads():
    """Nine and, on ImageNet, nine times ten times as many classes: 46,170 and 461,700 numbers."""
    for classes, expected in ((90, 46_170), (900, 461_700)):
        head = LinearHead(512)
        head.grow(classes)
        assert sum(p.numel() for p in head.parameters()) == expected
