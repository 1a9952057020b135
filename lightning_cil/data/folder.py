"""`ImageFolderTasks`: your own images as a stream, one folder for each class, nothing to program."""

from collections.abc import Sequence
from pathlib import Path

import torch

from lightning_cil.data._files import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augment,
    FileList,
    FileListTasks,
    missing,
    subfolders,
)
from lightning_cil.data.base import DEFAULT_ORDER
from lightning_cil.data.splits import holdout

TEST_SEED = 20_250_101
"""Selects the test images where there is no test folder; fixed, so that scores of different runs compare."""


class ImageFolderTasks(FileListTasks):
    """Any images in class folders as a stream: source, licence and size are your own, and so are the tasks.

    The layout is `root/train/<class>/*` with `root/test/<class>/*`. `root/val/<class>/*` beside a test folder holds
    the held-out images; without a test folder it is the test set. Class ids follow the sorted folder names. Every image
    becomes a colour image of one size: shorter side to `image_size`, centre crop.

    Args:
        root: The folder.
        image_size: Side of the images in pixels.
        in_memory: Whether all images are decoded once at the start and kept. `None`: yes where they take up
            to 1 GiB (`image_size` x `image_size` x 3 bytes each), with up to 64 pixels up to 4 GiB. The batches are the
            same either way.
        augment: Training images are mirrored and, `crop`: shifted by up to an eighth of their size; `resized_crop`: a
            random area of the file's own pixels is used (then they are decoded anew every epoch). `none`: neither.
        mean: Channel means of images scaled to [0, 1].
        std: Channel standard deviations of images scaled to [0, 1].
        test_fraction: Share of every class of `train` that is the test set where there is no test folder, in (0, 1).
        num_tasks: Number of equal tasks.
        base: Classes of the first task (with `increment`).
        increment: Classes of every further task (with `base`).
        sizes: Classes of each task, uneven ones allowed.
        class_order: `seed:N`, `sorted`, or the class ids or names in the order they are learned.
        batch_size: Training samples of a step on each process.
        eval_batch_size: Samples of an evaluation batch on each process.
        val_fraction: Share of the training images that is held out for validation, in [0, 1).
        num_workers: Decoding processes of each training process; images in memory need none.
        split_seed: Selects the held-out images.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        image_size: int = 224,
        in_memory: bool | None = None,
        augment: Augment = "crop",
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        test_fraction: float | None = None,
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
        folder = Path(root)
        names = self._class_names(folder)
        train = FileList.of_folders(folder / "train", names)
        others = [s for s in ("test", "val") if (folder / s).is_dir()]
        if bool(others) == (test_fraction is not None):
            raise ValueError(
                f"got `test_fraction={test_fraction}`, and {folder} has "
                f"{f'the folder {others[0]!r}' if others else 'neither a test nor a val folder'}; expected exactly one "
                "of the two. " + ("Leave it out." if others else "Add `test/<class>/*`, or `test_fraction=0.2`.")
            )
        if test_fraction is None:
            test = self._like_train(folder / others[0], names)
            val = self._like_train(folder / "val", names) if len(others) == 2 else FileList()
        else:
            if not 0 < test_fraction < 1:
                raise ValueError(f"`test_fraction={test_fraction}`: expected a share in (0, 1), for example 0.2.")
            kept, taken = holdout(torch.tensor(train.targets, dtype=torch.int64), test_fraction, TEST_SEED)
            train, test, val = train.take(kept), train.take(taken), FileList()
        super().__init__(
            source=str(folder),
            class_names=names,
            train=train,
            test=test,
            val=val,
            image_size=image_size,
            in_memory=in_memory,
            augment=augment,
            mean=mean,
            std=std,
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

    def _class_names(self, folder: Path) -> list[str]:
        names = subfolders(folder / "train") if (folder / "train").is_dir() else []
        if not names:
            how = "Put the images into `train/<class>/` and `test/<class>/` below `root`, or correct `root`."
            raise missing(self, "folder of a class", [folder / "train"], how)
        return names

    @staticmethod
    def _like_train(folder: Path, names: Sequence[str]) -> FileList:
        extra = sorted(set(subfolders(folder)) - set(names))
        if extra:
            raise ValueError(
                f"{folder} has classes that `train` has not: {extra[:5]}; expected the same folders in both. "
                "Add training images of them, or remove them."
            )
        return FileList.of_folders(folder, names)
