"""Streams and stock fits that take a fraction of a second, and a callback that writes down what it sees."""

import copy
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_cil.data import IncrementalDataModule
from lightning_cil.data.augment import BatchAugment
from lightning_cil.data.images import ImageSplit, TensorImages
from lightning_cil.methods import FineTune
from lightning_cil.types import Batch

NUM_CLASSES = 6
PER_CLASS = {"train": 13, "test": 5}


class TinyTasks(IncrementalDataModule):
    """3 tasks of 2 classes: 6x6 images, 13 training and 5 test images of each class, mirrored at random."""

    image_shape = (1, 6, 6)
    default_num_tasks = 3

    def __init__(self, batch_size: int = 8, val_fraction: float = 0.0, **options: Any) -> None:
        super().__init__(
            **{
                "class_names": [f"class {c}" for c in range(NUM_CLASSES)],
                "augment": BatchAugment(mean=[0.5], std=[0.25], flip=True),
                "num_tasks": None,
                "base": None,
                "increment": None,
                "sizes": None,
                "class_order": "seed:1993",
                "batch_size": batch_size,
                "eval_batch_size": 7,
                "val_fraction": val_fraction,
                "num_workers": 0,
                "split_seed": 0,
                **options,
            }
        )

    def load_split(self, train: bool) -> ImageSplit:
        generator = torch.Generator().manual_seed(0)
        pattern = torch.rand(NUM_CLASSES, 1, 6, 6, generator=generator)
        count = PER_CLASS["train" if train else "test"]
        target = torch.arange(NUM_CLASSES * count) % NUM_CLASSES
        noise = torch.rand(len(target), 1, 6, 6, generator=generator.manual_seed(1 + train))
        images = (pattern[target] * 0.7 + noise * 0.3).mul(255).round().to(torch.uint8)
        return TensorImages(images, target, NUM_CLASSES, "tiny")


class NormNet(nn.Module):
    """A backbone with BatchNorm."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(36, self.num_features, bias=False)
        self.norm = nn.BatchNorm1d(self.num_features)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.linear(image.flatten(1))).relu()


class Scripted(FineTune):
    """Logs `score` at the end of every epoch, as `values(task, epoch)` says."""

    def __init__(self, values: Callable[[int, int], float], **options: Any) -> None:
        super().__init__(**options)
        self.values = values

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.log("score", self.values(self.task.index, self.current_epoch), on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


class Net(pl.LightningModule):
    """A user's own module: nothing of the package in it. Keeps the batches that it got."""

    def __init__(self, num_classes: int = 4, learning_rate: float = 0.1) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU())
        self.head = nn.Linear(5, num_classes)
        self.learning_rate = learning_rate
        self.batches: list[list[Tensor]] = []

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.batches.append([t.detach().clone() for t in batch])
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, momentum=0.9, weight_decay=0.01)


class Recorder(pl.Callback):
    """Calls `look(hook, trainer, module, *args)` at every hook of a stream and keeps what is not `None`."""

    def __init__(self, look: Callable[..., Any]) -> None:
        self.look = look
        self.seen: list[Any] = []

    def _note(self, name: str, *args: Any) -> None:
        value = self.look(name, *args)
        if value is not None:
            self.seen.append(value)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._note("on_train_batch_start", trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._note("on_train_batch_end", trainer, pl_module, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._note("on_train_epoch_end", trainer, pl_module)

    def on_task_start(self, *args: Any) -> None:
        self._note("on_task_start", *args)

    def on_stage_start(self, *args: Any) -> None:
        self._note("on_stage_start", *args)

    def on_stage_end(self, *args: Any) -> None:
        self._note("on_stage_end", *args)

    def on_task_end(self, *args: Any) -> None:
        self._note("on_task_end", *args)

    def on_task_scored(self, *args: Any) -> None:
        self._note("on_task_scored", *args)


def copied(batch: Any) -> Any:
    """A batch as it is now."""
    return copy.deepcopy({k: v.detach() for k, v in batch.items()} if isinstance(batch, dict) else batch)


def vectors(labels: list[int], per_class: int = 10, seed: int = 0) -> TensorDataset:
    """A data set of a user: 3 numbers, a label."""
    y = torch.tensor(labels).repeat(per_class)
    x = torch.randn(len(y), 3, generator=torch.Generator().manual_seed(seed)) + y.unsqueeze(1)
    return TensorDataset(x, y)


def stock_fit(
    net: pl.LightningModule,
    data: Dataset[Any] | None,
    callbacks: list[pl.Callback],
    epochs: int = 1,
    loader: Any = None,
    validation: Any = None,
    **options: Any,
) -> pl.Trainer:
    """A fit as a user of Lightning writes it, quiet."""
    if loader is None:
        loader = DataLoader(data, batch_size=8, shuffle=True)
    defaults = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, callbacks=callbacks, **{**defaults, **options}
    )
    trainer.fit(net, loader, validation)
    return trainer


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
