"""The networks of all nodes below a root, stacked, and the pass over them.

For every node i with parent p, given the root's sample (TreeVAE, eq. 3-9):

    prior      N(mu_p, var_p)(z_p)      from the node's transformation of its parent's sample
    posterior  prior x N(mu_i, var_i)(x)  merged with the bottom-up estimate of its depth
    routers    p(left | z_i) for generation, q(left | x) for inference

Only the chain of samples needs one step per level. Bottom-up estimates, both kinds of routers,
probabilities and decoders are one call for all nodes, because they depend on the image or on
finished samples alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ..config import TreeConfig
from ..forest import Forest
from ..kernels.node_posterior import node_posterior
from ..kernels.tree_route import RouteTable, log_node_prob, route_table
from ..topology import TreeTopology
from .activation import make_activation
from .codecs import latent_size, make_decoders
from .gaussians import HeadGaussian
from .stacked import (
    StackedConv,
    StackedLinear,
    StackedNorm,
    apply_rows,
    by_rows,
    copy_rows,
    one_by_one,
)

Topology: TypeAlias = TreeTopology | Forest


class Transformations(nn.Module):
    """From a parent's sample to its child's prior, mean and variance.

    Three convolutions and a head without bias; in the MLP form one dense layer and a head with one.
    """

    def __init__(self, nodes: int, config: TreeConfig) -> None:
        super().__init__()
        z, c = config.latent_channels, config.channels
        widths = (z, c) if config.is_mlp else (z, z, z, c)
        kernel = kernel_size(config)
        self.config = config
        self.activation = make_activation(config)
        self.convs = nn.ModuleList(
            StackedConv(nodes, a, b, kernel=kernel) for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(StackedNorm(nodes, width) for width in widths[1:])
        self.head = StackedConv(nodes, c, 2 * z, kernel=kernel, bias=config.is_mlp)

    def forward(self, z: Tensor) -> HeadGaussian:
        """z: [B, N, Z, R, R] samples of the parents -> the nodes' priors."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            z = self.activation(norm(conv(z)))
        return HeadGaussian(self.head(z))


class Routers(nn.Module):
    """The decision of every inner node: a map to the logit of "left".

    A convolution to one channel, but for vectors; then two hidden layers of the level's width.
    """

    def __init__(self, routers: int, channels: int, config: TreeConfig) -> None:
        super().__init__()
        hidden = config.channels
        inputs = channels if config.is_mlp else latent_size(config) ** 2
        self.activation = make_activation(config)
        self.conv = None if config.is_mlp else StackedConv(routers, channels, 1)
        self.hidden = nn.ModuleList(
            StackedLinear(routers, width, hidden, bias=False) for width in (inputs, hidden)
        )
        self.norms = nn.ModuleList(StackedNorm(routers, hidden) for _ in range(2))
        self.out = StackedLinear(routers, hidden, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, I, C, R, R] -> [B, I] logit of the left child's probability."""
        if x.shape[1] == 0:  # a chain of single children routes nowhere
            return x.new_zeros(x.shape[:2])
        y = (x if self.conv is None else self.conv(x)).flatten(2)
        for linear, norm in zip(self.hidden, self.norms, strict=True):
            y = self.activation(norm(linear(y)))
        logit: Tensor = self.out(y).flatten(1)
        return logit


class Maps:
    """Picks each node's map, that of its depth: [B, S, depths, C, R, R] -> [B, n, C, R, R]."""

    def __init__(self, topology: Topology, rows: Sequence[int]) -> None:
        self.trees, self.depths = topology.tree_of[rows].tolist(), topology.depth[rows].tolist()

    def __call__(self, features: Tensor) -> Tensor:
        """features: those of all trees, each from its root's depth on."""
        depths = features.shape[2]
        places = zip(self.trees, self.depths, strict=True)
        return features.flatten(1, 2)[:, [tree * depths + depth for tree, depth in places]]


