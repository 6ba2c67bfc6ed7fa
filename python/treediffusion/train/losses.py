"""Losses of a batch in the two kinds of phases: of the whole tree, or of two leaves that grow.

    whole tree   -ELBO + contrast, gradients everywhere
    two leaves   their share of it, given what the frozen tree says about their leaf's images

What the frozen tree says of an image never changes, unless the image does: then only latents are
drawn afresh, and bottom-up maps and probabilities are computed once, if they fit into memory.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from ..config import TreeConfig
from ..data.views import random_view
from ..nn.node_stack import NodeStack
from ..nn.tree_objective import contrastive_loss, subtree_elbo, tree_elbo
from ..nn.tree_vae import TreeVAE
from .measure import CHUNK

CACHE_LIMIT = 2 * 1024**3
"""Bytes of bottom-up maps that are kept while two leaves grow."""


class Objective(Protocol):
    """What a phase minimises: the loss of some of its images."""

    @property
    def count(self) -> int:
        """Images of the phase."""
        ...

    @property
    def trained(self) -> nn.Module:
        """The networks that it trains."""
        ...

    def loss(self, rows: Tensor, kl_weight: float | Tensor) -> Tensor:
        """rows: [B] int64, positions among the phase's images -> a scalar."""
        ...


class TreeObjective:
    """The loss of a whole tree on all images: [n, C, H, W] float in 0..1."""

    def __init__(self, tree: TreeVAE, images: Tensor) -> None:
        self.images, self.trained, self.count = images, tree, len(images)

    def loss(self, rows: Tensor, kl_weight: float | Tensor) -> Tensor:
        """See `Objective`."""
        tree, config = self.trained, self.trained.config
        images = make_views(self.images[rows], config)
        found = tree.infer(images)
        loss = tree_elbo(tree.nodes, found, images, likelihood=config.likelihood).loss(kl_weight)
        if tree.projections is None:
            return loss
        embedding = tree.projections(found.features)
        return loss + contrastive_loss(config.contrastive, tree.nodes, found.nodes, embedding)


class SubtreeObjective:
    """The loss of two leaves under a leaf of a frozen tree.

    Args:
        tree: stays as it is, statistics included.
        leaf: where the two grow.
        children: their networks.
        images: [n, C, H, W] float in 0..1.
        members: [m] int64, positions of the leaf's images.
        cache_limit: bytes of bottom-up maps to keep at most.
    """

    def __init__(
        self,
        tree: TreeVAE,
        leaf: str,
        children: NodeStack,
        images: Tensor,
        members: Tensor,
        *,
        cache_limit: int = CACHE_LIMIT,
    ) -> None:
        self.images, self.members = images, members
        self.trained, self.count = children, len(members)
        self._config, self._trunk = tree.config, Trunk(tree, leaf)
        constant = tree.config.augmentation == "none"
        self._known = self._trunk.known(images, members, cache_limit) if constant else None

    def loss(self, rows: Tensor, kl_weight: float | Tensor) -> Tensor:
        """See `Objective`."""
        children, config = self.trained, self._config
        images = make_views(self.images[self.members[rows]], config)
        if self._known is None:
            features, log_prob = self._trunk.describe(images)
        else:
            features, log_prob = (part[rows] for part in self._known)
        found = children(self._trunk.draw(features), features[:, -2:])
        terms = subtree_elbo(children, found, images, log_prob, likelihood=config.likelihood)
        loss = terms.loss(kl_weight)
        if not config.contrastive.weight:
            return loss
        return loss + contrastive_loss(config.contrastive, children, found, None, log_prob=log_prob)


class Trunk:
    """A frozen tree as a leaf's children see it: the path to the leaf, and no decoder."""

    def __init__(self, tree: TreeVAE, leaf: str) -> None:
        self._tree = tree.eval()
        self._row, self._depth = tree.topology.row(leaf), len(leaf) - 1
        # The path's networks are made at random before they are copied; a run that is continued
        # makes them once more, and must not meet other random numbers for it.
        with torch.random.fork_rng(devices=[]):
            self._chain = tree.chain(leaf).eval()

    @torch.no_grad()
    def describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What is constant for an image.

        Returns:
            [B, depth + 2, C, R, R] bottom-up maps, from the root's down to the children's, and [B]
            log-probability of reaching the leaf.
        """
        features = self._tree.bottom_up(images)
        logit = self._tree.nodes.route(features)
        log_prob = self._tree.nodes.log_node_prob(logit)[:, self._row]
        return features[:, : self._depth + 2], log_prob

    def known(self, images: Tensor, rows: Tensor, limit: int) -> tuple[Tensor, Tensor] | None:
        """`describe` of some images, or None where its maps need more than `limit` bytes."""
        some, _ = self.describe(images[rows[:1]])
        if some.nbytes * len(rows) > limit:
            return None
        features, log_prob = some.new_empty(len(rows), *some.shape[1:]), some.new_empty(len(rows))
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            features[part], log_prob[part] = self.describe(images[rows[part]])
        return features, log_prob

    @torch.no_grad()
    def draw(self, features: Tensor) -> Tensor:
        """[B, Z, R, R] fresh samples of the leaf's latent."""
        return self._chain.infer(features=features).nodes.z[:, -1]


def make_views(images: Tensor, config: TreeConfig) -> Tensor:
    """What the network sees of images: [B, C, H, W] -> the same, or [2 B, C, H, W] for contrast.

    Rows b and b + B of two views are views of one image.
    """
    both = images.repeat(2, 1, 1, 1) if config.contrastive.weight else images
    return random_view(both, config.augmentation)
