"""What each leaf generates: a row of images per leaf, and the classes a judge sees in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ...topology import TreeTopology
from .checks import Array, UInt8Array, check_images, check_names, check_range
from .layout import fitted, left_to_right
from .legend import largest_classes, legend, legend_rows
from .page import Page
from .style import (
    BODY,
    GAP,
    GREY,
    HAIRLINE,
    HEADING,
    LINE,
    MARGIN,
    NARROWEST_PAGE,
    PAGE,
    PALETTE,
    SMALL,
    percent,
    text_width,
)

WIDEST_ROW = 20
BARS, BAR_GAP = 300, 4


def leaf_gallery(
    images: UInt8Array,
    topology: TreeTopology,
    mass: Array,
    *,
    class_counts: Array | None = None,
    class_names: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """A block of images per leaf, beside its name and share; after it, a histogram of classes.

    Args:
        images: [L, k, C, H, W] uint8, in order of leaf ids; a block's rows are 20 wide.
        topology: the tree.
        mass: [N] share of the data that reaches each node.
        class_counts: [L, K] generated images of each leaf by class; of more than ten classes, the
            nine largest keep a bar. None draws no histograms.
        class_names: [K] for the legend; numbers if None.
        title: a line above.

    Raises:
        ShapeError: an array that does not fit the tree.
    """
    leaves = topology.num_leaves
    check_images("images", images, L=leaves, k=None)
    check_range("mass", mass, 0, 1, N=topology.num_nodes)
    shown: tuple[Array, list[str]] | None = None
    if class_counts is not None:
        check_range("class_counts", class_counts, 0, np.inf, L=leaves, K=None)
        check_names("class_names", class_names, class_counts.shape[1])
        shown = largest_classes(class_counts, class_names)

    count = images.shape[1]
    columns = min(count, WIDEST_ROW)
    beside = round(max(text_width(name, BODY) for name in topology.leaf_names)) + 4 * GAP
    after = BARS + 6 * GAP if shown else 0
    room = (PAGE - 2 * MARGIN - beside - after) // columns - GAP
    size = fitted(images, max(84, min(120, room)))
    block = -(-count // columns) * (size[1] + GAP) + 2 * GAP
    top = MARGIN + HEADING * bool(title)
    width = max(2 * MARGIN + beside + columns * (size[0] + GAP) + after, NARROWEST_PAGE)
    under = top + leaves * block
    height = under + MARGIN
    height += LINE * legend_rows(shown[1], width - 2 * MARGIN) + GAP if shown else 0
    page = Page(width, height, title=title)
    for place, leaf in enumerate(left_to_right(topology)):
        name, y = topology.leaf_names[leaf], top + place * block
        middle = y + (block - 3 * GAP) / 2
        page.text(MARGIN, middle - LINE / 2, name, size=BODY, ha="left")
        share = percent(float(mass[topology.leaves[leaf]]))
        page.text(MARGIN, middle + LINE / 2, share, size=SMALL, ha="left", colour=GREY)
        for k, image in enumerate(images[leaf]):
            x = MARGIN + beside + k % columns * (size[0] + GAP)
            below = y + k // columns * (size[1] + GAP)
            page.image(x, below, size, image, gid=f"image:{name}:{k}")
        if shown:
            _histogram(page, width - MARGIN - BARS, y, block - 3 * GAP, shown[0][leaf], name)
    if shown:
        legend(page, under + GAP, shown[1], PALETTE)
    return page.figure


def _histogram(page: Page, x: int, y: int, height: int, counts: Array, name: str) -> None:
    """Bars as high as the shares of classes, the whole height being all of them."""
    total = max(float(counts.sum()), 1e-12)
    each = BARS / len(counts)
    # Room for the number above the highest bar.
    room = height - LINE * 3 / 4
    page.box(x, y + height - 1, (BARS, 2), HAIRLINE, gid=f"base:{name}")
    for k, number in enumerate(counts.tolist()):
        share = number / total
        tall = max(2, round(room * share)) if number else 0
        left, right = round(x + k * each), round(x + (k + 1) * each) - BAR_GAP
        if tall:
            page.box(
                left, y + height - tall, (right - left, tall), PALETTE[k], gid=f"bar:{name}:{k}"
            )
        if number and k == counts.argmax():
            words, middle = percent(share), (left + right) / 2
            middle = min(middle, page.width - MARGIN - text_width(words, SMALL) / 2)
            page.text(middle, y + height - tall - LINE * 3 / 8, words, size=SMALL, colour=GREY)
