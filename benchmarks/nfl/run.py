"""The runs behind benchmarks/nfl/README.md; one that was broken off goes on, a finished one is kept.

python benchmarks/nfl/run.py OUT --data DATA [--seeds 0 1 2] [--only NAME [NAME …]] [--ablation] [--jobs 2]

DATA has the official files of CIFAR-100, or those that `benchmarks/cifar100/unpack.py` wrote. OUT gets a folder for
each cell and seed. Two jobs use two cores: each has one thread.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
EXAMPLES = HERE.parent.parent / "examples"
STEPS = {2: 1, 3: 1, 4: 1, 5: 1}
"""Epochs of NFL's steps: together those of the other methods."""


def steps(**epochs: int) -> list[str]:
    """Epochs of NFL's steps, `s2` to `s5`."""
    chosen = {step: epochs.get(f"s{step}", default) for step, default in STEPS.items()}
    return [f"--model.step{step}_epochs={number}" for step, number in chosen.items()]


FIRST = ("epochs=4", "weight_decay=0.0005", "lr_scheduler=lightning_cil.schedulers.FractionCosineLR")
"""The first task is trained as the others, where an example has settings of its own for it."""

CELLS: dict[str, tuple[str, list[str]]] = {
    "LwF": ("baselines/methods/lwf", []),
    "NFL": ("nfl/methods/nfl", steps()),
    "FineTune": ("baselines/methods/finetune", []),
    "NFLPlus": ("nfl/methods/nfl_plus", [*steps(), "--model.autoencoder_epochs=4"]),
    "Joint": ("baselines/methods/joint", []),
    "ER": ("baselines/methods/er", []),
    "ICaRL": ("nfl/methods/icarl", [f"--model.first_{name}" for name in FIRST]),
    "DERPlusPlus": ("nfl/methods/derpp", []),
    "Coil": ("nfl/methods/coil", ["--model.solve_every=63"]),  # once an epoch
    "MEMO": ("nfl/methods/memo", [f"--model.first_{name}" for name in FIRST]),
}
"""By name: the method's file in examples/, and further options."""

NFL, LWF = CELLS["NFL"][0], CELLS["LwF"][0]
THIRD = ["--model.lambda_=0.333", "--model.omega=0.333", "--model.beta=0.333"]
AS_LWF = [*THIRD, "--model.optimizer.lr=0.15", "--model.optimizer.weight_decay=1.667e-4"]
"""KD : CE as 3 : 1, and steps as long as with 3 KD + CE at 0.05 and 5e-4."""
FULL_RATE = ["--model.step4_lr_factor=1", "--model.step5_lr_factor=1"]
HEAD_RATE = "--model.step2_lr_factor=0.333"
"""Step 2 has a cross-entropy of weight 1."""
COSINE = "--model.tune_lr_scheduler=lightning_cil.schedulers.FractionCosineLR"
SAME_RATES = [f"--model.step{step}_lr_factor={rate}" for step, rate in {2: 1, 3: 0.854, 4: 0.5, 5: 0.146}.items()]
"""Those of the other methods in their four epochs."""
ABLATION: dict[str, tuple[str, list[str]]] = {
    "LwF, weight 1": (LWF, ["--model.distillation_weight=1"]),
    "LwF, warm-up": (LWF, ["--model.head=multi", "--model.epochs=3", "--model.warmup_epochs=1"]),
    "NFL, lambda omega beta 1/3": (NFL, [*steps(), *THIRD]),
    "NFL, steps 4 and 5 at the full rate": (NFL, [*steps(), *FULL_RATE]),
    "NFL, steps 4 and 5 at the full rate, 1/3": (NFL, [*steps(), *FULL_RATE, *THIRD]),
    "NFL, the others' rates": (NFL, [*steps(), *SAME_RATES]),
    "NFL, the others' rates, LwF's weights": (NFL, [*steps(), *SAME_RATES, *AS_LWF, HEAD_RATE]),
    "NFL, steps 2 and 5, all as LwF": (
        NFL,
        [*steps(s3=0, s4=0, s5=3), *AS_LWF, HEAD_RATE, "--model.step5_lr_factor=1", COSINE, "--model.alpha=0"],
    ),
    "NFL, without step 2": (NFL, steps(s2=0, s3=2)),
    "NFL, without step 3": (NFL, steps(s3=0, s4=2)),
    "NFL, without step 4": (NFL, steps(s4=0, s3=2)),
    "NFL, without step 5": (NFL, steps(s5=0, s3=2)),
    "NFL, alpha 0": (NFL, [*steps(), "--model.alpha=0"]),
    "NFL, alpha 1": (NFL, [*steps(), "--model.alpha=1"]),
    "NFL, temperature 4": (NFL, [*steps(), "--model.temperature=4"]),
    "NFL, recorded targets": (NFL, [*steps(), "--model.targets=recorded"]),
    "NFL, step 3 from random weights": (NFL, [*steps(), "--model.step3_init=random"]),
}
"""The second task anew: each goes on from the first task of the cell, which is the same for all."""

