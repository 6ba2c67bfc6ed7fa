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

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TreeConfig
from ..topology import TreeTopology
from .gaussians import Gaussian, kl, merge, sample
from .image_codec import LeafDecoders
from .stacked import StackedConv, StackedLinear, StackedNorm, copy_rows


class Transformations(nn.Module):
    """From a parent's sample to its child's prior: three convolutions, then mean and variance."""

    def __init__(self, nodes: int, config: TreeConfig) -> None:
        super().__init__()
        z, c = config.latent_channels, config.channels
        self.convs = nn.ModuleList(StackedConv(nodes, z, out) for out in (z, z, c))
        self.norms = nn.ModuleList(StackedNorm(nodes, out) for out in (z, z, c))
        self.head = StackedConv(nodes, c, 2 * z)

    def forward(self, z: Tensor, rows: slice) -> Gaussian:
        """z: [B, n, Z, R, R] samples of the parents -> the n nodes' priors."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            z = F.silu(norm(conv(z, rows), rows))
        return as_gaussian(self.head(z, rows))


class Routers(nn.Module):
    """The decision of every inner node: a map to the logit of "left"."""

    def __init__(self, routers: int, channels: int, hidden: int, pixels: int) -> None:
        super().__init__()
        self.conv = StackedConv(routers, channels, 1)
        self.hidden = nn.ModuleList(
            StackedLinear(routers, width, hidden, bias=False) for width in (pixels, hidden)
        )
        self.norms = nn.ModuleList(StackedNorm(routers, hidden) for _ in range(2))
        self.out = StackedLinear(routers, hidden, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, I, C, R, R] -> [B, I] logit of the left child's probability."""
        if x.shape[1] == 0:  # a chain of single children routes nowhere
            return x.new_zeros(x.shape[:2])
        y = self.conv(x).flatten(2)
        for linear, norm in zip(self.hidden, self.norms, strict=True):
            y = F.silu(norm(linear(y)))
        logit: Tensor = self.out(y).flatten(1)
        return logit


