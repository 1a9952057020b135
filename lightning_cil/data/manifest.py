"""`ManifestTasks`: your own images as a stream, listed in a csv or jsonl file, nothing to program."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_cil.data._files import IMAGENET_MEAN, IMAGENET_STD, Augment, FileList, FileListTasks
from lightning_cil.data.audio import MEMORY_BUDGET, AudioFormat, Place
from lightning_cil.data.base import DEFAULT_ORDER

SPLITS = ("train", "val", "test")
COLUMNS = ("image", "label", "split")


class ManifestTasks(FileListTasks):
    """Any images listed in a file as a stream: source, licence and size are your own, and so are the tasks.

    The list is a csv file with a header, or a jsonl file with one object a line; each row has `image` (a path, relative
    to the list's folder or absolute), `label` (one class, a word or a whole number) and `split` (`train`, `test`, or
    `val`: held out). Optional columns are `audio` (a sound file; all rows or none) and `text` (a description; those of
    a class's training rows are its texts, `class_texts`). Other columns are not read; a repeated row counts once. Class
    ids follow the sorted labels, by value when all are whole numbers. Every image becomes a colour image of one size:
    shorter side to `image_size`, centre crop.

    Args:
        manifest: The csv or jsonl file.
        image_size: Side of the images in pixels.
        in_memory: Whether all images are decoded once at the start and kept. `None`: yes where they take up
            to 1 GiB (`image_size` x `image_size` x 3 bytes each), with up to 64 pixels up to 4 GiB. The batches are the
            same either way.
        augment: Training images are mirrored and, `crop`: shifted by up to an eighth of their size; `resized_crop`: a
            random area of the file's own pixels is used (then they are decoded anew every epoch). `none`: neither.
        mean: Channel means of images scaled to [0, 1].
        std: Channel standard deviations of images scaled to [0, 1].
        sample_rate: Of the sounds, in hertz.
        seconds: Length of the sounds: shorter ones are filled with zeros, longer ones are cut.
        place: Where: `end`, or `center` for both sides.
        resample: Whether files of another rate are resampled; if not, they are refused.
        audio_memory: Bytes of sounds that are kept; the others are read anew each time.
        num_tasks: Number of equal tasks.
        base: Classes of the first task (with `increment`).
        increment: Classes of every further task (with `base`).
        sizes: Classes of each task, uneven ones allowed.
        class_order: `seed:N`, `sorted`, or the class ids or labels in the order they are learned.
        batch_size: Training samples of a step on each process.
        eval_batch_size: Samples of an evaluation batch on each process.
        val_fraction: Share of the training images that is held out for validation, in [0, 1).
        num_workers: Decoding processes of each training process; images in memory need none.
        split_seed: Selects the held-out images.
    """

    def __init__(
        self,
        manifest: str | Path,
        *,
        image_size: int = 224,
        in_memory: bool | None = None,
        augment: Augment = "crop",
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        sample_rate: int = 44_100,
        seconds: float = 5.0,
        place: Place = "end",
        resample: bool = True,
        audio_memory: int = MEMORY_BUDGET,
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
        names, splits = read_manifest(Path(manifest))
        form = AudioFormat(sample_rate, seconds, place, resample)
        sounds, texts = read_sounds(Path(manifest)), read_texts(Path(manifest))
        super().__init__(
            source=str(manifest),
            class_names=names,
            train=splits["train"],
            test=splits["test"],
            val=splits["val"],
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
        self.class_texts = [texts.get(name, [name]) for name in self.class_names]
        """Descriptions of each class, in the order of learning; its label where the list has none."""
        if sounds:
            train, test = ([sounds[file] for file in self.files[name].paths] for name in ("train", "test"))
            self.pair_sounds(train, test, form, audio_memory)


def read_manifest(path: Path) -> tuple[list[str], dict[str, FileList]]:
    """Read and check a list of images.

    Args:
        path: The csv or jsonl file.

    Returns:
        Class names in the order of their ids, and the files of `train`, `val` and `test`.

    Raises:
        FileNotFoundError: When the list, or an image that it names, does not exist.
        ValueError: For a row that is not as it should be; the message gives its number.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"`manifest={path}`: no such file; expected a csv or jsonl file with the columns {', '.join(COLUMNS)}."
        )
    folder = os.fspath(path.parent)
    rows: dict[str, tuple[str, str, str, str]] = {}
    for position, row in _rows(path):
        where = f"{path}, {position}"
        label, split = _label(row, where), row.get("split")
        if split not in SPLITS:
            raise ValueError(f"{where}: `split` is {split!r}; expected 'train', 'val' or 'test'.")
        image = row.get("image")
        if not isinstance(image, str) or not image:
            raise ValueError(f"{where}: `image` is {image!r}; expected the path of an image file.")
        file = os.path.normpath(os.path.join(folder, image))
        if not os.path.isfile(file):
            raise FileNotFoundError(
                f"{where}: there is no file `{file}`; expected a path relative to `{folder}`, or an absolute one."
            )
        first = rows.setdefault(file, (file, label, split, position))
        if first[1:3] != (label, split):
            raise ValueError(
                f"{where}: {image!r} is {label!r} in {split}, but {first[1]!r} in {first[2]} in {first[3]}; "
                "expected each image with one label and in one split. Remove one of the rows."
            )
    labels = {label for _, label, _, _ in rows.values()}
    names = sorted(labels, key=int) if all(_is_whole(label) for label in labels) else sorted(labels)
    ids = {name: i for i, name in enumerate(names)}
    splits = {split: FileList() for split in SPLITS}
    for file, label, split, _ in rows.values():
        splits[split].paths.append(file)
        splits[split].targets.append(ids[label])
    return names, splits


