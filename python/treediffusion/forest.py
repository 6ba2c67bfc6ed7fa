"""Several trees as one, so that they are trained in the same operations.

A forest has the arrays of a `TreeTopology`, with as many roots as trees. Rows are sorted by depth,
then by tree: a level of the forest is the same level of all its trees, and a traversal takes as
many steps as its deepest tree alone. NumPy only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from .topology import IntArray, TreeTopology


@dataclass(frozen=True)
class Forest:
    """S trees of N nodes and L leaves together.

    Attributes:
        trees: [S] their topologies.
    """

    trees: tuple[TreeTopology, ...]

    @staticmethod
    def name(tree: int, node: str) -> str:
        """The forest's name of a tree's node."""
        return f"{tree}.{node}"

    @cached_property
    def _places(self) -> list[tuple[int, int, int]]:
        """For each row: depth, tree, and row in that tree."""
        return sorted(
            (int(depth), number, row)
            for number, tree in enumerate(self.trees)
            for row, depth in enumerate(tree.depth)
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """[N] `name` of every row."""
        return tuple(self.name(tree, self.trees[tree].names[row]) for _, tree, row in self._places)

    @property
    def num_roots(self) -> int:
        """S; the first rows are the roots."""
        return len(self.trees)

    @property
    def num_nodes(self) -> int:
        """N."""
        return len(self._places)

    @property
    def num_leaves(self) -> int:
        """L."""
        return len(self.leaves)

    @cached_property
    def tree_of(self) -> IntArray:
        """[N] the tree of every row."""
        return np.array([tree for _, tree, _ in self._places], np.int32)

    @cached_property
    def depth(self) -> IntArray:
        """[N] edges from the root."""
        return np.array([depth for depth, _, _ in self._places], np.int32)

    @cached_property
    def parent(self) -> IntArray:
        """[N] row of the parent; ABSENT at the roots."""
        row_of = {place[1:]: row for row, place in enumerate(self._places)}
        parents = (int(self.trees[tree].parent[row]) for _, tree, row in self._places)
        absent = TreeTopology.ABSENT
        return np.array(
            [row_of.get((tree, parent), absent)
             for parent, (_, tree, _) in zip(parents, self._places, strict=True)],
            np.int32,
        )  # fmt: skip

    @cached_property
    def levels(self) -> tuple[slice, ...]:
        """For each depth from 0, the rows of its nodes."""
        starts = np.searchsorted(self.depth, np.arange(self.depth[-1] + 2))
        return tuple(slice(int(a), int(b)) for a, b in pairwise(starts))

    @cached_property
    def leaves(self) -> IntArray:
        """[L] rows of the leaves."""
        return self._rows(tree.leaves for tree in self.trees)

    @cached_property
    def routers(self) -> IntArray:
        """[I] rows of the nodes with two children."""
        return self._rows(tree.routers for tree in self.trees)

    @property
    def leaf_names(self) -> tuple[str, ...]:
        """[L] names of the leaves."""
        return tuple(self.names[row] for row in self.leaves)

    def _rows(self, of_trees: Iterable[IntArray]) -> IntArray:
        """The rows, in the forest, of some rows of each tree."""
        wanted = {(tree, int(row)) for tree, rows in enumerate(of_trees) for row in rows}
        rows = [row for row, place in enumerate(self._places) if place[1:] in wanted]
        return np.array(rows, np.int32)
