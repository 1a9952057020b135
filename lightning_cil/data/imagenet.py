"""`SplitImageNet`: ImageNet (ILSVRC 2012) or any subset of its classes, decoded by worker processes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lightning_cil.data._files import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FileList,
    RandomResizedCrop,
    ResizeCrop,
    image_names,
    missing,
    subfolders,
)
from lightning_cil.data.augment import BatchAugment
from lightning_cil.data.base import DEFAULT_ORDER, IncrementalDataModule
from lightning_cil.data.images import FileImages, ImageSplit

DEFAULT_TASKS = 10


class SplitImageNet(IncrementalDataModule):
    """ImageNet as a stream: 1,331,167 photographs (1,281,167 to train), 1000 classes, 10 tasks of 100.

    Source: O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge (IJCV 2015),
    https://arxiv.org/abs/1409.0575; terms of ImageNet: non-commercial research, an account at https://image-net.org is
    needed. The official validation images are the test set. Protocol and augmentation (random resized crop, mirroring,
    brightness; evaluation on the centre crop) as in PyCIL (https://arxiv.org/abs/2112.12533). Any folder in the same
    layout will do (ImageNet-100, Imagenette). Class ids follow the sorted WordNet ids, which are also the class names.

    Workers decode and crop; mirroring, brightness and normalisation are done for a whole batch on the training device.

    Args:
        root: Folder with `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`.
        classes_file: Text file with one WordNet id a line: the classes to use, for example ImageNet-100; other folders
            are left out. Empty lines and what follows a `#` do not count. `None`: all folders of `train`.
        image_size: Side of the crops in pixels.
        resize_size: Length of the shorter side before the centre crop in evaluation, at least `image_size`.
        augment: Whether training images are augmented; if not, they are cropped as in evaluation.
        brightness: Images are multiplied by U(1 - b, 1 + b); PyCIL's default.
        num_tasks: Number of equal tasks; 10, if that divides the classes, when no other description is given.
        base: Classes of the first task (with `increment`).
        increment: Classes of every further task (with `base`).
        sizes: Classes of each task, uneven ones allowed.
        class_order: `seed:N`, `sorted`, or the class ids or WordNet ids in the order they are learned.
        batch_size: Training samples of a step on each process.
        eval_batch_size: Samples of an evaluation batch on each process.
        val_fraction: Share of the training images that is held out for validation, in [0, 1).
        num_workers: Decoding processes of each training process.
        split_seed: Selects the held-out images.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        classes_file: str | Path | None = None,
        image_size: int = 224,
        resize_size: int = 256,
        augment: bool = True,
        brightness: float = 63 / 255,
        num_tasks: int | None = None,
        base: int | None = None,
        increment: int | None = None,
        sizes: Sequence[int] | None = None,
        class_order: str | list[int] | list[str] = DEFAULT_ORDER,
        batch_size: int = 128,
        eval_batch_size: int = 256,
        val_fraction: float = 0.0,
        num_workers: int = 4,
        split_seed: int = 0,
    ) -> None:
        if not 1 <= image_size <= resize_size:
            raise ValueError(
                f"got `image_size={image_size}` and `resize_size={resize_size}`; expected 1 <= `image_size` <= "
                "`resize_size`."
            )
        self.root = Path(root)
        names = self._folders("train") if classes_file is None else _read_classes(Path(classes_file))
        if len(names) < 2:
            raise ValueError(f"{classes_file or self.root / 'train'} has {len(names)} class(es); expected at least 2.")
        undescribed = num_tasks is None and base is None and increment is None and sizes is None
        if undescribed and len(names) % DEFAULT_TASKS == 0:
            num_tasks = DEFAULT_TASKS
        super().__init__(
            class_names=names,
            augment=BatchAugment(IMAGENET_MEAN, IMAGENET_STD, flip=augment, brightness=brightness if augment else 0.0),
            num_tasks=num_tasks,
            base=base,
            increment=increment,
            sizes=sizes,
            class_order=class_order,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            val_fraction=val_fraction,
            num_workers=num_workers,
            split_seed=split_seed,
        )
        self.classes_file = classes_file
        self._evaluation = ResizeCrop(resize_size, image_size)
        self._training = RandomResizedCrop(image_size) if augment else None

    def prepare_data(self) -> None:
        """Look whether both folders are there."""
        for split in ("train", "val"):
            self._folders(split)

    def load_split(self, train: bool) -> ImageSplit:
        """See `IncrementalDataModule.load_split`."""
        split = "train" if train else "val"
        found = self._folders(split)
        extra = sorted(set(found) - set(self.original_names))
        if extra and self.classes_file is None:
            raise ValueError(
                f"{self.root / split} has classes that {self.root / 'train'} has not: {extra[:5]}; expected the same. "
                "Remove them, or name the classes to use in `classes_file`."
            )
        files = FileList.of_folders(self.root / split, self.original_names)
        targets = torch.tensor(files.targets, dtype=torch.int64)
        source = str(self.root / split)
        return FileImages(files.paths, targets, self.num_classes, source, self._training, self._evaluation)

    def prepare_image(self, image: Image.Image) -> Tensor:
        """See `IncrementalDataModule.prepare_image`; needs no data."""
        return self._evaluation(image)

    def _folders(self, split: str) -> list[str]:
        folder = self.root / split
        how = (
            f"Unpack ILSVRC 2012 (https://image-net.org) so that `{folder}/<wnid>/*.JPEG` is there, or correct `root`."
        )
        if not folder.is_dir():
            raise missing(self, f"folder `{split}`", [self.root], how)
        names = subfolders(folder)
        if not names and image_names(folder):
            raise ValueError(
                f"{folder} is flat: {len(image_names(folder))} images and no folders; expected one folder for each "
                "class, `<wnid>/*.JPEG`. The official val archive must be sorted first: move each image into the "
                "folder of its class, as listed in the development kit."
            )
        if not names:
            raise missing(self, "folder of a class", [folder], how)
        return names


def _read_classes(path: Path) -> list[str]:
    """The WordNet ids in a text file, sorted."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"`classes_file={path}`: no such file; expected a text file with one WordNet id a line."
        ) from None
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name = line.partition("#")[0].strip()
        if not name:
            continue
        if name in seen:
            raise ValueError(f"{path}: lines {seen[name]} and {number} both list {name!r}; expected each class once.")
        seen[name] = number
    return sorted(seen)