def read_sounds(path: Path) -> dict[str, str]:
    """The sound of each image in a list that `read_manifest` has checked; empty if no row has one.

    Raises:
        FileNotFoundError: When a sound does not exist.
        ValueError: When one row has a sound and another has not, or one image has two.
    """
    folder = os.fspath(path.parent)
    sounds: dict[str, tuple[str, str]] = {}
    silent = None
    for position, row in _rows(path):
        audio = row.get("audio")
        if not isinstance(audio, str) or not audio:
            silent = silent or position
            continue
        image, file = (os.path.normpath(os.path.join(folder, name)) for name in (row["image"], audio))
        if not os.path.isfile(file):
            raise FileNotFoundError(
                f"{path}, {position}: there is no file `{file}`; expected a path relative to `{folder}`, or an "
                "absolute one."
            )
        first = sounds.setdefault(image, (file, position))
        if first[0] != file:
            raise ValueError(
                f"{path}, {position}: {row['image']!r} has the sound {audio!r}, but {first[0]!r} in {first[1]}; "
                "expected one sound for each image. Copy the image under another name."
            )
    if sounds and silent:
        raise ValueError(
            f"{path}, {silent}: no `audio`, which other rows have; expected a sound for every image. Add it, or remove "
            "the row, or the column."
        )
    return {image: file for image, (file, _) in sounds.items()}


def read_texts(path: Path) -> dict[str, list[str]]:
    """The different texts of each label's training rows, in their order."""
    texts: dict[str, dict[str, None]] = {}
    for _, row in _rows(path):
        text = row.get("text")
        if row.get("split") == "train" and isinstance(text, str) and text:
            texts.setdefault(str(row.get("label")), {})[text] = None
    return {label: list(found) for label, found in texts.items()}


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows with what messages call them; the csv header is line 1 but no row."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".jsonl"):
        raise ValueError(f"`manifest={path}` ends in {suffix!r}; expected '.csv' or '.jsonl'. Convert or rename it.")
    with open(path, encoding="utf-8-sig", newline="") as file:
        if suffix == ".csv":
            reader = csv.DictReader(file, skipinitialspace=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            absent = [name for name in COLUMNS if name not in header and not (name == "label" and "labels" in header)]
            if absent:
                raise ValueError(
                    f"{path}: the header is {header}, without {absent}; expected the columns {', '.join(COLUMNS)} "
                    "separated by commas."
                )
            reader.fieldnames = header
            for number, row in enumerate(reader, 1):
                position = f"row {number} (line {reader.line_num})"
                if None in row:
                    raise ValueError(
                        f"{path}, {position}: {len(header) + len(row[None])} values for {len(header)} columns; "
                        "expected as many. Put values that hold a comma in double quotes."
                    )
                yield position, {k: v.strip() if isinstance(v, str) else v for k, v in row.items()}
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"row {number}", _json_row(line, f"{path}, row {number}")


def _json_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error}); expected one object a line.") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: holds {type(row).__name__}; expected an object with {', '.join(COLUMNS)}.")
    return row


def _label(row: dict[str, Any], where: str) -> str:
    label = row.get("label")
    if row.get("labels") or isinstance(label, list):
        raise ValueError(
            f"{where}: `labels` gives several labels for one image; expected one `label`. `ManifestTasks` is for one "
            "label an image; leave the column `labels` empty."
        )
    if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
        raise ValueError(f"{where}: `label` is {label!r}; expected a class name or a whole number.")
    return str(label)


def _is_whole(label: str) -> bool:
    return label.removeprefix("-").isdecimal()
