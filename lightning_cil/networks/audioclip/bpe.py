"""CLIP's byte-pair encoding from OpenAI's file of merges.

Source: https://github.com/openai/CLIP (`simple_tokenizer.py`; Sennrich et al., Neural Machine Translation of Rare Words
with Subword Units, 2016, https://arxiv.org/abs/1508.07909).

Departure: text is lower-cased and its white space joined, but neither repaired (ftfy) nor unescaped (HTML).
"""

import gzip
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from lightning_cil.networks.weight_files import cause

NUM_MERGES = 48_894
"""Lines of the file that CLIP uses, after its first."""

VOCAB_SIZE = 2 * 256 + NUM_MERGES + 2
"""Bytes, bytes that end a word, merges, start and end of text: 49,408."""

SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
"""Of OpenAI's `bpe_simple_vocab_16e6.txt.gz`."""

_END = "</w>"
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The merges of OpenAI's file, gzipped or plain, first the most frequent.

    Raises:
        ValueError: If the file is another.
    """
    content = path.read_bytes()
    try:
        text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{_refusal(path)} It could not be read ({cause(error)}): download it again.") from error
    merges = [tuple(line.split()) for line in text.split("\n")[1 : NUM_MERGES + 1]]
    pairs = [(merge[0], merge[1]) for merge in merges if len(merge) == 2]
    if len(pairs) != NUM_MERGES:
        raise ValueError(f"{_refusal(path)} It has {len(pairs):,} merges after its first line.")
    return pairs


def _refusal(path: Path) -> str:
    return (
        f"The tokenizer got {str(path)!r}, expected OpenAI's `bpe_simple_vocab_16e6.txt.gz`: a line of its own, then "
        f"at least {NUM_MERGES:,} lines with two symbols each."
    )


_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]


def byte_symbols() -> dict[int, str]:
    """A printable character for each byte, in the order of the vocabulary's first 256 entries."""
    return {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(_OTHERS)}


class BytePairEncoder:
    """Text to token ids, without start and end.

    Args:
        merges: Pairs of symbols; an earlier pair is joined first.
    """

    def __init__(self, merges: Sequence[tuple[str, str]]) -> None:
        self._symbols = byte_symbols()
        single = list(self._symbols.values())
        vocabulary = [*single, *(symbol + _END for symbol in single), *(first + second for first, second in merges)]
        self._ids = {symbol: i for i, symbol in enumerate(vocabulary)}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._word = lru_cache(maxsize=65_536)(self._encode_word)

    def __call__(self, text: str) -> list[int]:
        """The ids of a text."""
        return [token for word in split_words(" ".join(text.split()).lower()) for token in self._word(word)]

    def _encode_word(self, word: str) -> tuple[int, ...]:
        parts = [self._symbols[byte] for byte in word.encode("utf-8")]
        parts[-1] += _END
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            parts = list(_join(parts, best))
        return tuple(self._ids[part] for part in parts)


def _join(parts: Sequence[str], pair: tuple[str, str]) -> Iterator[str]:
    """The parts with every occurrence of the pair, from the left, as one."""
    i = 0
    while i < len(parts):
        if tuple(parts[i : i + 2]) == pair:
            yield parts[i] + parts[i + 1]
            i += 2
        else:
            yield parts[i]
            i += 1


def split_words(text: str) -> Iterator[str]:
    """Cut into English contractions, runs of letters, single digits, and runs of anything else but white space."""
    start = 0
    while start < len(text):
        kind = _kind(text[start])
        end = start + 1
        contraction = next((c for c in _CONTRACTIONS if text.startswith(c, start)), None)
        if contraction is not None:
            end = start + len(contraction)
        elif kind != "number":
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != "space":
            yield text[start:end]
        start = end


def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    return {"L": "letter", "N": "number"}.get(unicodedata.category(character)[0], "other")
