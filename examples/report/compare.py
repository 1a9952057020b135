"""FineTune, LwF, ER and Joint on the digits over three seeds, and a report that compares them.

    python examples/report/compare.py

Trains twelve runs (a few minutes on a CPU) below `runs/compare`, those that are finished already excepted, then makes
`runs/compare/report/report.html` and `runs/compare/comparison.png`, the picture in the README. The same by hand:

    lightning-cil fit --config examples/quickstart.yaml --model LwF --trainer.callbacks null --seed_everything 1 …
    lightning-cil report runs/compare --out runs/compare/report
"""

import json
import os
import sys
from pathlib import Path

from matplotlib.figure import Figure

from lightning_cil.__main__ import main as lightning_cil
from lightning_cil.report import load_runs

FAST = os.environ.get("LIGHTNING_CIL_FAST") == "1"
SEEDS = (0,) if FAST else (0, 1, 2)
QUICKSTART = Path(__file__).resolve().parents[1] / "quickstart.yaml"  # its memory of 200 exemplars is for ER only
METHODS = {
    "FineTune": ["--trainer.callbacks", "null"],
    "LwF": ["--trainer.callbacks", "null"],
    "ER": [],
    "Joint": ["--trainer.callbacks", "null"],
}
ROOT = Path("runs/compare")


def finished(folder: Path) -> bool:
    return any(json.loads(p.read_text())["status"] == "complete" for p in folder.rglob("results.json"))


def train(method: str, seed: int) -> None:
    folder = ROOT / f"{method}_{seed}"
    if finished(folder):
        return
    command = ["fit", "--config", str(QUICKSTART), "--model", method, *METHODS[method]]
    command += ["--seed_everything", str(seed), "--trainer.default_root_dir", str(folder)]
    command += ["--model.epochs", "1"] if FAST else []
    status = lightning_cil(command)
    if status:
        sys.exit(status)


def main() -> None:
    for method in METHODS:
        for seed in SEEDS:
            train(method, seed)
    runs = load_runs(ROOT)
    print(runs.table("class_il").markdown())
    print(f"Report: {runs.write(ROOT / 'report')}")

    picture = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = picture.subplots(1, 2)
    runs.plot_curves("class_il", left)
    runs.plot_forgetting("class_il", right)
    picture.suptitle("Class-IL on scanned digits, 5 tasks of 2 classes")
    picture.savefig(ROOT / "comparison.png", dpi=100)


if __name__ == "__main__":
    main()
