"""A white page measured in pixels from its top left corner, and the few marks put on it.

One invisible axes covers the page, so a length in the code is a length in the file: images land on
whole pixels and stay crisp. The font ships with matplotlib, so pages look alike everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Curve
from matplotlib.typing import ColorType

from ...files import write_atomic
from .checks import UInt8Array

# Whole pixels divided by this and multiplied again are exactly themselves.
DPI = 192
POINTS_PER_INCH = 72
MARGIN = 56
HEADING = 60
NARROWEST_PAGE = 800
FONT = "DejaVu Sans"
INK, GREY, HAIRLINE, FLOW = "#222222", "#777777", "#b4b4b4", "#c6d1de"


class Page:
    """A figure with pixel coordinates, y downwards.

    Attributes:
        figure: what is returned to the caller.
        width: pixels.
    """

    def __init__(self, width: int, height: int, *, title: str) -> None:
        """Opens a page of this size with a line of text on top."""
        self.width = width
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        self._axes = self.figure.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()
        self._axes.set_xlim(0, width)
        self._axes.set_ylim(height, 0)
        if title:
            self.text(MARGIN, MARGIN, title, size=10, ha="left")

    def image(self, x: int, y: int, size: tuple[int, int], image: UInt8Array, *, gid: str) -> None:
        """Draws an image [C, H, W] with its top left corner at a pixel."""
        width, height = size
        # Grey is drawn as three equal channels: the colour map "gray" is one too dark at 24 levels.
        colours = np.broadcast_to(image, (3, *image.shape[1:]))
        self._axes.imshow(
            colours.transpose(1, 2, 0),
            # Dropping pixels of a large image would leave a false one.
            interpolation="nearest" if width >= image.shape[2] else "antialiased",
            origin="upper",
            extent=(x, x + width, y + height, y),
            aspect="auto",
            zorder=2,
            gid=gid,
        )

    def box(self, x: int, y: int, size: tuple[int, int], colour: ColorType, *, gid: str) -> None:
        """Fills a rectangle."""
        self._axes.add_patch(
            Rectangle((x, y), *size, facecolor=colour, linewidth=0, antialiased=False, gid=gid)
        )

    def frame(
        self,
        x: int,
        y: int,
        size: tuple[int, int],
        thickness: int,
        colour: ColorType,
        *,
        gid: str,
    ) -> None:
        """Fills a rectangle wider than an image on all sides, to be drawn before the image."""
        around = (size[0] + 2 * thickness, size[1] + 2 * thickness)
        self.box(x - thickness, y - thickness, around, colour, gid=gid)

    def curve(self, curve: Curve, width: float, colour: ColorType, *, gid: str) -> None:
        """Strokes a path, below everything else."""
        self._axes.add_patch(
            PathPatch(
                curve,
                facecolor="none",
                edgecolor=colour,
                linewidth=width * POINTS_PER_INCH / DPI,
                capstyle="butt",
                zorder=0,
                gid=gid,
            )
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float,
        colour: ColorType = INK,
        ha: Literal["left", "center", "right"] = "center",
        bold: bool = False,
    ) -> None:
        """Writes one line around a height."""
        self._axes.text(
            x,
            y,
            words,
            fontsize=size,
            color=colour,
            ha=ha,
            va="center_baseline",
            family=FONT,
            weight="bold" if bold else "normal",
            parse_math=False,
        )


def percent(share: float) -> str:
    """A share as whole per cent; what is small but not nothing stays visible."""
    return "<1%" if 0 < share < 0.01 else f"{100 * share:.0f}%"


def save(figure: Figure, path: str | Path) -> None:
    """Writes a figure as PNG; the file is either complete or not there."""

    def write(stream: BinaryIO) -> None:
        # Unlike savefig, this asks no global setting about margins or resolution.
        FigureCanvasAgg(figure).print_png(stream)  # type: ignore[no-untyped-call]

    write_atomic(Path(path), write)
