"""A paper's method with one part replaced: LwF that keeps each old class's sigmoid instead of the softmax over all.

python examples/subclass_lwf.py
"""

import json
import os
from pathlib import Path

import torch
from lightning.pytorch import seed_everything

from lightning_cil import IncrementalTrainer
from lightning_cil.data import SplitDigits
from lightning_cil.losses import binary_distillation, cross_entropy_over
from lightning_cil.methods import FineTune, LwF
from lightning_cil.networks import Backbone

EPOCHS = 1 if os.environ.get("LIGHTNING_CIL_FAST") == "1" else 6


class SigmoidLwF(LwF):
    """LwF with iCaRL's distillation; stages, teacher and options are LwF's."""

    def training_step(self, batch, batch_idx):
        logits = self(batch["image"])
        old, seen = self.task.num_old, self.task.num_seen
        loss = cross_entropy_over(logits, batch["target"], old, seen)
        if "teacher_logits" in batch:  # from the second task on
            distillation = binary_distillation(logits[:, :old], batch["teacher_logits"], reduction="sum")
            loss = loss + self.distillation_weight * distillation
        return loss


def sgd(params):
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def run(method):
    seed_everything(0, verbose=False)
    trainer = IncrementalTrainer(accelerator="cpu", default_root_dir="runs/subclass_lwf", enable_progress_bar=False)
    module = method(backbone=Backbone("small_cnn", in_channels=1), epochs=EPOCHS, optimizer=sgd)
    trainer.fit(module, SplitDigits(num_tasks=2))
    return json.loads((Path(trainer.log_dir) / "results.json").read_text())


def main():
    lines = []
    for method in (FineTune, LwF, SigmoidLwF):
        matrix = run(method)["matrix"]["class_il"]
        first, (old, new) = matrix[0][0], matrix[1]
        lines.append(f"{method.__name__}: task 1 {first:.1%}; after task 2: task 1 {old:.1%}, task 2 {new:.1%}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
