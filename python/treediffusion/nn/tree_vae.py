"""TreeVAE: a binary tree of Gaussian latents over images (Manduchi et al., NeurIPS 2023; CNN form).

Three exact splits of its work, so that nobody pays for what is not used:

    assign   bottom-up maps and inference routers -> leaf probabilities
    infer    the same, and a posterior sample of every node
    decode   leaf decoders, which only the ELBO and TreeVAE's own images need
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TreeConfig
from ..errors import TopologyError
from ..topology import TreeTopology
from .gaussians import Gaussian, kl, sample
from .image_codec import Encoder, latent_size
from .node_stack import NodeStack, TreePass, as_gaussian
from .stacked import StackedConv, StackedLinear, StackedNorm

EMBEDDING_SIZE = 10
EMBEDDING_HIDDEN = 128


class BottomUp(nn.Module):
    """Image to one map per depth: the encoder, then a block per further level."""

    def __init__(self, config: TreeConfig, image_channels: int, image_size: int) -> None:
        super().__init__()
        c = config.channels
        self.residual = config.residual
        self.encoder = Encoder(config, image_channels, image_size)
        self.blocks = nn.ModuleList(
            nn.ModuleList([*(StackedConv(1, c, c) for _ in range(3)),
                           *(StackedNorm(1, c) for _ in range(3))])
            for _ in range(config.levels - 1)
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """images: [B, C, H, W] in 0..1 -> [B, levels, C_b, R, R], the root's map first."""
        maps = [self.encoder(images)[:, None]]
        for block in self.blocks:
            y, layers = maps[-1], list(block.children())
            for conv, norm in zip(layers[:3], layers[3:], strict=True):
                y = F.silu(norm(conv(y)))
            maps.append(y + maps[-1] if self.residual else y)
        return torch.cat(maps[::-1], dim=1)


class Projections(nn.Module):
    """Embeddings of every bottom-up map for the contrastive term, one small network per level."""

    def __init__(self, config: TreeConfig, pixels: int) -> None:
        super().__init__()
        self.conv = StackedConv(config.levels, config.channels, 1)
        self.hidden = StackedLinear(config.levels, pixels, EMBEDDING_HIDDEN, bias=False)
        self.norm = StackedNorm(config.levels, EMBEDDING_HIDDEN)
        self.out = StackedLinear(config.levels, EMBEDDING_HIDDEN, EMBEDDING_SIZE, bias=True)

    def forward(self, features: Tensor) -> Tensor:
        """features: [B, levels, C_b, R, R] -> [B, levels, 10]."""
        y = self.hidden(self.conv(features).flatten(2))
        embedding: Tensor = self.out(F.silu(self.norm(y)))
        return embedding


@dataclass(frozen=True)
class Inference:
    """A pass over images: the nodes' pass and the root's divergence from N(0, 1).

    Attributes:
        features: [B, levels, C_b, R, R] bottom-up maps, the root's first.
        root_kl: [B] nats.
        nodes: the pass over all nodes.
    """

    features: Tensor
    root_kl: Tensor
    nodes: TreePass