@dataclass(frozen=True)
class TreePass:
    """What one traversal found; the root's own row is first.

    Attributes:
        z: [B, N, Z, R, R] samples.
        node_kl: [B, N - 1] nats, KL of each node's posterior from its prior, root left out;
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
    """All nodes of a topology but the root's own latent, whose sample is given.

    A whole tree and the two leaves that grow under a leaf are the same thing here: the latter is
    a `TreeTopology.initial()` whose root is the leaf.
    """

    edge_left: Tensor
    edge_right: Tensor

    def __init__(
        self,
        topology: TreeTopology,
        config: TreeConfig,
        *,
        image_channels: int,
        image_size: int,
        latent_size: int,
    ) -> None:
        super().__init__()
        self.topology = topology
        z, c, pixels = config.latent_channels, config.channels, latent_size**2
        below, routers = topology.num_nodes - 1, len(topology.routers)
        self.transformations = Transformations(below, config)
        self.heads = StackedConv(below, c, 2 * z)
        self.prior_routers = Routers(routers, z, c, pixels)
        self.post_routers = Routers(routers, c, c, pixels)
        self.decoders = LeafDecoders(topology.num_leaves, config, image_channels, image_size)
        left, right = edges(topology)
        self.register_buffer("edge_left", torch.from_numpy(left), persistent=False)
        self.register_buffer("edge_right", torch.from_numpy(right), persistent=False)

    def forward(
        self,
        root_z: Tensor,
        features: Tensor | None = None,
        *,
        noise: Tensor | None = None,
    ) -> TreePass:
        """Samples every node.

        Args:
            root_z: [B, Z, R, R] the root's sample.
            features: [B, depths, C_b, R, R] bottom-up maps by depth, the root's depth first; None
                samples the prior.
            noise: [B, N - 1, Z, R, R] standard normal, drawn here if None.
        """
        tree = self.topology
        if noise is None:
            noise = torch.randn(
                len(root_z), tree.num_nodes - 1, *root_z.shape[1:],
                dtype=root_z.dtype, device=root_z.device,
            )  # fmt: skip
        infer = None if features is None else self._infer(features)
        samples, kls = [root_z[:, None]], []
        for level in tree.levels[1:]:
            rows = slice(level.start - 1, level.stop - 1)  # the root has no row in the stacks
            first = tree.levels[tree.depth[level.start] - 1].start
            z_parent = samples[-1][:, (tree.parent[level] - first).tolist()]
            prior = self.transformations(z_parent, rows)
            if infer is None:
                node = prior
            else:
                node = merge(Gaussian(infer.mean[:, rows], infer.var[:, rows]), prior)
                kls.append(kl(node, prior))
            samples.append(sample(node, noise[:, rows]))
        z = torch.cat(samples, dim=1)
        prior_logit = self.prior_routers(z[:, tree.routers.tolist()])
        post_logit = None if features is None else self.route(features)
        return TreePass(
            z=z,
            node_kl=torch.cat(kls, dim=1) if kls else None,
            post_logit=post_logit,
            prior_logit=prior_logit,
            log_node_prob=self.log_node_prob(prior_logit if post_logit is None else post_logit),
        )

    def route(self, features: Tensor) -> Tensor:
        """The inference routers alone: [B, depths, C_b, R, R] -> [B, I] logits of "left"."""
        depth = self.topology.depth[self.topology.routers].tolist()
        logit: Tensor = self.post_routers(features[:, depth])
        return logit

    def log_node_prob(self, logit: Tensor) -> Tensor:
        """[B, I] logits of "left" -> [B, N] log-probability of reaching each node from the root.

        The sum over the path of the log-probability of the turn taken, as one product.
        """
        # -softplus(-x) and not logsigmoid(x), which ONNX knows only as log(sigmoid(x)): that is
        # -inf for a decided router, and -inf times an edge that is not there is not a number.
        return -(F.softplus(-logit) @ self.edge_left + F.softplus(logit) @ self.edge_right)

    def decode(self, z: Tensor) -> Tensor:
        """z: [B, N, Z, R, R] -> [B, L, C, H, W], each leaf's image from its own sample."""
        images: Tensor = self.decoders(z[:, self.topology.leaves.tolist()])
        return images

    def _infer(self, features: Tensor) -> Gaussian:
        """Bottom-up estimates of all nodes below the root: [B, N - 1, Z, R, R]."""
        return as_gaussian(self.heads(features[:, self.topology.depth[1:].tolist()]))

    def copy_from(self, source: NodeStack, *, rename: Callable[[str], str] = lambda n: n) -> None:
        """Takes over the rows of every node that both have; `rename` maps the source's names."""
        kinds: list[tuple[str, Callable[[TreeTopology], tuple[str, ...]]]] = [
            ("transformations", lambda tree: tree.names[1:]),
            ("heads", lambda tree: tree.names[1:]),
            ("prior_routers", _router_names),
            ("post_routers", _router_names),
            ("decoders", lambda tree: tree.leaf_names),
        ]
        for part, names_of in kinds:
            mine = {name: row for row, name in enumerate(names_of(self.topology))}
            theirs = {rename(name): row for row, name in enumerate(names_of(source.topology))}
            rows = {theirs[name]: mine[name] for name in theirs.keys() & mine.keys()}
            if rows:
                copy_rows(getattr(self, part), getattr(source, part), rows)


def as_gaussian(heads: Tensor) -> Gaussian:
    """[..., 2 Z, R, R] -> mean and softplus variance, [..., Z, R, R] each."""
    mean, raw = heads.chunk(2, dim=-3)
    return Gaussian(mean, F.softplus(raw))


def edges(topology: TreeTopology) -> tuple[np.ndarray, np.ndarray]:
    """[I, N] float32 twice: 1 where the path to node n turns left (right) at router i."""
    paths = [topology.names[row] for row in topology.routers]
    left, right = (
        np.array([[name.startswith(p + turn) for name in topology.names] for p in paths])
        .reshape(len(paths), topology.num_nodes)
        .astype(np.float32)
        for turn in "01"
    )
    return left, right


def _router_names(topology: TreeTopology) -> tuple[str, ...]:
    return tuple(topology.names[row] for row in topology.routers)
