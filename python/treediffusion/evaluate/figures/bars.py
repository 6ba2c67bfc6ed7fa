"""Variants of a model side by side: a bar for each, its value, and the deviation over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from matplotlib.figure import Figure

from ...errors import ShapeError
from .chart import rounded
from .page import Page
from .style import (
    BODY,
    CHOSEN,
    GAP,
    GREY,
    HAIRLINE,
    HEADING,
    INK,
    LINE,
    MARGIN,
    NARROWEST_PAGE,
    PAGE,
    SMALL,
    text_width,
)

ROW, THICK, WHISKER = 60, 36, 3
BAR = "#9db4cc"


class Variant(NamedTuple):
    """A row of `ablation_bars`.

    Attributes:
        name: what is written beside the bar.
        value: its length.
        deviation: over seeds; None for a single run.
    """

    name: str
    value: float
    deviation: float | None = None


def ablation_bars(
    variants: Sequence[Variant | tuple[str, float] | tuple[str, float, float | None]],
    *,
    measure: str,
    better: Literal["lower", "higher"] = "lower",
    title: str = "",
) -> Figure:
    """A horizontal bar per variant, in the order given; the best one is marked.

    Bars begin at 0, because their lengths are compared.

    Args:
        variants: name, value and deviation of each.
        measure: what the values are, with their unit.
        better: which way is up.
        title: a line above.

    Raises:
        ShapeError: no variants, or a value that is negative or not finite.
    """
    rows = [Variant(*row) for row in variants]
    expected = "one or more, each finite and not negative"
    if not rows:
        raise ShapeError("variants", got="none", expected=expected)
    for row in rows:
        for size in (row.value, row.deviation or 0.0):
            if not math.isfinite(size) or size < 0:
                raise ShapeError("variants", got=f"{row.name}: {size:g}", expected=expected)
    best = (min if better == "lower" else max)(row.value for row in rows)
    digits = _digits([row.value for row in rows])
    values = [_said(row, digits) for row in rows]
    beside = max(text_width(row.name, BODY) for row in rows) + 3 * GAP
    after = max(text_width(value, BODY, bold=True) for value in values) + 4 * GAP
    width = PAGE * 3 // 4 if beside + after < PAGE / 2 else PAGE
    width = max(width, NARROWEST_PAGE)
    left, room = MARGIN + beside, width - 2 * MARGIN - beside - after
    top = MARGIN + HEADING * bool(title) + LINE + 2 * GAP
    page = Page(width, top + ROW * len(rows) + MARGIN, title=title)
    page.text(
        MARGIN, top - LINE, f"{measure}; {better} is better", size=SMALL, ha="left", colour=GREY
    )
    longest = rounded(0.0, max(row.value + (row.deviation or 0.0) for row in rows))[1]
    for k, (row, value) in enumerate(zip(rows, values, strict=True)):
        y, chosen = top + ROW * k, row.value == best
        middle = y + ROW / 2
        end = left + room * row.value / longest
        page.text(left - 2 * GAP, middle, row.name, ha="right", bold=chosen)
        page.box(
            round(left), round(middle - THICK / 2), (round(end - left), THICK),
            CHOSEN if chosen else BAR, gid=f"bar:{row.name}",
        )  # fmt: skip
        reach = room * (row.deviation or 0.0) / longest
        if reach:
            page.box(
                round(end - reach), round(middle - WHISKER / 2), (round(2 * reach), WHISKER), INK,
                gid=f"deviation:{row.name}",
            )  # fmt: skip
        ink = CHOSEN if chosen else INK
        page.text(end + reach + 2 * GAP, middle, value, ha="left", bold=chosen, colour=ink)
    page.box(round(left) - 2, top, (2, ROW * len(rows)), HAIRLINE, gid="base")
    return page.figure


def _digits(values: Sequence[float]) -> int:
    """Decimals that show three digits of the largest value."""
    largest = max(values)
    return max(0, 2 - math.floor(math.log10(largest))) if largest > 0 else 0


def _said(row: Variant, digits: int) -> str:
    spread = "" if row.deviation is None else f" ± {row.deviation:.{digits}f}"
    return f"{row.value:.{digits}f}{spread}"