class TreeVAE(nn.Module):
    """The tree's networks for one topology; growing and pruning return a new module."""

    def __init__(
        self, config: TreeConfig, topology: TreeTopology, *, image_channels: int, image_size: int
    ) -> None:
        super().__init__()
        if topology.max_depth > config.levels - 1:
            raise TopologyError(
                "topology",
                got=f"depth {topology.max_depth}",
                expected=f"at most levels - 1 = {config.levels - 1}",
                hint="raise tree.levels",
            )
        self.config, self.topology = config, topology
        self.image_shape = (image_channels, image_size, image_size)
        self.latent_size = latent_size(config, image_size)
        self.bottom_up = BottomUp(config, image_channels, image_size)
        self.root_head = StackedConv(1, config.channels, 2 * config.latent_channels)
        self.nodes = self._stack(topology)
        self.projections = (
            Projections(config, self.latent_size**2) if config.contrastive.weight else None
        )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(Z, R, R) of every node's latent."""
        return self.config.latent_channels, self.latent_size, self.latent_size

    def assign(self, images: Tensor) -> Tensor:
        """images: [B, C, H, W] in 0..1 -> [B, L] log-probability of each leaf.

        Deterministic in eval mode: it depends on the bottom-up maps and the routers alone.
        """
        logit = self.nodes.route(self.bottom_up(images))
        return self.nodes.log_node_prob(logit)[:, self.topology.leaves.tolist()]

    def infer(
        self,
        images: Tensor | None = None,
        *,
        features: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Inference:
        """A posterior sample of every node, given images or their bottom-up maps.

        Args:
            images: [B, C, H, W] in 0..1.
            features: [B, levels, C_b, R, R], what `bottom_up` made of them.
            noise: [B, N, Z, R, R] standard normal, drawn here if None.
        """
        if features is None:
            assert images is not None
            features = self.bottom_up(images)
        root = self.root_posterior(features)
        shape = (features.shape[0], self.topology.num_nodes, *self.latent_shape)
        if noise is None:
            noise = torch.randn(shape, dtype=features.dtype, device=features.device)
        # The published training prior is N(0, 1 + eps), like every other variance.
        unit = Gaussian(torch.zeros_like(root.mean), torch.ones_like(root.var))
        root_z = sample(root, noise[:, 0])
        nodes = self.nodes(root_z, features, noise=noise[:, 1:])
        return Inference(features, kl(root, unit), nodes)

    def root_posterior(self, features: Tensor) -> Gaussian:
        """[B, levels, C_b, R, R] -> the root's Gaussian, straight from its head."""
        mean, var = as_gaussian(self.root_head(features[:, :1]))
        return Gaussian(mean[:, 0], var[:, 0])

    def generate(self, noise: Tensor) -> TreePass:
        """A prior sample of every node: z_root = noise, then down all transformations at once.

        Args:
            noise: [B, N, Z, R, R] standard normal.
        """
        nodes: TreePass = self.nodes(noise[:, 0], noise=noise[:, 1:])
        return nodes

    def decode(self, z: Tensor) -> Tensor:
        """z: [B, N, Z, R, R] -> [B, L, C, H, W] pixels, each leaf's own image."""
        images = self.nodes.decode(z)
        return torch.sigmoid(images) if self.config.likelihood == "bernoulli" else images

    def new_leaves(self) -> NodeStack:
        """Fresh networks for two leaves under any leaf of this tree."""
        return self._stack(TreeTopology.initial())

    def grow(self, leaf: str, children: NodeStack) -> TreeVAE:
        """This tree with trained `children` attached under a leaf, whose decoder is dropped."""
        grown = self._like(self.topology.grow(leaf))
        grown.nodes.copy_from(children, rename=lambda name: leaf + name[1:])
        return grown

    def prune(self, leaf: str) -> TreeVAE:
        """This tree without a leaf; see `TreeTopology.prune`."""
        return self._like(self.topology.prune(leaf))

    def chain(self, node: str) -> TreeVAE:
        """The path from the root to a node by itself: what growing under a leaf needs of a tree."""
        self.topology.row(node)
        return self._like(TreeTopology.of(node[:k] for k in range(1, len(node) + 1)))

    def _like(self, topology: TreeTopology) -> TreeVAE:
        channels, size, _ = self.image_shape
        tree = TreeVAE(self.config, topology, image_channels=channels, image_size=size)
        some = next(self.parameters())
        tree.to(device=some.device, dtype=some.dtype).train(self.training)
        tree.bottom_up.load_state_dict(self.bottom_up.state_dict())
        tree.root_head.load_state_dict(self.root_head.state_dict())
        if tree.projections is not None and self.projections is not None:
            tree.projections.load_state_dict(self.projections.state_dict())
        tree.nodes.copy_from(self.nodes)
        return tree

    def _stack(self, topology: TreeTopology) -> NodeStack:
        channels, size, _ = self.image_shape
        return NodeStack(
            topology,
            self.config,
            image_channels=channels,
            image_size=size,
            latent_size=self.latent_size,
        )
