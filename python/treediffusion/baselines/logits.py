"""L2H: the clusters of a flat model, merged into a hierarchy by what they are mistaken for.

"From Logits to Hierarchies: Hierarchical Clustering made Simple" (Palumbo, Vandenhirtz, Ryser,
Daunhawer, Vogt, ICML 2025). Groups of clusters begin as single clusters. K - 1 times

    G*  = argmin over groups of sum of p(c(x) | x) over the x that are assigned to the group
    G+  = argmax over the other groups of the same sum over the x of G*, without G*'s logits

and G* joins G+. Only logits are read: any flat model will do, and nothing is trained. The sums are
the paper's choice of aggregation for clusterings; its mean is not here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError
from .dendrogram import Dendrogram


def merge_logits(logits: NDArray[np.float64]) -> Dendrogram:
    """The hierarchy of a flat model's clusters.

    Args:
        logits: [n, K] float64, K of 2 or more; log-probabilities up to a constant of each row.

    Returns:
        Merges of K observations, which are the clusters.

    Raises:
        ShapeError: another shape, or numbers that are not finite.
    """
    if logits.ndim != 2 or logits.shape[1] < 2 or len(logits) == 0 or not np.isfinite(logits).all():
        raise ShapeError(
            "logits", got=list(logits.shape), expected="finite [n, K], n from 1 and K from 2"
        )
    k = logits.shape[1]
    cluster, prob = _assigned(logits)
    group = np.arange(k)  # the number of the group that holds each cluster
    merges = []
    for number in range(k, 2 * k - 1):
        weakest = _least(_sums(group[cluster], prob, 2 * k), group)
        members = group == weakest
        inside = members[cluster]
        again, sure = _assigned(np.where(members, -np.inf, logits[inside]))
        partner = _least(-_sums(group[again], sure, 2 * k), group[~members])
        merges.append([weakest, partner])
        group[np.isin(group, (weakest, partner))] = number
    return Dendrogram(np.array(merges, np.int64))


def _assigned(logits: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """[n, K] -> [n] the most probable cluster, [n] its probability."""
    best = logits.max(axis=1, initial=-np.inf, keepdims=True)
    return logits.argmax(axis=1), 1 / np.exp(logits - best).sum(axis=1)


def _sums(group: NDArray[np.int64], values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """[size] float64, the sum of the values of each group."""
    total = np.zeros(size)
    np.add.at(total, group, values)
    return total


def _least(score: NDArray[np.float64], groups: NDArray[np.int64]) -> int:
    """The group with the smallest score; of equal ones the first number."""
    names = np.unique(groups)
    return int(names[score[names].argmin()])
