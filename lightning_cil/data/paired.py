"""Pictures and sounds that meet through their class alone: `pair`, and `ImageNetESC`, which needs it."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from lightning_cil._random import permutation
from lightning_cil.data._files import Augment, FileList, FileListTasks, ResizeCrop, missing
from lightning_cil.data._names import IMAGENET_ESC
from lightning_cil.data.audio import MEMORY_BUDGET, AudioFormat, Place
from lightning_cil.data.base import DEFAULT_ORDER
from lightning_cil.data.splits import near_equal_sizes
from lightning_cil.networks.audioclip import CLIP_MEAN, CLIP_STD

DEFAULT_TASKS = 3

PairBy = Literal["images", "clips"]
Names = Literal["image", "audio", "both"]
AudioSplit = Literal["auto", "folds", "file"]


def pair(
    images: Sequence[int],
    clips: Sequence[int],
    *,
    seed: int,
    by: PairBy = "images",
    limit: int | None = None,
) -> list[tuple[int, int]]:
    """Pair pictures with sounds of the same class, always in the same way for one seed.

    Inside a class, the i-th picture gets sound π(i mod n) of its n sounds, π being a permutation of the seed and the
    class (`by='images'`); with `by='clips'` the i-th sound gets picture π(i mod n) of the n pictures.

    Args:
        images: Class of each picture.
        clips: Class of each sound.
        seed: Selects π.
        by: Which of the two come once each (`images`) while the others are repeated or left out.
        limit: Pairs of each class at most, chosen by the seed; `None`: all.

    Returns:
        Positions of picture and sound, sorted by class. Classes that lack one of the two have no pair.

    Example:
        >>> pair([0, 0, 1], [1, 0], seed=0)
        [(0, 1), (1, 1), (2, 0)]
    """
    pairs: list[tuple[int, int]] = []
    for label in sorted(set(images) & set(clips)):
        of_images, of_clips = ([i for i, c in enumerate(part) if c == label] for part in (images, clips))
        first, second = (of_images, of_clips) if by == "images" else (of_clips, of_images)
        order = permutation(len(second), seed, label).tolist()
        chosen = sorted(permutation(len(first), seed, label, 1).tolist()[:limit])
        matched = [(first[i], second[order[i % len(second)]]) for i in chosen]
        pairs += matched if by == "images" else [(image, clip) for clip, image in matched]
    return pairs


class ImageNetESC(FileListTasks):
    """ImageNet-ESC-19 or -27 as a stream: ImageNet's pictures and ESC-50's sounds of the same things.

    Sources: K. J. Piczak, ESC: Dataset for Environmental Sound Classification (2015),
    https://github.com/karolpiczak/ESC-50 (CC BY-NC 3.0: 2,000 clips of 5 s, 44.1 kHz); ImageNet,
    https://image-net.org (non-commercial research); the 27 classes, 19 of them well matched, by Lin et al.,
    Multimodality Helps Unimodality (2023), https://arxiv.org/abs/2301.06267. They pair classes, not pictures with
    sounds; here each picture gets one sound of its class (`pair`), training and test sounds being of different folds.

    ESC-50 is read from `esc_root/meta/esc50.csv` and `esc_root/audio/`. Pictures are read from `image_root/images.csv`
    (columns path, wnid, split), if that is there, else from `image_root/train/<wnid>/*` and `image_root/val/<wnid>/*`.
    Class ids follow ImageNet's.

    Args:
        esc_root: Folder of ESC-50.
        image_root: Folder of the pictures.
        num_classes: 19, the well matched ones, or 27.
        names: What classes are called, which is what texts are made of: `image`: CLIP's name of the ImageNet class;
            `audio`: ESC-50's category; `both`: both, joined.
        audio_split: `folds`: `train_folds` and `test_folds`; `file`: `esc_root/meta/split.csv` (filename, split);
            `auto`: that file, if it is there.
        train_folds: Folds of ESC-50 to train on.
        test_folds: Folds to test on, others than those.
        pair_by: `images`: every picture once; `clips`: every sound once.
        max_pairs: Pairs of each class and split at most.
        pair_seed: Selects the pairs.
        share_pictures: Whether a class without a picture in one split takes those of the other. Its scores then do not
            tell new pictures from old ones; the sounds stay apart.
        image_size: Side of the pictures in pixels; the shorter side is resized (bicubic), the middle is kept.
        in_memory: See `ImageFolderTasks`.
        augment: See `ImageFolderTasks`; sounds are not augmented.
        mean: Channel means of pictures scaled to [0, 1]; CLIP's by default.
        std: Channel standard deviations of pictures scaled to [0, 1].
        sample_rate: Of the sounds, in hertz.
        seconds: Length of the sounds: shorter ones are filled with zeros, longer ones are cut.
        place: `end`: at the end, as Lin et al.; `center`: at both sides, as AudioCLIP.
        resample: Whether files of another rate are resampled; if not, they are refused.
        audio_memory: Bytes of sounds that are kept; the others are read anew each time.
        num_tasks: Number of tasks, of nearly equal size: the first ones get one class more. Default: 3.
        base: Classes of the first task (with `increment`).
        increment: Classes of every further task (with `base`).
        sizes: Classes of each task, uneven ones allowed.
        class_order: `seed:N`, `sorted`, or the class ids or names in the order they are learned.
        batch_size: Training samples of a step on each process.
        eval_batch_size: Samples of an evaluation batch on each process.
        val_fraction: Share of the training pairs that is held out for validation, in [0, 1).
        num_workers: Processes of each training process that decode pictures; pictures in memory need none.
        split_seed: Selects the held-out pairs.
    """

    def __init__(
        self,
        esc_root: str | Path,
        image_root: str | Path,
        *,
        num_classes: int = 19,
        names: Names = "image",
        audio_split: AudioSplit = "auto",
        train_folds: Sequence[int] = (1, 2, 3, 4),
        test_folds: Sequence[int] = (5,),
        pair_by: PairBy = "images",
        max_pairs: int | None = None,
        pair_seed: int = 0,
        share_pictures: bool = False,
        image_size: int = 224,
        in_memory: bool | None = None,
        augment: Augment = "crop",
        mean: tuple[float, float, float] = CLIP_MEAN,
        std: tuple[float, float, float] = CLIP_STD,
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
        batch_size: int = 64,
        eval_batch_size: int = 128,
        val_fraction: float = 0.0,
        num_workers: int = 4,
        split_seed: int = 0,
    ) -> None:
        for name, value, known in (
            ("num_classes", num_classes, (19, 27)),
            ("names", names, ("image", "audio", "both")),
            ("audio_split", audio_split, ("auto", "folds", "file")),
            ("pair_by", pair_by, ("images", "clips")),
        ):
            if value not in known:
                raise ValueError(f"`{name}={value!r}`: expected one of {', '.join(map(str, known))}.")
        if set(train_folds) & set(test_folds) or not train_folds or not test_folds:
            raise ValueError(
                f"got `train_folds={list(train_folds)}` and `test_folds={list(test_folds)}`; expected at least one "
                "fold in each and none in both: clips of one recording are in one fold."
            )
        if max_pairs is not None and max_pairs < 1:
            raise ValueError(f"`max_pairs={max_pairs}`: expected at least 1, or null for all.")
        self.classes = [entry for entry in IMAGENET_ESC if entry[5] or num_classes == 27]
        self.esc_root, self.image_root = Path(esc_root), Path(image_root)
        form = AudioFormat(sample_rate, seconds, place, resample)
        clips = self._clips(audio_split, set(train_folds), set(test_folds))
        pictures = self._pictures()
        if share_pictures:
            _share(pictures)
        pairs = {
            split: pair(
                pictures[split].targets,
                clips[split].targets,
                seed=pair_seed + (split == "test"),
                by=pair_by,
                limit=max_pairs,
            )
            for split in ("train", "test")
        }
        self._check_pairs(pictures, clips, pairs)
        files = {
            split: pictures[split].take(torch.tensor([picture for picture, _ in found], dtype=torch.int64))
            for split, found in pairs.items()
        }
        if base is None and increment is None and sizes is None:
            num_tasks, sizes = (
                None,
                near_equal_sizes(len(self.classes), DEFAULT_TASKS if num_tasks is None else num_tasks),
            )
        super().__init__(
            source=f"{self.image_root} with {self.esc_root}",
            class_names=[_name(entry[2], entry[3], names) for entry in self.classes],
            train=files["train"],
            test=files["test"],
            val=FileList(),
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
        self._fixed = ResizeCrop(image_size, image_size, bicubic=True)
        sounds = {split: [clips[split].paths[i] for _, i in found] for split, found in pairs.items()}
        self.pair_sounds(sounds["train"], sounds["test"], form, audio_memory, f"{pair_by} {max_pairs} {pair_seed}")

    def prepare_image(self, image: Image.Image) -> Tensor:
        """See `IncrementalDataModule.prepare_image`; needs no data."""
        return self._fixed(image)

    # ------------------------------------------------------------------ what is on disk

    def _clips(self, audio_split: AudioSplit, train_folds: set[int], test_folds: set[int]) -> dict[str, FileList]:
        table, audio = self.esc_root / "meta" / "esc50.csv", self.esc_root / "audio"
        how = "Unpack ESC-50 (https://github.com/karolpiczak/ESC-50) so that both are there, or correct `esc_root`."
        if not table.is_file() or not audio.is_dir():
            raise missing(self, "`meta/esc50.csv` with `audio`", [self.esc_root], how)
        listed = self.esc_root / "meta" / "split.csv"
        split_of = None
        if audio_split == "file" or (audio_split == "auto" and listed.is_file()):
            split_of = _read_split(listed)
        ids = {entry[3]: i for i, entry in enumerate(self.classes)}
        result = {"train": FileList(), "test": FileList()}
        for where, row in csv_rows(table, ("filename", "fold", "target", "category")):
            label = ids.get(row["category"])
            if label is None:
                continue
            if row["target"] != str(self.classes[label][4]):
                raise ValueError(
                    f"{where}: `target` of {row['category']!r} is {row['target']!r}; expected "
                    f"'{self.classes[label][4]}' as in ESC-50."
                )
            path = audio / row["filename"]
            if not path.is_file():
                raise FileNotFoundError(f"{where}: there is no file `{path}`. Unpack ESC-50 anew, or remove the row.")
            split = _split_of(row, where, split_of, train_folds, test_folds)
            if split is not None:
                result[split].paths.append(os.fspath(path))
                result[split].targets.append(label)
        return result

    def _pictures(self) -> dict[str, FileList]:
        table = self.image_root / "images.csv"
        wnids = [entry[0] for entry in self.classes]
        if not table.is_file():
            folders = {"train": self.image_root / "train", "test": self.image_root / "val"}
            if not all(folder.is_dir() for folder in folders.values()):
                how = "Give the folder of ImageNet as `image_root`, with `train/<wnid>/*` and `val/<wnid>/*`."
                raise missing(self, "`images.csv`, nor `train` and `val`", [self.image_root], how)
            return {split: FileList.of_folders(folder, wnids) for split, folder in folders.items()}
        result = {"train": FileList(), "test": FileList()}
        for where, row in csv_rows(table, ("path", "wnid", "split")):
            if row["split"] not in ("train", "test"):
                raise ValueError(f"{where}: `split` is {row['split']!r}; expected 'train' or 'test'.")
            if row["wnid"] not in wnids:
                continue
            path = self.image_root / row["path"]
            if not path.is_file():
                raise FileNotFoundError(f"{where}: there is no file `{path}`; expected a path below `{table.parent}`.")
            result[row["split"]].paths.append(os.fspath(path))
            result[row["split"]].targets.append(wnids.index(row["wnid"]))
        return result

    def _check_pairs(
        self, pictures: dict[str, FileList], clips: dict[str, FileList], pairs: dict[str, list[tuple[int, int]]]
    ) -> None:
        for split, found in pairs.items():
            have = {pictures[split].targets[i] for i, _ in found}
            lacking = [label for label in range(len(self.classes)) if label not in have]
            if lacking:
                wnid, _, name, category, *_ = self.classes[lacking[0]]
                counts = [part[split].targets.count(lacking[0]) for part in (pictures, clips)]
                raise ValueError(
                    f"{len(lacking)} of {len(self.classes)} classes have no {split} pair, such as {name!r} ({wnid}, "
                    f"{category}) with {counts[0]} pictures in {self.image_root} and {counts[1]} sounds in "
                    f"{self.esc_root}; expected at least one of both. Add files, or for pictures that are in the other "
                    "split only give `share_pictures=True`."
                )


# ---------------------------------------------------------------------- private


def _share(pictures: dict[str, FileList]) -> None:
    """A class without a picture in one split takes those of the other."""
    present = {split: set(files.targets) for split, files in pictures.items()}
    for split, other in (("train", "test"), ("test", "train")):
        for path, label in list(zip(pictures[other].paths, pictures[other].targets, strict=True)):
            if label not in present[split]:
                pictures[split].paths.append(path)
                pictures[split].targets.append(label)


def _split_of(
    row: dict[str, str], where: str, split_of: dict[str, str] | None, train_folds: set[int], test_folds: set[int]
) -> str | None:
    """`train`, `test`, or neither."""
    if split_of is not None:
        if row["filename"] not in split_of:
            raise ValueError(f"{where}: {row['filename']!r} is not in split.csv; expected every sound to be there.")
        return split_of[row["filename"]]
    if not row["fold"].isdecimal():
        raise ValueError(f"{where}: `fold` is {row['fold']!r}; expected a whole number.")
    fold = int(row["fold"])
    return "train" if fold in train_folds else "test" if fold in test_folds else None


def _read_split(path: Path) -> dict[str, str]:
    """Which split each sound is in."""
    result = {}
    for where, row in csv_rows(path, ("filename", "split")):
        if row["split"] not in ("train", "test"):
            raise ValueError(f"{where}: `split` is {row['split']!r}; expected 'train' or 'test'.")
        result[row["filename"]] = row["split"]
    return result


def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a csv file with what messages call them.

    Args:
        path: The file.
        columns: Those that must be there, with a value in every row; others may be.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When a column or a value is not there.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a csv file with the columns {', '.join(columns)}.")
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        absent = [name for name in columns if name not in (reader.fieldnames or ())]
        if absent:
            raise ValueError(f"{path}: the header is {reader.fieldnames}, without {absent}.")
        for number, row in enumerate(reader, 1):
            where = f"{path}, row {number} (line {reader.line_num})"
            short = [name for name in columns if row[name] is None]
            if short:
                raise ValueError(f"{where}: no value for {short}; expected {len(reader.fieldnames or ())} values.")
            yield where, row


def _name(image: str, category: str, names: Names) -> str:
    sound = category.replace("_", " ")
    if names == "image" or (names == "both" and image == sound):
        return image
    return sound if names == "audio" else f"{image}, {sound}"
