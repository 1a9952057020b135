"""The labels of a split as the stream sees them: which images belong to a task, and what a batch may know.

With one label an image, tasks divide the images. With several, an image belongs to every task of which it has a class,
with another part of its labels each time; all other labels are hidden from training.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_cil._random import counter_hash
from lightning_cil.data.images import ImageSplit
from lightning_cil.data.splits import holdout


class Labels(ABC):
    """Incremental labels of one split.

    Args:
        split: The images with original labels.
        label_of: Incremental label of every original class id, long `[C]`.
        task_of: Task of every incremental label, long `[C]`.
    """

    table: Tensor
    """Single label: long `[N]`. Multi-label: bool `[N, C]`, all of them."""

    def __init__(self, split: ImageSplit, label_of: Tensor, task_of: Tensor) -> None:
        self.source = split.source
        self.task_of = task_of

    @abstractmethod
    def in_tasks(self, tasks: Sequence[int]) -> Tensor:
        """Which images belong to any of the tasks, bool `[N]`."""

    @abstractmethod
    def holdout(self, indices: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
        """Divide some images into those to train on and those held out, both in the order given."""

    @abstractmethod
    def visible(self, tasks: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """What a loader may know where the labels of some tasks are annotated.

        Returns:
            Single label: the table, and no mask. Multi-label: bool `[N, C]`, 0 outside the tasks' classes, and these
            classes, bool `[C]`.
        """

    def _chosen(self, tasks: Sequence[int]) -> Tensor:
        """The classes of some tasks, bool `[C]`."""
        return torch.isin(self.task_of, torch.tensor(list(tasks), dtype=torch.int64))


class SingleLabels(Labels):
    """One label for each image."""

    def __init__(self, split: ImageSplit, label_of: Tensor, task_of: Tensor) -> None:
        super().__init__(split, label_of, task_of)
        self.table = label_of[split.targets]

    def in_tasks(self, tasks: Sequence[int]) -> Tensor:
        """See `Labels.in_tasks`."""
        return self._chosen(tasks)[self.table]

    def holdout(self, indices: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
        """See `Labels.holdout`; the same share of every class."""
        kept, held_out = holdout(self.table[indices], fraction, seed)
        return indices[kept], indices[held_out]

    def visible(self, tasks: Sequence[int]) -> tuple[Tensor, None]:
        """See `Labels.visible`."""
        return self.table, None


class MultiLabels(Labels):
    """Any number of labels for each image."""

    def __init__(self, split: ImageSplit, label_of: Tensor, task_of: Tensor) -> None:
        super().__init__(split, label_of, task_of)
        original = label_of.argsort()
        self.table = split.targets[:, original]
        self._members = self.table if split.members is split.targets else split.members[:, original]

    def in_tasks(self, tasks: Sequence[int]) -> Tensor:
        """See `Labels.in_tasks`."""
        return self._members[:, self._chosen(tasks)].any(1)

    def holdout(self, indices: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
        """See `Labels.holdout`; a share of all images, but no class loses its last one."""
        if not fraction:
            return indices, indices[:0]
        order = counter_hash(indices, seed).argsort()
        held_out = torch.zeros(len(indices), dtype=torch.bool)
        held_out[order[: round(fraction * len(indices))]] = True
        table = self.table[indices]
        for label in (table.any(0) & ~table[~held_out].any(0)).nonzero().flatten().tolist():
            if not table[~held_out, label].any():
                held_out[table[:, label].nonzero()[0]] = False
        return indices[~held_out], indices[held_out]

    def visible(self, tasks: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See `Labels.visible`."""
        known = self._chosen(tasks)
        return self.table & known, known
