"""An edge of a tree: straight, round a corner, straight, round a corner, straight.

Corners are quarter circles and the line between them is level, so an edge is equally wide all the
way, which a single curve that goes far to the side and little down would not be.
"""

from __future__ import annotations

from matplotlib.path import Path as Curve

BEND = 38
"""Radius of a corner; edges are up to twice as wide."""
KAPPA = 0.5523
"""How far a cubic curve's handles reach for a quarter of a circle, in radii."""


def elbow(x0: float, y0: float, x1: float, y1: float, *, turned: bool = False) -> Curve:
    """The way from a node's lower side to a child's upper one.

    Args:
        x0: where it begins.
        y0: the same, downwards.
        x1: where it ends.
        y1: the same.
        turned: the tree lies on its side, and the edge leaves and arrives level.
    """
    if turned:
        points, codes = _points(y0, x0, y1, x1)
        return Curve([(y, x) for x, y in points], codes)
    return Curve(*_points(x0, y0, x1, y1))


def _points(
    x0: float, y0: float, x1: float, y1: float
) -> tuple[list[tuple[float, float]], list[int]]:
    side = 1 if x1 >= x0 else -1
    radius = min(BEND, (y1 - y0) / 2)
    level, bend = y0 + radius, y0 + 2 * radius
    if abs(x1 - x0) < 2 * radius:
        handles = [(x0, level), (x1, level), (x1, bend)]
        codes = [Curve.MOVETO, *[Curve.CURVE4] * 3, Curve.LINETO]
        return [(x0, y0), *handles, (x1, y1)], [int(code) for code in codes]
    reach = radius * KAPPA
    first = [(x0, y0 + reach), (x0 + side * (radius - reach), level), (x0 + side * radius, level)]
    second = [
        (x1 - side * (radius - reach), level),
        (x1, bend - reach),
        (x1, bend),
    ]
    points = [(x0, y0), *first, (x1 - side * radius, level), *second, (x1, y1)]
    codes = [
        Curve.MOVETO, *[Curve.CURVE4] * 3, Curve.LINETO, *[Curve.CURVE4] * 3, Curve.LINETO
    ]  # fmt: skip
    return points, [int(code) for code in codes]
