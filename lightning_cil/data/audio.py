"""Sounds of a split: files that are read once, brought to one form and kept in memory.

Every clip becomes one channel of one length at one sample rate, as 16-bit integers, which is what the files hold.
Batches take them to the device so; `base.py` makes them float in [-1, 1] there. Reading needs `soundfile` (WAV, FLAC,
Ogg), another sample rate needs `torchaudio`: `pip install lightning-cil[audio]`.
"""

import hashlib
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

INT16_RANGE = 32_768
"""A sample of 16 bits over this is in [-1, 1)."""
MEMORY_BUDGET = 2**31
"""Bytes of clips that are kept by default; those of all of ESC-50 take 882 MB."""

Place = Literal["end", "center"]


@dataclass(frozen=True)
class AudioFormat:
    """The form that every clip is brought to.

    Several channels become their mean. Another sample rate is resampled (torchaudio's windowed sinc), or refused. A
    clip that is too short is filled with zeros and one that is too long is cut, both at `place`.

    Args:
        sample_rate: In hertz, at least 1.
        seconds: Length, above 0.
        place: `end`: the beginning is kept, zeros follow (ImageNet-ESC). `center`: the middle is kept, zeros on both
            sides (AudioCLIP's evaluation).
        resample: Whether files of another sample rate are resampled; if not, they are refused.

    Raises:
        ValueError: For numbers out of range or an unknown place.
    """

    sample_rate: int = 44_100
    seconds: float = 5.0
    place: Place = "end"
    resample: bool = True

    def __post_init__(self) -> None:
        if self.sample_rate < 1 or self.num_samples < 1 or self.place not in ("end", "center"):
            raise ValueError(
                f"got `sample_rate={self.sample_rate}`, `seconds={self.seconds}` and `place={self.place!r}`; expected "
                "a positive rate in hertz, a positive length, and 'end' or 'center'."
            )

    @property
    def num_samples(self) -> int:
        """Samples of a clip."""
        return round(self.sample_rate * self.seconds)


class AudioClips:
    """Sound files by number; each is read when it is first asked for and kept while the budget lasts.

    Args:
        paths: The files, each once.
        form: What the clips are brought to.
        memory_budget: Bytes to keep at most; clips beyond it are read anew every time.
    """

    def __init__(self, paths: Sequence[str | Path], form: AudioFormat, memory_budget: int = MEMORY_BUDGET) -> None:
        self.paths = [os.fspath(path) for path in paths]
        self.form = form
        self.num_read = 0
        """How many files have been read and brought to the form so far."""
        self._room = memory_budget // (2 * form.num_samples)
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def check(self) -> None:
        """Look at the headers of all files.

        Raises:
            FileNotFoundError: When a file is not there.
            ValueError: When one is empty, cut short, no sound file, or has a sample rate that is refused.
        """
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(lambda path: check_header(path, self.form), self.paths):
                pass

    def load(self, clips: Tensor) -> Tensor:
        """Clips by number.

        Args:
            clips: long `[B]`.

        Returns:
            int16 `[B, 1, num_samples]`.

        Raises:
            ValueError: When a file cannot be read, see `read_clip`.
        """
        numbers = clips.tolist()
        if not numbers:
            return torch.empty(0, 1, self.form.num_samples, dtype=torch.int16)
        new = [number for number in dict.fromkeys(numbers) if number not in self._kept]
        read: dict[int, Tensor] = {}
        if new:
            with ThreadPoolExecutor(max_workers=min(len(new), 8)) as pool:
                waves = pool.map(lambda number: read_clip(self.paths[number], self.form), new)
                read = dict(zip(new, waves, strict=True))
            self.num_read += len(new)
            self._kept.update(list(read.items())[: max(0, self._room - len(self._kept))])
        return torch.stack([self._kept[n] if n in self._kept else read[n] for n in numbers]).unsqueeze(1)

    def key(self, clip: int) -> str:
        """What a clip's samples depend on: 16 hex digits of file, size, time of change and form."""
        path = self.paths[clip]
        state = os.stat(path)
        identity = f"{os.path.abspath(path)}|{state.st_size}|{state.st_mtime_ns}|{self.form}"
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}  # other processes read for themselves


