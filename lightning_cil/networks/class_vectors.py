"""Word vectors of class names, from a file of GloVe's format: a word and its numbers a line, separated by spaces.

Pennington, Socher, Manning, GloVe: Global Vectors for Word Representation, 2014,
https://nlp.stanford.edu/projects/glove/.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

_SPELLING = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}
"""How VOC writes two words, as they are in a dictionary."""


def class_vectors(path: str | Path, names: Sequence[str], size: int) -> Tensor:
    """The vectors of classes; a name of several words has their mean.

    Args:
        path: The file, UTF-8.
        names: Class names. A line of the whole name, with `_` for its spaces, goes before its words.
        size: Numbers in a line.

    Returns:
        float `[names, size]`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line has other than `size` numbers, or a class's words are missing.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"`vectors={str(path)!r}` is no file, expected GloVe's text format (such as glove.6B.300d.txt). "
            f"The path is relative to {str(Path.cwd())!r}."
        )
    words = {name: _SPELLING.get(name, name).lower().replace("_", " ").split() for name in names}
    whole = {name: "_".join(parts) for name, parts in words.items()}
    wanted = {word for parts in words.values() for word in parts} | set(whole.values())
    found: dict[str, Tensor] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            word, _, rest = line.rstrip().partition(" ")
            if word in wanted and word not in found:
                found[word] = _numbers(rest, size, f"line {number} of `vectors={str(path)!r}`")
    missing = [n for n in names if whole[n] not in found and not all(word in found for word in words[n])]
    if missing:
        raise ValueError(
            f"`vectors={str(path)!r}` has no vectors for {missing}, expected each name (with `_` for spaces) or all of "
            "its words. Add lines for them."
        )
    rows = [found[whole[n]] if whole[n] in found else torch.stack([found[w] for w in words[n]]).mean(0) for n in names]
    return torch.stack(rows) if rows else torch.zeros(0, size)


def _numbers(text: str, size: int, where: str) -> Tensor:
    try:
        values = [float(part) for part in text.split()]
    except ValueError:
        values = []
    if len(values) != size:
        raise ValueError(f"{where} does not hold a word and {size} numbers. Give `vector_size` as the file has it.")
    return torch.tensor(values)
