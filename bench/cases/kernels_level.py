"""A level of the tree in rooflines: sizes, random weights, and PyTorch's ways through it.

The tree is that of every case, 10 leaves and 19 nodes, with the maps of grey or of colour images.
Samples of n nodes are maps [B n, Z, S, S], images first, with channels last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from treediffusion.kernels.tree_conv3x3 import Tiles, level_tiles, pack_conv
from treediffusion.kernels.tree_node_gen import NodeWeights, pack_nodes
from treediffusion.topology import TreeTopology

GROWN = ("r0", "r1", "r00", "r01", "r10", "r11", "r000", "r110")
"""As in `cases.treevae`, which needs more packages than a machine with a GPU may have."""
EPS = 1e-7
Layer = Callable[[Tensor, Tensor, Tensor, Sequence[int], int], Tensor]


@dataclass(frozen=True)
class Setting:
    """A tree's maps and a batch.

    Attributes:
        side: S.
        latent: Z, channels of samples.
        channels: C, between the layers.
        batch: B.
        dtype: of maps and weights; biases are float32.
        splits: leaves that were split, in order.
    """

    side: int
    latent: int
    channels: int
    batch: int = 256
    dtype: torch.dtype = torch.bfloat16
    splits: tuple[str, ...] = GROWN

    @property
    def topology(self) -> TreeTopology:
        """The tree."""
        tree = TreeTopology.initial()
        for leaf in self.splits:
            tree = tree.grow(leaf)
        return tree

    @property
    def levels(self) -> list[list[int]]:
        """Below the root, each node's parent's place in the level above."""
        tree = self.topology
        return [
            (tree.parent[below] - above.start).tolist() for above, below in pairwise(tree.levels)
        ]

    @property
    def widest(self) -> list[int]:
        """The level with the most nodes."""
        return max(self.levels, key=len)

    @property
    def pixels(self) -> int:
        """P, of a map."""
        return self.side**2

    def shape(self, nodes: int) -> str:
        """Sizes in words."""
        maps = f"{self.latent}/{self.channels}x{self.side}x{self.side}"
        return f"{self.batch} images, {nodes} nodes, {maps}"

    def maps(self, nodes: int, channels: int, device: torch.device) -> Tensor:
        """[B n, C, S, S] standard normal, channels last."""
        shape = (self.batch * nodes, self.side, self.side, channels)
        return torch.randn(shape, device=device, dtype=self.dtype).permute(0, 3, 1, 2)

    def tiles(self, parents: Sequence[int], above: int, device: torch.device) -> Tiles:
        """Of a level under one of `above` nodes."""
        return level_tiles(parents, above, batch=self.batch, pixels=self.pixels, device=device)


GREY, COLOUR = Setting(2, 16, 32), Setting(4, 64, 128)
SMALL = Setting(2, 3, 5, batch=3, dtype=torch.float32, splits=("r0",))


class Weights(NamedTuple):
    """Of the n nodes of a level.

    Attributes:
        convs: [n, D, C, 3, 3] of the three layers and the head, as PyTorch has them.
        dense: [n, 2 Z, C, 3, 3] of the estimate from the bottom-up map, likewise.
        biases: [n, D] of the three layers, float32; the heads have none.
        packed: the convolutions with their biases, as kernels have them.
        packed_dense: [n, 9, C, 2 Z] and [n, 2 Z], likewise.
    """

    convs: list[Tensor]
    dense: Tensor
    biases: list[Tensor]
    packed: NodeWeights
    packed_dense: tuple[Tensor, Tensor]


def level_weights(setting: Setting, nodes: int, device: torch.device) -> Weights:
    """Random ones that keep the size of what goes through them."""

    def kernel(channels: int, out_channels: int) -> Tensor:
        shape = (nodes, out_channels, channels, 3, 3)
        return (torch.randn(shape, device=device) / (9 * channels) ** 0.5).to(setting.dtype)

    latent, channels = setting.latent, setting.channels
    convs = [kernel(latent, latent), kernel(latent, latent), kernel(latent, channels)]
    biases = [0.1 * torch.randn(conv.shape[:2], device=device) for conv in convs]
    head, dense = kernel(channels, 2 * latent), kernel(channels, 2 * latent)
    norms = [(torch.ones_like(bias, dtype=setting.dtype), bias) for bias in biases]
    packed = pack_nodes(convs, norms, head)
    return Weights([*convs, head], dense, biases, packed, pack_conv(dense))


def by_node(x: Tensor, weight: Tensor, bias: Tensor, parents: Sequence[int], above: int) -> Tensor:
    """A convolution for each node: x: [B above, C, S, S] -> [B n, D, S, S]."""
    maps, bias = x.unflatten(0, (-1, above)), bias.to(x.dtype)
    each = [
        F.conv2d(maps[:, parent], weight[node], bias[node], padding=1)
        for node, parent in enumerate(parents)
    ]
    return torch.stack(each, dim=1).flatten(0, 1)


def by_groups(
    x: Tensor, weight: Tensor, bias: Tensor, parents: Sequence[int], above: int
) -> Tensor:
    """One convolution in groups; x: [B above, C, S, S] -> [B n, D, S, S]."""
    # Not by a list of numbers: those would be copied to the device in every call.
    maps = x.unflatten(0, (-1, above))
    maps = torch.cat([maps[:, parent] for parent in parents], dim=1)
    flat = bias.to(x.dtype).flatten()
    y = F.conv2d(maps, weight.flatten(0, 1), flat, padding=1, groups=len(parents))
    return y.unflatten(1, (len(parents), -1)).flatten(0, 1)


def by_product(
    x: Tensor, weight: Tensor, bias: Tensor, parents: Sequence[int], above: int
) -> Tensor:
    """Patches of all maps, then one batched product; x: [B above, C, S, S] -> [B n, D, S, S]."""
    side, nodes = x.shape[-1], len(parents)
    patches = F.unfold(x, 3, padding=1).unflatten(0, (-1, above)).permute(1, 0, 3, 2)
    rows = torch.stack([patches[parent].flatten(0, 1) for parent in parents])  # [n, B P, 9 C]
    y = torch.baddbmm(bias.to(x.dtype)[:, None], rows, weight.flatten(2).transpose(1, 2))
    y = y.view(nodes, -1, side, side, weight.shape[1])
    return y.permute(1, 0, 4, 2, 3).flatten(0, 1)


def layers(z: Tensor, weights: Weights, parents: Sequence[int], above: int, layer: Layer) -> Tensor:
    """z: [B above, Z, S, S] -> [B n, 2 Z, S, S], the priors' means and raw variances."""
    own = range(len(parents))
    h = F.silu(layer(z, weights.convs[0], weights.biases[0], parents, above))
    for conv, bias in zip(weights.convs[1:3], weights.biases[1:], strict=True):
        h = F.silu(layer(h, conv, bias, own, len(own)))
    head = weights.convs[3]
    return layer(h, head, head.new_zeros(head.shape[:2]), own, len(own))


def drawn(heads: Tensor, noise: Tensor) -> Tensor:
    """heads: [..., 2 Z, S, S] and noise: [..., Z, S, S] -> samples."""
    mean, raw = heads.chunk(2, dim=-3)
    return mean + torch.sqrt(F.softplus(raw) + EPS) * noise
