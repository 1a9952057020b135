"""RebLL and what it is compared with on real pictures: every method and seed, one after the other, and their table.

    python benchmarks/rebll/run.py PROTOCOL OUT --root DATA --weights FILE [--seeds 0 1 2] [--methods AKD AKD+OR …]
    python benchmarks/rebll/run.py PROTOCOL OUT --table

PROTOCOL is `voc` or `coco` (the YAML files beside this one); FILE is what `weights.py` wrote. A run that is already in
OUT is not repeated; one that was cut off starts anew. `--table` prints what has finished.
"""

import argparse
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from runs import finished, spread

HERE = Path(__file__).parent
METHODS: dict[str, tuple[str, ...]] = {
    "FT": ("ml_finetune",),
    "LwF": ("ml_lwf",),
    "KD": ("ml_kd",),
    "AKD": ("rebll_akd",),
    "AKD+replay": ("rebll", "--model.init_args.memory=replay_bce"),
    "AKD+OR": ("rebll",),
    "ER": ("ml_er",),
    "DER++": ("ml_derpp",),
    "Joint": ("ml_joint",),
}
"""The method's config and what is changed in it."""
SCORES = {"mAP last": "mAP_last", "mAP avg": "mAP_avg", "CF1": "CF1", "OF1": "OF1", "FPR": "FPR"}


def arguments(protocol: str, method: str, seed: int, folder: Path, root: Path, weights: Path) -> list[str]:
    """What follows `lightning-cil` in the command of a run."""
    config, *changes = METHODS[method]
    return [
        "fit",
        f"--config={HERE.parents[1] / 'examples' / 'rebll' / 'methods' / config}.yaml",
        f"--config={HERE / protocol}.yaml",
        f"--seed_everything={seed}",
        f"--trainer.default_root_dir={folder}",
        f"--data.init_args.root={root}",
        f"--model.init_args.backbone.weights={weights}",
        *changes,
    ]


def table(out: Path, protocol: str, seeds: Sequence[int]) -> Iterator[str]:
    """Lines of Markdown: mean and standard deviation over seeds, in percent."""
    yield "| method | seeds | " + " | ".join(SCORES) + " | FPR at 0.5 | s |"
    yield "|---" * (len(SCORES) + 4) + "|"
    for method in METHODS:
        runs = {s: finished(out / protocol / method / str(s)) for s in seeds}
        found = {s: r for s, r in runs.items() if r is not None}
        if not found:
            continue
        each = [r["multilabel"] for r in found.values()]
        cells = [spread([m[name] for m in each]) for name in SCORES.values()]
        cells.append(spread([m["after_task"][-1]["0.5"]["FPR"] for m in each]))
        seconds = statistics.mean(sum(s["seconds"] for s in r["seconds"]) for r in found.values())
        yield f"| {method} | {', '.join(map(str, found))} | {' | '.join(cells)} | {seconds:.0f} |"


def main() -> None:
    """Make the missing runs, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocol", choices=("voc", "coco"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", type=Path, default=Path("data"))
    parser.add_argument("--weights", type=Path, default=Path("efficientnet_lite0.pt"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    for seed in [] if options.table else options.seeds:
        for method in options.methods:
            folder = options.out / options.protocol / method / str(seed)
            if finished(folder) is None:
                from lightning_cil.__main__ import main as lightning_cil

                shutil.rmtree(folder, ignore_errors=True)
                lightning_cil(arguments(options.protocol, method, seed, folder, options.root, options.weights))
    print("\n".join(table(options.out, options.protocol, options.seeds)))


if __name__ == "__main__":
    main()
