"""A sequence of merges: n observations become n - 1 pairs, the last of which holds everything.

    merge m joins two of the numbers 0 .. n + m - 1 and is itself the number n + m

Cut after n - k merges there are k clusters, and the merges that are left are a tree over them. The
numbering is SciPy's, so `linkage` is what `scipy.cluster.hierarchy` reads. NumPy only; how the
merges were found is the caller's business.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, ShapeError
from ..topology import TreeTopology

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Dendrogram:
    """Merges in the order in which they were made.

    Attributes:
        merges: [n - 1, 2] int64, the two numbers of each.
        heights: [n - 1] float64, not decreasing; None where merges have an order and no height.
    """

    merges: IntArray
    heights: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        merges = self.merges
        if merges.ndim != 2 or merges.shape[1:] != (2,) or len(merges) == 0:
            raise ShapeError(
                "merges", got=list(merges.shape), expected="[n - 1, 2], n of 2 or more"
            )
        known = len(merges) + 1 + np.arange(len(merges))
        each_once = np.array_equal(np.sort(merges.ravel()), np.arange(2 * len(merges)))
        if not each_once or (merges.max(axis=1) >= known).any():
            raise ShapeError(
                "merges",
                got="a number that is merged twice, never, or before it exists",
                expected="every number but the last one merged once, after it was made",
            )

    @property
    def count(self) -> int:
        """n, observations."""
        return len(self.merges) + 1

    @property
    def linkage(self) -> NDArray[np.float64]:
        """[n - 1, 4] float64 as SciPy has it: two numbers, height, observations below."""
        sizes = np.ones(2 * self.count - 1)
        for number, (a, b) in enumerate(self.merges, self.count):
            sizes[number] = sizes[a] + sizes[b]
        heights = np.arange(1.0, self.count) if self.heights is None else self.heights
        return np.column_stack([self.merges, heights, sizes[self.count :]]).astype(np.float64)

    def cut(self, k: int) -> IntArray:
        """[n] int64, the clusters 0 to k - 1 when k are left, numbered by their first observation.

        Raises:
            ConfigError: not that many clusters.
        """
        top = self._top(k)
        _, first, cluster = np.unique(top, return_index=True, return_inverse=True)
        number = np.empty(k, np.int64)
        number[np.argsort(first)] = np.arange(k)
        return number[cluster]

    def tree(self, k: int) -> tuple[IntArray, TreeTopology]:
        """The last k - 1 merges as a tree of k leaves.

        Args:
            k: leaves, 1 to n.

        Returns:
            leaf: [n] int64, positions in `topology.leaves`.
            topology: the tree; of a merge, the first number is the left child.

        Raises:
            ConfigError: not that many leaves.
        """
        top = self._top(k)
        name = {2 * self.count - 2: "r"}
        for number in range(2 * self.count - 2, 2 * self.count - 1 - k, -1):
            left, right = (int(each) for each in self.merges[number - self.count])
            name[left], name[right] = name[number] + "0", name[number] + "1"
        topology = TreeTopology.of(name.values())
        place = {leaf: position for position, leaf in enumerate(topology.leaf_names)}
        tops, which = np.unique(top, return_inverse=True)
        return np.array([place[name[int(each)]] for each in tops], np.int64)[which], topology

    def _top(self, k: int) -> IntArray:
        """[n] the number of the cluster that holds each observation when k are left."""
        if not 1 <= k <= self.count:
            raise ConfigError("k", got=k, expected=f"1 to {self.count}, the observations")
        top = np.arange(2 * self.count - 1)
        # Downwards, so that a merge knows where it belongs before it tells its two.
        for number in range(2 * self.count - 1 - k, self.count - 1, -1):
            top[self.merges[number - self.count]] = top[number]
        return top[: self.count]
