"""`OnlineRelabel` alone: a stock Lightning Trainer, `[x, y]` batches in which y is NaN where nobody annotated a class.

python examples/relabel_in_stock_trainer.py

Pictures hold up to four digits; the first fit annotates 0 to 4, the second 5 to 9. When a fit ends, `ReplayBuffer`
keeps some pictures, and `OnlineRelabel` fills in the labels that they lack: new digits in old pictures by the model
just trained, old digits in new pictures by the model before, which `Teacher` holds. The order of the callbacks matters.
"""

import os

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cil.callbacks import OnlineRelabel, ReplayBuffer, Teacher
from lightning_cil.data import MultiLabelDigits

FAST = os.environ.get("LIGHTNING_CIL_FAST") == "1"


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, batch_idx):
        x, y, *_ = batch  # from the second fit on, `Teacher` appends the old model's logits
        known = ~y.isnan()
        loss = nn.functional.binary_cross_entropy_with_logits(self(x), y.nan_to_num(), reduction="none")
        return (loss * known).sum() / known.sum()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def pictures(train):
    data = MultiLabelDigits(train_images=300 if FAST else 2000)
    data.setup("fit")
    split = data.split("train" if train else "test")
    return split.images / 255, split.targets.float()


def main():
    pl.seed_everything(0, verbose=False)
    x, labels = pictures(train=True)
    memory = ReplayBuffer(total=40)
    callbacks = [memory, OnlineRelabel(threshold=0.5), Teacher()]
    net = Net()
    for classes in ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9]):
        y = torch.full_like(labels, torch.nan)
        y[:, classes] = labels[:, classes]
        keep = labels[:, classes].any(dim=1)
        trainer = pl.Trainer(
            max_epochs=2 if FAST else 20,
            accelerator="cpu",
            callbacks=callbacks,  # the same ones in both fits
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(net, DataLoader(TensorDataset(x[keep], y[keep]), batch_size=32, shuffle=True))
        known = (~memory.store.column("target").isnan()).float().mean()
        print(f"after digits {classes[0]}-{classes[-1]}: {len(memory)} pictures, {known:.0%} of their labels known")
    x, labels = pictures(train=False)
    with torch.no_grad():
        right = ((net(x) > 0) == labels.bool()).float().mean(dim=0)
    print(f"labels right on test pictures: digits 0-4 {right[:5].mean():.1%}, digits 5-9 {right[5:].mean():.1%}")


if __name__ == "__main__":
    main()
