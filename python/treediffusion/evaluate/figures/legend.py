"""Names of classes beside their colours, in as many rows as they need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .checks import Array
from .page import Page
from .style import LINE, MARGIN, PALETTE, SMALL, text_width

CHIP, BESIDE, BETWEEN = 18, 8, 28


def largest_classes(
    counts: Array, names: Sequence[str] | None, *, colours: int = len(PALETTE)
) -> tuple[Array, list[str]]:
    """At most so many columns of counts, with names; the last is the sum of all smaller ones.

    Args:
        counts: [L, K].
        names: [K]; numbers if None.
        colours: how many there are.
    """
    classes = counts.shape[1]
    labels = [str(name) for name in (range(classes) if names is None else names)]
    if classes <= colours:
        return counts, labels
    by_size = np.argsort(-counts.sum(0), kind="stable")
    kept, rest = np.sort(by_size[: colours - 1]), by_size[colours - 1 :]
    fewer = np.column_stack([counts[:, kept], counts[:, rest].sum(1)])
    return fewer, [*(labels[k] for k in kept), "other"]


def legend_rows(labels: Sequence[str], room: float) -> int:
    """Rows that a legend takes on a page with so much room."""
    return len(_rows(labels, room))


def legend(page: Page, y: float, labels: Sequence[str], colours: Sequence[str]) -> None:
    """Draws the legend in the middle of the page, from a height downwards."""
    number = 0
    for k, row in enumerate(_rows(labels, page.width - 2 * MARGIN)):
        x = (page.width - sum(_width(label) for label in row) + BETWEEN) / 2
        middle = y + LINE * (k + 0.5)
        for label in row:
            place = (round(x), round(middle - CHIP / 2))
            page.box(*place, (CHIP, CHIP), colours[number], gid=f"class:{label}")
            page.text(x + CHIP + BESIDE, middle, label, size=SMALL, ha="left")
            x += _width(label)
            number += 1


def _rows(labels: Sequence[str], room: float) -> list[list[str]]:
    rows: list[list[str]] = [[]]
    used = 0.0
    for label in labels:
        if rows[-1] and used + _width(label) - BETWEEN > room:
            rows.append([])
            used = 0.0
        rows[-1].append(label)
        used += _width(label)
    return rows


def _width(label: str) -> float:
    return CHIP + BESIDE + text_width(label, SMALL) + BETWEEN
