"""One look for every figure: type, colours and lengths.

Lengths are pixels of the saved PNG. A README shows a page at half its size or less, so ordinary
pages are about `PAGE` pixels wide, and a point of type is 2.7 pixels there and 1.3 on the screen.
The font ships with matplotlib, so pages look alike everywhere. No name here is of one figure only.
"""

from __future__ import annotations

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

DPI = 192
"""Whole pixels divided by this and multiplied again are exactly themselves."""
POINTS_PER_INCH = 72

PAGE, NARROWEST_PAGE = 1600, 800
MARGIN, HEADING, GAP = 48, 64, 6

FONT = "DejaVu Sans"
TITLE, BODY, SMALL, SMALLEST = 11.0, 9.0, 7.5, 5.5
"""Sizes of type in points."""
LINE = 30
"""From one line of body type to the next."""

INK, GREY, HAIRLINE, GRID, FLOW = "#222222", "#6b6b6b", "#c4c4c4", "#e2e2e2", "#c6d1de"
FAINT, STRONG, CHOSEN = "#e9edf2", "#2f5d8c", "#d55e00"

# Paul Tol's muted scheme, which colour-blind readers can tell apart; grey is for the rest.
PALETTE = (
    *("#332288", "#88CCEE", "#44AA99", "#117733", "#999933"),
    *("#DDCC77", "#CC6677", "#882255", "#AA4499", "#BBBBBB"),
)
# Of the same scheme, those that make a thin line on white.
LINES = ("#2f5d8c", "#d55e00", "#117733", "#AA4499", "#7a5c00", "#44AA99")


def font(points: float, *, bold: bool = False) -> FontProperties:
    """The font, with nothing left to global settings."""
    weight = "bold" if bold else "normal"
    return FontProperties(
        family=FONT, style="normal", variant="normal", stretch="normal", weight=weight, size=points
    )


def text_width(words: str, points: float, *, bold: bool = False) -> float:
    """Pixels that a line of text takes."""
    width, _, _ = text_to_path.get_text_width_height_descent(
        words, font(points, bold=bold), ismath=False
    )
    return float(width) * DPI / POINTS_PER_INCH


def fitting(words: list[str], room: float, *, largest: float = BODY) -> float:
    """Points at which the longest of some lines fits a width; never below the smallest size."""
    widest = max((text_width(line, largest) for line in words), default=0.0)
    return largest if widest <= room else max(SMALLEST, largest * room / widest)


def shade(share: float, *, faint: str = FAINT, strong: str = STRONG) -> tuple[float, float, float]:
    """A colour between two, at a share of 0 to 1 of the way."""
    start, end = np.array(to_rgb(faint)), np.array(to_rgb(strong))
    red, green, blue = start + (end - start) * np.clip(share, 0, 1)
    return float(red), float(green), float(blue)


def percent(share: float) -> str:
    """A share as whole per cent; what is small but not nothing stays visible."""
    return "<1%" if 0 < share < 0.01 else f"{100 * share:.0f}%"
