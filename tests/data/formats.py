"""Writers of tiny data sets in the official on-disk formats, for tests of any part of the package.

Every writer is deterministic, writes a handful of images of every class and returns what it wrote, so that a reader
can be compared with it. Images of one class look alike (a colour of its own plus noise): a model can learn them.

    from tests.data.formats import write_cifar100
    written = write_cifar100(tmp_path, train=3, test=2)
    SplitCIFAR100(tmp_path)
"""

import csv
import gzip
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_cil.data import _names


@dataclass
class Written:
    """The images (uint8 `[N, channels, height, width]`) and original class ids that a writer put on disk."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def make_images(labels: Sequence[int], size: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 `[N, channels, size, size]`: a colour for each class, noise for each image."""
    colours = np.random.RandomState(1000).randint(40, 216, size=(1000, channels))
    noise = np.random.RandomState(seed).randint(-40, 40, size=(len(labels), channels, size, size))
    return (colours[np.asarray(labels)][:, :, None, None] + noise).astype(np.uint8)


def make_split(num_classes: int, train: int, test: int, size: int, channels: int = 3) -> Written:
    """`train` and `test` images of every class, the classes interleaved."""
    train_labels = np.tile(np.arange(num_classes), train)
    test_labels = np.tile(np.arange(num_classes), test)
    return Written(
        make_images(train_labels, size, channels, seed=1),
        train_labels,
        make_images(test_labels, size, channels, seed=2),
        test_labels,
    )


def data_pack(name: str) -> Path:
    """A file or folder of the real data packs (`LIGHTNING_CIL_DATA`, else `../shared/data`); skips where absent."""
    default = Path(__file__).parents[2].parent / "shared" / "data"
    path = Path(os.environ.get("LIGHTNING_CIL_DATA", default)) / name
    if not path.exists():
        pytest.skip(f"no data pack {path}")
    return path


# ---------------------------------------------------------------------- idx (MNIST)


def write_idx(path: Path, array: np.ndarray) -> Path:
    """An idx file of unsigned bytes; gzipped when the name ends in .gz."""
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_mnist(root: Path, folder: str = "MNIST/raw", train: int = 4, test: int = 2, suffix: str = "") -> Written:
    """The four files of MNIST or (`folder="FashionMNIST/raw"`) Fashion-MNIST; `suffix=".gz"`: compressed."""
    written = make_split(10, train, test, size=28, channels=1)
    for name, images, labels in (
        ("train", written.train_images, written.train_labels),
        ("t10k", written.test_images, written.test_labels),
    ):
        write_idx(root / folder / f"{name}-images-idx3-ubyte{suffix}", images[:, 0])
        write_idx(root / folder / f"{name}-labels-idx1-ubyte{suffix}", labels)
    return written


# ---------------------------------------------------------------------- python 2 pickles (CIFAR)


def python2_pickle(value: object) -> bytes:
    """What Python 2's `pickle.dump(value, file, 2)` writes, which is what the official files are.

    Python 3 cannot write it: there `str` is text, in Python 2 it is bytes (opcodes U and T).
    """
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: object) -> bytes:
    if isinstance(value, str | bytes):
        data = value.encode("latin1") if isinstance(value, str) else value
        return (b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + struct.pack("<i", len(data))) + data
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int | np.integer):
        return b"J" + struct.pack("<i", int(value))
    if value is None:
        return b"N"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_python2, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(k) + _python2(v) for k, v in value.items()) + b"u"
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _python2((0,)) + _python2("b") + b"tR"
        dtype = b"cnumpy\ndtype\n" + _python2(("u1", 0, 1)) + b"R"
        dtype += _python2((3, "|", None, None, None, -1, -1, 0)) + b"b"
        state = b"(" + _python2(1) + _python2(value.shape) + dtype + _python2(False) + _python2(value.tobytes()) + b"t"
        return empty + state + b"b"
    raise TypeError(f"no writer for {type(value)}")


