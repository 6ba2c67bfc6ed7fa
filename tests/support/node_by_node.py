"""TreeVAE written the obvious way: a module per node, visited one after another.

The truth that the stacked, level-wise `TreeVAE` is compared with, and the baseline of its
benchmark. Every node owns ordinary framework layers; a queue walks the tree breadth first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from treediffusion.config import TreeConfig
from treediffusion.nn.tree_vae import TreeVAE

from .plain_codecs import activation, plain_decoder, plain_encoder, tensors

EPS = 1e-7
KL_LIMIT = 1000.0

Part = Callable[[Tensor], Tensor]
Link = tuple[Tensor, str, Part]
"""A plain layer's tensor, the name of the stacked one, and the part of that one that it holds."""


@dataclass
class Traversal:
    """What a walk over all nodes found, by node name; every value is per image.

    Attributes:
        z: [B, Z, R, R] sample of each node.
        prob: [B] probability of reaching each node.
        node_kl: [B] nats of each node's posterior from its prior, not weighted.
        decision_kl: [B] nats of each router, not weighted.
        images: [B, C, H, W] decoder output of each leaf, before any sigmoid.
    """

    z: dict[str, Tensor] = field(default_factory=dict)
    prob: dict[str, Tensor] = field(default_factory=dict)
    node_kl: dict[str, Tensor] = field(default_factory=dict)
    decision_kl: dict[str, Tensor] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)


class ConvBlock(nn.Module):
    """Convolutions, each normalised and activated."""

    def __init__(self, config: TreeConfig, *channels: int) -> None:
        super().__init__()
        widths, size = list(pairwise(channels)), kernel(config)
        self.act = activation(config)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, size, padding=size // 2, bias=False) for a, b in widths
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b in widths)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.act(norm(conv(x)))
        return x


