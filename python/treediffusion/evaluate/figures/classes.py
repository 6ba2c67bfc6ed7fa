"""Which classes a tree's leaves generate: a table of shares, a row per leaf."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ...errors import ShapeError
from ...topology import TreeTopology
from .layout import left_to_right
from .page import GREY, HEADING, INK, MARGIN, NARROWEST_PAGE, Page, percent

CELL, ROW, NAMES, TOTALS = 84, 56, 150, 150
SHADE, FAINT = "#2f5d8c", 0.02


def class_table(
    counts: NDArray[np.int64], classes: Sequence[str], topology: TreeTopology, *, title: str = ""
) -> Figure:
    """The share of each class among a leaf's images; the larger, the darker.

    Args:
        counts: [L, K] images of each leaf by class, in order of leaf ids.
        classes: [K] names.
        topology: the tree.
        title: a line above.

    Raises:
        ShapeError: counts that do not fit the tree or the names.
    """
    shape = (topology.num_leaves, len(classes))
    if counts.shape != shape:
        raise ShapeError("counts", got=list(counts.shape), expected=f"{list(shape)}, [L, K]")
    width = max(2 * MARGIN + NAMES + CELL * len(classes) + TOTALS, NARROWEST_PAGE)
    top = MARGIN + HEADING * bool(title) + ROW
    page = Page(width, top + ROW * topology.num_leaves + MARGIN, title=title)
    left = MARGIN + NAMES
    for column, name in enumerate(classes):
        page.text(left + CELL * column + CELL / 2, top - ROW / 2, name, size=7, colour=GREY)
    end = left + CELL * len(classes) + TOTALS / 2
    page.text(end, top - ROW / 2, "images", size=7, colour=GREY)
    for row, leaf in enumerate(left_to_right(topology)):
        y, total = top + ROW * row, int(counts[leaf].sum())
        page.text(MARGIN, y + ROW / 2, topology.leaf_names[leaf], size=7, ha="left")
        page.text(end, y + ROW / 2, str(total), size=7)
        for column, count in enumerate(counts[leaf].tolist()):
            share = count / max(total, 1)
            x = left + CELL * column
            page.box(x, y, (CELL - 4, ROW - 4), _shade(share), gid=f"cell:{leaf}:{column}")
            if share >= FAINT:
                ink: Any = "white" if share > 0.5 else INK
                page.text(x + CELL / 2 - 2, y + ROW / 2 - 2, percent(share), size=6.5, colour=ink)
    return page.figure


def _shade(share: float) -> tuple[float, float, float]:
    """From nearly white to the full colour."""
    red, green, blue = 1 - (1 - np.array(to_rgb(SHADE))) * (0.06 + 0.94 * share)
    return float(red), float(green), float(blue)
