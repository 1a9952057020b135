"""Reservoir, balanced and herding updates of a million offered samples: time and memory.

    python benchmarks/replay.py [--quick] [--json FILE]

The samples come in tasks of equal size. `reservoir` writes what stays into an `ExemplarStore` of 3x32x32 images;
`balanced` and `herding` choose each class's exemplars (herding from 64 features a sample) and shorten the older ones.
Memory is the growth of the process's peak above what it had, beside the raw bytes of the images stored; `checkpoint`
is the further growth while the store is written to a file.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import turns

from lightning_cil.replay import (
    ExemplarStore,
    class_quotas,
    first_per_class,
    herding,
    last_writers,
    random_choice,
    reservoir_slots,
)

SHAPE, FEATURES, CLASSES_OF_A_TASK = (3, 32, 32), 64, 10
PART = 1024


def images(index: torch.Tensor) -> torch.Tensor:
    """Images as a dataset on disk would give them: made when asked for."""
    return (index.view(-1, 1, 1, 1) % 251).to(torch.uint8).expand(-1, *SHAPE)


def reservoir(store: ExemplarStore, task: int, index: torch.Tensor, target: torch.Tensor, total: int) -> None:
    """Offer a task's samples."""
    rows, slots = last_writers(reservoir_slots(task * len(index), len(index), total, seed=0))
    for part in torch.arange(len(rows)).split(PART):
        chosen = rows[part]
        store.write(slots[part], {"image": images(index[chosen]), "target": target[chosen]})


def balanced(store: ExemplarStore, task: int, index: torch.Tensor, target: torch.Tensor, total: int) -> None:
    """Equal shares, at random."""
    _equal_shares(store, task, index, target, total, lambda rows, m: random_choice(index[rows], m, 0))


def by_herding(store: ExemplarStore, task: int, index: torch.Tensor, target: torch.Tensor, total: int) -> None:
    """Equal shares, nearest to the class mean."""

    def choose(rows: torch.Tensor, m: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(int(index[rows[0]]))
        return herding(torch.randn(len(rows), FEATURES, generator=generator), m)

    _equal_shares(store, task, index, target, total, choose)


def _equal_shares(
    store: ExemplarStore,
    task: int,
    index: torch.Tensor,
    target: torch.Tensor,
    total: int,
    choose: Callable[[torch.Tensor, int], torch.Tensor],
) -> None:
    quotas = class_quotas(total, (task + 1) * CLASSES_OF_A_TASK)
    if len(store):
        store.keep(first_per_class(store.column("target"), quotas))
    for label in torch.unique(target).tolist():
        rows = (target == label).nonzero().flatten()
        for part in rows[choose(rows, int(quotas[label]))].split(PART):
            store.append({"image": images(index[part]), "target": target[part]})


RULES = {"reservoir": reservoir, "balanced": balanced, "herding": by_herding}


def measure(rule: str, offered: int, tasks: int, total: int) -> dict[str, Any]:
    """Fill a store and write a checkpoint."""
    store = ExemplarStore(capacity=total)
    size = offered // tasks
    turns.forget_peak()
    base = turns.memory("VmRSS")
    begin = time.perf_counter()
    for task in range(tasks):
        index = torch.arange(task * size, (task + 1) * size)
        target = index % CLASSES_OF_A_TASK + task * CLASSES_OF_A_TASK
        RULES[rule](store, task, index, target, total)
    seconds = time.perf_counter() - begin
    update_peak = turns.memory("VmHWM") - base
    raw = sum(store.nbytes().values())
    del index, target
    turns.give_back()
    turns.forget_peak()
    held = turns.memory("VmRSS") - base
    with tempfile.TemporaryDirectory() as folder:
        torch.save(store.state_dict(copy=False), Path(folder) / "store.ckpt")
        written = (Path(folder) / "store.ckpt").stat().st_size
    return {
        "rule": rule,
        "offered": size * tasks,
        "stored": len(store),
        "seconds": seconds,
        "raw_bytes": raw,
        "held": held,
        "update_peak": update_peak,
        "checkpoint_peak": turns.memory("VmHWM") - base,
        "checkpoint_bytes": written,
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100,000 samples")
    parser.add_argument("--smoke", action="store_true", help="no measurement: that it runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    offered, total = (2000, 200) if options.smoke else (100_000, 20_000) if options.quick else (1_000_000, 50_000)
    measure("herding", 2000, 2, 200)  # what the first calls allocate is none of the stores'
    results: dict[str, Any] = {"machine": turns.machine(options.threads)}
    print(results["machine"], end="\n\n", flush=True)
    totals = {rule: min(total, 20_000) if rule == "herding" else total for rule in RULES}  # its time is O(total)
    results["rules"] = [measure(rule, offered, 10, totals[rule]) for rule in RULES]
    head = ["rule", "offered", "stored", "s", "µs a sample", "raw MB", "held", "peak, updates", "peak, checkpoint"]
    rows = [
        [
            r["rule"],
            f"{r['offered']:,}",
            f"{r['stored']:,}",
            f"{r['seconds']:.2f}",
            f"{1e6 * r['seconds'] / r['offered']:.2f}",
            f"{r['raw_bytes'] / 1e6:.1f}",
            *(f"{r[n] / r['raw_bytes']:.3f} x raw" for n in ("held", "update_peak", "checkpoint_peak")),
        ]
        for r in results["rules"]
    ]
    print(turns.table(head, rows))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main()
