"""A folder of images in, a CSV file with class names and probabilities out."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_cil.data.base import IncrementalDataModule
from lightning_cil.data.images import read_image

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
LIKELY = 0.5
"""Multi-label: above it a label is written."""


class FolderLoader:
    """Batches `{"image": float [B, channels, height, width]}` of all images below a folder, sorted by path.

    Args:
        datamodule: Says how images are prepared for its evaluation.
        folder: Searched with its sub-folders.

    Raises:
        FileNotFoundError: When there is no such folder or no image in it.
    """

    def __init__(self, datamodule: IncrementalDataModule, folder: str | Path) -> None:
        root = Path(folder)
        self.paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not self.paths:
            raise FileNotFoundError(
                f"`images={folder}`: no image in there; expected a folder with files of type {sorted(SUFFIXES)}."
            )
        self.datamodule = datamodule

    def __len__(self) -> int:
        return -(-len(self.paths) // self.datamodule.eval_batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        size = self.datamodule.eval_batch_size
        for start in range(0, len(self.paths), size):
            images = [self.datamodule.prepare_image(read_image(p)) for p in self.paths[start : start + size]]
            yield {"image": self.datamodule.transform(torch.stack(images))}


def write_predictions(
    path: str | Path,
    images: Sequence[Path],
    batches: Sequence[Tensor],
    class_names: Sequence[str],
    multi: bool = False,
) -> Path:
    """Write one row for each image: file, most likely class, its probability, then every class's probability.

    Multi-label: file, the classes with a probability above 0.5, separated by `|`, then every class's probability.

    Args:
        path: The CSV file.
        images: Image files in the order of the predictions.
        batches: Probabilities `[B, classes]`.
        class_names: Names in the order of the columns; numbers are used when they are missing.
        multi: Whether an image can have several labels, or none.

    Returns:
        The file.
    """
    probabilities = torch.cat(list(batches))
    classes = probabilities.shape[1]
    names = list(class_names[:classes]) if len(class_names) >= classes else [str(c) for c in range(classes)]
    target = Path(path)
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *(["labels"] if multi else ["class", "probability"]), *names])
        for image, row in zip(images, probabilities.tolist(), strict=True):
            best = max(range(classes), key=row.__getitem__)
            present = "|".join(name for name, p in zip(names, row, strict=True) if p > LIKELY)
            said = [present] if multi else [names[best], f"{row[best]:.6f}"]
            writer.writerow([image, *said, *(f"{p:.6f}" for p in row)])
    return target
