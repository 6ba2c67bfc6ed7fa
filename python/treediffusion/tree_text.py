"""A tree as text, for a terminal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .topology import TreeTopology


def tree_text(tree: TreeTopology, share: NDArray[np.float64]) -> str:
    """One line per node, children indented below their parent; share: [N] of the images.

    >>> print(tree_text(TreeTopology.initial(), np.array([1, 0.25, 0.75])))
    r         100.0 %
    ├─ r0      25.0 %
    └─ r1      75.0 %
    """
    width = 2 + max(3 * int(d) + len(name) for name, d in zip(tree.names, tree.depth, strict=True))
    lines: list[str] = []

    def add(row: int, prefix: str, branch: str) -> None:
        label = prefix + branch + tree.names[row]
        lines.append(f"{label:{width}} {100 * share[row]:7.1f} %")
        children = [int(c) for c in (tree.left[row], tree.right[row]) if c >= 0]
        below = prefix + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        for child in children:
            add(child, below, "└─ " if child == children[-1] else "├─ ")

    add(TreeTopology.ROOT, "", "")
    return "\n".join(lines)
