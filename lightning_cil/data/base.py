"""The base of every protocol: class order, tasks, held-out split, loaders of the current stage, one batch transform."""

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.parsing import collect_init_args
from PIL import Image
from torch import Tensor

from lightning_cil._random import fold_seed
from lightning_cil.data.audio import AudioClips, Sounds, to_float
from lightning_cil.data.augment import BatchAugment
from lightning_cil.data.images import FileImages, ImageSplit
from lightning_cil.data.labels import Labels, MultiLabels, SingleLabels
from lightning_cil.data.loader import StreamLoader
from lightning_cil.data.splits import class_order as resolve_order
from lightning_cil.data.splits import make_tasks, task_sizes
from lightning_cil.types import LabelKind, Stage, Task, TestRule

DEFAULT_ORDER = "seed:1993"


class IncrementalDataModule(LightningDataModule, ABC):
    """A data set as a stream of tasks.

    A subclass names its classes, says how images are augmented, and loads a split; see `SplitDigits`.
    `num_tasks`, `num_classes`, `class_order`, `class_names`, `task_sizes`, `tasks` exist after construction, as does
    `arguments`, what the subclass's constructor was called with, by name.

    Args:
        class_names: One name for each original class id.
        augment: Batched training transform and normalisation.
        num_tasks: Number of equal tasks.
        base: Classes of the first task (with `increment`).
        increment: Classes of every further task (with `base`).
        sizes: Classes of each task, uneven ones allowed.
        class_order: `seed:N`, `sorted`, or the original class ids (or names) in the order they are learned.
        batch_size: Training samples of a step on each process.
        eval_batch_size: Samples of an evaluation batch on each process.
        val_fraction: Share of every class's training images that is held out for validation, in [0, 1).
        num_workers: Decoding processes (images in memory need none).
        split_seed: Selects the held-out images.
        test_rule: Multi-label: which test images an evaluation uses.
    """

    label_kind: LabelKind = "single"
    """A batch's `target` is one label for each sample, or a row of all classes with a mask `known`."""
    default_num_tasks: ClassVar[int | None] = None
    image_shape: tuple[int, int, int] | None = None
    """Channels, height and width where every image has them; prediction then needs no data set."""

    def __init__(
        self,
        *,
        class_names: Sequence[str],
        augment: BatchAugment,
        num_tasks: int | None,
        base: int | None,
        increment: int | None,
        sizes: Sequence[int] | None,
        class_order: str | Sequence[int] | Sequence[str],
        batch_size: int,
        eval_batch_size: int,
        val_fraction: float,
        num_workers: int,
        split_seed: int,
        test_rule: TestRule = "seen",
    ) -> None:
        super().__init__()
        frame = inspect.currentframe()
        assert frame is not None
        self.arguments = _arguments_of(type(self), collect_init_args(frame, [], classes=(IncrementalDataModule,)))
        self.original_names = list(class_names)
        self.num_classes = len(self.original_names)
        if num_tasks is None and base is None and increment is None and sizes is None:
            num_tasks = self.default_num_tasks
        self.class_order = resolve_order(self._ids_of(class_order), self.num_classes)
        self.task_sizes = task_sizes(self.num_classes, num_tasks=num_tasks, base=base, increment=increment, sizes=sizes)
        self.tasks = make_tasks(self.task_sizes)
        self.num_tasks = len(self.tasks)
        self.class_names = [self.original_names[c] for c in self.class_order]
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ValueError(f"`{name}={value}`: expected at least 1.")
        if num_workers < 0:
            raise ValueError(f"`num_workers={num_workers}`: expected 0 (in this process) or more.")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"`val_fraction={val_fraction}`: expected a share in [0, 1), for example 0.1.")
        if test_rule not in ("seen", "all"):
            raise ValueError(
                f"`test_rule={test_rule!r}` is unknown: expected 'seen' (the test images with a class seen so far) or "
                "'all'."
            )
        self.test_rule = test_rule
        self.augment = augment
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_fraction = val_fraction
        self.num_workers = num_workers
        self.split_seed = split_seed
        self.task = self.tasks[0]
        self.stage = Stage("train", epochs=1)
        self.seed = 0
        self._splits: dict[str, ImageSplit] = {}
        self._labels: dict[str, Labels] = {}
        order = torch.tensor(self.class_order)
        self._label_of = torch.empty_like(order).scatter_(0, order, torch.arange(self.num_classes))
        self._task_of = torch.repeat_interleave(torch.arange(self.num_tasks), torch.tensor(self.task_sizes))
        self._train_indices = torch.empty(0, dtype=torch.int64)
        self._val_indices = torch.empty(0, dtype=torch.int64)

    @abstractmethod
    def load_split(self, train: bool) -> ImageSplit:
        """Return the training or the test images with original labels."""

    # ------------------------------------------------------------------ Lightning's hooks, in its order

    def setup(self, stage: str) -> None:
        """Load both splits once; calls after the first do nothing."""
        if self._splits:
            return
        for name, train in (("train", True), ("test", False)):
            split = self.load_split(train)
            missing = sorted(set(range(self.num_classes)) - split.classes())
            if missing:
                raise ValueError(
                    f"{split.source}: class {self.original_names[missing[0]]!r} has no {name} image"
                    + (f", nor have {len(missing) - 1} others" if len(missing) > 1 else "")
                    + "; expected at least one in every class. Add images, or remove the class."
                )
            self._splits[name] = split
            kind = MultiLabels if self.label_kind == "multi" else SingleLabels
            self._labels[name] = kind(split, self._label_of, self._task_of)
        self._train_indices, self._val_indices = self._labels["train"].holdout(
            torch.arange(len(self.split("train"))), self.val_fraction, self.split_seed
        )

    def set_stage(self, task: Task, stage: Stage, seed: int) -> None:
        """Select what `train_dataloader` and `val_dataloader` give.

        Args:
            task: The current task.
            stage: The current stage; its `data` says whether earlier tasks' data are included.
            seed: Selects order and augmentation of this stage.
        """
        self.task, self.stage, self.seed = task, stage, seed

    def train_dataloader(self) -> StreamLoader:
        """Shuffled, augmented training data of the current stage."""
        loader = self._loader("train", self.stage_indices(), shuffle=True, augment=self.stage.data != "held_out")
        if self.trainer is not None:  # Lightning restores a loader's own state in mid-epoch only, not at an epoch's end
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            loader.epoch = progress.processed
        return loader

    def val_dataloader(self) -> list[StreamLoader]:
        """Held-out data, one loader for each task up to the current one; none when nothing is held out.

        Multi-label: one loader for all of them, as an image can belong to several; the labels of all seen classes.
        """
        num_seen = self.task.index + 1
        if self.trainer is not None and self.trainer.state.fn == "validate":  # a checkpoint's module, outside a stream
            if not len(self._val_indices):
                raise ValueError(
                    f"`val_fraction={self.val_fraction}` holds nothing out to validate on. Validate with the data "
                    "settings of a run that held some out, or use `test`."
                )
            num_seen = self._num_tasks_seen()
        seen = range(num_seen) if len(self._val_indices) else []
        parts = [(tasks, self._in_tasks(self._val_indices, "train", tasks)) for tasks in self._parts(seen)]
        return [self._loader("train", indices, annotated=tasks) for tasks, indices in parts if len(indices)]

    def test_dataloader(self) -> list[StreamLoader]:
        """Test data, one loader for each task of the whole stream.

        Multi-label: one loader. With `test_rule='seen'` it has the images with a class that was seen (before training:
        all images), with `test_rule='all'` all; the labels are complete either way.
        """
        everything = torch.arange(len(self.split("test")))
        tasks = range(self.num_tasks)
        if self.label_kind == "multi":
            seen = self._num_tasks_seen()
            indices = (
                self._in_tasks(everything, "test", range(seen)) if self.test_rule == "seen" and seen else everything
            )
            return [self._loader("test", indices, annotated=tasks)]
        return [self._loader("test", self._in_tasks(everything, "test", [t])) for t in tasks]

    def _num_tasks_seen(self) -> int:
        """Tasks that the module has learned, or without one those up to the current stage's."""
        module = self.trainer.lightning_module if self.trainer is not None else None
        return int(getattr(module, "num_tasks_seen", self.task.index + 1))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment (training only) and normalise a batch where it is; batches of other loaders pass through."""
        image = batch.get("image") if isinstance(batch, dict) else None
        if isinstance(image, Tensor) and image.dtype == torch.uint8:
            batch["image"] = self.transform(image, batch.get("key"))
            if "audio" in batch:
                batch["audio"] = self.transform_audio(batch["audio"])
        return batch

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must agree with: class order, task sizes and the held-out split."""
        return {
            "class_order": self.class_order,
            "task_sizes": self.task_sizes,
            "val_fraction": float(self.val_fraction),
            "split_seed": int(self.split_seed),
            "fingerprint": self.fingerprint(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint of another stream.

        Raises:
            ValueError: When it was written with another class order, other tasks, another split or other data.
        """
        check = [
            ("class_order", self.class_order, "class order"),
            ("task_sizes", self.task_sizes, "division into tasks"),
            ("val_fraction", float(self.val_fraction), "held-out split"),
            ("split_seed", int(self.split_seed), "held-out split"),
        ]
        if state_dict.get("fingerprint") and self._splits:
            check.append(("fingerprint", self.fingerprint(), "set of training images"))
        for key, ours, what in check:
            theirs = state_dict.get(key)
            if theirs != ours:
                raise ValueError(
                    f"The checkpoint was written with another {what}: `{key}` is {_short(theirs)} there and "
                    f"{_short(ours)} here. Use the data settings of the run that wrote it (its config.yaml), or "
                    "start a new run without `--ckpt_path`."
                )

    # ------------------------------------------------------------------ what callbacks and methods ask for

    def split(self, name: str) -> ImageSplit:
        """The loaded `train` or `test` images.

        Raises:
            RuntimeError: Before `setup`.
        """
        if name not in self._splits:
            raise RuntimeError(f"{type(self).__name__} has no {name!r} images yet: call `setup('fit')` first.")
        return self._splits[name]

    def train_indices(self, tasks: Sequence[int]) -> Tensor:
        """Training images (without the held-out ones) of some tasks; multi-label: with a class of any of them.

        Returns:
            Sorted long `[N]`.
        """
        return self._in_tasks(self._train_indices, "train", tasks)

    def stage_indices(self, task: Task | None = None, stage: Stage | None = None) -> Tensor:
        """Training images of a stage, by default the current one, sorted long `[N]`."""
        task, stage = task or self.task, stage or self.stage
        indices = self.train_indices(_tasks_of(task, stage))
        if not stage.holdout:
            return indices
        kept, held_out = self._labels["train"].holdout(indices, stage.holdout, self.split_seed)
        return held_out if stage.data == "held_out" else kept

    def labels(self, name: str) -> Tensor:
        """Incremental label of every image of a split, long `[N]`; multi-label: all labels, bool `[N, C]`.

        Raises:
            RuntimeError: Multi-label, for `train`: most of these labels are hidden from a method.
        """
        self.split(name)
        if self.label_kind == "multi" and name == "train":
            raise RuntimeError(
                "`labels('train')` of multi-label data would give labels that the task does not annotate. Use "
                "`task_labels(indices)` for the task's own, or `hidden_labels(indices)` in a diagnostic."
            )
        return self._labels[name].table

    def task_labels(self, indices: Tensor, task: Task | None = None) -> tuple[Tensor, Tensor]:
        """What a task annotates in training images (multi-label).

        Args:
            indices: long `[B]`.
            task: By default the current one.

        Returns:
            `target`: float `[B, C]`, the ground truth of the task's classes, 0 elsewhere; `known`: bool `[B, C]`, true
            exactly for the task's classes. Both where the indices are.
        """
        known = self._task_of == (task or self.task).index
        table = self._labels["train"].table[indices.cpu()] & known
        return table.float().to(indices.device), known.repeat(len(indices), 1).to(indices.device)

    def hidden_labels(self, indices: Tensor) -> Tensor:
        """All labels of training images, bool `[B, C]`, on the CPU (multi-label).

        For diagnostics that are off by default; nothing that trains or selects may read them.
        """
        return self._labels["train"].table[indices.cpu()]

    def task_of(self, labels: Tensor) -> Tensor:
        """Task of incremental labels, long, on the labels' device."""
        return self._task_of.to(labels.device)[labels]

    def eval_loader(self, indices: Tensor) -> StreamLoader:
        """Training images in order, without augmentation, this rank's share of each batch.

        Multi-label: with the current task's labels.
        """
        return self._loader("train", indices)

    def stored_images(self, indices: Tensor) -> Tensor:
        """Training images as a replay buffer keeps them, uint8 `[B, channels, height, width]`."""
        return self.split("train").stored(indices.cpu())

    def load_audio(self, indices: Tensor) -> Tensor:
        """Sounds of training samples, int16 `[B, 1, samples]`; nothing is random about them.

        Raises:
            ValueError: When the data set has none.
        """
        return self._sounds("train").load(indices.cpu())

    def transform_audio(self, audio: Tensor) -> Tensor:
        """int16 sounds as float in [-1, 1), on their device, in the trainer's precision."""
        audio = to_float(audio)
        return audio if self.trainer is None else self.trainer.precision_plugin.convert_input(audio)

    def provide_audio(self, wanted: bool) -> None:
        """Whether batches have `audio`; without it they still have `clip`, for features that were kept."""
        for split in self._splits:
            self._sounds(split).wanted = wanted

    def clips(self) -> AudioClips:
        """All sounds of the data set, by the numbers that batches have under `clip`.

        Raises:
            ValueError: When the data set has none.
        """
        return self._sounds("train").clips

    def load_augmented(self, indices: Tensor, key: Tensor) -> Tensor:
        """Training images by index, augmented as training batches are.

        Args:
            indices: long `[B]`.
            key: Augmentation counters, long `[B]`.

        Returns:
            uint8 `[B, channels, height, width]`: files after their per-image transform, images in memory as they
            are (`transform` augments those).
        """
        split = self.split("train")
        if not isinstance(split, FileImages):
            return split.stored(indices.cpu())
        with ThreadPoolExecutor(max_workers=max(1, self.num_workers)) as pool:
            seeds = [fold_seed(k) for k in key.tolist()]
            return torch.stack(list(pool.map(split.load, indices.tolist(), seeds)))

    def prepare_image(self, image: Image.Image) -> Tensor:
        """A PIL image of any size as this data set's evaluation would store it.

        Returns:
            uint8 `[channels, height, width]`.
        """
        if self.image_shape is None:
            raise NotImplementedError(f"{type(self).__name__} has images of no fixed shape: override `prepare_image`.")
        channels, height, width = self.image_shape
        pixels = np.array(image.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BOX))
        return torch.from_numpy(pixels).reshape(height, width, channels).permute(2, 0, 1).contiguous()

    def transform(self, image: Tensor, key: Tensor | None = None) -> Tensor:
        """Augment (with `key`) and normalise uint8 images on their device, in the trainer's precision."""
        image = self.augment(image, key)
        if self.trainer is not None:
            image = self.trainer.precision_plugin.convert_input(image)
        return image

    def fingerprint(self) -> str:
        """16 hex digits of the training labels in order, and of the sounds paired with them; empty before `setup`."""
        if "train" not in self._splits:
            return ""
        digest = hashlib.sha256(self._splits["train"].targets.numpy().tobytes())
        sounds = self._splits["train"].sounds
        if sounds is not None:
            digest.update(sounds.identity())
        return digest.hexdigest()[:16]

    def order_hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the class order as compact JSON."""
        return hashlib.sha256(json.dumps(self.class_order, separators=(",", ":")).encode()).hexdigest()[:16]

    # ------------------------------------------------------------------ private

    def _sounds(self, split: str) -> Sounds:
        sounds = self.split(split).sounds
        if sounds is None:
            raise ValueError(
                f"{type(self).__name__} has images without sounds; expected a data set with sounds, such as "
                "`ImageNetESC`, `SpokenDigits` or a `ManifestTasks` whose list has the column `audio`."
            )
        return sounds

    def _ids_of(self, spec: str | Sequence[int] | Sequence[str]) -> str | list[int]:
        if isinstance(spec, str):
            return spec
        ids = {name: i for i, name in enumerate(self.original_names)}
        if len(ids) < len(self.original_names) and any(isinstance(item, str) for item in spec):
            raise ValueError("`class_order` names classes, but two classes share a name; give class ids.")
        result = []
        for item in spec:
            if isinstance(item, str) and item not in ids:
                raise ValueError(
                    f"`class_order` names class {item!r}, which the data set does not have; it has "
                    f"{self.original_names[:5]} … ({self.num_classes} classes)."
                )
            result.append(ids[item] if isinstance(item, str) else int(item))
        return result

    def _in_tasks(self, indices: Tensor, split: str, tasks: Sequence[int]) -> Tensor:
        self.split(split)
        return indices[self._labels[split].in_tasks(tasks)[indices]]

    def _parts(self, tasks: Sequence[int]) -> list[Sequence[int]]:
        """The tasks of each evaluation loader: one each, or all in one."""
        if self.label_kind == "multi":
            return [tasks] if tasks else []
        return [[task] for task in tasks]

    def _loader(
        self,
        split: str,
        indices: Tensor,
        shuffle: bool = False,
        augment: bool = True,
        annotated: Sequence[int] | None = None,
    ) -> StreamLoader:
        trainer = self.trainer
        source = self.split(split)
        targets, known = self._labels[split].visible(
            _tasks_of(self.task, self.stage) if annotated is None else annotated
        )
        return StreamLoader(
            source,
            indices,
            targets,
            self._task_of,
            self.batch_size if shuffle else self.eval_batch_size,
            shuffle=shuffle,
            augment=augment,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            num_workers=self.num_workers,
            pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
            limit_batches=trainer.limit_train_batches if trainer and shuffle else 1.0,
            known=known,
        )


def _arguments_of(kind: type, levels: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Arguments of a class's constructor, and of those that its `**kwargs` go to.

    Args:
        kind: The class.
        levels: What each constructor of its line was called with, the class's own last.
    """
    found: dict[str, Any] = {}
    owners = [owner for owner in kind.__mro__ if "__init__" in vars(owner)]
    for owner, given in zip(owners, reversed(levels), strict=False):
        found = {**given, **found}
        if not any(p.kind == p.VAR_KEYWORD for p in inspect.signature(vars(owner)["__init__"]).parameters.values()):
            break
    return found


def _tasks_of(task: Task, stage: Stage) -> range:
    """Tasks whose data, and whose labels, a stage trains on."""
    return range(0 if stage.data == "seen" else task.index, task.index + 1)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"
