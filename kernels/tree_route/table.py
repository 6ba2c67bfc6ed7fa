"""A topology as the arrays that routing reads: every node's turns on its way, and its way on.

Made once per tree, on the host; what runs needs no other knowledge of the tree's shape.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...forest import Forest
from ...topology import TreeTopology

WAY = 4
"""Columns of `RouteTable.nodes` before the turns: router, left, right, leaf."""


class RouteTable(NamedTuple):
    """A tree of N nodes, I routers and depth D, or S trees.

    Attributes:
        nodes: [N, 4 + D] int32. The node's router or -1; the row of its left and of its right
            child, or of its only one twice, or of itself at a leaf; its leaf's id or -1. Then the
            turns from its root to it, one per edge: router + 1 for left, -(router + 1) for right,
            0 for a single child and beyond the node.
        left: [I, N] float32, 1 where the path to the node turns left at the router.
        right: [I, N] float32, the same for right.
    """

    nodes: Tensor
    left: Tensor
    right: Tensor


def route_table(topology: TreeTopology | Forest) -> RouteTable:
    """The table of a tree, or of a forest, on the CPU."""
    rows, depth = topology.num_nodes, int(topology.depth.max())
    nodes = np.zeros((rows, WAY + depth), np.int32)
    nodes[:, 0] = nodes[:, 3] = -1
    nodes[:, 1:3] = np.arange(rows)[:, None]
    nodes[topology.routers, 0] = np.arange(len(topology.routers))
    nodes[topology.leaves, 3] = np.arange(topology.num_leaves)
    left, right = np.zeros((2, len(topology.routers), rows), np.float32)
    for row in range(topology.num_roots, rows):
        parent, is_right = topology.parent[row], topology.names[row].endswith("1")
        router = nodes[parent, 0]
        nodes[row, WAY:] = nodes[parent, WAY:]
        left[:, row], right[:, row] = left[:, parent], right[:, parent]
        if router < 0:
            nodes[parent, 1:3] = row
            continue
        nodes[parent, 1 + is_right] = row
        nodes[row, WAY + topology.depth[parent]] = (1 - 2 * is_right) * (router + 1)
        (right if is_right else left)[router, row] = 1
    return RouteTable(*(torch.from_numpy(part) for part in (nodes, left, right)))
