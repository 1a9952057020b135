"""`StagedFreezing` alone: in a stock Lightning Trainer, first the head is trained, then everything.

python examples/staged_freezing_in_stock_trainer.py

While the body is frozen neither its weights nor its BatchNorm statistics change, not by a bit.
"""

import os

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cil import Stage
from lightning_cil.callbacks import StagedFreezing

HEAD_EPOCHS, ALL_EPOCHS = (1, 1) if os.environ.get("LIGHTNING_CIL_FAST") == "1" else (3, 3)


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU())
        self.head = nn.Linear(128, 10)

    def forward(self, x):
        return self.head(self.body(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)


class Watch(pl.Callback):
    """Remembers at the end of every epoch how far the body has moved in it, and the test accuracy."""

    def __init__(self, x, y):
        self.x, self.y, self.epochs = x, y, []

    def on_train_epoch_start(self, trainer, pl_module):
        self.before = {
            name: value.clone() for name, value in pl_module.body.state_dict().items() if value.is_floating_point()
        }

    def on_train_epoch_end(self, trainer, pl_module):
        body = pl_module.body.state_dict()
        moved = max((body[name] - value).abs().max() for name, value in self.before.items()).item()
        modes = [module.training for module in pl_module.modules()]
        pl_module.eval()
        with torch.no_grad():
            accuracy = (pl_module(self.x).argmax(1) == self.y).float().mean().item()
        for module, mode in zip(pl_module.modules(), modes, strict=True):
            module.training = mode
        self.epochs.append((moved, accuracy))


def main():
    pl.seed_everything(0, verbose=False)
    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    test = torch.arange(len(y)) % 5 == 0
    watch = Watch(x[test], y[test])
    stages = [Stage("head", HEAD_EPOCHS, ["head.*"]), Stage("all", ALL_EPOCHS)]
    trainer = pl.Trainer(
        max_epochs=HEAD_EPOCHS + ALL_EPOCHS,
        accelerator="cpu",
        callbacks=[StagedFreezing(stages), watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Net(), DataLoader(TensorDataset(x[~test], y[~test]), batch_size=32, shuffle=True))
    for epoch, (moved, accuracy) in enumerate(watch.epochs):
        name = "head" if epoch < HEAD_EPOCHS else "all"
        print(f"epoch {epoch + 1}, stage {name}: the body moved by {moved:.6f}, test accuracy {accuracy:.1%}")


if __name__ == "__main__":
    main()
