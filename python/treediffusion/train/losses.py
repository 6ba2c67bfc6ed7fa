"""Losses of a batch in the two kinds of phases: of the whole tree, or of two leaves that grow.

    whole tree   -ELBO + contrast, gradients everywhere
    two leaves   their share of it, given what the frozen tree says about their leaf's images

of one tree or, added up, of several. What the frozen tree says of an image never changes, unless
the image does: then only latents are drawn afresh, and bottom-up maps and probabilities are
computed once, if they fit into memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..config import TreeConfig
from ..data.views import random_view
from ..forest import Forest
from ..nn.grove import Grove
from ..nn.node_stack import NodeStack, TreePass
from ..nn.packed import packed
from ..nn.tree_objective import contrastive_loss, subtree_elbo, tree_elbo
from ..nn.tree_vae import TreeVAE
from .images import TrainingImages
from .measure import CHUNK

CACHE_LIMIT = 2 * 1024**3
"""Bytes of bottom-up maps that are kept while two leaves grow."""


class Objective(Protocol):
    """What a phase minimises: the loss of some of its images."""

    @property
    def counts(self) -> list[int]:
        """[S] images of the phase, for each tree."""
        ...

    @property
    def trained(self) -> nn.Module:
        """The networks that it trains."""
        ...

    def loss(self, rows: Tensor, kl_weight: float | Tensor) -> Tensor:
        """rows: [B] int64, positions among the phase's images -> a scalar.

        Of several trees rows are [B, S], one column for each.
        """
        ...


class TreeObjective:
    """The loss of a whole tree, or of several, on all images."""

    def __init__(self, tree: TreeVAE | Grove, images: TrainingImages) -> None:
        self.images, self.trained = images, tree
        self.counts = [len(images)] * tree.nodes.topology.num_roots

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
        images: to train on.
        members: [m] int64, positions of the leaf's images.
        cache_limit: bytes of bottom-up maps to keep at most.
    """

    def __init__(
        self,
        tree: TreeVAE,
        leaf: str,
        children: NodeStack,
        images: TrainingImages,
        members: Tensor,
        *,
        cache_limit: int = CACHE_LIMIT,
    ) -> None:
        self.images, self.members = images, members
        self.trained, self.counts = children, [len(members)]
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
        found = children(self._trunk.draw(features)[:, None], features[:, None, -2:])
        return _growing_loss(children, found, images, log_prob, config, kl_weight)


class SubtreesObjective:
    """The loss of two leaves under a leaf of each of S frozen trees.

    Args:
        trees: stay as they are.
        leaves: [S] where the two grow.
        children: their networks, joined.
        images: to train on.
        members: [S] of [m] int64, positions of each leaf's images.
        cache_limit: bytes of bottom-up maps to keep at most.
    """

    def __init__(
        self,
        trees: Sequence[TreeVAE],
        leaves: Sequence[str],
        children: NodeStack,
        images: TrainingImages,
        members: Sequence[Tensor],
        *,
        cache_limit: int = CACHE_LIMIT,
    ) -> None:
        self.images, self.trained = images, children
        self.counts = [len(rows) for rows in members]
        self._config, self._trunks = trees[0].config, Trunks(trees, leaves)
        # Trees with fewer members than others never ask for those that fill up their row.
        self._members = pad_sequence(list(members), batch_first=True)  # [S, largest m]
        self._tree = torch.arange(len(trees), device=images.device)
        constant = self._config.augmentation == "none"
        self._known = self._trunks.known(images, members, cache_limit) if constant else None

    def loss(self, rows: Tensor, kl_weight: float | Tensor) -> Tensor:
        """See `Objective`; rows: [B, S]."""
        children, config, trunks = self.trained, self._config, self._trunks
        images = make_views(self.images[self._members[self._tree, rows]], config)
        if self._known is None:
            features, log_prob = trunks.describe(images)
        else:
            features, log_prob = (part[self._known.first + rows] for part in self._known.parts)
        found = children(trunks.draw(features), trunks.below(features))
        return _growing_loss(children, found, images, log_prob, config, kl_weight)