class Heads(nn.Module):
    """The bottom-up estimates of all nodes below the root, straight from their depths' maps.

    The nodes at the largest depth read the encoder's own output, which may be wider than the other
    maps; they have a stack of their own then. Narrower maps end in zeros.
    """

    def __init__(self, topology: Topology, config: TreeConfig, root_depths: Sequence[int]) -> None:
        super().__init__()
        self.channels = config.channels
        below = range(topology.num_roots, topology.num_nodes)
        depth = topology.depth + np.array(root_depths)[topology.tree_of]
        deepest = config.levels - 1 if config.encoder_channels else None
        self.wide_rows = [row for row in below if depth[row] == deepest]
        self.narrow_rows = [row for row in below if depth[row] != deepest]
        self.narrow_maps = Maps(topology, self.narrow_rows)
        self.wide_maps = Maps(topology, self.wide_rows)
        order = np.argsort(self.narrow_rows + self.wide_rows).tolist()
        self.order = None if order == sorted(order) else order
        outputs, kernel, bias = 2 * config.latent_channels, kernel_size(config), config.is_mlp
        self.narrow = StackedConv(
            len(self.narrow_rows), config.channels, outputs, kernel=kernel, bias=bias
        )
        self.wide = (
            StackedConv(
                len(self.wide_rows), config.encoder_channels, outputs, kernel=kernel, bias=bias
            )
            if self.wide_rows and config.encoder_channels
            else None
        )

    def forward(self, features: Tensor) -> HeadGaussian:
        """features: [B, S, depths, C, R, R] -> N - S estimates."""
        narrow = self.narrow_maps(features)[:, :, : self.channels]
        if self.wide is None:
            return HeadGaussian(apply_rows(self.narrow, narrow))
        parts = [self.wide(self.wide_maps(features))]
        if self.narrow_rows:
            parts.insert(0, self.narrow(narrow))
        found = torch.cat(parts, dim=1)
        return HeadGaussian(found if self.order is None else found[:, self.order])


@dataclass(frozen=True)
class TreePass:
    """What one traversal found; the roots' own rows are first.

    Attributes:
        z: [B, N, Z, R, R] samples.
        node_kl: [B, N - S] nats, KL of each node's posterior from its prior, roots left out;
            None where there was no posterior.
        post_logit: [B, I] inference routers' logits of "left"; None without images.
        prior_logit: [B, I] generative routers' logits of "left".
        log_node_prob: [B, N] log-probability of reaching each node, by the inference routers if
            there are images, else by the generative ones.
    """

    z: Tensor
    node_kl: Tensor | None
    post_logit: Tensor | None
    prior_logit: Tensor
    log_node_prob: Tensor


