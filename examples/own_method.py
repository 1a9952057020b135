"""A method of one's own, in one file outside the package.

In Python:           python examples/own_method.py
By the command line: PYTHONPATH=examples lightning-cil fit --config examples/own_method.yaml

`class_path: own_method.MyMethod` is an import path: the folder of this file must be on Python's path. `PYTHONPATH=…`
puts it there; `cd examples; lightning-cil fit --config own_method.yaml` does without.
"""

import json
import os
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch.nn.functional import cross_entropy

from lightning_cil import IncrementalTrainer
from lightning_cil.callbacks import ReplayBuffer
from lightning_cil.data import SplitDigits
from lightning_cil.methods import IncrementalModule
from lightning_cil.networks import Backbone

EPOCHS = 1 if os.environ.get("LIGHTNING_CIL_FAST") == "1" else 6


def sgd(params) -> torch.optim.Optimizer:  # the command line knows a factory by its return type
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


class MyMethod(IncrementalModule):
    """Replay with a balanced softmax: each logit is raised by the logarithm of how frequent its class is in the batch.

    New classes fill half of every batch; without the correction the network prefers them.

    Args:
        backbone: A name, a `Backbone`, or a module with `num_features`.
        epochs: Passes over each task's data.
        optimizer: Makes the optimizer of each stage.
        lr_scheduler: Makes its schedule.
        memory: Exemplars in all.
        balance: How much of the correction is applied: 0 none, 1 all of it.
    """

    def __init__(
        self,
        *,
        backbone: str | Backbone = "resnet32",
        epochs: int = 20,
        optimizer: OptimizerCallable = sgd,
        lr_scheduler: LRSchedulerCallable | None = None,
        memory: int = 200,
        balance: float = 1.0,
    ):
        super().__init__(
            backbone=backbone,
            head="linear",
            scenario="class_il",
            epochs=epochs,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        self.memory = memory
        self.balance = balance

    def required_callbacks(self):
        return [ReplayBuffer(total=self.memory, selection="herding")]

    def training_step(self, batch, batch_idx):
        image, target = batch["image"], batch["target"]
        if "replay_image" in batch:  # from the second task on
            image = torch.cat([image, batch["replay_image"]])
            target = torch.cat([target, batch["replay_target"]])
        count = torch.bincount(target, minlength=self.task.num_seen).clamp(min=1)
        return cross_entropy(self(image) + self.balance * count.log(), target)


def main():
    seed_everything(0, verbose=False)
    trainer = IncrementalTrainer(accelerator="cpu", default_root_dir="runs/own_method", enable_progress_bar=False)
    trainer.fit(MyMethod(backbone=Backbone("small_cnn", in_channels=1), epochs=EPOCHS), SplitDigits())
    results = json.loads((Path(trainer.log_dir) / "results.json").read_text())
    print(f"average accuracy: {results['scores']['class_il']['ACC']:.1%}")


if __name__ == "__main__":
    main()
