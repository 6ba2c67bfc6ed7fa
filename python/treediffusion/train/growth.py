"""Which leaf is split next, which leaf is pruned: decisions from leaf probabilities alone.

No label is involved. Reference: TreeVAE 2.5 and the published code where the two differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import TreeConfig
from ..topology import TreeTopology


@dataclass(frozen=True)
class Split:
    """A leaf to grow under.

    Attributes:
        leaf: its name.
        members: [n] bool, the images that belong to it and train its children.
    """

    leaf: str
    members: Tensor


def choose_split(leaf_prob: Tensor, topology: TreeTopology, config: TreeConfig) -> Split | None:
    """The leaf with most images, or None when growth has ended.

    Growth ends at `max_leaves` leaves that hold `min_share` of the probability each. An image
    counts for a leaf if its probability is at least 1 / leaves (at most 1/2), so that undecided
    images train both sides. A leaf needs a batch of images, and room below it: as published, growth
    ends altogether when the candidate is at the largest depth.

    Args:
        leaf_prob: [n, L] float, rows sum to 1.
        topology: the tree.
        config: its settings.
    """
    effective = int((leaf_prob.mean(0) >= config.min_share).sum())
    if effective >= config.max_leaves:
        return None
    members = leaf_prob >= min(1 / max(effective, 1), 0.5)
    count = members.sum(0)
    leaf = int(count.argmax())
    name = topology.leaf_names[leaf]
    if len(name) - 1 >= config.levels - 1 or count[leaf] < min(config.batch_size, len(leaf_prob)):
        return None
    return Split(name, members[:, leaf])


def choose_pruned(leaf_prob: Tensor, topology: TreeTopology, config: TreeConfig) -> str | None:
    """The smallest leaf, if it is the most probable one of less than `min_share` of the images."""
    if topology.num_leaves == 1:
        return None
    count = torch.bincount(leaf_prob.argmax(1), minlength=topology.num_leaves)
    smallest = int(count.argmin())
    if count[smallest] >= config.min_share * len(leaf_prob):
        return None
    return topology.leaf_names[smallest]
