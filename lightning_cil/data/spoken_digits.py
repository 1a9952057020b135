"""`SpokenDigits`: ten digits as scanned pictures, as spoken words and as text; small and real."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from lightning_cil.data._files import missing
from lightning_cil.data.audio import MEMORY_BUDGET, AudioClips, AudioFormat, Place, Sounds
from lightning_cil.data.augment import BatchAugment
from lightning_cil.data.base import DEFAULT_ORDER, IncrementalDataModule
from lightning_cil.data.digits import SplitDigits
from lightning_cil.data.images import ImageSplit, TensorImages
from lightning_cil.data.paired import PairBy, pair

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MEAN, STD = 0.3053, 0.3763


class SpokenDigits(IncrementalDataModule):
    """Scanned and spoken digits as a stream with pictures, sounds and words, by default 5 tasks of 2 classes.

    Sources: the 1,797 pictures of `SplitDigits`; Z. Jackson et al., Free Spoken Digit Dataset,
    https://github.com/Jakobovski/free-spoken-digit-dataset (CC BY-SA 4.0: 3,000 clips of 6 speakers, 8 kHz). Each
    picture gets one sound of its digit (`pair`); training and test sounds are different takes.

    Args:
        root: Folder with `recordings/<digit>_<speaker>_<take>.wav`.
        image_size: Side of the pictures in pixels; the 8x8 originals are enlarged (bilinear) and get three channels.
        test_takes: Takes of every speaker and digit to test on; the data set's own are 0 to 4 of 50.
        pair_by: `images`: every picture once; `clips`: every sound once.
        max_pairs: Pairs of each class and split at most.
        pair_seed: Selects the pairs.
        sample_rate: Of the sounds, in hertz.
        seconds: Length of the sounds: shorter ones are filled with zeros, longer ones are cut.
        place: Where: `end`, or `center` for both sides.
        resample: Whether files of another rate are resampled; if not, they are refused.
        audio_memory: Bytes of sounds that are kept; the others are read anew each time.
        num_tasks: Number of equal tasks; 5 when no other description is given.
        base: Classes of the first task (with `increment`).
        increment: Classes of every further task (with `base`).
        sizes: Classes of each task, uneven ones allowed.
        class_order: `seed:N`, `sorted`, or the digits in the order they are learned.
        batch_size: Training samples of a step on each process.
        eval_batch_size: Samples of an evaluation batch on each process.
        val_fraction: Share of the training pairs that is held out for validation, in [0, 1).
        split_seed: Selects the held-out pairs.
    """

    default_num_tasks = 5

    def __init__(
        self,
        root: str | Path,
        *,
        image_size: int = 32,
        test_takes: Sequence[int] = (0, 1, 2, 3, 4),
        pair_by: PairBy = "images",
        max_pairs: int | None = None,
        pair_seed: int = 0,
        sample_rate: int = 8_000,
        seconds: float = 1.0,
        place: Place = "end",
        resample: bool = True,
        audio_memory: int = MEMORY_BUDGET,
        num_tasks: int | None = None,
        base: int | None = None,
        increment: int | None = None,
        sizes: Sequence[int] | None = None,
        class_order: str | list[int] | list[str] = DEFAULT_ORDER,
        batch_size: int = 32,
        eval_batch_size: int = 256,
        val_fraction: float = 0.0,
        split_seed: int = 0,
    ) -> None:
        super().__init__(
            class_names=WORDS,
            augment=BatchAugment(mean=[MEAN] * 3, std=[STD] * 3),
            num_tasks=num_tasks,
            base=base,
            increment=increment,
            sizes=sizes,
            class_order=class_order,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            val_fraction=val_fraction,
            num_workers=0,
            split_seed=split_seed,
        )
        if image_size < 1 or (max_pairs is not None and max_pairs < 1):
            raise ValueError(f"got `image_size={image_size}` and `max_pairs={max_pairs}`; expected at least 1.")
        self.image_size = image_size
        self.image_shape = (3, image_size, image_size)
        self.root = Path(root)
        self.test_takes = set(test_takes)
        self.pair_by: PairBy = pair_by
        self.max_pairs = max_pairs
        self.pair_seed = pair_seed
        files = sorted((self.root / "recordings").glob("*.wav"))
        if not files:
            how = "Clone https://github.com/Jakobovski/free-spoken-digit-dataset, or correct `root`."
            raise missing(self, "`recordings/*.wav`", [self.root], how)
        self._clips = AudioClips(files, AudioFormat(sample_rate, seconds, place, resample), audio_memory)
        self._digits, self._takes = zip(*(self._parse(file) for file in files), strict=True)

    def setup(self, stage: str) -> None:
        """See `IncrementalDataModule.setup`; looks at all sounds' headers first."""
        if not self._splits:
            self._clips.check()
        super().setup(stage)

    def load_split(self, train: bool) -> ImageSplit:
        """See `IncrementalDataModule.load_split`."""
        pictures = SplitDigits().load_split(train)
        numbers = [i for i, take in enumerate(self._takes) if (take in self.test_takes) != train]
        found = pair(
            pictures.targets.tolist(),
            [self._digits[i] for i in numbers],
            seed=self.pair_seed + (not train),
            by=self.pair_by,
            limit=self.max_pairs,
        )
        split = "train" if train else "test"
        lacking = sorted(set(range(10)) - {self._digits[numbers[clip]] for _, clip in found})
        if lacking:
            raise ValueError(
                f"{self.root}: the digit {lacking[0]} has no {split} sound with `test_takes={sorted(self.test_takes)}` "
                f"({len(lacking)} such digits); expected takes of every digit in both splits. There are the takes "
                f"{sorted(set(self._takes))}."
            )
        chosen = torch.tensor([picture for picture, _ in found])
        images = pictures.stored(chosen).float()
        images = torch.nn.functional.interpolate(images, (self.image_size,) * 2, mode="bilinear", antialias=True)
        images = images.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)
        result = TensorImages(images, pictures.targets[chosen], 10, f"{pictures.source} with {self.root} ({split})")
        index = torch.tensor([numbers[clip] for _, clip in found])
        result.sounds = Sounds(self._clips, index, f"{self.pair_by} {self.max_pairs} {self.pair_seed}")
        return result

    @staticmethod
    def _parse(file: Path) -> tuple[int, int]:
        """Digit and take."""
        parts = re.fullmatch(r"(\d)_[^_]+_(\d+)\.wav", file.name)
        if not parts:
            raise ValueError(f"{file}: expected a name such as `7_jackson_32.wav`: digit, speaker, take.")
        return int(parts[1]), int(parts[2])
