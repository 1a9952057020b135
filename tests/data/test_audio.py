"""Sounds: one form for every file, each read once, and what cannot be read says why."""

import builtins
import pickle

import numpy as np
import pytest
import torch

from lightning_cil.data import AudioClips, AudioFormat
from lightning_cil.data.audio import number_clips, read_clip, to_float
from tests.data.formats import make_wave, write_sound

RATE = 8_000
FORM = AudioFormat(RATE, 0.01)  # 80 samples


def wave(samples: int, number: int = 0) -> np.ndarray:
    return make_wave(3, number, samples / RATE, RATE)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_samples_are_those_of_the_file(tmp_path, suffix):
    written = wave(80)
    path = write_sound(tmp_path / f"a{suffix}", written, RATE)
    clip = read_clip(str(path), FORM)
    assert clip.dtype == torch.int16
    assert np.array_equal(clip.numpy(), written)
    assert to_float(clip).numpy() == pytest.approx(written / 32768)
    assert to_float(torch.tensor([-32768, 32767], dtype=torch.int16)).tolist() == [-1.0, 32767 / 32768]


@pytest.mark.parametrize(
    ("place", "short", "long"),
    [("end", (0, 37), (0, 0)), ("center", (18, 19), (20, 20))],
)
def test_short_clips_are_filled_and_long_ones_cut(tmp_path, place, short, long):
    form = AudioFormat(RATE, 0.01, place)
    written = wave(43)
    filled = read_clip(str(write_sound(tmp_path / "short.wav", written, RATE)), form).numpy()
    assert np.array_equal(filled, np.pad(written, short))
    written = wave(120)
    cut = read_clip(str(write_sound(tmp_path / "long.wav", written, RATE)), form).numpy()
    assert np.array_equal(cut, written[long[0] : long[0] + 80])


def test_channels_become_their_mean(tmp_path):
    both = np.stack([wave(80), wave(80, 1)], axis=1)
    clip = read_clip(str(write_sound(tmp_path / "stereo.wav", both, RATE)), FORM)
    assert clip.numpy() == pytest.approx(both.astype(float).mean(axis=1), abs=0.51)


def test_another_sample_rate_is_resampled_or_refused(tmp_path):
    seconds, tone = 0.1, 440.0

    def sine(rate: int) -> np.ndarray:
        return (10_000 * np.sin(2 * np.pi * tone * np.arange(round(seconds * rate)) / rate)).astype(np.int16)

    path = str(write_sound(tmp_path / "a.wav", sine(16_000), 16_000))
    clip = read_clip(path, AudioFormat(RATE, seconds)).numpy()
    assert len(clip) == 800
    assert np.abs(clip - sine(RATE))[50:-50].max() < 100  # the window of the sinc reaches over the ends
    with pytest.raises(ValueError, match=r"a\.wav has 16000 Hz; expected 8000 Hz.*`resample=True`"):
        read_clip(path, AudioFormat(RATE, seconds, resample=False))


def broken(tmp_path) -> dict[str, tuple]:
    whole = write_sound(tmp_path / "whole.wav", wave(80), RATE).read_bytes()
    flac = write_sound(tmp_path / "whole.flac", wave(8000), RATE).read_bytes()
    return {
        "empty.wav": (b"", "the file is empty"),
        "silent.wav": (write_sound(tmp_path / "x.wav", wave(0), RATE).read_bytes(), "it has no samples"),
        "cut.wav": (whole[:-30], "cut short: 30 bytes are missing"),
        "cut.flac": (flac[: len(flac) // 2], "cannot be read as a sound"),
        "text.wav": (b"no sound at all", "cannot be read as a sound"),
    }


@pytest.mark.parametrize("name", ["empty.wav", "silent.wav", "cut.wav", "cut.flac", "text.wav"])
def test_what_cannot_be_read_says_why(tmp_path, name):
    content, reason = broken(tmp_path)[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: cannot be read as a sound.*{reason}|{reason}") as caught:
        read_clip(str(path), FORM)
    assert name in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such sound"):
        read_clip(str(tmp_path / "no.wav"), FORM)


def test_samples_that_are_no_numbers_are_refused(tmp_path):
    import soundfile

    path = str(tmp_path / "nan.wav")
    soundfile.write(path, np.array([0.0, np.nan, 1.0], dtype=np.float32), RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match="not numbers"):
        read_clip(path, FORM)


def clips(tmp_path, count=4, **options) -> tuple[AudioClips, np.ndarray]:
    written = np.stack([wave(80, i) for i in range(count)])
    paths = [write_sound(tmp_path / f"{i}.wav", samples, RATE) for i, samples in enumerate(written)]
    return AudioClips(paths, FORM, **options), written


def test_each_clip_is_read_once(tmp_path):
    sounds, written = clips(tmp_path)
    order = torch.tensor([2, 0, 2, 3])
    for _ in range(2):
        batch = sounds.load(order)
        assert batch.shape == (4, 1, 80)
        assert np.array_equal(batch[:, 0].numpy(), written[order])
    assert sounds.num_read == 3
    assert sounds.load(order[:0]).shape == (0, 1, 80)
    again = pickle.loads(pickle.dumps(sounds))
    assert torch.equal(again.load(order), batch)


def test_clips_beyond_the_budget_are_read_anew(tmp_path):
    sounds, written = clips(tmp_path, memory_budget=2 * 160 + 100)  # two clips of 160 bytes
    for _ in range(2):
        assert np.array_equal(sounds.load(torch.arange(4))[:, 0].numpy(), written)
    assert sounds.num_read == 4 + 2


def test_a_clips_key_changes_with_file_and_form(tmp_path):
    sounds, _ = clips(tmp_path)
    keys = {sounds.key(i) for i in range(4)}
    assert len(keys) == 4
    other = AudioClips(sounds.paths, AudioFormat(RATE, 0.01, "center"))
    assert other.key(0) not in keys
    write_sound(tmp_path / "0.wav", wave(81), RATE)
    assert sounds.key(0) not in keys
    assert sounds.key(1) in keys


def test_headers_of_all_files_are_looked_at(tmp_path):
    sounds, _ = clips(tmp_path)
    sounds.check()
    (tmp_path / "2.wav").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2\.wav: cannot be read as a sound \(the file is empty\)"):
        sounds.check()
    assert sounds.num_read == 0


def test_files_of_several_splits_are_numbered_together():
    paths, index = number_clips([["b", "a", "b"], ["c", "a"]])
    assert paths == ["a", "b", "c"]
    assert [part.tolist() for part in index] == [[1, 0, 1], [2, 0]]


def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch):
    path = write_sound(tmp_path / "a.wav", wave(80), RATE)
    true_import = builtins.__import__

    def without(name, *rest, **named):
        if name == "soundfile":
            raise ImportError("No module named 'soundfile'")
        return true_import(name, *rest, **named)

    monkeypatch.setattr("lightning_cil.data.audio.import_module", without)
    with pytest.raises(ImportError, match=r"Sounds need `soundfile`.*lightning-cil\[audio\]"):
        read_clip(str(path), FORM)


@pytest.mark.parametrize("options", [{"sample_rate": 0}, {"seconds": 0.0}, {"place": "start"}])
def test_forms_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="expected a positive rate"):
        AudioFormat(**options)
