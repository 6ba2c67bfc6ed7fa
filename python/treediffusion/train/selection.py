"""Which of several trees is kept, without labels.

By the ELBO, or by agreement: the tree whose clusters the other trees confirm most,

    argmax_i  mean_{j != i}  NMI(leaves of tree i, leaves of tree j).

Chance makes trees differ in many ways and agree in few, so what they agree on is in the data. On
small sets the ELBO says little about clusters: over 16 trees of the digits its correlation with
their NMI was -0.04, that of the agreement 0.65.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import TreeConfig
from .grower import Grower


def choose_tree(trees: list[Grower], config: TreeConfig) -> Grower:
    """The one to keep of finished trees on the same images.

    Two trees confirm each other alike: of fewer than three the ELBO decides.
    """
    if config.keep == "elbo" or len(trees) < 3:
        return max(trees, key=lambda tree: float(tree.state.history[-1]["elbo"]))
    leaves = [tree.leaf_prob().argmax(1).cpu().numpy() for tree in trees]
    return trees[int(agreement(leaves).argmax())]


def compare_trees(trees: list[Grower], kept: Grower) -> dict[str, Any]:
    """What several finished trees reached, as JSON.

    Returns:
        `kept`, the number of the one that is; `trees`, a row for each; `mean` and `deviation` (of
        the sample) of the rows' numbers.
    """
    rows = [
        {
            "elbo": float(tree.state.history[-1]["elbo"]),
            "leaves": float(tree.tree.topology.num_leaves),
        }
        for tree in trees
    ]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return {
        "kept": trees.index(kept),
        "trees": rows,
        "mean": {name: float(column.mean()) for name, column in columns.items()},
        "deviation": {name: float(column.std(ddof=1)) for name, column in columns.items()},
    }


def describe_trees(found: dict[str, Any]) -> str:
    """What `compare_trees` found, in a line."""
    kept, elbo = found["kept"], found["trees"][found["kept"]]["elbo"]
    spread = f"{found['mean']['elbo']:.2f} ± {found['deviation']['elbo']:.2f}"
    return f"kept tree {kept} of {len(found['trees'])}: ELBO {elbo:.2f}, of all {spread}"


def agreement(partitions: list[NDArray[np.int64]]) -> NDArray[np.float64]:
    """[R] mean NMI of each of R >= 2 partitions of the same n images with the others."""
    found = np.array([[_nmi(a, b) for b in partitions] for a in partitions])
    return np.asarray((found.sum(1) - found.diagonal()) / (len(partitions) - 1))


def _nmi(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Mutual information over the mean entropy, in 0..1; of two single clusters 1."""
    count = np.zeros((int(a.max()) + 1, int(b.max()) + 1))
    np.add.at(count, (a, b), 1)
    joint = count / len(a)
    both, of_a, of_b = (_entropy(p) for p in (joint, joint.sum(1), joint.sum(0)))
    return float(2 * (of_a + of_b - both) / (of_a + of_b)) if of_a + of_b else 1.0


def _entropy(p: NDArray[np.float64]) -> float:
    """Nats."""
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())
