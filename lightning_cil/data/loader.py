"""Order, shard, batch: one stateful loader for in-memory and for on-disk images.

Global batch i of an epoch is `order[i * B * W : (i + 1) * B * W]`, rank r takes its slice, so that one process
with batch W·B and W ranks with batch B see the same data. In training all shares are equal, as every rank's gradient
and every collective of a step count the same: a set smaller than one global batch leaves out up to W - 1 samples,
other ones in each epoch, and one of fewer samples than ranks repeats some. In evaluation every sample comes exactly
once. The order is a function of (seed, epoch); the state is {epoch, position, global_batch} and the same on every
rank; augmentation keys are functions of (seed, epoch, index).
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_cil._random import counter_hash, fold_seed, permutation
from lightning_cil.data.images import FileImages, ImageSplit, TensorImages


class StreamLoader:
    """Iterates over batches (dicts with `image`, `target`, `index`, `task`, `key`) and knows where it is.

    Where samples have sounds, also `audio` (int16) and `clip`; this process reads them.

    Args:
        split: The images.
        indices: Which of them, long `[N]`.
        targets: Incremental label of every image of the split, long.
        task_of: Task of every incremental label, long.
        batch_size: Samples of a batch on each rank.
        shuffle: Training: shuffled, augmented (`key` in the batch), equal shares, and an incomplete last batch is left
            out. Otherwise in order, everything exactly once.
        seed: Selects order and augmentation.
        rank: This process.
        world_size: Number of processes.
        num_workers: Decoding processes; images in memory need none.
        pin_memory: Whether batches are put into pinned memory, from which a GPU copies while the host goes on.
        limit_batches: The trainer's `limit_train_batches`: the next epoch begins after so many batches (int) or after
            this share of them (float).
        augment: Whether shuffled batches are augmented (have a `key`).

    Raises:
        ValueError: When there is nothing to load.
    """

    def __init__(
        self,
        split: ImageSplit,
        indices: Tensor,
        targets: Tensor,
        task_of: Tensor,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
        limit_batches: int | float = 1.0,
        augment: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"`batch_size={batch_size}`: expected at least 1.")
        if len(indices) == 0:
            raise ValueError(f"{split.source}: no sample for this task; expected at least one in every class.")
        self.split = split
        self.indices = indices
        self.targets = targets
        self.task_of = task_of
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augment = augment
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.num_workers = 0 if isinstance(split, TensorImages) else num_workers
        self.pin_memory = pin_memory
        self.limit_batches = limit_batches
        self.epoch = 0
        self.position = 0
        self._workers: DataLoader[Tensor] | None = None
        self._worker_batches = _Batches()

    def __len__(self) -> int:
        """Batches of an epoch, the same on every rank."""
        global_batch = self.batch_size * self.world_size
        if self.shuffle:
            return max(1, len(self.indices) // global_batch)
        return math.ceil(len(self.indices) / global_batch)

    def epoch_length(self) -> int:
        """Batches after which the next epoch begins; Lightning takes no more when it was told a limit."""
        limit = self.limit_batches if isinstance(self.limit_batches, int) else int(len(self) * self.limit_batches)
        return max(1, min(len(self), limit))

    def state_dict(self) -> dict[str, int]:
        """Epoch, number of batches already yielded in it, and their size over all ranks; equal on every rank."""
        return {"epoch": self.epoch, "position": self.position, "global_batch": self.batch_size * self.world_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from `state_dict`.

        Raises:
            ValueError: In the middle of an epoch with another global batch: positions count batches, so that samples
                would be repeated or left out.
        """
        ours, theirs = (
            self.batch_size * self.world_size,
            int(state.get("global_batch", self.batch_size * self.world_size)),
        )
        if int(state["position"]) and ours != theirs:
            raise ValueError(
                f"The checkpoint was written in the middle of an epoch ({state['position']} batches of it done) with "
                f"{theirs} samples in a step over all processes; here a step has {ours} "
                f"(`batch_size={self.batch_size}` times {self.world_size} processes). Give a `batch_size` that makes "
                f"{theirs}, or go on from a checkpoint of a finished task (checkpoints/task_<k>.ckpt) or epoch, where "
                "any batch size will do."
            )
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def batches(self, epoch: int, start: int = 0) -> list[Tensor]:
        """This rank's indices of every batch of an epoch from `start` on."""
        order = self.indices
        if self.shuffle:
            order = order[permutation(len(order), self.seed, epoch)]
        size = self.batch_size * self.world_size
        return [self._slice(order[i * size : (i + 1) * size]) for i in range(start, self.epoch_length())]

    def _slice(self, batch: Tensor) -> Tensor:
        if self.shuffle:
            share = max(1, len(batch) // self.world_size)
            batch = batch.repeat(math.ceil(self.world_size / len(batch)))[: share * self.world_size]
        return batch.tensor_split(self.world_size)[self.rank]

    def keys(self, indices: Tensor, epoch: int) -> Tensor | None:
        """Augmentation counters of samples in an epoch; `None` when nothing is random."""
        return counter_hash(indices, self.seed, epoch) if self.shuffle and self.augment else None

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        last = self.epoch_length()
        epoch, start = self.epoch, self.position if self.shuffle else 0  # a cut evaluation (limits) begins again
        if start >= last:  # the epoch of the checkpoint had more batches: it is over
            epoch, start = epoch + 1, 0
        batches = self.batches(epoch, start)
        source = self._load_in_workers(batches, epoch) if self.num_workers else (self._load(b, epoch) for b in batches)
        labels = self._labels(batches, epoch)
        for position, (label, image) in enumerate(zip(labels, source, strict=True), start + 1):
            # a checkpoint written while the consumer works on this batch says that it was yielded
            self.epoch, self.position = (epoch, position) if position < last else (epoch + 1, 0)
            yield self._batch(label, image)

    def _labels(self, batches: list[Tensor], epoch: int) -> list[dict[str, Tensor]]:
        """Everything of every batch but the images, computed for the whole epoch at once."""
        index = torch.cat(batches)
        target = self.targets[index]
        columns = {"target": target, "index": index, "task": self.task_of[target]}
        key = self.keys(index, epoch)
        if key is not None:
            columns["key"] = key
        sizes = [len(batch) for batch in batches]
        parts = zip(*(torch.split(column, sizes) for column in columns.values()), strict=True)
        return [dict(zip(columns, part, strict=True)) for part in parts]

    def _batch(self, labels: dict[str, Tensor], image: Tensor) -> dict[str, Tensor]:
        if len(labels["index"]) == 0:  # a rank without a share of the last batch
            image = self.split.stored(self.indices[:1])[:0]
        batch = {"image": image, **labels}
        if self.split.sounds is not None:
            batch |= self.split.sounds.columns(labels["index"])
        return {name: value.pin_memory() for name, value in batch.items()} if self.pin_memory else batch

    def _load(self, indices: Tensor, epoch: int) -> Tensor:
        if isinstance(self.split, FileImages):
            seeds = _seeds(indices, self.keys(indices, epoch))
            images = [self.split.load(i, k) for i, k in zip(indices.tolist(), seeds, strict=True)]
            return torch.stack(images) if images else torch.empty(0)
        return self.split.stored(indices)

    def _load_in_workers(self, batches: list[Tensor], epoch: int) -> Iterator[Tensor]:
        assert isinstance(self.split, FileImages)
        self._worker_batches.set(batches, (self.seed, epoch) if self.shuffle and self.augment else None)
        if self._workers is None:
            self._workers = DataLoader(
                _Decoder(self.split),
                batch_sampler=self._worker_batches,
                num_workers=self.num_workers,
                collate_fn=_collate,
                pin_memory=self.pin_memory,
                persistent_workers=self.shuffle,
                generator=torch.Generator().manual_seed(fold_seed(self.seed)),  # the global one stays as it is
            )
        return iter(self._workers)


class _Batches(Sampler[list[tuple[int, int | None]]]):
    """Batches that the loader sets before each epoch; persistent workers are fed from here, a batch at a time."""

    def __init__(self) -> None:
        self._batches: list[Tensor] = []
        self._words: tuple[int, int] | None = None

    def set(self, indices: list[Tensor], words: tuple[int, int] | None) -> None:
        self._batches, self._words = indices, words

    def __iter__(self) -> Iterator[list[tuple[int, int | None]]]:
        for indices in self._batches:
            keys = None if self._words is None else counter_hash(indices, *self._words)
            yield list(zip(indices.tolist(), _seeds(indices, keys), strict=True))

    def __len__(self) -> int:
        return len(self._batches)


class _Decoder(Dataset[Tensor]):
    def __init__(self, split: FileImages) -> None:
        self.split = split

    def __getitem__(self, item: tuple[int, int | None]) -> Tensor:
        return self.split.load(*item)


def _seeds(indices: Tensor, keys: Tensor | None) -> Sequence[int | None]:
    """What `FileImages.load` takes for each sample."""
    return [None] * len(indices) if keys is None else [fold_seed(k) for k in keys.tolist()]


def _collate(images: list[Tensor]) -> Tensor:
    return torch.stack(images) if images else torch.empty(0)
