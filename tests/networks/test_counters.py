"""Counts of several processes add up to those of one, whatever DDP does to buffers."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_cil.networks.counters import StepCounter, merge_counters


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.counter = StepCounter(1)

    def forward(self, x):
        self.counter.add(torch.tensor([len(x)]))
        return self.linear(x)


def test_pending_counts_of_all_processes_are_added_once_a_step():
    ranks = [nn.ModuleList([Counted(), Counted()]) for _ in range(2)]
    for rank, module in enumerate(ranks):
        for part in module:
            part(torch.zeros(3 + rank, 2))
    pending = [torch.cat([part.counter.pending for part in module]) for module in ranks]
    for module in ranks:
        merge_counters(module, lambda mine: sum(pending))
        merge_counters(module)  # nothing is pending any more
        assert [part.counter.total.tolist() for part in module] == [[7], [7]]
    restored = nn.ModuleList([Counted(), Counted()])
    restored.load_state_dict(ranks[0].state_dict())
    assert restored[1].counter.total.tolist() == [7]


def test_only_training_counts_and_a_repeated_forward_pass_does_not():
    module = Counted()
    checkpoint(module, torch.zeros(3, 2), use_reentrant=False).sum().backward()
    module.eval()(torch.zeros(3, 2))
    assert module.counter.pending.tolist() == [3]
    module.counter.widen(2)
    merge_counters(module)
    assert module.counter.total.tolist() == [3, 0]
    module.counter.reset()
    assert module.counter.total.tolist() == [0, 0]