@dataclass
class Sounds:
    """Which clip belongs to each sample of a split.

    Args:
        clips: Of the whole data set.
        index: long `[N]`: number of each sample's clip.
        chosen: How the pairs were chosen, for `identity`.
        wanted: Whether batches have the sounds themselves.
    """

    clips: AudioClips
    index: Tensor
    chosen: str = ""
    wanted: bool = True

    def identity(self) -> bytes:
        """What tells one pairing from another: the form, how pairs were chosen, and each sample's file name."""
        names = [os.path.basename(self.clips.paths[clip]) for clip in self.index.tolist()]
        return "|".join([str(self.clips.form), self.chosen, *names]).encode()

    def columns(self, samples: Tensor) -> dict[str, Tensor]:
        """What a batch has of these samples: `clip`, and `audio` if it is wanted."""
        clip = self.index[samples]
        return {"clip": clip, "audio": self.clips.load(clip)} if self.wanted else {"clip": clip}

    def load(self, samples: Tensor) -> Tensor:
        """The clips of samples, int16 `[B, 1, num_samples]`."""
        return self.clips.load(self.index[samples])


def number_clips(files: Sequence[Sequence[str]]) -> tuple[list[str], list[Tensor]]:
    """Number files in their sorted order, those of several splits together.

    Args:
        files: The file of each sample, for each split; a file may come several times.

    Returns:
        Every file once, and the number of each sample's, long, for each split.
    """
    paths = sorted({file for part in files for file in part})
    numbers = {path: number for number, path in enumerate(paths)}
    return paths, [torch.tensor([numbers[file] for file in part], dtype=torch.int64) for part in files]


def to_float(audio: Tensor) -> Tensor:
    """int16 samples as float32 in [-1, 1), same shape."""
    return audio.to(torch.float32) / INT16_RANGE


# ---------------------------------------------------------------------- one file


def check_header(path: str, form: AudioFormat) -> None:
    """Look at a file's header; see `AudioClips.check` for what is refused."""
    soundfile = _import("soundfile")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such sound; expected a file that the data set's list names.")
    if os.path.getsize(path) == 0:
        raise ValueError(_unreadable(path, "the file is empty"))
    missing = _missing_bytes(path)
    if missing:
        raise ValueError(_unreadable(path, f"the file is cut short: {missing} bytes are missing"))
    try:
        info = soundfile.info(path)
    except Exception as error:
        raise ValueError(_unreadable(path, str(error))) from error
    if info.frames == 0:
        raise ValueError(_unreadable(path, "it has no samples"))
    if info.samplerate != form.sample_rate and not form.resample:
        raise ValueError(
            f"{path} has {info.samplerate} Hz; expected {form.sample_rate} Hz. Convert the file, or give "
            "`resample=True`."
        )


def read_clip(path: str, form: AudioFormat) -> Tensor:
    """Read a sound file and bring it to a form.

    Args:
        path: WAV, FLAC, Ogg or what else `soundfile` reads.
        form: What it is brought to.

    Returns:
        int16 `[num_samples]`.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is empty, cut short, no sound file, or has a sample rate that is refused.
    """
    check_header(path, form)
    soundfile = _import("soundfile")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)  # [frames, channels]
        frames = soundfile.info(path).frames
    except Exception as error:
        raise ValueError(_unreadable(path, str(error))) from error
    if len(samples) < frames:
        raise ValueError(_unreadable(path, f"the file is cut short: {len(samples)} of {frames} samples"))
    wave = torch.from_numpy(samples).mean(dim=1)
    if not wave.isfinite().all():
        raise ValueError(_unreadable(path, "some samples are not numbers"))
    if rate != form.sample_rate:
        wave = _import("torchaudio.functional").resample(wave, rate, form.sample_rate)
    return (_fit(wave, form) * INT16_RANGE).round().clamp(-INT16_RANGE, INT16_RANGE - 1).to(torch.int16)


def _fit(wave: Tensor, form: AudioFormat) -> Tensor:
    """Cut or fill with zeros."""
    excess = len(wave) - form.num_samples
    before = excess // 2 if form.place == "center" and excess > 0 else 0
    wave = wave[before : before + form.num_samples]
    lack = form.num_samples - len(wave)
    left = lack // 2 if form.place == "center" else 0
    return torch.nn.functional.pad(wave, (left, lack - left))


def _missing_bytes(path: str) -> int:
    """How many bytes a WAV file has less than its header says; soundfile would silently read what there is."""
    with open(path, "rb") as file:
        header = file.read(12)
    if len(header) < 12 or header[:4] != b"RIFF" or header[8:] != b"WAVE":
        return 0
    size: int = struct.unpack("<I", header[4:8])[0]
    # recorders that stream leave 0 or all ones
    return max(0, size + 8 - os.path.getsize(path)) if 0 < size < 0xFFFFFFFF - 8 else 0


def _unreadable(path: str, reason: str) -> str:
    return (
        f"{path}: cannot be read as a sound ({reason}); expected a complete WAV, FLAC or Ogg file. Replace the file, "
        "or take it out of the data set."
    )


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"Sounds need `{name.split('.')[0]}`, which cannot be imported ({error}). Install it with "
            "`pip install lightning-cil[audio]`."
        ) from error
