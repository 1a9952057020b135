"""Tiny streams for tests: real digits, a network of a few thousand parameters, seconds on one core."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything

from lightning_cil import IncrementalTrainer
from lightning_cil.data import IncrementalDataModule, SplitDigits, SpokenDigits
from lightning_cil.methods import IncrementalModule
from lightning_cil.networks import Backbone
from tests.data import formats

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
    data: IncrementalDataModule | None = None,
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


def spoken(root: Path, **options: Any) -> SpokenDigits:
    """Ten digits as pictures of 16 pixels and made sounds of 50 ms, a few of each."""
    if not root.exists():
        formats.write_fsdd(root)
    small: dict[str, Any] = {"test_takes": [0], "seconds": 0.05, "image_size": 16, "max_pairs": 4, "num_tasks": 2}
    return SpokenDigits(root, **{**small, "batch_size": 16, **options})
