"""Axes on a page: a rectangle in pixels with a range of values across and one upwards.

Ticks are at 1, 2 or 5 times a power of ten. Curves carry their names at their ends, so that no
reader has to look a colour up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.path import Path as Curve
from matplotlib.typing import ColorType

from .checks import Array
from .page import Page
from .style import BODY, GAP, GREY, GRID, LINE, LINES, SMALL

TICKS = 5
STROKE, DOT = 4, 6


@dataclass(frozen=True)
class Axes:
    """A rectangle on a page and what its sides mean.

    Attributes:
        page: what is drawn on.
        box: left, top, width and height in pixels.
        x: lowest and highest value across.
        y: the same upwards; both above 0 with `log`.
        log: the upward scale is logarithmic.
        name: of these axes, on a page with more than one.
    """

    page: Page
    box: tuple[int, int, int, int]
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool = False
    name: str = "axes"

    def across(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self.x
        return self.box[0] + self.box[2] * (value - low) / ((high - low) or 1.0)

    def up(self, value: float) -> float:
        """The same, upwards."""
        low, high = map(math.log10, self.y) if self.log else self.y
        place = math.log10(value) if self.log else value
        return self.box[1] + self.box[3] * (1 - (place - low) / ((high - low) or 1.0))

    def draw(self, *, xlabel: str, ylabel: str, xticks: Sequence[float] | None = None) -> None:
        """Lines and numbers of both scales, and what they are of."""
        left, top, width, height = self.box
        for value in log_ticks(*self.y) if self.log else ticks(*self.y):
            y = self.up(value)
            self.rule(left, y, left + width, y, gid=f"grid:{self.name}:{value:g}")
            self.page.text(left - 2 * GAP, y, number(value), size=SMALL, colour=GREY, ha="right")
        for value in ticks(*self.x) if xticks is None else xticks:
            under = top + height + LINE * 2 / 3
            self.page.text(self.across(value), under, number(value), size=SMALL, colour=GREY)
        self.rule(
            left, top + height, left + width, top + height, colour=GREY, gid=f"base:{self.name}"
        )
        self.page.text(left, top - LINE, ylabel, size=BODY, ha="left")
        middle, under = left + width / 2, top + height + LINE * 5 / 3
        if xlabel:
            self.page.text(middle, under, xlabel, size=SMALL, colour=GREY)

    def rule(
        self, x0: float, y0: float, x1: float, y1: float, *, colour: ColorType = GRID, gid: str
    ) -> None:
        """A thin straight line between two pixels."""
        self.page.curve(Curve([(x0, y0), (x1, y1)]), 2, colour, gid=gid)

    def line(self, x: Array, y: Array, colour: ColorType, *, dots: bool = True, name: str) -> None:
        """A curve through points, each with a dot."""
        points = [(self.across(a), self.up(b)) for a, b in zip(x, y, strict=True)]
        if len(points) > 1:
            self.page.curve(Curve(points), STROKE, colour, gid=f"line:{name}", above=True)
        for k, (a, b) in enumerate(points if dots or len(points) == 1 else ()):
            self.page.dot(a, b, DOT, colour, gid=f"dot:{name}:{k}")

    def names(self, ends: Mapping[str, float], colours: Sequence[ColorType] = LINES) -> None:
        """Names of curves beside their last values, moved apart where they would touch."""
        order = sorted(ends, key=lambda name: self.up(ends[name]))
        wanted = [self.up(ends[name]) for name in order]
        right = self.box[0] + self.box[2] + 3 * GAP
        for name, y in zip(order, spread_out(wanted, LINE), strict=True):
            colour = colours[list(ends).index(name)]
            self.page.text(right, y, name, size=SMALL, colour=colour, ha="left")


def ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """About so many round values in a range."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda s: abs(s - rough))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Values 1, 2 and 5 times the powers of ten in a range; the powers alone if it is long."""
    factors = (1, 2, 5) if high / low < 1000 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**power for power in powers for factor in factors]
    return [value for value in found if low <= value * (1 + 1e-9) and value <= high * (1 + 1e-9)]


def log_rounded(low: float, high: float) -> tuple[float, float]:
    """The same on a logarithmic scale, to 1, 2 or 5 times a power of ten."""
    down = max(t for t in log_ticks(low / 10, low * 1.001))
    return down, min(t for t in log_ticks(high * 0.999, high * 10))


def rounded(low: float, high: float) -> tuple[float, float]:
    """The range, widened to round values."""
    if high <= low:
        return low - 0.5, high + 0.5
    marks = ticks(low, high)
    step = marks[1] - marks[0] if len(marks) > 1 else high - low
    return step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)


def number(value: float) -> str:
    """A value on a scale: 0.25, 40, 12k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def spread_out(places: Sequence[float], least: float) -> list[float]:
    """Heights in rising order, moved as little as it takes to be so far from each other."""
    found = np.array(places, np.float64)
    # Pools of neighbours that touch share their mean, as in isotonic regression.
    shifted = found - least * np.arange(len(found))
    pools: list[list[float]] = []
    for value in shifted:
        pools.append([value])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    level = (
        np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools]) if pools else found
    )
    return [float(value) for value in level + least * np.arange(len(found))]