def write_cifar10(root: Path, train: int = 5, test: int = 2) -> Written:
    """`cifar-10-batches-py/`: five training batches, the test batch, the names."""
    written = make_split(10, train, test, size=32)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    parts = np.array_split(np.arange(len(written.train_labels)), 5)
    for number, part in enumerate(parts, 1):
        _write_cifar_batch(
            folder / f"data_batch_{number}", written.train_images[part], {"labels": written.train_labels[part].tolist()}
        )
    _write_cifar_batch(folder / "test_batch", written.test_images, {"labels": written.test_labels.tolist()})
    meta = {"num_cases_per_batch": train * 2, "label_names": list(_names.CIFAR10), "num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(meta))
    return written


def write_cifar100(root: Path, train: int = 3, test: int = 2) -> Written:
    """`cifar-100-python/`: train, test and meta with all 100 classes."""
    written = make_split(100, train, test, size=32)
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True, exist_ok=True)
    for name, images, labels in (
        ("train", written.train_images, written.train_labels),
        ("test", written.test_images, written.test_labels),
    ):
        coarse = [label % 20 for label in labels.tolist()]
        _write_cifar_batch(folder / name, images, {"fine_labels": labels.tolist(), "coarse_labels": coarse})
    meta = {"fine_label_names": list(_names.CIFAR100), "coarse_label_names": [f"coarse_{i}" for i in range(20)]}
    (folder / "meta").write_bytes(python2_pickle(meta))
    return written


def _write_cifar_batch(path: Path, images: np.ndarray, labels: dict[str, list[int]]) -> None:
    rows = np.ascontiguousarray(images.reshape(len(images), -1))
    names = [f"image_s_{i:06d}.png" for i in range(len(images))]
    path.write_bytes(python2_pickle({"batch_label": path.name, "data": rows, "filenames": names, **labels}))


