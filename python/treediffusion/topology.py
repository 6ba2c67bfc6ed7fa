"""The tree as arrays: one row per node, level by level, left to right.

Row 0 is the root. Because rows are sorted by depth, the nodes of a level are a slice, parameters
stacked along the node axis are cut into levels without a copy, and a traversal takes ``depth``
steps whatever the number of leaves.

A node's public name is its path: ``r`` is the root, ``r0`` its left child, ``r01`` the right child
of that. Names survive growing and pruning; rows do not. A pruned node keeps its place with a single
child, as in the published method. NumPy only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .errors import TopologyError

IntArray = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class TreeTopology:
    """A binary tree of N nodes and L leaves, fully given by its nodes' names.

    Attributes:
        names: [N] node names in row order.
    """

    ROOT: ClassVar[int] = 0
    ABSENT: ClassVar[int] = -1
    num_roots: ClassVar[int] = 1

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        names = self.names
        if not names or names[0] != "r":
            raise TopologyError("names", got=names[:1], expected="the root 'r' first")
        if list(names) != sorted(set(names), key=_row_order):
            raise TopologyError(
                "names", got=names, expected="distinct nodes level by level, left to right"
            )
        known = set(names)
        for name in names[1:]:
            if set(name[1:]) - {"0", "1"} or name[0] != "r":
                raise TopologyError("names", got=name, expected="'r' followed by 0s and 1s")
            if name[:-1] not in known:
                raise TopologyError("names", got=name, expected=f"its parent '{name[:-1]}' too")

    @classmethod
    def of(cls, names: Iterable[str]) -> TreeTopology:
        """The tree of these nodes, given in any order."""
        return cls(tuple(sorted(names, key=_row_order)))

    @classmethod
    def initial(cls) -> TreeTopology:
        """A root with two leaves, where growing begins."""
        return cls(("r", "r0", "r1"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TreeTopology) and self.names == other.names

    def __hash__(self) -> int:
        return hash(self.names)

    @cached_property
    def _row(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.names)}

    def row(self, name: str) -> int:
        """The row of a node.

        Raises:
            TopologyError: no node has this name.
        """
        if name not in self._row:
            shown = ", ".join(self.names if len(self.names) <= 40 else self.leaf_names)
            raise TopologyError("node", got=repr(name), expected=f"one of {shown}")
        return self._row[name]

    @property
    def num_nodes(self) -> int:
        """N."""
        return len(self.names)

    @property
    def num_leaves(self) -> int:
        """L."""
        return len(self.leaves)

    @cached_property
    def parent(self) -> IntArray:
        """[N] row of the parent; ABSENT at the root."""
        return self._rows(name[:-1] for name in self.names)

    @cached_property
    def left(self) -> IntArray:
        """[N] row of the left child, or ABSENT."""
        return self._rows(name + "0" for name in self.names)

    @cached_property
    def right(self) -> IntArray:
        """[N] row of the right child, or ABSENT."""
        return self._rows(name + "1" for name in self.names)

    @cached_property
    def depth(self) -> IntArray:
        """[N] edges from the root."""
        return np.array([len(name) - 1 for name in self.names], np.int32)

    @cached_property
    def tree_of(self) -> IntArray:
        """[N] zeros: there is one tree; see `Forest`."""
        return np.zeros(self.num_nodes, np.int32)

    @cached_property
    def levels(self) -> tuple[slice, ...]:
        """For each depth from 0, the rows of its nodes."""
        starts = np.searchsorted(self.depth, np.arange(self.max_depth + 2))
        return tuple(slice(int(a), int(b)) for a, b in pairwise(starts))

    @property
    def max_depth(self) -> int:
        """Depth of the deepest node."""
        return int(self.depth[-1])

    @cached_property
    def leaves(self) -> IntArray:
        """[L] rows of the leaves; a leaf's id is its position here."""
        return np.flatnonzero((self.left < 0) & (self.right < 0)).astype(np.int32)

    @cached_property
    def routers(self) -> IntArray:
        """[I] rows of the nodes with two children: those that route."""
        return np.flatnonzero((self.left >= 0) & (self.right >= 0)).astype(np.int32)

    @property
    def leaf_names(self) -> tuple[str, ...]:
        """[L] names of the leaves."""
        return tuple(self.names[row] for row in self.leaves)

    @cached_property
    def paths(self) -> IntArray:
        """[L, P] rows from the root to each leaf, then ABSENT; P = max_depth + 1."""
        return self.paths_to(self.leaves)

    def paths_to(self, rows: Iterable[int]) -> IntArray:
        """[K, P] rows from the root to each of K nodes, then ABSENT; P = max_depth + 1."""
        width = self.max_depth + 1
        return np.array(
            [
                [self.row(name[:k]) if k <= len(name) else self.ABSENT for k in range(1, width + 1)]
                for name in (self.names[int(row)] for row in rows)
            ],
            np.int32,
        )

    def leaves_below(self, name: str) -> IntArray:
        """Ids of the leaves under a node (of the leaf itself, if it is one), in leaf order."""
        self.row(name)
        below = [leaf.startswith(name) for leaf in self.leaf_names]
        return np.flatnonzero(below).astype(np.int32)

    def grow(self, leaf: str) -> TreeTopology:
        """This tree with two children under a leaf."""
        row = self.row(leaf)
        if row not in self.leaves:
            raise TopologyError(
                "leaf", got=repr(leaf), expected=f"a leaf: one of {', '.join(self.leaf_names)}"
            )
        return TreeTopology.of((*self.names, leaf + "0", leaf + "1"))

    def prune(self, leaf: str) -> TreeTopology:
        """This tree without a leaf and without the ancestors that had no other descendant leaf.

        The sibling keeps its name and its parent, which then has a single child.

        Raises:
            TopologyError: not a leaf, or the only one.
        """
        if self.row(leaf) not in self.leaves or self.num_leaves == 1:
            raise TopologyError(
                "leaf",
                got=repr(leaf),
                expected=f"a leaf that is not the last one: one of {', '.join(self.leaf_names)}",
            )
        others = [name for name in self.leaf_names if name != leaf]
        kept = {name[:k] for name in others for k in range(1, len(name) + 1)}
        return TreeTopology.of(kept)

    def to_json(self) -> str:
        """The tree as readable JSON: a row per node with its name, parent and children."""
        nodes = [
            {
                "name": name,
                "parent": int(self.parent[row]),
                "left": int(self.left[row]),
                "right": int(self.right[row]),
            }
            for row, name in enumerate(self.names)
        ]
        rows = ",\n".join("    " + json.dumps(node) for node in nodes)
        return f'{{\n  "format": 1,\n  "nodes": [\n{rows}\n  ]\n}}\n'

    @classmethod
    def from_json(cls, text: str, *, source: str | Path = "tree.json") -> TreeTopology:
        """The tree written by `to_json`.

        Raises:
            TopologyError: not JSON, another format, or rows that contradict one another.
        """
        try:
            document = json.loads(text)
            version, nodes = document["format"], document["nodes"]
            names = tuple(str(node["name"]) for node in nodes)
            links = [[int(node[key]) for node in nodes] for key in ("parent", "left", "right")]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as fault:
            raise TopologyError(
                str(source), got=f"unreadable text ({fault})", expected="a tree in JSON"
            ) from fault
        if version != 1:
            raise TopologyError(str(source), got=f"format {version}", expected="format 1")
        tree = cls(names)
        for key, link in zip(("parent", "left", "right"), links, strict=True):
            if link != getattr(tree, key).tolist():
                raise TopologyError(
                    str(source), got=f"{key} {link}", expected=f"{getattr(tree, key).tolist()}"
                )
        return tree

    def _rows(self, names: Iterable[str]) -> IntArray:
        return np.array([self._row.get(name, self.ABSENT) for name in names], np.int32)


def _row_order(name: str) -> tuple[int, str]:
    return len(name), name
