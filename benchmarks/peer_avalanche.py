"""Avalanche's side of `peers.py`; runs in an environment that has `avalanche-lib` and not Lightning."""

from typing import Any

import numpy as np
import torch
import turns
from avalanche.benchmarks import nc_benchmark
from avalanche.models import IncrementalClassifier
from avalanche.training.plugins import ReplayPlugin, SupervisedPlugin
from avalanche.training.storage_policy import ReservoirSamplingBuffer
from avalanche.training.supervised import Naive
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from torchvision import transforms

from lightning_cil.networks.resnet_cifar import CifarResNet

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class Images(Dataset[Any]):
    """CIFAR images as Avalanche takes them: PIL images and a list `targets`."""

    def __init__(self, images: np.ndarray, targets: list[int]) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[i]), self.targets[i]


class Epochs(SupervisedPlugin):
    """A turn for each epoch."""

    def __init__(self, turn: turns.Turns) -> None:
        super().__init__()
        self.turn = turn
        self.images = 0

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Wait for the turn."""
        self.turn.begin()
        self.images = 0

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Count."""
        self.images += len(strategy.mb_x)

    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """End the turn."""
        self.turn.end(images=self.images)


class Network(nn.Module):
    """The same ResNet-32, and a classifier that grows."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.body = CifarResNet(32)
        self.head = IncrementalClassifier(64, first)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.head(self.body(x))


def run(turn: turns.Turns, setting: dict[str, Any], train: Any, test: Any, order: list[int]) -> float:
    """Train the stream; the mean accuracy over the tasks learned."""
    torch.manual_seed(setting["seed"])
    np.random.seed(setting["seed"])
    normalise = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augment = [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(brightness=63 / 255),
    ]
    benchmark = nc_benchmark(
        Images(*train),
        Images(*test),
        n_experiences=10,
        task_labels=False,
        fixed_class_order=order,
        class_ids_from_zero_from_first_exp=True,
        train_transform=transforms.Compose(augment + normalise),
        eval_transform=transforms.Compose(normalise),
    )
    model = Network(10)
    plugins: list[Any] = [Epochs(turn)]
    if setting["method"] == "ER":
        memory = setting["memory"]
        plugins.append(ReplayPlugin(memory, storage_policy=ReservoirSamplingBuffer(max_size=memory)))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=setting["batch"],
        train_epochs=setting["epochs"],
        eval_mb_size=512,
        plugins=plugins,
        evaluator=None,
    )
    for experience in benchmark.train_stream[: setting["tasks"]]:
        strategy.train(experience)
    model.eval()
    accuracies = []
    with torch.no_grad():
        for experience in benchmark.test_stream[: setting["tasks"]]:
            dataset = experience.dataset.eval()
            x = torch.stack([dataset[i][0] for i in range(len(dataset))])
            y = torch.tensor([dataset[i][1] for i in range(len(dataset))])
            accuracies.append((model(x).argmax(1) == y).float().mean().item())
    return sum(accuracies) / len(accuracies)