class GaussianHead(nn.Module):
    """A mean and a variance."""

    def __init__(self, config: TreeConfig, channels: int) -> None:
        super().__init__()
        size = kernel(config)
        self.mean, self.var = (
            nn.Conv2d(channels, config.latent_channels, size, padding=size // 2, bias=config.is_mlp)
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(x), F.softplus(self.var(x))


class Router(nn.Module):
    """The logit of going left."""

    def __init__(self, config: TreeConfig, channels: int, pixels: int) -> None:
        super().__init__()
        hidden = config.channels
        self.act = activation(config)
        self.conv = None if config.is_mlp else nn.Conv2d(channels, 1, 3, padding=1, bias=False)
        self.linear1 = nn.Linear(channels if config.is_mlp else pixels, hidden, bias=False)
        self.norm1 = nn.BatchNorm1d(hidden)
        self.linear2 = nn.Linear(hidden, hidden, bias=False)
        self.norm2 = nn.BatchNorm1d(hidden)
        self.out = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = (x if self.conv is None else self.conv(x)).flatten(1)
        y = self.act(self.norm1(self.linear1(y)))
        y = self.act(self.norm2(self.linear2(y)))
        return self.out(y).flatten()


class Node(nn.Module):
    """One node with everything that is its own; which parts it has depends on its place."""

    def __init__(self, name: str, row: int) -> None:
        super().__init__()
        self.name, self.row, self.depth = name, row, len(name) - 1
        self.children_names: list[str] = []
        self.head: GaussianHead
        self.transformation: ConvBlock | None = None
        self.prior_head: GaussianHead | None = None
        self.prior_router: Router | None = None
        self.post_router: Router | None = None
        self.decoder: nn.Module | None = None


class NodeByNodeTreeVAE(nn.Module):
    """The same tree as a `TreeVAE`, node by node."""

    def __init__(self, tree: TreeVAE) -> None:
        super().__init__()
        config, topology = tree.config, tree.topology
        c, z = config.channels, config.latent_channels
        image_channels, size, _ = tree.image_shape
        pixels = tree.latent_size**2
        self.config, self.topology = config, topology
        self.encoder = plain_encoder(config, image_channels, size)
        self.encoder_names = names_of(tree.bottom_up.encoder)
        self.decoder_names = names_of(tree.nodes.decoders)
        first = config.encoder_channels or c
        widths = [first, *[c] * (config.levels - 1)]
        self.blocks = nn.ModuleList(
            ConvBlock(config, a, *([b] if config.is_mlp else [b, b, b]))
            for a, b in pairwise(widths)
        )
        self.nodes = nn.ModuleDict()
        for row, name in enumerate(topology.names):
            node = Node(name, row)
            node.head = GaussianHead(config, widths[-1 - node.depth])
            if name != "r":
                inner = [z, c] if config.is_mlp else [z, z, z, c]
                node.transformation = ConvBlock(config, *inner)
                node.prior_head = GaussianHead(config, c)
            node.children_names = [n for n in (name + "0", name + "1") if n in topology.names]
            if len(node.children_names) == 2:
                node.prior_router = Router(config, z, pixels)
                node.post_router = Router(config, c, pixels)
            if not node.children_names:
                node.decoder = plain_decoder(config, image_channels, size)
            self.nodes[name] = node

    @classmethod
    def from_stacked(cls, tree: TreeVAE) -> NodeByNodeTreeVAE:
        """The same weights, statistics, dtype, device and mode, in layers of their own."""
        some = next(tree.parameters())
        plain = cls(tree).to(device=some.device, dtype=some.dtype).train(tree.training)
        stacked = tree.state_dict()
        with torch.no_grad():
            for tensor, name, part in plain.links():
                tensor.copy_(part(stacked[name]))
        return plain

    def forward(self, images: Tensor, noise: Tensor) -> Traversal:
        """images: [B, C, H, W] in 0..1; noise: [B, N, Z, R, R], node by node in row order."""
        maps = [self.encoder(images)]
        for block in self.blocks:
            y = block(maps[-1])
            same = y.shape == maps[-1].shape
            maps.append(y + maps[-1] if self.config.residual and same else y)
        found = Traversal()
        root = self.nodes["r"]
        found.prob["r"] = torch.ones(len(images), dtype=images.dtype, device=images.device)
        queue: deque[tuple[Node, Tensor | None]] = deque([(root, None)])
        while queue:
            node, parent_z = queue.popleft()
            self._visit(node, parent_z, maps[-1 - node.depth], noise[:, node.row], found)
            for child in node.children_names:
                queue.append((self.nodes[child], found.z[node.name]))
        return found

    def loss(self, images: Tensor, noise: Tensor, kl_weight: float) -> Tensor:
        """Reconstruction plus weighted divergences, mean over the batch; a scalar."""
        found = self(images, noise)
        total = torch.zeros(len(images), dtype=images.dtype, device=images.device)
        for name, node_kl in found.node_kl.items():
            total = total + kl_weight * (found.prob[name] * node_kl).clamp(-1, KL_LIMIT)
        for name, decision_kl in found.decision_kl.items():
            total = total + kl_weight * found.prob[name] * decision_kl
        for name, output in found.images.items():
            if self.config.likelihood == "bernoulli":
                error = F.binary_cross_entropy_with_logits(output, images, reduction="none")
            else:
                error = (output - images) ** 2
            total = total + found.prob[name] * error.sum(dim=(1, 2, 3))
        return total.mean()

    def links(self) -> Iterator[Link]:
        """Every parameter and statistic of this tree with its place in the stacked one."""
        topology = self.topology
        for name, tensor in zip(self.encoder_names, tensors(self.encoder), strict=True):
            yield tensor, f"bottom_up.encoder.{name}", lambda w, like=tensor: w.reshape(like.shape)
        for k, block in enumerate(self.blocks):
            half = len(block.convs)
            for layer in range(half):
                yield from _conv(block.convs[layer], f"bottom_up.blocks.{k}.{layer}", 0)
                yield from _norm(block.norms[layer], f"bottom_up.blocks.{k}.{layer + half}", 0)
        yield from _head(self.nodes["r"].head, "root_head", 0)
        routers = [topology.names[row] for row in topology.routers]
        for name, node in self.nodes.items():
            if node.transformation is not None:
                row = topology.row(name) - 1
                yield from self._node_head(node, row)
                yield from _head(node.prior_head, "nodes.transformations.head", row)
                for layer in range(len(node.transformation.convs)):
                    place = f"nodes.transformations.convs.{layer}"
                    yield from _conv(node.transformation.convs[layer], place, row)
                    place = f"nodes.transformations.norms.{layer}"
                    yield from _norm(node.transformation.norms[layer], place, row)
            if node.prior_router is not None:
                row = routers.index(name)
                yield from _router(node.prior_router, "nodes.prior_routers", row)
                yield from _router(node.post_router, "nodes.post_routers", row)
            if node.decoder is not None:
                row = topology.leaf_names.index(name)
                for key, tensor in zip(self.decoder_names, tensors(node.decoder), strict=True):
                    place = f"nodes.decoders.{key}"
                    yield tensor, place, lambda w, r=row, like=tensor: w[r].reshape(like.shape)

    def _node_head(self, node: Node, row: int) -> Iterator[Link]:
        """Heads that read the encoder's own output have a stack of their own, if it is wider."""
        deepest = self.config.encoder_channels and node.depth == self.config.levels - 1
        narrow = sum(len(name) < self.config.levels for name in self.topology.names[1:])
        place, at = ("nodes.heads.wide", row - narrow) if deepest else ("nodes.heads.narrow", row)
        yield from _head(node.head, place, at)

    def _visit(
        self, node: Node, parent_z: Tensor | None, features: Tensor, noise: Tensor, found: Traversal
    ) -> None:
        """Samples one node and, as it has them, decides its turn or decodes its image."""
        name = node.name
        mean_i, var_i = node.head(features)
        if node.transformation is None:
            mean_p, var_p = torch.zeros_like(mean_i), torch.ones_like(var_i)
            mean, var = mean_i, var_i
        else:
            mean_p, var_p = node.prior_head(node.transformation(parent_z))
            var = 1 / (1 / (var_i + EPS) + 1 / (var_p + EPS))
            mean = var * (mean_i / (var_i + EPS) + mean_p / (var_p + EPS))
        found.z[name] = z = mean + torch.sqrt(var + EPS) * noise
        var_q, var_p = var + EPS, var_p + EPS
        nats = 0.5 * (torch.log(var_p / var_q) + (var_q + (mean - mean_p) ** 2) / var_p - 1)
        found.node_kl[name] = nats.sum(dim=(1, 2, 3))
        if node.decoder is not None:
            found.images[name] = node.decoder(z)
        elif node.post_router is not None:
            post, prior = node.post_router(features), node.prior_router(z)
            left, right = torch.sigmoid(post), torch.sigmoid(-post)
            found.decision_kl[name] = left * (F.logsigmoid(post) - F.logsigmoid(prior)) + right * (
                F.logsigmoid(-post) - F.logsigmoid(-prior)
            )
            found.prob[name + "0"] = found.prob[name] * left
            found.prob[name + "1"] = found.prob[name] * right
        else:
            found.prob[node.children_names[0]] = found.prob[name]


def kernel(config: TreeConfig) -> int:
    """Of the tree's convolutions: of one pixel where everything is a vector."""
    return 1 if config.is_mlp else 3


def names_of(stacked: nn.Module) -> list[str]:
    """Names of parameters and statistics in the order of their declaration."""
    return [name for name in stacked.state_dict() if not name.endswith("num_batches_tracked")]


def _conv(layer: nn.Module, place: str, row: int) -> Iterator[Link]:
    yield layer.weight, f"{place}.weight", lambda w: w[row]


def _norm(layer: nn.Module, place: str, row: int) -> Iterator[Link]:
    for key in ("weight", "bias", "running_mean", "running_var"):
        yield getattr(layer, key), f"{place}.{key}", lambda w: w[row]


def _head(head: GaussianHead, place: str, row: int) -> Iterator[Link]:
    yield head.mean.weight, f"{place}.weight", lambda w: w[row].chunk(2)[0]
    yield head.var.weight, f"{place}.weight", lambda w: w[row].chunk(2)[1]
    if head.mean.bias is not None:
        yield head.mean.bias, f"{place}.bias", lambda w: w[row].chunk(2)[0]
        yield head.var.bias, f"{place}.bias", lambda w: w[row].chunk(2)[1]


def _router(router: Router, place: str, row: int) -> Iterator[Link]:
    if router.conv is not None:
        yield from _conv(router.conv, f"{place}.conv", row)
    for k, linear in enumerate((router.linear1, router.linear2)):
        yield linear.weight, f"{place}.hidden.{k}.weight", lambda w: w[row].T
    yield from _norm(router.norm1, f"{place}.norms.0", row)
    yield from _norm(router.norm2, f"{place}.norms.1", row)
    yield router.out.weight, f"{place}.out.weight", lambda w: w[row].T
    yield router.out.bias, f"{place}.out.bias", lambda w: w[row]
