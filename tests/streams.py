"""Tiny streams for tests: real digits, a network of a few thousand parameters, seconds on one core."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything

from lightning_cil import IncrementalTrainer
from lightning_cil.data import SplitDigits
from lightning_cil.methods import IncrementalModule
from lightning_cil.networks import Backbone

TINY = Backbone("small_cnn", in_channels=1)
ROUND: dict[str, Any] = {"lr_scheduler": None, **{f"step{k}_epochs": 1 for k in (2, 3, 4, 5)}}
"""The shortest round of NFL."""


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def make(method: type[IncrementalModule], **options: Any) -> IncrementalModule:
    seed_everything(3, verbose=False)
    return method(**{"backbone": TINY, "epochs": 1, "optimizer": sgd, **options})


def fit(
    root: Path,
    module: IncrementalModule,
    data: SplitDigits | None = None,
    callbacks: list[Callback] | None = None,
    ckpt_path: str | None = None,
    **options: Any,
) -> IncrementalTrainer:
    seed_everything(3, verbose=False)
    defaults = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 5}
    trainer = IncrementalTrainer(callbacks=callbacks or [], default_root_dir=root, **{**defaults, **options})
    trainer.fit(module, data or SplitDigits(), ckpt_path=ckpt_path)
    return trainer


def results(trainer: IncrementalTrainer) -> dict[str, Any]:
    return json.loads((Path(trainer.log_dir or "") / "results.json").read_text())


def weights_hash(module: torch.nn.Module) -> str:
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in module.state_dict().values())).hexdigest()
