"""Where things go: leaves in evenly spaced columns, each node centred over its children.

Columns are counted from 0 on the left. Pixels are those of the saved file. NumPy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...topology import TreeTopology
from .checks import Array

# A column holds an eight-letter name in the smallest type; a page of 32 is 16 inches wide.
NARROWEST, WIDEST, ROOM = 92, 170, 1504


def left_to_right(topology: TreeTopology) -> NDArray[np.int32]:
    """[L] leaf ids in the order in which the leaves hang under the root.

    Leaf ids go level by level, so a shallow leaf on the right comes before a deep one on the left;
    names, compared as strings, do not have this fault.
    """
    names = topology.leaf_names
    return np.array(sorted(range(len(names)), key=names.__getitem__), np.int32)


def node_columns(topology: TreeTopology) -> NDArray[np.float64]:
    """[N] column of each node: a leaf's place from the left, else the middle of its children."""
    column = np.zeros(topology.num_nodes)
    column[topology.leaves[left_to_right(topology)]] = np.arange(topology.num_leaves)
    for row in reversed(range(topology.num_nodes)):
        below = children(topology, row)
        if below:
            column[row] = np.mean(column[below])
    return column


def children(topology: TreeTopology, row: int) -> list[int]:
    """Rows of the zero, one or two children of a node, left to right."""
    pair = (int(topology.left[row]), int(topology.right[row]))
    return [child for child in pair if child != topology.ABSENT]


def column_width(count: int, *, room: int = ROOM) -> int:
    """Pixels from one column to the next: wide for few, narrow for many, and even.

    Half a column is whole pixels then, and all leaves are equally far apart.
    """
    return int(np.clip(room / count, NARROWEST, WIDEST)) // 2 * 2


def fitted(images: Array, room: int) -> tuple[int, int]:
    """Width and height in pixels at which images are drawn inside a square of this side.

    Images grow by whole factors, so that all their pixels are equally large.
    """
    height, width = images.shape[-2:]
    side = max(height, width)
    scale = room // side if room >= side else room / side
    return max(1, round(width * scale)), max(1, round(height * scale))
