"""Draws the figures of a report, in several processes where there are many."""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from lightning_cil.report.figures import Picture
from lightning_cil.report.files import STYLE, save

MANY = 60
"""Figures from which on several processes are quicker: one takes about 0.3 s, a process some seconds to start."""
MOST_PROCESSES = 8


def draw_all(pictures: Sequence[Picture], folder: Path, processes: int | None = 1) -> list[str]:
    """Write every picture as SVG and PNG; the files are the same with any number of processes.

    Args:
        pictures: The pictures.
        folder: Where to; it exists.
        processes: How many draw. `None`: one for each core, at most 8, for 60 pictures or more, else 1. With more than
            1 a script must start its work below `if __name__ == "__main__":`.

    Returns:
        A data URL of each, for a page.

    Raises:
        ValueError: For fewer than one process.
    """
    if processes is None:
        processes = min(MOST_PROCESSES, _cores()) if len(pictures) >= MANY else 1
    if processes < 1:
        raise ValueError(f"`processes={processes}`: expected 1 or more. Leave it out to have as many as are useful.")
    paths = [folder / picture.name for picture in pictures]
    if processes == 1:
        import matplotlib

        with matplotlib.rc_context(_style()):
            return [_draw(*item) for item in zip(pictures, paths, strict=True)]
    spawn = multiprocessing.get_context("spawn")  # t-SNE's OpenMP hangs in the fork of a process that has used it
    with ProcessPoolExecutor(min(processes, len(pictures) or 1), spawn, _start) as pool:
        return list(pool.map(_draw, pictures, paths))


def _draw(picture: Picture, path: Path) -> str:
    return save(picture.draw(), path)


def _start() -> None:
    """Prepare a process."""
    import matplotlib

    matplotlib.rcParams.update(_style())


def _style() -> Any:
    import matplotlib

    return {**matplotlib.rcParamsDefault, **STYLE}


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