def _growing_loss(
    children: NodeStack,
    found: TreePass,
    images: Tensor,
    log_prob: Tensor,
    config: TreeConfig,
    kl_weight: float | Tensor,
) -> Tensor:
    """Of leaves that grow, given the pass over them and the probability of reaching them."""
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
            self.chain = tree.chain(leaf).eval()
        self._drawing = packed(self.chain)

    @torch.no_grad()
    def describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What is constant for an image.

        Returns:
            [B, depth + 2, C, R, R] bottom-up maps, from the root's down to the children's, and [B]
            log-probability of reaching the leaf.
        """
        features = self._tree.bottom_up(images)
        logit = self._tree.nodes.route(features[:, None])
        log_prob = self._tree.nodes.log_node_prob(logit)[:, self._row]
        return features[:, : self._depth + 2], log_prob

    def known(
        self, images: TrainingImages, rows: Tensor, limit: int
    ) -> tuple[Tensor, Tensor] | None:
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
        return self._drawing.infer(features=features).nodes.z[:, -1]


class Trunks:
    """S frozen trees as the children of one leaf of each see them."""

    def __init__(self, trees: Sequence[TreeVAE], leaves: Sequence[str]) -> None:
        self._single = [Trunk(tree, leaf) for tree, leaf in zip(trees, leaves, strict=True)]
        with torch.random.fork_rng(devices=[]):
            self._whole = Grove(trees).eval()
            self._paths = packed(Grove([trunk.chain for trunk in self._single]).eval())
        whole, paths = (grove.nodes.topology.names for grove in (self._whole, self._paths))
        names = [Forest.name(*place) for place in enumerate(leaves)]
        self._rows = [whole.index(name) for name in names]
        self._ends = [paths.index(name) for name in names]
        depth = torch.tensor([[len(leaf) - 1] for leaf in leaves], device=_device(trees[0]))
        self._trees = torch.arange(len(trees), device=depth.device)[:, None]
        self._below = torch.cat([depth, depth + 1], dim=1)  # [S, 2]

    @torch.no_grad()
    def describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What is constant for images of each tree, [B, S, C, H, W]; compare `Trunk`.

        Returns:
            [B, S, levels, C, R, R] bottom-up maps, and [B, S] log-probability of reaching the leaf.
        """
        nodes = self._whole.nodes
        features: Tensor = self._whole.bottom_up(images)
        return features, nodes.log_node_prob(nodes.route(features))[:, self._rows]

    def known(self, images: TrainingImages, members: Sequence[Tensor], limit: int) -> Known | None:
        """What is constant for each tree's members; None beyond `limit` bytes for any of them."""
        found = [
            trunk.known(images, rows, limit)
            for trunk, rows in zip(self._single, members, strict=True)
        ]
        parts = [part for part in found if part is not None]
        if len(parts) < len(found):
            return None
        # Trees whose leaf is higher up need fewer maps.
        deepest = max(features.shape[1] for features, _ in parts)
        features = torch.cat(
            [F.pad(maps, (0, 0) * 3 + (0, deepest - maps.shape[1])) for maps, _ in parts]
        )
        counts = torch.tensor([len(maps) for maps, _ in parts], device=features.device)
        return Known((features, torch.cat([prob for _, prob in parts])), counts.cumsum(0) - counts)

    @torch.no_grad()
    def draw(self, features: Tensor) -> Tensor:
        """[B, S, Z, R, R] fresh samples of the leaves' latents."""
        return self._paths.infer_from(features).nodes.z[:, self._ends]

    def below(self, features: Tensor) -> Tensor:
        """[B, S, 2, C, R, R] the maps of the leaves and of their children."""
        return features[:, self._trees, self._below]


class Known(NamedTuple):
    """What is constant, for the members of several leaves, one leaf's after another's.

    Attributes:
        parts: [M, levels, C, R, R] bottom-up maps and [M] log-probabilities.
        first: [S] where each leaf's begin.
    """

    parts: tuple[Tensor, Tensor]
    first: Tensor


def make_views(images: Tensor, config: TreeConfig) -> Tensor:
    """What the network sees of images: [B, ..., C, H, W] -> the same, or [2 B, ...] for contrast.

    Rows b and b + B of two views are views of one image.
    """
    both = torch.cat([images, images]) if config.contrastive.weight else images
    if config.augmentation == "none":
        return both
    return random_view(both.flatten(0, -4), config.augmentation).view(both.shape)


def _device(tree: TreeVAE) -> torch.device:
    return next(tree.parameters()).device
