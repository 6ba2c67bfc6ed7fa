"""The tree with its images: root on top, leaves below in the order of their names.

Data flow down the edges: an edge is as wide as the share of the data that takes it, and the edges
that leave a node lie side by side, so that together they are as wide as the one that enters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from matplotlib.figure import Figure

from ...topology import TreeTopology
from .checks import Array, UInt8Array, check_images, check_names, check_range
from .elbow import BEND, elbow
from .layout import children, column_width, fitted, left_to_right, node_columns
from .legend import largest_classes, legend, legend_rows
from .page import Page
from .style import (
    FLOW,
    GAP,
    GREY,
    HAIRLINE,
    HEADING,
    LINE,
    MARGIN,
    NARROWEST_PAGE,
    PALETTE,
    fitting,
    percent,
)

LABEL, DROP, BAR = 44, 2 * BEND + 31, 12
ROOMY = 128
"""Width of a column from which shares stand on both sides."""
WIDEST_FLOW = 0.6
"""Of the whole data, in widths of an image."""


def tree_picture(
    topology: TreeTopology,
    node_images: UInt8Array,
    mass: Array,
    leaf_samples: UInt8Array | None = None,
    class_counts: Array | None = None,
    *,
    class_names: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """The tree, an image at each node, a share at each edge, samples and classes under each leaf.

    Args:
        topology: the tree.
        node_images: [N, C, H, W] uint8, what each node looks like.
        mass: [N] share of the data that reaches each node; 1 at the root.
        leaf_samples: [L, k, C, H, W] uint8, a column under each leaf, in order of leaf ids.
        class_counts: [L, K], members of each class in each leaf; drawn as a bar of proportions.
            Of more than ten classes, the nine largest keep a colour.
        class_names: [K] for the legend; numbers if None.
        title: a line above.

    Raises:
        ShapeError: an array that does not fit the tree.
    """
    leaves = topology.num_leaves
    check_images("node_images", node_images, N=topology.num_nodes)
    check_range("mass", mass, 0, 1, N=topology.num_nodes)
    if leaf_samples is not None:
        check_images("leaf_samples", leaf_samples, L=leaves, k=None)
    shown: tuple[Array, list[str]] | None = None
    if class_counts is not None:
        check_range("class_counts", class_counts, 0, np.inf, L=leaves, K=None)
        check_names("class_names", class_names, class_counts.shape[1])
        shown = largest_classes(class_counts, class_names)

    plan = _Plan.of(topology, node_images, leaf_samples, shown, headed=bool(title))
    page = Page(plan.width, plan.height, title=title)
    for row in range(topology.num_nodes):
        _flow(page, plan, topology, row, mass)
        _node(page, plan, topology.names[row], row, node_images[row])
    if shown is not None:
        _class_bars(page, plan, topology, *shown)
    if leaf_samples is not None:
        _sample_columns(page, plan, topology, leaf_samples)
    return page.figure


@dataclass(frozen=True)
class _Plan:
    """Pixels: the page, the node images and the place of every node's centre line and top."""

    width: int
    height: int
    slot: int
    letters: float
    size: tuple[int, int]
    sample_size: tuple[int, int]
    x: list[int]
    y: list[int]
    under_leaves: int
    under_samples: int

    @classmethod
    def of(
        cls,
        topology: TreeTopology,
        node_images: UInt8Array,
        leaf_samples: UInt8Array | None,
        shown: tuple[Array, list[str]] | None,
        *,
        headed: bool,
    ) -> _Plan:
        slot = column_width(topology.num_leaves)
        width = max(topology.num_leaves * slot + 2 * MARGIN, NARROWEST_PAGE)
        first = (width - (topology.num_leaves - 1) * slot) // 2
        size = fitted(node_images, slot * 4 // 5)
        step = size[1] + LABEL + DROP
        depth = topology.depth.copy()
        depth[topology.leaves] = topology.max_depth
        top = MARGIN + HEADING * headed
        under_leaves = top + topology.max_depth * step + size[1] + LABEL
        under_leaves += 2 * BAR if shown else 0
        sample_size, height = size, under_leaves
        if leaf_samples is not None:
            sample_size = fitted(leaf_samples, min(slot * 3 // 4, 120))
            height += leaf_samples.shape[1] * (sample_size[1] + GAP)
        under_samples = height
        if shown:
            height += LINE + LINE * legend_rows(shown[1], width - 2 * MARGIN)
        return cls(
            width,
            height + MARGIN,
            slot,
            fitting(list(topology.names), slot - 2 * GAP),
            size,
            sample_size,
            [round(first + slot * column) for column in node_columns(topology)],
            [int(top + step * level) for level in depth],
            under_leaves,
            under_samples,
        )


def _node(page: Page, plan: _Plan, name: str, row: int, image: UInt8Array) -> None:
    x, y = plan.x[row] - plan.size[0] // 2, plan.y[row]
    page.frame(x, y, plan.size, 1, HAIRLINE, gid=f"frame:{name}")
    page.image(x, y, plan.size, image, gid=f"node:{name}")
    page.text(plan.x[row], y + plan.size[1] + LABEL / 2, name, size=plan.letters)


def _flow(page: Page, plan: _Plan, topology: TreeTopology, row: int, mass: Array) -> None:
    """The edges below a node, each with its share beside its end."""
    below = children(topology, row)
    widths = [max(2.0, float(mass[child]) * plan.size[0] * WIDEST_FLOW) for child in below]
    start = plan.x[row] - sum(widths) / 2
    top = plan.y[row] + plan.size[1] + LABEL
    for child, width in zip(below, widths, strict=True):
        name, x, y = topology.names[child], plan.x[child], plan.y[child]
        page.curve(elbow(start + width / 2, top, x, y), width, FLOW, gid=f"edge:{name}")
        start += width
        # In narrow columns the shares of two neighbours would stand side by side between them.
        left = name.endswith("0") and len(below) == 2 and plan.slot >= ROOMY
        beside = x - width / 2 - GAP if left else x + width / 2 + GAP
        place: Literal["left", "right"] = "right" if left else "left"
        # Beside the end, so that a share stands by its own node however far the edge has come.
        share = percent(float(mass[child]))
        page.text(beside, y - LINE / 2, share, size=plan.letters, colour=GREY, ha=place)


def _class_bars(
    page: Page, plan: _Plan, topology: TreeTopology, counts: Array, labels: list[str]
) -> None:
    y = plan.under_leaves - 2 * BAR
    for leaf, row in enumerate(topology.leaves):
        left = plan.x[row] - plan.size[0] // 2
        total = max(float(counts[leaf].sum()), 1e-12)
        ends = np.rint(plan.size[0] * np.cumsum(counts[leaf]) / total).astype(int)
        for k, (start, end) in enumerate(pairwise((0, *ends.tolist()))):
            if end > start:
                place, gid = (left + start, y), f"bar:{leaf}:{k}"
                page.box(*place, (end - start, BAR), PALETTE[k], gid=gid)
    legend(page, plan.under_samples + LINE, labels, PALETTE)


def _sample_columns(
    page: Page, plan: _Plan, topology: TreeTopology, leaf_samples: UInt8Array
) -> None:
    width, height = plan.sample_size
    for leaf in left_to_right(topology):
        row = topology.leaves[leaf]
        for k, image in enumerate(leaf_samples[leaf]):
            x, y = plan.x[row] - width // 2, plan.under_leaves + k * (height + GAP)
            page.image(x, y, plan.sample_size, image, gid=f"sample:{topology.names[row]}:{k}")
