"""The tree in other programs' forms, and cut into any number of clusters.

A tree of L leaves has L - 1 routers, and opening them one by one, the root first, cuts it into
1, 2, ... L subtrees. Next is always the one with the largest share of the images:

    next = argmax over subtrees with two or more leaves of share[their first router]

Of equal shares the first in row order is opened: the one nearer to the root, then the left one.
SciPy's linkage matrix is the same order read backwards, so both agree on every cut. NumPy only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, ShapeError, TopologyError
from .optional import require
from .topology import TreeTopology

FloatArray = NDArray[np.floating[Any]]


def to_newick(topology: TreeTopology, *, share: FloatArray | None = None) -> str:
    """The tree in Newick format, every node named, left child first.

    An edge has the length 1, so that programs draw nodes of one depth on one line: the tree's
    networks have no distance between nodes. A node with a single child stays, as ``(r00:1)r0:1``.

    Args:
        topology: the tree.
        share: [N] float of the images; written as an NHX comment, which other readers skip.

    >>> to_newick(TreeTopology.initial())
    '(r0:1,r1:1)r;'
    >>> to_newick(TreeTopology.initial(), share=np.array([1.0, 0.25, 0.75]))
    '(r0:1[&&NHX:share=0.25],r1:1[&&NHX:share=0.75])r[&&NHX:share=1.0];'
    """
    shares = None if share is None else _checked(topology, share)
    texts = [""] * topology.num_nodes
    for row in range(topology.num_nodes - 1, -1, -1):
        below = ",".join(texts[child] for child in _children(topology, row))
        length = "" if row == TreeTopology.ROOT else ":1"
        comment = "" if shares is None else f"[&&NHX:share={float(shares[row])!r}]"
        texts[row] = (f"({below})" if below else "") + topology.names[row] + length + comment
    return texts[TreeTopology.ROOT] + ";"


def to_linkage(topology: TreeTopology, *, share: FloatArray | None = None) -> NDArray[np.float64]:
    """SciPy's linkage matrix, for `scipy.cluster.hierarchy.dendrogram`, `fcluster` and others.

    Observations are the leaves in the tree's order. A row merges the left with the right subtree
    of a router; a node with a single child is its child. The router that `cut` opens last has the
    height 1 and the root L - 1, so that `fcluster(..., k, "maxclust")` is `cut(topology, k)`.

    Args:
        topology: the tree, of two or more leaves.
        share: [N] float of the images; each leaf counts the same if absent.

    Returns:
        [L - 1, 4] float64: left, right, height, leaves. Leaves and not images, because SciPy
        refuses clusters of more observations than it was given.

    Raises:
        TopologyError: a single leaf, of which SciPy makes no linkage.
    """
    if topology.num_leaves == 1:
        raise TopologyError("topology", got="one leaf", expected="two or more to merge")
    first = _first_fork(topology)
    cluster = np.full(topology.num_nodes, TreeTopology.ABSENT)  # SciPy's number of each fork
    cluster[topology.leaves] = np.arange(topology.num_leaves)
    merges = []
    for height, row in enumerate(reversed(_openings(topology, _checked(topology, share))), 1):
        left, right = (cluster[first[child]] for child in _children(topology, row))
        merges.append([left, right, height, len(topology.leaves_below(topology.names[row]))])
        cluster[row] = topology.num_leaves + height - 1
    return np.array(merges, np.float64)


def to_networkx(topology: TreeTopology, *, share: FloatArray | None = None) -> Any:
    """A `networkx.DiGraph` with edges from parents to children; nodes are names, in row order.

    Nodes carry `name`, `depth`, `leaf` (the leaf's id, -1 for inner nodes) and, if given, `share`;
    edges carry `turn`, "left" or "right". All are numbers and texts that GraphML can hold.

    Args:
        topology: the tree.
        share: [N] float of the images.

    Raises:
        DependencyError: networkx is not installed.
    """
    graph = require("networkx", extra="train").DiGraph()
    shares = None if share is None else _checked(topology, share)
    leaf_id = {name: number for number, name in enumerate(topology.leaf_names)}
    for row, name in enumerate(topology.names):
        known = {} if shares is None else {"share": float(shares[row])}
        leaf = leaf_id.get(name, TreeTopology.ABSENT)
        graph.add_node(name, name=name, depth=int(topology.depth[row]), leaf=leaf, **known)
        if row != TreeTopology.ROOT:
            graph.add_edge(name[:-1], name, turn="left" if name[-1] == "0" else "right")
    return graph


def cut(topology: TreeTopology, k: int, *, share: FloatArray | None = None) -> NDArray[np.int64]:
    """The cluster of each leaf when the tree is cut into k subtrees.

    One more subtree splits one cluster in two and leaves the others as they are. Clusters are
    numbered by their first leaf: all 0 for k = 1, and 0 to L - 1 for k = L.

    Args:
        topology: the tree.
        k: subtrees, 1 to L.
        share: [N] float of the images; each leaf counts the same if absent.

    Returns:
        [L] int64, from 0 to k - 1.

    Raises:
        ConfigError: not that many subtrees.
    """
    leaves = topology.num_leaves
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= leaves:
        raise ConfigError(
            "k", got=repr(k), expected=f"a whole number from 1 to {leaves}, the tree's leaves"
        )
    opened = set(_openings(topology, _checked(topology, share))[: int(k) - 1])
    top = np.arange(topology.num_nodes)  # root of the subtree that each node belongs to
    for row in range(1, topology.num_nodes):
        parent = int(topology.parent[row])
        top[row] = row if parent in opened else top[parent]
    _, first, subtree = np.unique(top[topology.leaves], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first)).astype(np.int64)[subtree]


def _openings(topology: TreeTopology, share: FloatArray) -> list[int]:
    """[L - 1] rows of the routers, in the order in which `cut` opens them."""
    first, routers = _first_fork(topology), set(topology.routers.tolist())
    waiting = {first[TreeTopology.ROOT]} & routers
    order: list[int] = []
    while waiting:
        row = max(waiting, key=lambda candidate: (share[candidate], -candidate))
        order.append(row)
        waiting.remove(row)
        waiting |= {first[child] for child in _children(topology, row)} & routers
    return order


def _first_fork(topology: TreeTopology) -> list[int]:
    """[N] the row where single children below a node end: a router, a leaf, or itself."""
    first = list(range(topology.num_nodes))
    for row in reversed(first):
        children = _children(topology, row)
        if len(children) == 1:
            first[row] = first[children[0]]
    return first


def _children(topology: TreeTopology, row: int) -> list[int]:
    return [int(side[row]) for side in (topology.left, topology.right) if side[row] >= 0]


def _checked(topology: TreeTopology, share: FloatArray | None) -> FloatArray:
    """[N] share of each node; that of its leaves if none is given."""
    if share is None:
        below = [len(topology.leaves_below(name)) for name in topology.names]
        return np.array(below) / topology.num_leaves
    share = np.asarray(share)
    if share.shape != (topology.num_nodes,) or share.dtype.kind not in "iuf":
        raise ShapeError(
            "share",
            got=f"{share.dtype} {list(share.shape)}",
            expected=f"[{topology.num_nodes}] numbers, one per node",
        )
    if not (np.isfinite(share).all() and (share >= 0).all()):
        raise ShapeError("share", got="negative or no numbers", expected="shares of 0 or more")
    return share
