"""Figures as files and as text: SVG and PNG that are the same bytes for the same runs."""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

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

LARGEST_SVG = 48 * 1024
PNG_COLOURS = 64
DOTS_PER_INCH = 150


def svg_text(figure: "Figure") -> str:
    """The figure as SVG without date or version. `savefig` would draw it twice."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    canvas: Any = FigureCanvasSVG(figure)
    canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def save(figure: "Figure", path: Path) -> str:
    """Write `path`.svg and `path`.png.

    Args:
        figure: The figure.
        path: Without ending.

    Returns:
        The figure as a data URL for a page: SVG where it is small, else a PNG of few colours.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    text = svg_text(figure)
    path.with_suffix(".svg").write_text(text, encoding="utf-8")
    figure.set_layout_engine("none")  # the layout is done
    png = path.with_suffix(".png")
    figure.set_dpi(DOTS_PER_INCH)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(png, metadata={"Software": None})
    if len(text) <= LARGEST_SVG:
        return _data_url("image/svg+xml", text.encode())
    buffer = io.BytesIO()
    with Image.open(png) as image:
        image.convert("RGB").quantize(PNG_COLOURS).save(buffer, format="png", optimize=True)
    return _data_url("image/png", buffer.getvalue())


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