class NodeStack(nn.Module):
    """All nodes of a topology but the roots' own latents, whose samples are given.

    A whole tree and the two leaves that grow under a leaf are the same thing here: the latter is
    a `TreeTopology.initial()` whose root is the leaf. So are S trees together, each with images of
    its own: a `Forest`. Below, a single tree has S = 1.
    """

    route_nodes: Tensor
    edge_left: Tensor
    edge_right: Tensor

    def __init__(
        self,
        topology: Topology,
        config: TreeConfig,
        *,
        image_channels: int,
        image_size: int,
        root_depths: Sequence[int] | None = None,
    ) -> None:
        """Builds the networks; root_depths are those of the leaves that each tree grows under."""
        super().__init__()
        self.topology, self.config, self.channels = topology, config, config.channels
        self.image_shape = image_channels, image_size
        self.root_depths = list(root_depths or [0] * topology.num_roots)
        # Lists of Python's numbers, which neither a step nor a compiler has to convert.
        self.leaf_rows: list[int] = topology.leaves.tolist()
        self.router_rows: list[int] = topology.routers.tolist()
        self.tree_of: list[int] = topology.tree_of.tolist()
        self.levels = [_level(topology, depth) for depth in range(1, len(topology.levels))]
        self.router_maps = Maps(topology, self.router_rows)
        routers = len(self.router_rows)
        self.transformations = Transformations(topology.num_nodes - topology.num_roots, config)
        self.heads = Heads(topology, config, self.root_depths)
        self.prior_routers = Routers(routers, config.latent_channels, config)
        self.post_routers = Routers(routers, config.channels, config)
        self.decoders = make_decoders(topology.num_leaves, config, image_channels, image_size)
        names = ("route_nodes", "edge_left", "edge_right")
        for name, part in zip(names, route_table(topology), strict=True):
            self.register_buffer(name, part, persistent=False)

    def forward(
        self,
        root_z: Tensor,
        features: Tensor | None = None,
        *,
        noise: Tensor | None = None,
    ) -> TreePass:
        """Samples every node.

        Args:
            root_z: [B, S, Z, R, R] the roots' samples.
            features: [B, S, depths, C_b, R, R] bottom-up maps by depth, the root's depth first;
                None samples the prior.
            noise: [B, N - S, Z, R, R] standard normal, drawn here if None.
        """
        tree = self.topology
        if noise is None:
            noise = torch.randn(
                len(root_z), tree.num_nodes - tree.num_roots, *root_z.shape[2:],
                dtype=root_z.dtype, device=root_z.device,
            )  # fmt: skip
        counts = [len(parents) for parents in self.levels]
        transforms = self._by_level(counts, one_by_one=one_by_one(root_z))
        noises = torch.split(noise, counts, dim=1)
        estimates: Sequence[Tensor | None] = [None] * len(counts)
        if features is not None:
            estimates = torch.split(self.heads(features).heads, counts, dim=1)
        samples, kls = [root_z], []
        steps = zip(self.levels, transforms, estimates, noises, strict=True)
        for parents, transform, estimate, level_noise in steps:
            prior = transform(samples[-1][:, parents])
            if estimate is None:
                samples.append(prior.sample(level_noise))
                continue
            node_z, node_kl = node_posterior(estimate, prior.heads, level_noise)
            samples.append(node_z)
            kls.append(node_kl)
        z = torch.cat(samples, dim=1)
        prior_logit = self.prior_routers(z[:, self.router_rows])
        post_logit = None if features is None else self.route(features)
        return TreePass(
            z=z,
            node_kl=torch.cat(kls, dim=1) if kls else None,
            post_logit=post_logit,
            prior_logit=prior_logit,
            log_node_prob=self.log_node_prob(prior_logit if post_logit is None else post_logit),
        )

    def _by_level(
        self, counts: list[int], *, one_by_one: bool
    ) -> list[Callable[[Tensor], HeadGaussian]]:
        """The transformations of levels of so many nodes: [B, n, Z, R, R] samples -> priors."""
        if not one_by_one:
            return by_rows(self.transformations, counts)
        rows = iter(by_rows(self.transformations, [1] * sum(counts)))
        return [partial(_in_turn, list(islice(rows, count))) for count in counts]

    def route(self, features: Tensor) -> Tensor:
        """The inference routers alone: [B, S, depths, C_b, R, R] -> [B, I] logits of "left"."""
        logit: Tensor = self.post_routers(self.router_maps(features)[:, :, : self.channels])
        return logit

    def log_node_prob(self, logit: Tensor) -> Tensor:
        """[B, I] logits of "left" -> [B, N] log-probability of reaching each node from the root."""
        return log_node_prob(logit, self.routes)

    @property
    def routes(self) -> RouteTable:
        """The tree as routing reads it."""
        return RouteTable(self.route_nodes, self.edge_left, self.edge_right)

    def decode(self, z: Tensor) -> Tensor:
        """z: [B, N, Z, R, R] -> [B, L, C, H, W], each leaf's image from its own sample."""
        images: Tensor = self.decoders(z[:, self.leaf_rows])
        return images

    def like(self, topology: Topology, *, root_depths: Sequence[int] | None = None) -> NodeStack:
        """Fresh networks of the same kind for other trees."""
        channels, size = self.image_shape
        stack = NodeStack(
            topology,
            self.config,
            image_channels=channels,
            image_size=size,
            root_depths=root_depths,
        )
        some = next(self.parameters())
        return stack.to(device=some.device, dtype=some.dtype).train(self.training)

    def copy_from(self, source: NodeStack, *, rename: Callable[[str], str] = lambda n: n) -> None:
        """Takes over the rows of every node that both have; `rename` maps the source's names."""
        mine, theirs = self._rows_by_part(), source._rows_by_part()
        for part in mine.keys() & theirs.keys():
            their_row = {rename(name): row for row, name in enumerate(theirs[part])}
            my_row = {name: row for row, name in enumerate(mine[part])}
            rows = {their_row[name]: my_row[name] for name in their_row.keys() & my_row.keys()}
            if rows:
                copy_rows(self.get_submodule(part), source.get_submodule(part), rows)

    def _rows_by_part(self) -> dict[str, tuple[str, ...]]:
        """The node names of each stack's rows."""
        tree = self.topology
        routers = tuple(tree.names[row] for row in tree.routers)
        parts = {
            "transformations": tree.names[tree.num_roots :],
            "heads.narrow": tuple(tree.names[row] for row in self.heads.narrow_rows),
            "prior_routers": routers,
            "post_routers": routers,
            "decoders": tree.leaf_names,
        }
        if self.heads.wide is not None:
            parts["heads.wide"] = tuple(tree.names[row] for row in self.heads.wide_rows)
        return parts


def _level(topology: Topology, depth: int) -> list[int]:
    """Each node's parent at a depth, counted from the first node of the level above."""
    above, level = topology.levels[depth - 1 : depth + 1]
    parents: list[int] = (topology.parent[level] - above.start).tolist()
    return parents


def _in_turn(nodes: list[Callable[[Tensor], HeadGaussian]], z: Tensor) -> HeadGaussian:
    """Each node's Gaussian of its own sample, z: [B, n, Z, R, R]."""
    parts = zip(nodes, torch.split(z, 1, dim=1), strict=True)
    return HeadGaussian(torch.cat([node(z_n).heads for node, z_n in parts], dim=1))


def kernel_size(config: TreeConfig) -> int:
    """Of the tree's convolutions; a vector is a map of one pixel."""
    return 1 if config.is_mlp else 3
