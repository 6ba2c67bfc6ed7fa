"""A white page measured in pixels from its top left corner, and the few marks put on it.

One invisible axes covers the page, so a length in the code is a length in the file: images land on
whole pixels and stay crisp.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, PathPatch, Rectangle
from matplotlib.path import Path as Curve
from matplotlib.typing import ColorType

from .checks import UInt8Array
from .style import BODY, DPI, INK, MARGIN, POINTS_PER_INCH, TITLE, fitting, font


class Page:
    """A figure with pixel coordinates, y downwards.

    Attributes:
        figure: what is returned to the caller.
        width: pixels.
    """

    def __init__(self, width: int, height: int, *, title: str) -> None:
        """Opens a page of this size with a line of text on top."""
        self.width = width
        self.figure = Figure(
            figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white", edgecolor="white"
        )
        FigureCanvasAgg(self.figure)
        self._axes = self.figure.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()
        self._axes.set_xlim(0, width)
        self._axes.set_ylim(height, 0)
        if title:
            size = fitting([title], width - 2 * MARGIN, largest=TITLE)
            self.text(MARGIN, MARGIN, title, size=size, ha="left")

    def image(self, x: int, y: int, size: tuple[int, int], image: UInt8Array, *, gid: str) -> None:
        """Draws an image [C, H, W] with its top left corner at a pixel."""
        width, height = size
        # Grey is drawn as three equal channels: the colour map "gray" is one too dark at 24 levels.
        colours = np.broadcast_to(image, (3, *image.shape[1:]))
        self._axes.imshow(
            colours.transpose(1, 2, 0),
            # "none" is the nearest pixel in a PNG, and in an SVG the image as it is, not enlarged.
            # Dropping pixels of a large image would leave a false one.
            interpolation="none" if width >= image.shape[2] else "antialiased",
            origin="upper",
            extent=(x, x + width, y + height, y),
            aspect="auto",
            zorder=2,
            gid=gid,
        )

    def box(
        self, x: float, y: float, size: tuple[float, float], colour: ColorType, *, gid: str
    ) -> None:
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

    def curve(
        self, curve: Curve, width: float, colour: ColorType, *, gid: str, above: bool = False
    ) -> None:
        """Strokes a path, below everything else unless told otherwise."""
        self._axes.add_patch(
            PathPatch(
                curve,
                facecolor="none",
                edgecolor=colour,
                linewidth=width * POINTS_PER_INCH / DPI,
                linestyle="solid",
                capstyle="butt",
                joinstyle="round",
                antialiased=True,
                zorder=3 if above else 0,
                gid=gid,
            )
        )

    def dot(self, x: float, y: float, radius: float, colour: ColorType, *, gid: str) -> None:
        """Fills a disc, above everything else."""
        self._axes.add_patch(
            Circle(
                (x, y), radius, facecolor=colour, linewidth=0, antialiased=True, zorder=4, gid=gid
            )
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = BODY,
        colour: ColorType = INK,
        ha: Literal["left", "center", "right"] = "center",
        bold: bool = False,
        rotation: float = 0,
    ) -> None:
        """Writes one line around a height; a turned one begins there, at its foot."""
        self._axes.text(
            x,
            y,
            words,
            fontproperties=font(size, bold=bold),
            color=colour,
            ha=ha,
            va="baseline" if rotation else "center_baseline",
            rotation=rotation,
            rotation_mode="anchor",
            antialiased=True,
            usetex=False,
            parse_math=False,
            zorder=5,
        )
