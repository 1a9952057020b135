"""`Teacher` alone: a stock Lightning Trainer, and a module that distils in its own words.

python examples/teacher_in_stock_trainer.py

When a fit ends, the teacher keeps a frozen copy of the module; in the next fit every batch is `[x, y, teacher_logits]`.
"""

import os

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cil.callbacks import Teacher
from lightning_cil.losses import soft_cross_entropy

EPOCHS = 2 if os.environ.get("LIGHTNING_CIL_FAST") == "1" else 6
OLD = 5


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, batch_idx):
        x, y, *teacher = batch
        logits = self(x)
        first = 0 if y.max() < OLD else OLD  # the softmax runs over the classes of this fit
        loss = nn.functional.cross_entropy(logits[:, first : first + OLD], y - first)
        if teacher:
            loss = loss + 3 * soft_cross_entropy(logits[:, :OLD], teacher[0][:, :OLD], temperature=2)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def digits(classes, test):
    """Every fifth image is a test image."""
    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    keep = torch.isin(y, torch.tensor(classes)) & ((torch.arange(len(y)) % 5 == 0) == test)
    return x[keep], y[keep]


def accuracy(net, classes):
    """Among the old classes: does the network still tell them apart?"""
    x, y = digits(classes, test=True)
    with torch.no_grad():
        return (net(x)[:, :OLD].argmax(1) == y).float().mean().item()


def train(callbacks):
    """Fit digits 0 to 4, then 5 to 9; return the accuracy on 0 to 4 after each."""
    pl.seed_everything(0, verbose=False)
    net, scores = Net(), []
    for classes in ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9]):
        loader = DataLoader(TensorDataset(*digits(classes, test=False)), batch_size=32, shuffle=True)
        trainer = pl.Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            callbacks=callbacks,  # the same teacher in both fits
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(net, loader)
        scores.append(accuracy(net, [0, 1, 2, 3, 4]))
    return scores


def main():
    for name, callbacks in (("without teacher", []), ("Teacher()", [Teacher()])):
        before, after = train(callbacks)
        print(f"{name}: accuracy on digits 0-4 {before:.1%} after their fit, {after:.1%} after the fit of 5-9")


if __name__ == "__main__":
    main()