class Malicious:
    """Pickled, it is an order to run `function(*arguments)` when loaded."""

    def __init__(self, function: object, *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self._call


def write_malicious_pickle(path: Path, function: object, *arguments: object, protocol: int = 2) -> Path:
    """A pickle that calls a function when it is loaded by `pickle.load`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"data": Malicious(function, *arguments)}, protocol=protocol))
    return path


# ---------------------------------------------------------------------- Tiny ImageNet


def write_tiny_imagenet(root: Path, size: int = 64, train: int = 2, test: int = 1, zipped: bool = False) -> Path:
    """`tiny-imagenet-200/` or (`zipped`) `tiny-imagenet-200.zip`; the first training image of every class is grey.

    Returns:
        The folder or the zip.
    """
    files: dict[str, bytes] = {}
    wnids = list(_names.TINY_IMAGENET)
    files["wnids.txt"] = "\n".join(reversed(wnids)).encode()  # not sorted, as in the official one
    files["words.txt"] = "".join(f"{wnid}\t{_names.TINY_IMAGENET[wnid]}, synonym\n" for wnid in wnids).encode()
    written = make_split(200, train, test, size)
    for i, (image, label) in enumerate(zip(written.train_images, written.train_labels, strict=True)):
        wnid, number = wnids[label], i // 200
        files[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = jpeg(image[:1] if number == 0 else image)
        files[f"train/{wnid}/{wnid}_boxes.txt"] = f"{wnid}_0.JPEG\t0\t0\t{size - 1}\t{size - 1}\n".encode()
    annotations = []
    for i, (image, label) in enumerate(zip(written.test_images, written.test_labels, strict=True)):
        files[f"val/images/val_{i}.JPEG"] = jpeg(image)
        annotations.append(f"val_{i}.JPEG\t{wnids[label]}\t0\t0\t{size - 1}\t{size - 1}\n")
    annotations.reverse()  # not in the order of the file names
    files["val/val_annotations.txt"] = "".join(annotations).encode()
    files["test/images/test_0.JPEG"] = jpeg(written.test_images[0])
    if zipped:
        path = root / "tiny-imagenet-200.zip"
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(f"tiny-imagenet-200/{name}", content)
        return path
    return write_files(root / "tiny-imagenet-200", files)


# ---------------------------------------------------------------------- sounds


def make_wave(label: int, number: int, seconds: float, rate: int) -> np.ndarray:
    """int16 `[samples]`: a tone for each class, a phase and some noise for each clip."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.RandomState(1000 * label + number).normal(0, 300, len(time))
    return (8000 * np.sin(2 * np.pi * (200 + 37 * label) * time + number) + noise).astype(np.int16)


def write_sound(path: Path, samples: np.ndarray, rate: int) -> Path:
    """A sound file of int16 `[samples]` or `[samples, channels]`, lossless where the suffix allows it."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)
    return path


def write_esc50(
    root: Path,
    categories: Sequence[str] | None = None,
    folds: Sequence[int] = (1, 5),
    clips: int = 1,
    seconds: float = 0.05,
    rate: int = 8_000,
    suffix: str = ".wav",
    split: bool = False,
) -> dict[str, np.ndarray]:
    """`meta/esc50.csv` and `audio/*`, clips of every class and fold; `split`: also `meta/split.csv`, by number of clip.

    Args:
        root: The folder of ESC-50.
        categories: Of ESC-50; by default the 27 of ImageNet-ESC and `fireworks`.
        folds: Which folds there are.
        clips: In each class and fold.
        seconds: Length of a clip.
        rate: Sample rate.
        suffix: Of the sound files.
        split: With it, even clips are for training and odd ones for the test, whatever their fold.

    Returns:
        The samples by file name.
    """
    targets = {entry[3]: entry[4] for entry in _names.IMAGENET_ESC} | {"fireworks": 48}
    rows, splits, written = [], [], {}
    for category in categories or targets:
        number = 0
        for fold in folds:
            for _ in range(clips):
                source = 1000 * targets[category] + number
                name = f"{fold}-{source}-A-{targets[category]}{suffix}"
                written[name] = make_wave(targets[category], number, seconds, rate)
                write_sound(root / "audio" / name, written[name], rate)
                rows.append(
                    {
                        "filename": name, "fold": fold, "target": targets[category], "category": category,
                        "esc10": targets[category] % 10 == 0, "src_file": source, "take": "A",
                    }
                )  # fmt: skip
                splits.append({"filename": name, "split": ("train", "test")[number % 2]})
                number += 1
    (root / "meta").mkdir(parents=True, exist_ok=True)
    write_rows(root / "meta" / "esc50.csv", rows)
    if split:
        write_rows(root / "meta" / "split.csv", splits)
    return written


def write_imagenet_esc(
    root: Path, num_classes: int = 19, train: int = 2, test: int = 1, size: int = 24, table: bool = False
) -> Written:
    """Pictures of the ImageNet-ESC classes: `train/<wnid>/*` and `val/<wnid>/*`, or (`table`) `images.csv`.

    Labels of the result are the class ids of ImageNet-ESC-19 or -27.
    """
    entries = [entry for entry in _names.IMAGENET_ESC if entry[5] or num_classes == 27]
    wnids = [entry[0] for entry in entries]
    written = make_split(len(wnids), train, test, size)
    rows = []
    for split, folder, images, labels in (
        ("train", "train", written.train_images, written.train_labels),
        ("test", "val", written.test_images, written.test_labels),
    ):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = (
                f"images/{entries[label][3]}/{split}_{i:04d}.png" if table else f"{folder}/{wnids[label]}/{i:04d}.png"
            )
            write_files(root, {name: png(image)})
            rows.append(
                {
                    "path": name, "category": entries[label][3], "wnid": wnids[label], "exact_wnid": 1,
                    "source": "made", "split": split,
                }
            )  # fmt: skip
    if table:
        write_rows(root / "images.csv", rows)
    return written


def write_fsdd(
    root: Path, speakers: Sequence[str] = ("jackson", "theo"), takes: int = 2, seconds: float = 0.05
) -> Path:
    """`recordings/<digit>_<speaker>_<take>.wav` at 8 kHz."""
    for digit in range(10):
        for s, speaker in enumerate(speakers):
            for take in range(takes):
                wave = make_wave(digit, 10 * s + take, seconds, 8_000)
                write_sound(root / "recordings" / f"{digit}_{speaker}_{take}.wav", wave, 8_000)
    return root


def write_aric(
    root: Path, classes: Sequence[str] = ("reading", "writing", "standing", "sleeping"), train: int = 3, test: int = 2
) -> Path:
    """`manifest.csv`, pictures and sounds; two boxes in each picture: halves of different colours and labels."""
    rows = []
    for split, count in (("train", train), ("test", test)):
        for i in range(count):
            for first in range(0, len(classes), 2):
                halves = make_images([first, first + 1], 20, seed=i)
                name = f"{split}_{i}_{first}"
                write_files(root, {f"image/{name}.png": png(np.concatenate(list(halves), axis=2))})
                write_sound(root / f"audio/{name}.wav", make_wave(first, i, 0.05, 8_000), 8_000)
                rows += [
                    {
                        "image": f"image/{name}.png", "x1": 20 * side, "y1": 0, "x2": 20 * side + 20, "y2": 20,
                        "wav": f"audio/{name}.wav", "label": classes[first + side], "split": split,
                    }
                    for side in (0, 1)
                ]  # fmt: skip
    write_rows(root / "manifest.csv", rows)
    return root


# ---------------------------------------------------------------------- image folders, lists


def jpeg(image: np.ndarray) -> bytes:
    """JPEG of uint8 `[channels, height, width]`, 1 or 3 channels."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def png(image: np.ndarray) -> bytes:
    """PNG (lossless) of uint8 `[channels, height, width]`, 1 or 3 channels."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "PNG")
    return buffer.getvalue()


def to_pil(image: np.ndarray) -> Image.Image:
    """PIL image of uint8 `[channels, height, width]`, 1 or 3 channels."""
    return Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Files by relative name."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


IMAGENET_WNIDS = tuple(list(_names.TINY_IMAGENET)[:10])


def write_imagenet(
    root: Path, wnids: Sequence[str] = IMAGENET_WNIDS, train: int = 3, test: int = 2, size: int = 80
) -> Written:
    """`train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`; images are 1.5 times as wide as high."""
    written = make_split(len(wnids), train, test, size)
    for split, images, labels in (
        ("train", written.train_images, written.train_labels),
        ("val", written.test_images, written.test_labels),
    ):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            wide = np.concatenate([image, image[:, :, : size // 2]], axis=2)
            write_files(root / split / wnids[label], {f"{wnids[label]}_{i}.JPEG": jpeg(wide)})
    return written


def write_image_folder(
    root: Path,
    classes: Sequence[str] = ("bee", "cat", "dog", "eel"),
    train: int = 4,
    test: int = 2,
    size: int = 32,
    splits: tuple[str, str] = ("train", "test"),
) -> Written:
    """`root/<split>/<class>/*.png`, lossless; `test=0`: no second folder. Files sort as the images are returned.

    The classes come one after the other, and must be sorted.
    """
    train_labels, test_labels = np.repeat(np.arange(len(classes)), train), np.repeat(np.arange(len(classes)), test)
    written = Written(
        make_images(train_labels, size, seed=1), train_labels, make_images(test_labels, size, seed=2), test_labels
    )
    for split, images, labels in (
        (splits[0], written.train_images, written.train_labels),
        (splits[1], written.test_images, written.test_labels),
    ):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            write_files(root / split / classes[label], {f"{i:04d}.png": png(image)})
    return written


def write_manifest(
    root: Path,
    classes: Sequence[str] = ("bee", "cat", "dog", "eel"),
    train: int = 4,
    test: int = 2,
    val: int = 0,
    size: int = 32,
    suffix: str = ".csv",
) -> tuple[Path, Written]:
    """`root/list.csv` (or .jsonl) and the PNG images that it names, in `root/images`.

    Returns:
        The list, and the images in its order; the `val` images follow the training images in `train_images`.
    """
    per_split = {"train": train, "val": val, "test": test}
    rows, images, labels = [], {}, {}
    for split, count in per_split.items():
        labels[split] = np.tile(np.arange(len(classes)), count)
        images[split] = make_images(labels[split], size, seed=len(images))
        for i, (image, label) in enumerate(zip(images[split], labels[split], strict=True)):
            name = f"images/{split}_{i}.png"
            write_files(root, {name: png(image)})
            rows.append({"image": name, "label": classes[label], "split": split})
    path = root / f"list{suffix}"
    write_rows(path, rows)
    written = Written(
        np.concatenate([images["train"], images["val"]]),
        np.concatenate([labels["train"], labels["val"]]),
        images["test"],
        labels["test"],
    )
    return path, written


def write_rows(path: Path, rows: Sequence[dict]) -> Path:
    """Rows as csv (columns of the first row) or jsonl."""
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return path
