"""Selectors find the task of a sample from frozen features, and checkpoints bring them back."""

import pytest
import torch

from lightning_cil.networks.router_selectors import ReconstructionSelector, make_router_selector


def task_features(task: int, size: int = 40) -> torch.Tensor:
    """Features in a subspace of their own for each task."""
    generator = torch.Generator().manual_seed(task)
    features = 0.05 * torch.randn(size, 12, generator=generator)
    features[:, 3 * task : 3 * task + 3] += 1 + 0.3 * torch.randn(size, 3, generator=generator)
    return features


@pytest.mark.parametrize("kind", ["nearest", "ddas"])
def test_the_task_of_a_sample_is_found(kind):
    selector = make_router_selector(kind, dim=12)
    probe = torch.cat([task_features(t, 5) for t in range(3)])
    assert selector(probe).tolist() == [0] * 15
    for task in range(3):
        selector.learn(task, task_features(task))
    selector.learn(2, task_features(2))  # again: nothing is added
    expected = [0] * 5 + [1] * 5 + [2] * 5
    assert selector(probe).tolist() == expected
    restored = make_router_selector(kind, dim=12)
    restored.load_state_dict(selector.state_dict())
    assert restored(probe).tolist() == expected


def test_a_sample_that_no_task_reconstructs_gets_no_router():
    selector = ReconstructionSelector(12, code=3, threshold=0.02)
    selector.learn(0, task_features(0))
    assert selector(task_features(0, 5)).tolist() == [0] * 5
    assert selector(task_features(2, 5)).tolist() == [-1] * 5
    assert not any(p.requires_grad for p in selector.parameters())


def test_the_newest_router_needs_no_features():
    selector = make_router_selector("last", dim=12)
    selector.learn(3, torch.empty(0, 12))
    restored = make_router_selector("last", dim=12)
    restored.load_state_dict(selector.state_dict())
    assert restored(torch.zeros(2, 12)).tolist() == [3, 3]


def test_an_unknown_selector_is_refused():
    with pytest.raises(ValueError, match="'best'"):
        make_router_selector("best", dim=12)