RANDOM = "NFL, step 3 from random weights"
"""Its checkpoint must have the first weights, so that it trains the first task itself."""


def folder_of(name: str, seed: int, out: Path, ablation: bool) -> Path:
    """Where a run is."""
    plain = name.replace(",", "").replace("'", "").replace(" ", "_").replace("/", "of")
    return out.absolute() / ("ablation" if ablation else "cells") / plain / f"seed_{seed}"


def command(name: str, seed: int, out: Path, data: Path, ablation: bool) -> list[str]:
    """The command of one run."""
    method, options = (ABLATION if ablation else CELLS)[name]
    folder, start = folder_of(name, seed, out, ablation), "last"
    if ablation and name != RANDOM and not any(folder.glob("*/checkpoints/last.ckpt")):
        one_head = method == LWF and "--model.head=multi" not in options
        cell = folder_of("LwF" if one_head else "NFL", seed, out, ablation=False)
        start = str(cell / "version_0/checkpoints/task_0.ckpt")
    return [
        *[sys.executable, "-m", "lightning_cil", "fit"],
        *["--config", str(EXAMPLES / f"{method}.yaml"), "--config", str(HERE / "base.yaml")],
        *options,
        *(["--stop_after_task=1"] if ablation else []),
        *[f"--seed_everything={seed}", f"--data.root={data}", f"--trainer.default_root_dir={folder}"],
        *["--ckpt_path", start],
    ]


def done(out: Path, tasks: int) -> bool:
    """Whether the run of this folder is over."""
    rows = [json.loads(path.read_text())["matrix"]["class_il"] for path in out.glob("version_*/results.json")]
    return any(row[tasks - 1] is not None and row[tasks - 1][0] is not None for row in rows)


def main(arguments: list[str] | None = None) -> int:
    """Run what is not done yet; the exit status is the number of runs that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="names of cells")
    parser.add_argument("--ablation", action="store_true", help="the ablation of NFL, after the cells LwF and NFL")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--dry_run", action="store_true", help="print the commands")
    args = parser.parse_args(arguments)
    known = ABLATION if args.ablation else CELLS
    unknown = sorted(set(args.only or []) - set(known))
    if unknown:
        parser.error(f"`--only` got {unknown}; expected some of {sorted(known)}.")
    # without --only: what has a config in this checkout
    names = args.only or [name for name, (method, _) in known.items() if (EXAMPLES / f"{method}.yaml").exists()]

    def run(job: tuple[str, int]) -> int:
        name, seed = job
        folder = folder_of(name, seed, args.out, args.ablation)
        line = command(name, seed, args.out, args.data.absolute(), args.ablation)
        if args.dry_run:
            print(" ".join(line))
            return 0
        if done(folder, 2 if args.ablation else 10):
            return 0
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("a") as log:
            status = subprocess.run(line, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log).returncode
        end = "done" if status == 0 else f"exit status {status}, see {folder}/log.txt"
        print(f"{name}, seed {seed}: {end}", flush=True)
        return int(status != 0)

    with ThreadPoolExecutor(args.jobs) as pool:
        return sum(pool.map(run, [(name, seed) for seed in args.seeds for name in names]))


if __name__ == "__main__":
    sys.exit(main())
