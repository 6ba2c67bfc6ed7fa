"""Clustering and hierarchy scores from labels and hard assignments.

Each score lies in [0, 1] (ARI can fall below 0), 1 is perfect, and none depends on how classes or
clusters are numbered. The hierarchy's own score is dendrogram purity (Heller and Ghahramani, 2005):

    DP = mean over pairs of images of one class of
         the share of that class under the lowest common ancestor of their leaves

which is computed exactly from class counts per node, not from sampled pairs. Soft assignments are
not judged here: callers take the argmax of the leaf probabilities.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, ShapeError
from ..optional import require
from ..topology import TreeTopology

IdArray = NDArray[np.integer[Any]]


def clustering_metrics(labels: IdArray, leaf: IdArray, topology: TreeTopology) -> dict[str, float]:
    """Every score of this module.

    Args:
        labels: [n] int, ground-truth classes.
        leaf: [n] int, leaf ids: positions in `topology.leaves`.
        topology: the tree of L leaves.

    Returns:
        Scores by name: acc, nmi, ari, dendrogram_purity, leaf_purity.
    """
    return {
        "acc": accuracy(labels, leaf),
        "nmi": nmi(labels, leaf),
        "ari": ari(labels, leaf),
        "dendrogram_purity": dendrogram_purity(labels, leaf, topology),
        "leaf_purity": leaf_purity(labels, leaf),
    }


def accuracy(labels: IdArray, clusters: IdArray) -> float:
    """Share of images in the cluster matched to their class, under the best one-to-one matching.

    Of more clusters than classes, the surplus stays unmatched and counts as wrong.

    Args:
        labels: [n] int, ground-truth classes.
        clusters: [n] int, cluster ids.
    """
    count = _counts(labels, clusters)  # [K, clusters]
    match = require("scipy.optimize", extra="train").linear_sum_assignment(count, maximize=True)
    return float(count[match].sum() / count.sum())


def nmi(labels: IdArray, clusters: IdArray) -> float:
    """Mutual information over the arithmetic mean of both entropies.

    Args:
        labels: [n] int, ground-truth classes.
        clusters: [n] int, cluster ids.
    """
    _check(labels, clusters)
    metrics = require("sklearn.metrics", extra="train")
    return float(metrics.normalized_mutual_info_score(labels, clusters))


def ari(labels: IdArray, clusters: IdArray) -> float:
    """Agreement on pairs of images, adjusted so that chance scores 0.

    Args:
        labels: [n] int, ground-truth classes.
        clusters: [n] int, cluster ids.
    """
    _check(labels, clusters)
    return float(require("sklearn.metrics", extra="train").adjusted_rand_score(labels, clusters))


def leaf_purity(labels: IdArray, leaf: IdArray) -> float:
    """Share of images that belong to the most frequent class of their leaf.

    Args:
        labels: [n] int, ground-truth classes.
        leaf: [n] int, leaf ids.
    """
    count = _counts(labels, leaf)  # [K, leaves in use]
    return float(count.max(axis=0).sum() / count.sum())


def dendrogram_purity(labels: IdArray, leaf: IdArray, topology: TreeTopology) -> float:
    """Mean share of a pair's class under the pair's lowest common ancestor.

    With n_k images of class k among the n of a node, a leaf is the ancestor of C(n_k, 2) pairs and
    a router that of n_k^left n_k^right; each pair scores n_k / n there. A node with a single child
    is nobody's lowest common ancestor.

    Args:
        labels: [n] int, ground-truth classes.
        leaf: [n] int, leaf ids: positions in `topology.leaves`.
        topology: the tree of L leaves.

    Raises:
        DataError: no two images share a class, so that there is no pair to judge.
    """
    _check(labels, leaf)
    if leaf.min() < 0 or leaf.max() >= topology.num_leaves:
        raise ShapeError(
            "leaf",
            got=f"ids {leaf.min()} to {leaf.max()}",
            expected=f"ids 0 to {topology.num_leaves - 1} of this tree's leaves",
        )
    classes, label = np.unique(labels, return_inverse=True)
    # Products of three counts would overflow 64-bit integers from two million images on.
    count = np.zeros((topology.num_nodes, len(classes)))  # [N, K]
    np.add.at(count, (topology.leaves[leaf], label), 1)
    for row in range(topology.num_nodes - 1, 0, -1):
        count[topology.parent[row]] += count[row]

    routers = topology.routers
    pairs = np.zeros_like(count)  # [N, K] pairs whose lowest common ancestor the node is
    pairs[topology.leaves] = count[topology.leaves] * (count[topology.leaves] - 1) / 2
    pairs[routers] = count[topology.left[routers]] * count[topology.right[routers]]
    if pairs.sum() == 0:
        raise DataError(
            "labels",
            got=f"{len(labels)} images without two of one class",
            expected="at least one pair of images of one class",
            hint="evaluate on more images",
        )
    share = count / np.maximum(count.sum(axis=1, keepdims=True), 1)
    return float((pairs * share).sum() / pairs.sum())


def _counts(labels: IdArray, clusters: IdArray) -> NDArray[np.int64]:
    """[classes in use, clusters in use] int64, images of each class in each cluster."""
    _check(labels, clusters)
    classes, label = np.unique(labels, return_inverse=True)
    used, cluster = np.unique(clusters, return_inverse=True)
    count = np.zeros((len(classes), len(used)), np.int64)
    np.add.at(count, (label, cluster), 1)
    return count


def _check(labels: IdArray, clusters: IdArray) -> None:
    for name, ids in (("labels", labels), ("clusters", clusters)):
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or len(ids) == 0:
            raise ShapeError(
                name, got=f"{ids.dtype} {ids.shape}", expected="integers [n] with n of 1 or more"
            )
    if len(labels) != len(clusters):
        raise ShapeError(
            "clusters",
            got=f"[{len(clusters)}]",
            expected=f"[{len(labels)}], one per label",
        )
