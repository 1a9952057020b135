"""Herding at the end of a task: 5,000 x 512 features of 10 classes, 20 exemplars of each.

    python benchmarks/herding.py [--quick] [--json FILE]

`herding` looks at all candidates of a class at once. Against it, in turns, both in float64 and with the same choices:

1. PyCIL's form: for every step the means with each candidate, as an array; the chosen one is cut out.
2. Algorithm 4 as printed: for every step and every candidate, the distance of one mean.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import turns
from torch import Tensor

from lightning_cil.replay import herding

CLASSES, EXEMPLARS = 10, 20


def by_arrays(features: Tensor, num_exemplars: int) -> Tensor:
    """For each step the mean with every candidate, as PyCIL's `_construct_exemplar` does."""
    vectors = features.double()
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    mean = vectors.mean(dim=0)
    index = torch.arange(len(vectors))
    chosen: list[Tensor] = []
    picks = []
    for k in range(1, num_exemplars + 1):
        total = torch.stack(chosen).sum(dim=0) if chosen else torch.zeros_like(mean)
        means = (vectors + total) / k
        best = int(((mean - means) ** 2).sum(dim=1).sqrt().argmin())
        chosen.append(vectors[best])
        picks.append(index[best])
        keep = torch.arange(len(vectors)) != best
        vectors, index = vectors[keep], index[keep]
    return torch.stack(picks)


def by_candidates(features: Tensor, num_exemplars: int) -> Tensor:
    """One distance at a time."""
    vectors = features.double()
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    mean = vectors.mean(dim=0)
    total = torch.zeros_like(mean)
    picks: list[int] = []
    for k in range(1, num_exemplars + 1):
        best, nearest = -1, float("inf")
        for i, vector in enumerate(vectors):
            distance = float((mean - (vector + total) / k).norm())
            if i not in picks and distance < nearest:
                best, nearest = i, distance
        picks.append(best)
        total = total + vectors[best]
    return torch.tensor(picks)


RULES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "PyCIL's form": by_arrays,
    "one candidate at a time": by_candidates,
}


def timed(rule: Callable[[Tensor, int], Tensor], classes: Tensor, turn: turns.Turns) -> list[Tensor]:
    """Exemplars of all classes."""
    turn.begin()
    chosen = [rule(features, EXEMPLARS) for features in classes]
    turn.end()
    return chosen


def compare(rule: Callable[[Tensor, int], Tensor], classes: Tensor, rounds: int) -> dict[str, Any]:
    """Ours and another rule, in turns."""
    ours, theirs = turns.Turns(1, 0), turns.Turns(1, 0)
    same = True
    for _ in range(rounds):
        mine = timed(herding, classes, ours)
        same &= all(map(torch.equal, mine, timed(rule, classes, theirs)))
    return {
        "milliseconds": [1e3 * turns.seconds(t.blocks, 1) for t in (ours, theirs)],
        "ratio": turns.ratio(theirs.blocks, ours.blocks),
        "cpu": turns.ratio(theirs.blocks, ours.blocks, "cpu"),
        "same": same,
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--smoke", action="store_true", help="no measurement: that it runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    per_class, rounds = (25, 1) if options.smoke else (500, 5 if options.quick else 15)
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(CLASSES, 1, 512, generator=generator)
    features = (centres + torch.randn(CLASSES, per_class, 512, generator=generator)).relu()  # as after a ReLU
    herding(features[0], EXEMPLARS)
    results: dict[str, Any] = {"machine": turns.machine(1)}
    print(results["machine"], end="\n\n", flush=True)
    results["rules"] = {name: compare(rule, features, rounds) for name, rule in RULES.items()}
    rows = [
        [name, *(f"{ms:.1f}" for ms in r["milliseconds"]), r["ratio"], r["cpu"], "yes" if r["same"] else "no"]
        for name, r in results["rules"].items()
    ]
    head = ["against", "ms ours", "ms theirs", "theirs / ours (quartiles)", "processor time", "same exemplars"]
    print(turns.table(head, rows))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, default=vars) + "\n")
    return results


if __name__ == "__main__":
    main()
