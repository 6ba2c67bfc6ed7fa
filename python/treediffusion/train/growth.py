"""Which leaf is split next, which leaf is pruned: decisions from leaf probabilities and a score.

No label is involved. Reference: TreeVAE 2.5 and the published code where the two differ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import TreeConfig
from ..topology import TreeTopology


def effective_leaves(leaf_prob: Tensor, config: TreeConfig) -> int:
    """Leaves that hold `min_share` of the probability; leaf_prob: [n, L], rows sum to 1."""
    return int((leaf_prob.mean(0) >= config.min_share).sum())


def members(leaf_prob: Tensor, config: TreeConfig) -> Tensor:
    """[n, L] bool, the images that belong to each leaf and would train its children.

    An image belongs to a leaf if its probability is at least 1 / leaves (at most 1/2), so that
    undecided images train both sides.
    """
    return leaf_prob >= min(1 / max(effective_leaves(leaf_prob, config), 1), 0.5)


def choose_split(
    leaf_prob: Tensor, topology: TreeTopology, config: TreeConfig, *, score: Tensor | None = None
) -> str | None:
    """The leaf to split, or None when growth has ended.

    Growth ends at `max_leaves` effective leaves. Else the leaf with the highest score is split, if
    it has a batch of images and room below it. One with fewer images is passed over; one that is
    too deep is too, or ends growth, as `at_full_depth` says.

    Args:
        leaf_prob: [n, L] float, rows sum to 1.
        topology: the tree.
        config: its settings.
        score: [L] float; None for the number of each leaf's images.
    """
    if effective_leaves(leaf_prob, config) >= config.max_leaves:
        return None
    count = members(leaf_prob, config).sum(0)
    order = (count if score is None else score).argsort(descending=True, stable=True)
    for leaf in order.tolist():
        name: str = topology.leaf_names[leaf]
        if count[leaf] < min(config.batch_size, len(leaf_prob)):
            continue
        if len(name) - 1 < config.levels - 1:
            return name
        if config.at_full_depth == "stop":
            return None
    return None


def choose_pruned(leaf_prob: Tensor, topology: TreeTopology, config: TreeConfig) -> str | None:
    """The smallest leaf, if it is the most probable one of less than `min_share` of the images."""
    if topology.num_leaves == 1:
        return None
    count = torch.bincount(leaf_prob.argmax(1), minlength=topology.num_leaves)
    smallest = int(count.argmin())
    if count[smallest] >= config.min_share * len(leaf_prob):
        return None
    return topology.leaf_names[smallest]
