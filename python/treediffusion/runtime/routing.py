"""From turn probabilities to leaves: ``left iff u < p_left`` at each router on the way down.

The number u of a router belongs to the image and the router, not to the visit, so that forcing the
turns above a node leaves the ones below it as they are. Pure NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..noise import Stream, uniforms
from ..topology import TreeTopology

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def leaf_probabilities(topology: TreeTopology, p_left: Floats) -> Floats:
    """The probability of each leaf: the product of the turns on its path.

    Args:
        topology: the tree.
        p_left: [B, I] probability of "left" at each router.

    Returns:
        [B, L] float32; a row sums to 1.
    """
    reach = np.ones((len(p_left), topology.num_nodes), np.float64)
    column = {int(row): i for i, row in enumerate(topology.routers)}
    for row in range(1, topology.num_nodes):
        parent = int(topology.parent[row])
        turn = np.ones(len(p_left), np.float64)
        if parent in column:
            left = p_left[:, column[parent]].astype(np.float64)
            turn = left if topology.left[parent] == row else 1.0 - left
        reach[:, row] = reach[:, parent] * turn
    return reach[:, topology.leaves].astype(np.float32)


def node_probability(topology: TreeTopology, p_left: Floats, node: str) -> NDArray[np.float64]:
    """[B] probability of reaching a node; p_left: [B, I] of "left" at each router."""
    below = topology.leaves_below(node)
    reach: NDArray[np.float64] = leaf_probabilities(topology, p_left)[:, below].sum(
        axis=1, dtype=np.float64
    )
    return reach


def choose(weight: NDArray[np.float64], u: Floats) -> Ints:
    """[B] positions, each with probability proportional to its weight.

    Args:
        weight: [B, K] at least 0; a row of zeros chooses its first.
        u: [B] in (0, 1).
    """
    edges = np.cumsum(weight, axis=1)
    passed = edges <= u.astype(np.float64)[:, None] * edges[:, -1:]
    chosen = np.where(edges[:, -1] > 0, passed.sum(axis=1), 0)
    kept: Ints = np.minimum(chosen, weight.shape[1] - 1).astype(np.int64)
    return kept


def turn_probabilities(topology: TreeTopology, leaf_prob: Floats) -> Floats:
    """The inverse of `leaf_probabilities`; a router that is never reached gets 1/2.

    Args:
        topology: the tree.
        leaf_prob: [B, L].

    Returns:
        [B, I] float32.
    """
    reach = np.zeros((len(leaf_prob), topology.num_nodes), np.float64)
    reach[:, topology.leaves] = leaf_prob
    for row in range(topology.num_nodes - 1, 0, -1):
        reach[:, topology.parent[row]] += reach[:, row]
    left = reach[:, topology.left[topology.routers]]
    total = reach[:, topology.routers]
    shares = np.divide(left, total, out=np.full_like(left, 0.5), where=total > 0.0)
    return shares.astype(np.float32)


def route(
    topology: TreeTopology,
    p_left: Floats,
    *,
    seed: int | Sequence[int],
    images: Sequence[int],
    node: str = "r",
) -> Ints:
    """The leaf each image ends in.

    Args:
        topology: the tree.
        p_left: [B, I] probability of "left" at each router.
        seed: of the turns; one for all, or one per image.
        images: [B] each image's own index.
        node: where the walk begins; the turns above it are forced.

    Returns:
        [B] int64, leaf ids.
    """
    here = np.full(len(p_left), topology.row(node), np.int64)
    u = uniforms(seed, images, stream=Stream.ROUTE, steps=topology.routers.tolist())
    for column, router in enumerate(topology.routers):
        if not topology.names[router].startswith(node):
            continue
        is_left = u[:, column] < p_left[:, column]
        turn = np.where(is_left, topology.left[router], topology.right[router])
        here = _descend(topology, here)
        here = np.where(here == router, turn, here)
    return np.searchsorted(topology.leaves, _descend(topology, here)).astype(np.int64)


def _descend(topology: TreeTopology, here: Ints) -> Ints:
    """Follows single children to the next router or leaf."""
    only = np.where(topology.left < 0, topology.right, topology.left)
    only[topology.routers] = TreeTopology.ABSENT
    while True:
        below = only[here]
        if (below < 0).all():
            return here
        here = np.where(below >= 0, below, here).astype(np.int64)
