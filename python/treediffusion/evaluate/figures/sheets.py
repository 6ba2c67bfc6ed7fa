"""Sheets of images: one root through every leaf, plain samples, images and what is made of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.path import Path as Curve

from ...topology import TreeTopology
from .checks import Array, UInt8Array, check_images, check_range
from .layout import children, column_width, fitted, left_to_right, node_columns
from .page import Page
from .style import (
    CHOSEN,
    GAP,
    GREY,
    HAIRLINE,
    HEADING,
    LINE,
    MARGIN,
    NARROWEST_PAGE,
    PAGE,
    SMALL,
    fitting,
    percent,
    shade,
    text_width,
)

LEVEL, MAT, FRAME, CHOSEN_FRAME = 20, 2, 6, 10
STAGES = ("TreeVAE", "TreeDiffusion")


def all_leaf_sheet(
    images: UInt8Array,
    leaf_prob: Array,
    topology: TreeTopology,
    *,
    tree_images: UInt8Array | None = None,
    title: str = "",
) -> Figure:
    """The same root through every leaf: a row per sample, a column per leaf.

    The likelier a leaf, the darker the frame; the likeliest of a row has a thick orange one.

    Args:
        images: [n, L, C, H, W] uint8, in order of leaf ids.
        leaf_prob: [n, L] probability of each leaf for each sample.
        topology: the tree; drawn in outline above the columns.
        tree_images: the same as `images`, TreeVAE's own of the same latents; drawn above them in
            one frame.
        title: a line above.

    Raises:
        ShapeError: an array that does not fit the tree.
    """
    leaves = topology.num_leaves
    check_images("images", images, n=None, L=leaves)
    check_range("leaf_prob", leaf_prob, 0, 1, n=len(images), L=leaves)
    layers = [images]
    if tree_images is not None:
        check_images("tree_images", tree_images, n=len(images), L=leaves)
        layers = [tree_images, images]

    beside = _beside(STAGES) if len(layers) > 1 else 0
    slot = column_width(leaves, room=PAGE - 2 * MARGIN - beside)
    size = fitted(images, slot * 4 // 5)
    block = (size[0], len(layers) * size[1] + (len(layers) - 1) * MAT)
    step = block[1] + LINE + 3 * GAP
    width = max(leaves * slot + 2 * MARGIN + beside, NARROWEST_PAGE)
    first = beside + (width - beside - (leaves - 1) * slot) // 2
    outline = MARGIN + HEADING * bool(title)
    top = outline + LEVEL * topology.max_depth + LINE + 3 * GAP
    page = Page(width, top + len(images) * step + MARGIN - 2 * GAP, title=title)
    _outline(page, topology, first + slot * node_columns(topology), outline)
    letters = fitting(list(topology.leaf_names), slot - GAP)
    for k in range(len(images)):
        for number, stage in enumerate(STAGES if len(layers) > 1 else ()):
            middle = top + k * step + number * (size[1] + MAT) + size[1] / 2
            page.text(first - slot / 2, middle, stage, size=SMALL, ha="right", colour=GREY)
    for column, leaf in enumerate(left_to_right(topology)):
        name, middle = topology.leaf_names[leaf], round(first + slot * column)
        page.text(middle, top - LINE / 2 - 2 * GAP, name, size=letters)
        for k in range(len(images)):
            x, y, share = middle - size[0] // 2, top + k * step, float(leaf_prob[k, leaf])
            chosen = bool(leaf == leaf_prob[k].argmax())
            thickness, gid = CHOSEN_FRAME if chosen else FRAME, f"frame:{k}:{name}"
            # Without the root all leaves but one or two would look alike.
            colour = CHOSEN if chosen else shade(float(np.sqrt(share)))
            page.frame(x, y, block, thickness, colour, gid=gid)
            page.frame(x, y, block, MAT, "white", gid=f"mat:{k}:{name}")
            for layer, kind in zip(reversed(layers), ("image", "tree"), strict=False):
                below = y + block[1] - size[1] if kind == "image" else y
                page.image(x, below, size, layer[k, leaf], gid=f"{kind}:{k}:{name}")
            ink, middle_y = CHOSEN if chosen else GREY, y + block[1] + GAP + LINE / 2
            page.text(
                middle, middle_y, percent(share), size=min(letters, SMALL), colour=ink, bold=chosen
            )
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
    slot = 148
    size = fitted(images, 120)
    step = size[1] + LINE + 2 * GAP
    top = MARGIN + HEADING * bool(title)
    width = max(2 * MARGIN + columns * slot, NARROWEST_PAGE)
    page = Page(width, top + -(-len(images) // columns) * step + MARGIN, title=title)
    letters = fitting(list(topology.leaf_names), slot - GAP, largest=SMALL)
    first = (width - columns * slot) // 2
    for k, image in enumerate(images):
        x, y = first + k % columns * slot, top + k // columns * step
        page.image(x + (slot - size[0]) // 2, y, size, image, gid=f"image:{k}")
        name = topology.leaf_names[int(leaf[k])]
        page.text(x + slot / 2, y + size[1] + LINE / 2, name, size=letters, colour=GREY)
    return page.figure


def reconstruction_sheet(
    images: UInt8Array,
    rebuilt: Mapping[str, UInt8Array],
    leaf: Array,
    leaf_prob: Array,
    topology: TreeTopology,
    *,
    title: str = "",
) -> Figure:
    """Given images above what each model makes of them, a column per image.

    Args:
        images: [n, C, H, W] uint8.
        rebuilt: the same shape, by the name of a row.
        leaf: [n] int, the leaf in which each was rebuilt.
        leaf_prob: [n, L] probability of each leaf given the image.
        topology: the tree.
        title: a line above.

    Raises:
        ShapeError: arrays that do not fit each other.
    """
    check_images("images", images, n=None)
    for name, row in rebuilt.items():
        check_images(name, row, n=len(images))
    check_range("leaf", leaf, 0, topology.num_leaves - 1, kinds="iu", n=len(images))
    check_range("leaf_prob", leaf_prob, 0, 1, n=len(images), L=topology.num_leaves)

    rows = {"given": images, **rebuilt}
    beside = _beside(rows)
    slot = column_width(len(images), room=PAGE - 2 * MARGIN - beside)
    size = fitted(images, slot - GAP)
    step = size[1] + GAP
    top = MARGIN + HEADING * bool(title)
    width = max(2 * MARGIN + beside + slot * len(images), NARROWEST_PAGE)
    page = Page(width, top + len(rows) * step + GAP + 2 * LINE + MARGIN, title=title)
    letters = fitting(list(topology.leaf_names), slot - GAP, largest=SMALL)
    for number, (name, row) in enumerate(rows.items()):
        y = top + number * step
        page.text(MARGIN, y + size[1] / 2, name, size=SMALL, ha="left")
        for k, image in enumerate(row):
            x = MARGIN + beside + k * slot + (slot - size[0]) // 2
            page.image(x, y, size, image, gid=f"image:{name}:{k}")
    under = top + len(rows) * step + GAP
    for k in range(len(images)):
        middle, share = MARGIN + beside + k * slot + slot / 2, leaf_prob[k, int(leaf[k])]
        page.text(middle, under + LINE / 2, topology.leaf_names[int(leaf[k])], size=letters)
        page.text(middle, under + LINE * 3 / 2, percent(float(share)), size=letters, colour=GREY)
    return page.figure


def _beside(names: Mapping[str, object] | tuple[str, ...]) -> int:
    """Room for the names of rows."""
    return round(max(text_width(name, SMALL) for name in names)) + 4 * GAP


def _outline(page: Page, topology: TreeTopology, x: Array, top: int) -> None:
    """The tree as a bracket over the columns."""
    depth = topology.depth.copy()
    depth[topology.leaves] = topology.max_depth
    y = top + LEVEL * depth
    for row in range(topology.num_nodes):
        for child in children(topology, row):
            bracket = Curve([(x[row], y[row]), (x[child], y[row]), (x[child], y[child])])
            page.curve(bracket, 2.5, HAIRLINE, gid=f"edge:{topology.names[child]}")
