"""The accuracy matrix as a picture. Needs matplotlib: `pip install lightning-cil[report]`."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDEST_WITH_VALUES = 20
COLOURS = "cividis"
"""Read alike by people who see colours differently, and brighter upwards, also in greyscale."""


def require_matplotlib() -> None:
    """Say how to install matplotlib where it is missing.

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Figures need matplotlib, which is not installed. Install it with `pip install lightning-cil[report]`."
        ) from error


def plot_task_matrix(
    matrix: Sequence[Sequence[float | None]], ax: "Axes | None" = None, score_name: str = "accuracy"
) -> tuple["Figure", "Axes"]:
    """Draw a score on every task after every task as a heat map, with values in percent up to 20 tasks.

    Args:
        matrix: `T×T` fractions in [0, 1]; `None` or NaN where not evaluated, which stays empty.
        ax: Where to draw; by default in a new figure.
        score_name: What the axes call it.

    Returns:
        Figure and axes.

    Raises:
        ModuleNotFoundError: Without matplotlib.
    """
    require_matplotlib()
    import numpy as np

    fig, ax = figure_of(ax)
    values = np.array([[math.nan if v is None else 100 * v for v in row] for row in matrix], dtype=float)
    size = len(values)
    image = ax.imshow(values, vmin=0, vmax=100, cmap=COLOURS)
    ticks = range(0, size, max(1, -(-size // 20)))
    ax.set_xticks(ticks, [str(i + 1) for i in ticks])
    ax.set_yticks(ticks, [str(i + 1) for i in ticks])
    ax.set_xlabel(f"{score_name} on task")
    ax.set_ylabel("after learning task")
    fig.colorbar(image, ax=ax, label=f"{score_name} (%)", shrink=0.8)
    if size <= WIDEST_WITH_VALUES:
        for i, j in np.argwhere(~np.isnan(values)):
            value = values[i, j]
            text = f"{value:.1f}" if size <= 8 and value < 99.95 else f"{value:.0f}"
            colour = "black" if value > 55 else "white"
            cell = ax.text(j, i, text, ha="center", va="center", color=colour, fontsize=_fontsize(size))
            cell.set_in_layout(False)  # it lies inside the axes; measuring hundreds takes seconds
    return fig, ax


def figure_of(ax: "Axes | None") -> tuple["Figure", "Axes"]:
    """The figure of some axes, or a new one with pyplot, which a notebook shows."""
    if ax is not None:
        figure: Any = ax.get_figure()
        return figure, ax
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")


def _fontsize(size: int) -> float:
    return max(4.0, min(9.0, 70 / size))
