"""The tree with its images: root on top, leaves below in the order of their names.

Data flow down the edges: an edge is as wide as the share of the data that takes it, and the edges
that leave a node lie side by side, so that together they are as wide as the one that enters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.path import Path as Curve

from ...topology import TreeTopology
from .checks import Array, UInt8Array, check_images, check_range
from .layout import children, column_width, fitted, left_to_right, node_columns
from .page import FLOW, GREY, HAIRLINE, HEADING, MARGIN, NARROWEST_PAGE, Page, percent

# Paul Tol's muted scheme, which colour-blind readers can tell apart; grey is for the rest.
PALETTE = (
    *("#332288", "#88CCEE", "#44AA99", "#117733", "#999933"),
    *("#DDCC77", "#CC6677", "#882255", "#AA4499", "#BBBBBB"),
)
LINE, LABEL, DROP, BAR = 21, 64, 84, 9


def tree_picture(
    topology: TreeTopology,
    node_images: UInt8Array,
    mass: Array,
    leaf_samples: UInt8Array | None = None,
    class_counts: Array | None = None,
    *,
    title: str = "",
) -> Figure:
    """The tree, an image at each node, samples and classes under each leaf.

    Args:
        topology: the tree.
        node_images: [N, C, H, W] uint8, what each node looks like.
        mass: [N] share of the data that reaches each node; 1 at the root.
        leaf_samples: [L, k, C, H, W] uint8, a column under each leaf, in order of leaf ids.
        class_counts: [L, K], members of each class in each leaf; drawn as a bar of proportions.
            Of more than ten classes, the nine largest keep a colour.
        title: a line above.

    Raises:
        ShapeError: an array that does not fit the tree.
    """
    leaves = topology.num_leaves
    check_images("node_images", node_images, N=topology.num_nodes)
    check_range("mass", mass, 0, 1, N=topology.num_nodes)
    if leaf_samples is not None:
        check_images("leaf_samples", leaf_samples, L=leaves, k=None)
    if class_counts is not None:
        check_range("class_counts", class_counts, 0, np.inf, L=leaves, K=None)

    plan = _Plan.of(topology, node_images, leaf_samples, class_counts, headed=bool(title))
    page = Page(plan.width, plan.height, title=title)
    for row in range(topology.num_nodes):
        _flow(page, plan, topology, row, mass)
        _node(page, plan, topology.names[row], row, node_images[row], float(mass[row]))
    if class_counts is not None:
        _class_bars(page, plan, topology, class_counts)
    if leaf_samples is not None:
        _sample_columns(page, plan, topology, leaf_samples)
    return page.figure


@dataclass(frozen=True)
class _Plan:
    """Pixels: the page, the node images and the place of every node's centre line and top."""

    width: int
    height: int
    slot: int
    size: tuple[int, int]
    sample_size: tuple[int, int]
    x: list[int]
    y: list[int]
    under_leaves: int

    @classmethod
    def of(
        cls,
        topology: TreeTopology,
        node_images: UInt8Array,
        leaf_samples: UInt8Array | None,
        class_counts: Array | None,
        *,
        headed: bool,
    ) -> _Plan:
        slot = column_width(topology.num_leaves)
        width = max(topology.num_leaves * slot + 2 * MARGIN, NARROWEST_PAGE)
        first = (width - (topology.num_leaves - 1) * slot) / 2
        size = fitted(node_images, slot * 4 // 5)
        step = size[1] + LABEL + DROP
        depth = topology.depth.copy()
        depth[topology.leaves] = topology.max_depth
        top = MARGIN + HEADING * headed
        under_leaves = top + topology.max_depth * step + size[1] + LABEL
        height = under_leaves + MARGIN
        sample_size = size
        if class_counts is not None:
            height += 2 * BAR + 2 * LINE
        if leaf_samples is not None:
            sample_size = fitted(leaf_samples, min(slot * 2 // 3, 100))
            height += leaf_samples.shape[1] * (sample_size[1] + 4)
        return cls(
            width,
            height,
            slot,
            size,
            sample_size,
            [round(first + slot * column) for column in node_columns(topology)],
            [int(top + step * level) for level in depth],
            under_leaves + (2 * BAR if class_counts is not None else 0),
        )

    @property
    def letters(self) -> float:
        """Size of type at which an eight-letter name fits its column."""
        return 7 if self.slot > 110 else 5.5


def _node(page: Page, plan: _Plan, name: str, row: int, image: UInt8Array, share: float) -> None:
    x, y = plan.x[row] - plan.size[0] // 2, plan.y[row]
    page.frame(x, y, plan.size, 1, HAIRLINE, gid=f"frame:{name}")
    page.image(x, y, plan.size, image, gid=f"node:{name}")
    under = y + plan.size[1] + LINE
    page.text(plan.x[row], under, name, size=plan.letters)
    page.text(plan.x[row], under + LINE, percent(share), size=plan.letters, colour=GREY)


def _flow(page: Page, plan: _Plan, topology: TreeTopology, row: int, mass: Array) -> None:
    """The edges below a node: a bend within one level, then straight down to a deep leaf."""
    below = children(topology, row)
    widths = [max(2.0, float(mass[child]) * plan.size[0] * 0.6) for child in below]
    start = plan.x[row] - sum(widths) / 2
    top = plan.y[row] + plan.size[1] + LABEL
    bend = top + DROP
    middle = (top + bend) / 2
    for child, width in zip(below, widths, strict=True):
        x0, x1, y1 = start + width / 2, plan.x[child], plan.y[child]
        start += width
        # The straight first pixels make the ends of neighbouring edges one level line.
        points = [(x0, top), (x0, top + 4), (x0, middle), (x1, middle), (x1, bend), (x1, y1)]
        codes = [Curve.MOVETO, Curve.LINETO, *[Curve.CURVE4] * 3, Curve.LINETO]
        page.curve(Curve(points, codes), width, FLOW, gid=f"edge:{topology.names[child]}")


def _class_bars(page: Page, plan: _Plan, topology: TreeTopology, class_counts: Array) -> None:
    counts, labels = _largest(class_counts)
    y = plan.under_leaves - 2 * BAR
    for leaf, row in enumerate(topology.leaves):
        left = plan.x[row] - plan.size[0] // 2
        total = max(float(counts[leaf].sum()), 1e-12)
        ends = np.rint(plan.size[0] * np.cumsum(counts[leaf]) / total).astype(int)
        for start, end, colour in zip((0, *ends[:-1]), ends, PALETTE, strict=False):
            if end > start:
                page.box(left + start, y, (end - start, BAR), colour, gid=f"bar:{leaf}")
    step = 62
    x = (page.width - step * len(labels)) // 2
    for k, label in enumerate(labels):
        page.box(x + k * step, plan.height - MARGIN, (14, 14), PALETTE[k], gid=f"class:{label}")
        page.text(x + k * step + 20, plan.height - MARGIN + 8, label, size=7, ha="left")


def _largest(class_counts: Array) -> tuple[Array, list[str]]:
    """At most ten columns of counts with their labels; the last is the sum of all smaller ones."""
    classes = class_counts.shape[1]
    if classes <= len(PALETTE):
        return class_counts, [str(k) for k in range(classes)]
    by_size = np.argsort(-class_counts.sum(0), kind="stable")
    kept, rest = np.sort(by_size[: len(PALETTE) - 1]), by_size[len(PALETTE) - 1 :]
    counts = np.column_stack([class_counts[:, kept], class_counts[:, rest].sum(1)])
    return counts, [*map(str, kept), "other"]


def _sample_columns(
    page: Page, plan: _Plan, topology: TreeTopology, leaf_samples: UInt8Array
) -> None:
    width, height = plan.sample_size
    for leaf in left_to_right(topology):
        row = topology.leaves[leaf]
        for k, image in enumerate(leaf_samples[leaf]):
            x, y = plan.x[row] - width // 2, plan.under_leaves + k * (height + 4)
            page.image(x, y, plan.sample_size, image, gid=f"sample:{topology.names[row]}:{k}")
