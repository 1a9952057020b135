"""NFL against LwF on scikit-learn's digits: what their rates and weights do. Three seeds of each, 5 tasks of 2 classes.

python benchmarks/nfl/digits.py [NAME …]

Eight epochs a task, cosine schedule; NFL: two in each step. `the others' rates`: each step has the mean rate of LwF in
the same epochs. `LwF's weights`: KD : CE as 3 : 1, with rates three times as large, since the sum is a third of LwF's.
"""

import contextlib
import io
import json
import logging
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything

from lightning_cil import IncrementalTrainer
from lightning_cil.data import SplitDigits
from lightning_cil.methods import NFL, IncrementalModule, LwF
from lightning_cil.networks import Backbone
from lightning_cil.schedulers import FractionCosineLR

STEPS = (2, 3, 4, 5)
RATES = (0.98, 0.77, 0.40, 0.09)
SEEDS = (0, 1, 2)


def common() -> dict[str, Any]:
    """What all share."""
    return {"backbone": Backbone("small_cnn", in_channels=1), "optimizer": _sgd, "lr_scheduler": FractionCosineLR}


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)


def nfl(
    epochs: Sequence[int] = (2, 2, 2, 2),
    rates: Sequence[float] = (1, 1, 0.1, 0.1),
    weight: float = 1.0,
    **options: Any,
) -> NFL:
    """A round of NFL by its steps 2 to 5."""
    steps: dict[str, Any] = {f"step{k}_epochs": n for k, n in zip(STEPS, epochs, strict=True)}
    steps |= {f"step{k}_lr_factor": r for k, r in zip(STEPS, rates, strict=True)}
    weights = {"lambda_": weight, "omega": weight, "beta": weight}
    return NFL(**{**common(), "epochs": 8, **steps, **weights, **options})


CELLS: dict[str, Callable[[], IncrementalModule]] = {
    "LwF": lambda: LwF(**common(), epochs=8),
    "LwF, weight 1": lambda: LwF(**common(), epochs=8, distillation_weight=1.0),
    "NFL": nfl,
    "NFL, the others' rates": lambda: nfl(rates=RATES, lr_scheduler=None),
    "NFL, the others' rates, LwF's weights": lambda: nfl(
        rates=(RATES[0], *(3 * r for r in RATES[1:])), weight=1 / 3, lr_scheduler=None
    ),
    "LwF, 2 epochs of warm-up and 6": lambda: LwF(**common(), epochs=6, head="multi", warmup_epochs=2),
    "NFL, steps 2 and 5, LwF's weights": lambda: nfl(
        (2, 0, 0, 6), (1, 1, 1, 3), 1 / 3, alpha=0.0, tune_lr_scheduler=FractionCosineLR
    ),
    "NFL, without step 2": lambda: nfl((0, 4, 2, 2)),
    "NFL, without step 3": lambda: nfl((2, 0, 4, 2)),
    "NFL, without step 4": lambda: nfl((2, 4, 0, 2)),
    "NFL, without step 5": lambda: nfl((2, 4, 2, 0)),
    "NFL, alpha 0": lambda: nfl(alpha=0.0),
    "NFL, alpha 1": lambda: nfl(alpha=1.0),
    "NFL, temperature 4": lambda: nfl(temperature=4.0),
    "NFL, recorded targets": lambda: nfl(targets="recorded"),
    "NFL, step 3 from random weights": lambda: nfl(step3_init="random"),
}


def scores(make: Callable[[], IncrementalModule], seed: int, **options: Any) -> list[float]:
    """Class-IL ACC and AIA, Task-IL ACC, in percent."""
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stdout(io.StringIO()):
        seed_everything(seed, verbose=False)
        trainer = IncrementalTrainer(
            accelerator="cpu",
            default_root_dir=root,
            enable_progress_bar=False,
            enable_checkpointing=False,
            evaluate_before_training=False,
            **options,
        )
        trainer.fit(make(), SplitDigits(num_tasks=5))
        found = json.loads((Path(trainer.log_dir or "") / "results.json").read_text())["scores"]
    return [100 * found[s][n] for s, n in (("class_il", "ACC"), ("class_il", "AIA"), ("task_il", "ACC"))]


def main(names: Sequence[str]) -> None:
    """Print the table, a line as soon as it is known."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    print("| digits | Class-IL ACC | AIA | Task-IL ACC |\n|---|---|---|---|")
    for name in names or CELLS:
        runs = [scores(CELLS[name], seed) for seed in SEEDS]
        cells = [f"{statistics.mean(c):.1f} ± {statistics.stdev(c):.1f}" for c in zip(*runs, strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
