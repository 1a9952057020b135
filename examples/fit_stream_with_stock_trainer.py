"""`fit_stream`: a whole stream on a `lightning.pytorch.Trainer` that cannot be replaced by `IncrementalTrainer`.

python examples/fit_stream_with_stock_trainer.py
"""

import json
import os
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger

from lightning_cil import fit_stream
from lightning_cil.callbacks import ReplayBuffer
from lightning_cil.data import SplitDigits
from lightning_cil.methods import ER, FineTune
from lightning_cil.networks import Backbone

EPOCHS = 1 if os.environ.get("LIGHTNING_CIL_FAST") == "1" else 4


def sgd(params):
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def run(method, callbacks):
    seed_everything(0, verbose=False)
    trainer = Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        logger=CSVLogger("runs", name="fit_stream"),
        enable_checkpointing=False,  # the stream's own checkpoints are written all the same
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    module = method(backbone=Backbone("small_cnn", in_channels=1), epochs=EPOCHS, optimizer=sgd)
    fit_stream(trainer, module, SplitDigits())
    return json.loads((Path(trainer.log_dir) / "results.json").read_text())


def main():
    lines = []
    for method, callbacks in ((FineTune, []), (ER, [ReplayBuffer(total=200)])):
        scores = run(method, callbacks)["scores"]["class_il"]
        lines.append(f"{method.__name__}: accuracy {scores['ACC']:.1%}, forgetting {scores['AF']:.1%}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
