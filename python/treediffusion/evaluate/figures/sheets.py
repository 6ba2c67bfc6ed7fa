"""Sheets of generated images: one root through every leaf, galleries of leaves, plain samples."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.path import Path as Curve

from ...topology import TreeTopology
from .checks import Array, UInt8Array, check_images, check_range
from .layout import children, column_width, fitted, left_to_right, node_columns
from .page import GREY, HAIRLINE, HEADING, MARGIN, NARROWEST_PAGE, Page, percent

GAP, LINE, LEVEL = 6, 22, 16
MAT, FRAME, CHOSEN_FRAME = 2, 6, 9
FAINT, STRONG, CHOSEN = "#e9edf2", "#2f5d8c", "#d55e00"
WIDEST_ROW = 20


def all_leaf_sheet(
    images: UInt8Array, leaf_prob: Array, topology: TreeTopology, *, title: str = ""
) -> Figure:
    """The same root through every leaf: a row per sample, a column per leaf.

    The likelier a leaf, the darker the frame; the likeliest of a row has a thick orange one.

    Args:
        images: [n, L, C, H, W] uint8, in order of leaf ids.
        leaf_prob: [n, L] probability of each leaf for each sample.
        topology: the tree; drawn in outline above the columns.
        title: a line above.

    Raises:
        ShapeError: an array that does not fit the tree.
    """
    leaves = topology.num_leaves
    check_images("images", images, n=None, L=leaves)
    check_range("leaf_prob", leaf_prob, 0, 1, n=len(images), L=leaves)

    slot = column_width(leaves)
    size = fitted(images, slot * 4 // 5)
    step = size[1] + LINE + 6 * GAP
    width = max(leaves * slot + 2 * MARGIN, NARROWEST_PAGE)
    first = (width - (leaves - 1) * slot) / 2
    outline = MARGIN + HEADING * bool(title)
    top = outline + LEVEL * topology.max_depth + 3 * LINE
    page = Page(width, top + len(images) * step + MARGIN - LINE, title=title)
    _outline(page, topology, first + slot * node_columns(topology), outline)
    letters = 7 if slot > 110 else 5.5
    for column, leaf in enumerate(left_to_right(topology)):
        name, middle = topology.leaf_names[leaf], round(first + slot * column)
        page.text(middle, top - LINE - GAP, name, size=letters)
        for k in range(len(images)):
            x, y, share = middle - size[0] // 2, top + k * step, float(leaf_prob[k, leaf])
            chosen = bool(leaf == leaf_prob[k].argmax())
            thickness, gid = CHOSEN_FRAME if chosen else FRAME, f"frame:{k}:{name}"
            page.frame(x, y, size, thickness, CHOSEN if chosen else _shade(share), gid=gid)
            page.frame(x, y, size, MAT, "white", gid=f"mat:{k}:{name}")
            page.image(x, y, size, images[k, leaf], gid=f"image:{k}:{name}")
            colour = CHOSEN if chosen else GREY
            below = y + size[1] + LINE + GAP // 2
            page.text(middle, below, percent(share), size=letters, colour=colour, bold=chosen)
    return page.figure


def leaf_gallery(
    images: UInt8Array, topology: TreeTopology, mass: Array, *, title: str = ""
) -> Figure:
    """What each leaf generates: a block of images per leaf, beside its name and share.

    Args:
        images: [L, k, C, H, W] uint8, in order of leaf ids; a block's rows are 20 wide.
        topology: the tree.
        mass: [N] share of the data that reaches each node.
        title: a line above.

    Raises:
        ShapeError: an array that does not fit the tree.
    """
    check_images("images", images, L=topology.num_leaves, k=None)
    check_range("mass", mass, 0, 1, N=topology.num_nodes)

    count = images.shape[1]
    columns = min(count, WIDEST_ROW)
    size = fitted(images, max(84, min(112, 2200 // columns)))
    beside = 150
    block = -(-count // columns) * (size[1] + GAP) + 3 * GAP
    top = MARGIN + HEADING * bool(title)
    width = max(2 * MARGIN + beside + columns * (size[0] + GAP), NARROWEST_PAGE)
    page = Page(width, top + topology.num_leaves * block + MARGIN, title=title)
    for place, leaf in enumerate(left_to_right(topology)):
        name, y = topology.leaf_names[leaf], top + place * block
        share = percent(float(mass[topology.leaves[leaf]]))
        page.text(MARGIN, y + size[1] / 2 - LINE / 2, name, size=7, ha="left")
        page.text(MARGIN, y + size[1] / 2 + LINE / 2, share, size=7, ha="left", colour=GREY)
        for k, image in enumerate(images[leaf]):
            x = MARGIN + beside + k % columns * (size[0] + GAP)
            below = y + k // columns * (size[1] + GAP)
            page.image(x, below, size, image, gid=f"image:{name}:{k}")
    return page.figure


def samples_sheet(
    images: UInt8Array, leaf: Array, topology: TreeTopology, *, title: str = ""
) -> Figure:
    """Samples in rows of ten, each above the name of the leaf its path ended in.

    Args:
        images: [n, C, H, W] uint8.
        leaf: [n] int, leaf id of each.
        topology: the tree.
        title: a line above.

    Raises:
        ShapeError: not such images, or an id that is no leaf's.
    """
    check_images("images", images, n=None)
    check_range("leaf", leaf, 0, topology.num_leaves - 1, kinds="iu", n=len(images))

    columns = min(len(images), 10)
    size = fitted(images, 112)
    slot, step = 136, size[1] + LINE + 3 * GAP
    top = MARGIN + HEADING * bool(title)
    width = max(2 * MARGIN + columns * slot, NARROWEST_PAGE)
    page = Page(width, top + -(-len(images) // columns) * step + MARGIN, title=title)
    first = (width - columns * slot) // 2
    for k, image in enumerate(images):
        x, y = first + k % columns * slot, top + k // columns * step
        page.image(x + (slot - size[0]) // 2, y, size, image, gid=f"image:{k}")
        name = topology.leaf_names[int(leaf[k])]
        page.text(x + slot / 2, y + size[1] + LINE * 3 / 4, name, size=5.5, colour=GREY)
    return page.figure


def _outline(page: Page, topology: TreeTopology, x: Array, top: int) -> None:
    """The tree as a bracket over the columns."""
    depth = topology.depth.copy()
    depth[topology.leaves] = topology.max_depth
    y = top + LEVEL * depth
    for row in range(topology.num_nodes):
        for child in children(topology, row):
            bracket = Curve([(x[row], y[row]), (x[child], y[row]), (x[child], y[child])])
            page.curve(bracket, 2, HAIRLINE, gid=f"edge:{topology.names[child]}")


def _shade(share: float) -> tuple[float, float, float]:
    """The colour of a frame: from faint to strong with the root of the probability.

    Without the root all leaves but one or two would look alike.
    """
    faint, strong = np.array(to_rgb(FAINT)), np.array(to_rgb(STRONG))
    red, green, blue = faint + (strong - faint) * np.sqrt(np.clip(share, 0, 1))
    return float(red), float(green), float(blue)
