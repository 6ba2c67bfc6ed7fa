"""TreeVAE: a binary tree of Gaussian latents over images (Manduchi et al., NeurIPS 2023).

Three exact splits of its work, so that nobody pays for what is not used:

    assign   bottom-up maps and inference routers -> leaf probabilities
    infer    the same, and a posterior sample of every node
    decode   leaf decoders, which only the ELBO and TreeVAE's own images need
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ..config import TreeConfig
from ..errors import TopologyError
from ..topology import TreeTopology
from .activation import make_activation
from .codecs import latent_size, make_encoder
from .gaussians import Gaussian, as_gaussian, kl, sample
from .node_stack import NodeStack, TreePass, kernel_size
from .projections import Projections
from .stacked import StackedConv, StackedNorm


class BottomUp(nn.Module):
    """Image to one map per depth: the encoder, then a block per further level.

    A block has three convolutions, in the MLP form one dense layer.
    """

    def __init__(self, config: TreeConfig, image_channels: int, image_size: int) -> None:
        super().__init__()
        c, kernel = config.channels, kernel_size(config)
        first = config.encoder_channels or c
        self.residual = config.residual
        self.activation = make_activation(config)
        self.encoder = make_encoder(config, image_channels, image_size)
        self.blocks = nn.ModuleList()
        for level in range(config.levels - 1):
            widths = (first if level == 0 else c, *([c] if config.is_mlp else [c, c, c]))
            convs = [StackedConv(1, a, b, kernel=kernel) for a, b in pairwise(widths)]
            norms = [StackedNorm(1, width) for width in widths[1:]]
            self.blocks.append(nn.ModuleList([*convs, *norms]))
        if config.spectral_norm:
            self._divide_by_spectral_norms()

    def forward(self, images: Tensor) -> Tensor:
        """images: [B, C, H, W] in 0..1 -> [B, levels, C, R, R], the root's map first.

        C is the widest level's number of channels; narrower maps end in zeros.
        """
        maps = [self.encoder(images)[:, None]]
        for block in self.blocks:
            y, layers = maps[-1], list(block.children())
            half = len(layers) // 2
            for conv, norm in zip(layers[:half], layers[half:], strict=True):
                y = self.activation(norm(conv(y)))
            same = y.shape == maps[-1].shape
            maps.append(y + maps[-1] if self.residual and same else y)
        missing = maps[0].shape[2] - maps[-1].shape[2]
        if missing:
            maps = [maps[0], *(F.pad(y, (0, 0, 0, 0, 0, missing)) for y in maps[1:])]
        return torch.cat(maps[::-1], dim=1)

    def _divide_by_spectral_norms(self) -> None:
        """Where the published code does it: the encoder, and each block's first convolutions."""
        for layer in self.encoder.modules():
            if isinstance(layer, nn.Conv2d):
                spectral_norm(layer)
            elif isinstance(layer, StackedConv):
                spectral_norm(layer, dim=1)  # [1, D, C, K, K]: by output channel
        for block in self.blocks:
            convs = [layer for layer in block.children() if isinstance(layer, StackedConv)]
            for conv in convs[:2]:
                spectral_norm(conv, dim=1)


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
        self.latent_size = latent_size(config)
        self.bottom_up = BottomUp(config, image_channels, image_size)
        self.root_head = StackedConv(
            1,
            config.channels,
            2 * config.latent_channels,
            kernel=kernel_size(config),
            bias=config.is_mlp,
        )
        self.nodes = NodeStack(
            topology, config, image_channels=image_channels, image_size=image_size
        )
        self.projections = Projections(config) if config.contrastive.weight else None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(Z, R, R) of every node's latent."""
        return self.config.latent_channels, self.latent_size, self.latent_size

    def assign(self, images: Tensor) -> Tensor:
        """images: [B, C, H, W] in 0..1 -> [B, L] log-probability of each leaf.

        Deterministic in eval mode: it depends on the bottom-up maps and the routers alone.
        """
        logit = self.nodes.route(self.bottom_up(images)[:, None])
        return self.nodes.log_node_prob(logit)[:, self.nodes.leaf_rows]

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
        nodes = self.nodes(root_z[:, None], features[:, None], noise=noise[:, 1:])
        return Inference(features, kl(root, unit), nodes)

    def root_posterior(self, features: Tensor) -> Gaussian:
        """[B, levels, C_b, R, R] -> the root's Gaussian, straight from its head."""
        mean, var = as_gaussian(self.root_head(features[:, :1, : self.config.channels]))
        return Gaussian(mean[:, 0], var[:, 0])

    def generate(self, noise: Tensor) -> TreePass:
        """A prior sample of every node: z_root = noise, then down all transformations at once.

        Args:
            noise: [B, N, Z, R, R] standard normal.
        """
        nodes: TreePass = self.nodes(noise[:, :1], noise=noise[:, 1:])
        return nodes

    def decode(self, z: Tensor) -> Tensor:
        """z: [B, N, Z, R, R] -> [B, L, C, H, W] pixels, each leaf's own image."""
        images = self.nodes.decode(z)
        return torch.sigmoid(images) if self.config.likelihood == "bernoulli" else images

    def new_leaves(self, leaf: str) -> NodeStack:
        """Fresh networks for two leaves under a leaf of this tree, where its own are."""
        return self.nodes.like(TreeTopology.initial(), root_depths=[len(leaf) - 1])

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
