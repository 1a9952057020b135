"""Figures as files and as text: SVG and PNG that are the same bytes for the same runs."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.grid": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "white",
    "font.size": 9.0,
    "hatch.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "lightning-cil",
}
"""Text stays text in SVG: small, searchable, read aloud."""


def svg_text(figure: "Figure") -> str:
    """The figure as SVG without date or version."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def save(figure: "Figure", path: Path) -> str:
    """Write `path`.svg and `path`.png.

    Args:
        figure: The figure.
        path: Without ending.

    Returns:
        The SVG.
    """
    text = svg_text(figure)
    path.with_suffix(".svg").write_text(text, encoding="utf-8")
    figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Software": None})
    return text
