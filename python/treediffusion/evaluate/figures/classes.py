"""Which classes or attributes a tree's leaves hold: tables of shares, a shade for each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ...errors import ShapeError
from ...topology import TreeTopology
from .checks import Array, check_names, check_range
from .layout import left_to_right
from .legend import largest_classes
from .page import Page
from .style import (
    BODY,
    FAINT,
    GAP,
    GREY,
    HEADING,
    INK,
    MARGIN,
    NARROWEST_PAGE,
    PAGE,
    SMALL,
    fitting,
    percent,
    shade,
    text_width,
)

ROW, WIDEST_CELL, NARROWEST_CELL = 52, 130, 70
UNSAID = 0.02
"""Share below which a cell has no number, only its shade."""
DARK = 0.7
"""Share from which white letters are easier to read than black ones."""
MOST_ATTRIBUTES, MOST_CLASSES = 20, 24
SLANT, SMALLEST_LEVEL = 45, 6.5
"""Degrees of names that are too long to stand level, and the points below which they are."""


def class_table(
    counts: NDArray[np.int64],
    classes: Sequence[str],
    topology: TreeTopology,
    *,
    what: str = "images",
    title: str = "",
) -> Figure:
    """The share of each class among a leaf's images; the larger, the darker.

    Of more than 24 classes the 23 largest have a column, and the others one together.

    Args:
        counts: [L, K] images of each leaf by class, in order of leaf ids.
        classes: [K] names.
        topology: the tree.
        what: is counted.
        title: a line above.

    Raises:
        ShapeError: counts that do not fit the tree or the names.
    """
    shape = (topology.num_leaves, len(classes))
    if counts.shape != shape:
        raise ShapeError("counts", got=list(counts.shape), expected=f"{list(shape)}, [L, K]")
    shown, classes = largest_classes(counts, classes, colours=MOST_CLASSES)
    order = left_to_right(topology)
    totals = counts.sum(1)
    page, left, cell, top = _table(
        [topology.leaf_names[leaf] for leaf in order], [*classes, what], title
    )
    for row, leaf in enumerate(order):
        y = top + ROW * row
        for column, count in enumerate(shown[leaf].tolist()):
            share = count / max(int(totals[leaf]), 1)
            gid = f"cell:{leaf}:{column}"
            _cell(page, left + cell * column, y, cell, share, unsaid=UNSAID, gid=gid)
        x = left + cell * (len(classes) + 0.5)
        page.text(x, y + ROW / 2 - 2, str(int(totals[leaf])), size=SMALL, colour=GREY)
    return page.figure


def attribute_frequency(leaf: Array, attributes: Array, *, leaves: int) -> NDArray[np.float64]:
    """[L, A] share of each leaf's images that have an attribute; 0 for a leaf without images.

    Args:
        leaf: [n] int, each image's leaf id.
        attributes: [n, A] of 0 and 1, or booleans.
        leaves: L.

    Raises:
        ShapeError: arrays that do not fit each other, or other values.
    """
    check_range("leaf", leaf, 0, leaves - 1, kinds="iu", n=None)
    check_range("attributes", attributes, 0, 1, kinds="biuf", n=len(leaf), A=None)
    totals = np.zeros((leaves, attributes.shape[1]))
    np.add.at(totals, leaf, attributes.astype(np.float64))
    found: NDArray[np.float64] = (
        totals / np.maximum(np.bincount(leaf, minlength=leaves), 1)[:, None]
    )
    return found


def attribute_table(
    frequency: Array,
    attributes: Sequence[str],
    topology: TreeTopology,
    *,
    overall: Array | None = None,
    most: int = MOST_ATTRIBUTES,
    title: str = "",
) -> Figure:
    """How often each leaf's images have each attribute; those that differ most come first.

    Args:
        frequency: [L, A] shares, in order of leaf ids; see `attribute_frequency`.
        attributes: [A] names; underscores are drawn as spaces.
        topology: the tree.
        overall: [A] share among all images, a last column.
        most: attributes to show, by the deviation of their shares over leaves.
        title: a line above.

    Raises:
        ShapeError: arrays that do not fit the tree or the names.
    """
    check_range("frequency", frequency, 0, 1, L=topology.num_leaves, A=None)
    check_names("attributes", attributes, frequency.shape[1])
    if overall is not None:
        check_range("overall", overall, 0, 1, A=frequency.shape[1])
    order = left_to_right(topology)
    shown = np.argsort(-frequency.std(0), kind="stable")[:most]
    columns = [topology.leaf_names[leaf] for leaf in order] + ["all"] * (overall is not None)
    names = [attributes[k].replace("_", " ") for k in shown]
    page, left, cell, top = _table(names, columns, title)
    for row, k in enumerate(shown):
        y = top + ROW * row
        for column, leaf in enumerate(order):
            gid = f"cell:{leaf}:{k}"
            _cell(page, left + cell * column, y, cell, float(frequency[leaf, k]), gid=gid)
        if overall is not None:
            x = left + cell * (len(order) + 0.5)
            page.text(x, y + ROW / 2 - 2, percent(float(overall[k])), size=SMALL, colour=GREY)
    return page.figure


def _table(
    rows: Sequence[str], columns: Sequence[str], title: str
) -> tuple[Page, float, float, float]:
    """A page with the names of rows and columns; where cells begin, their width, and the top."""
    beside = max(text_width(name, BODY) for name in rows) + 4 * GAP
    cell = float(np.clip((PAGE - 2 * MARGIN - beside) / len(columns), NARROWEST_CELL, WIDEST_CELL))
    letters = fitting(list(columns), cell - GAP, largest=SMALL)
    slanted = letters < SMALLEST_LEVEL
    middles = [MARGIN + beside + cell * (k + 0.5) for k in range(len(columns))]
    reaches = [text_width(name, SMALL) * math.cos(math.radians(SLANT)) for name in columns]
    head = round(max(reaches)) + ROW // 2 if slanted else ROW
    top = MARGIN + HEADING * bool(title) + head
    width = max(round(2 * MARGIN + beside + cell * len(columns)), NARROWEST_PAGE)
    if slanted:
        width = max(width, MARGIN + round(max(map(sum, zip(middles, reaches, strict=True)))))
    page = Page(width, top + ROW * len(rows) + MARGIN, title=title)
    for middle, name in zip(middles, columns, strict=True):
        if slanted:
            page.text(middle, top - 2 * GAP, name, size=SMALL, ha="left", rotation=SLANT)
        else:
            page.text(middle, top - ROW / 2, name, size=letters)
    for k, name in enumerate(rows):
        page.text(MARGIN, top + ROW * (k + 0.5) - 2, name, size=BODY, ha="left")
    return page, MARGIN + beside, cell, top


def _cell(
    page: Page, x: float, y: float, width: float, share: float, *, unsaid: float = 0.0, gid: str
) -> None:
    left, right = round(x), round(x + width)
    page.box(left, y, (right - left - 4, ROW - 4), shade(share, faint=FAINT), gid=gid)
    if share >= unsaid:
        ink = "white" if share > DARK else INK
        page.text((left + right) / 2 - 2, y + ROW / 2 - 2, percent(share), size=SMALL, colour=ink)
