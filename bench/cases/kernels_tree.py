"""Rooflines of the tree's operations, each alone; `kernels_passes` has all levels of a tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from cases.kernels import ERRORS, Case, Roofline, compiled, to_double
from cases.kernels_level import (
    COLOUR,
    GREY,
    SMALL,
    Setting,
    Weights,
    by_groups,
    by_node,
    by_product,
    drawn,
    layers,
    level_weights,
)
from torch import Tensor
from treediffusion.kernels.node_posterior import node_posterior
from treediffusion.kernels.node_posterior import reference as posterior_reference
from treediffusion.kernels.stacked_conv import reference as stacked_reference
from treediffusion.kernels.stacked_conv import stacked_conv
from treediffusion.kernels.tree_conv3x3 import Tiles, tree_conv3x3
from treediffusion.kernels.tree_conv3x3 import reference as conv_reference
from treediffusion.kernels.tree_node_gen import reference as node_reference
from treediffusion.kernels.tree_node_gen import tree_node_gen
from treediffusion.kernels.tree_route import reference as route_reference
from treediffusion.kernels.tree_route import route_table, tree_route

SOFTPLUS = 10
"""FLOPs of max(x, 0) + log(u) t / (u - 1), t = exp(-|x|), u = 1 + t: |x| and its sign 2, exp, 1 +,
log, - 1, quotient, product, maximum, sum."""


def conv_flops(pairs: int, pixels: int, channels: int, out_channels: int) -> int:
    """A product [pairs P, 9 C] times [9 C, D]; its bias and SiLU are left out."""
    return 2 * pairs * pixels * 9 * channels * out_channels


def node_flops(setting: Setting) -> int:
    """Of a node and image: Z to Z twice, Z to C, and the head, C to 2 Z."""
    latent, channels = setting.latent, setting.channels
    shapes = ((latent, latent), (latent, latent), (latent, channels), (channels, 2 * latent))
    return sum(conv_flops(1, setting.pixels, *shape) for shape in shapes)


def node_bytes(setting: Setting) -> int:
    """Of a node's weights, 9 (2 Z Z + Z C + 2 C Z), and of its float32 biases, 4 Z + C."""
    latent, channels = setting.latent, setting.channels
    weights = 9 * (2 * latent * latent + 3 * latent * channels) * setting.dtype.itemsize
    return weights + 4 * (4 * latent + channels)


def map_bytes(setting: Setting, channels: int) -> int:
    """Of one image's channels at one node."""
    return channels * setting.pixels * setting.dtype.itemsize


def table_bytes(setting: Setting, nodes: int) -> int:
    """Of a level's tiles: three int32 each, and the slots to read and to write."""
    tiles = -(-setting.batch // max(64 // setting.pixels, 1))
    return 4 * nodes * (3 * tiles + 2 * setting.batch)


def conv3x3(setting: Setting, device: torch.device) -> Roofline:
    """The third layer of the widest level, Z to C with bias and SiLU.

    Bytes: B maps of Z from each parent, n weights of 9 Z C and float32 biases of C, B n maps of C,
    and the tables. FLOPs: `conv_flops` of B n pairs.
    """
    torch.manual_seed(0)
    parents, above = setting.widest, max(setting.widest) + 1
    nodes, batch = len(parents), setting.batch
    weights = level_weights(setting, nodes, device)
    x, tiles = setting.maps(above, setting.latent, device), setting.tiles(parents, above, device)
    packed, bias = weights.packed.third, weights.biases[2]
    plain = (x, weights.convs[2], bias, parents, above)
    true = to_double((x, packed, bias))
    size = 9 * setting.latent * setting.channels * setting.dtype.itemsize + 4 * setting.channels
    return Roofline(
        op="tree_conv3x3",
        shape=setting.shape(nodes),
        dtype=setting.dtype,
        bytes=batch * above * map_bytes(setting, setting.latent)
        + nodes * size
        + batch * nodes * map_bytes(setting, setting.channels)
        + table_bytes(setting, nodes),
        flops=conv_flops(batch * nodes, setting.pixels, setting.latent, setting.channels),
        limit="tensor",
        forms={
            "ours": lambda: tree_conv3x3(x, packed, bias, tiles, activation="silu"),
            "eager": lambda: F.silu(by_node(*plain)),
            "inductor": compiled(lambda *given: F.silu(by_node(*given)), *plain),
            "grouped": lambda: F.silu(by_groups(*plain)),
            "bmm": lambda: F.silu(by_product(*plain)),
        },
        truth=lambda: conv_reference.tree_conv3x3(*true, tiles, activation="silu"),
        error=ERRORS[setting.dtype],
    )


def node_gen(setting: Setting, device: torch.device) -> Roofline:
    """The widest level's samples from its parents'; "by layer" is four of our convolutions.

    Bytes: the parents' samples, weights, noise, the samples written, and the tables. FLOPs:
    `node_flops` for each node and image.
    """
    torch.manual_seed(0)
    parents, above = setting.widest, max(setting.widest) + 1
    nodes, batch = len(parents), setting.batch
    weights = level_weights(setting, nodes, device)
    z, noise = (setting.maps(count, setting.latent, device) for count in (above, nodes))
    tiles = setting.tiles(parents, above, device)

    def plain(layer: Callable[..., Tensor]) -> Tensor:
        return drawn(layers(z, weights, parents, above, layer), noise)

    true = to_double((z, weights.packed, noise))
    return Roofline(
        op="tree_node_gen",
        shape=setting.shape(nodes),
        dtype=setting.dtype,
        bytes=batch * (above + 2 * nodes) * map_bytes(setting, setting.latent)
        + nodes * node_bytes(setting)
        + table_bytes(setting, nodes),
        flops=batch * nodes * node_flops(setting),
        limit="tensor",
        forms={
            "ours": lambda: tree_node_gen(z, weights.packed, noise, tiles),
            "eager": partial(plain, by_node),
            "inductor": compiled(plain, by_node),
            "grouped": partial(plain, by_groups),
            "bmm": partial(plain, by_product),
            "by layer": lambda: drawn(our_layers(z, weights, tiles), noise),
        },
        truth=lambda: node_reference.tree_node_gen(*true, tiles, activation="silu"),
        error=2.5 * ERRORS[setting.dtype],  # four layers, rounded each
    )


def our_layers(z: Tensor, weights: Weights, tiles: Tiles) -> Tensor:
    """As `layers`, by `tree_conv3x3`."""
    onwards = tiles._replace(slot_in=tiles.slot_out)
    packed = weights.packed
    h = tree_conv3x3(z, packed.first, packed.first_bias, tiles, activation="silu")
    h = tree_conv3x3(h, packed.second, packed.second_bias, onwards, activation="silu")
    h = tree_conv3x3(h, packed.third, packed.third_bias, onwards, activation="silu")
    return tree_conv3x3(h, packed.head, packed.head_bias, onwards)


def stacked(setting: Setting, device: torch.device) -> Roofline:
    """The first layer of the widest level in the form that trains; "grouped" is one convolution.

    Bytes: B n maps of Z read and as many written, n weights of 9 Z Z. FLOPs: `conv_flops`.
    """
    torch.manual_seed(0)
    nodes, batch, latent = len(setting.widest), setting.batch, setting.latent
    weight = level_weights(setting, nodes, device).convs[0]
    x = setting.maps(nodes, latent, device).contiguous().unflatten(0, (batch, nodes))

    def grouped() -> Tensor:
        flat = weight.flatten(0, 1)
        return F.conv2d(x.flatten(1, 2), flat, padding=1, groups=nodes).view(x.shape)

    loop = partial(stacked_reference.stacked_conv, padding=1)
    maps = batch * nodes * map_bytes(setting, latent)
    return Roofline(
        op="stacked_conv",
        shape=setting.shape(nodes),
        dtype=setting.dtype,
        bytes=2 * maps + nodes * 9 * latent * latent * setting.dtype.itemsize,
        flops=conv_flops(batch * nodes, setting.pixels, latent, latent),
        limit="tensor",
        forms={
            "ours": lambda: stacked_conv(x, weight, padding=1),
            "eager": lambda: loop(x, weight),
            "inductor": compiled(lambda *given: loop(*given), x, weight),
            "grouped": grouped,
        },
        truth=lambda: loop(x.double(), weight.double()),
        error=ERRORS[setting.dtype],
    )


def posterior(setting: Setting, device: torch.device) -> Roofline:
    """All nodes below the root: both heads and noise in, samples and nats out.

    Bytes: of M = B N Z P elements, 4 of the heads and 1 of noise read, 1 written; 4 for each node
    and image. FLOPs of an element: two softplus, each plus eps, 22; difference and sum 2; shares 2;
    sample 7, of which 2 for the mean, 2 for the variance, root, noise 2; eps / v 1; square 3;
    nats 5; their sum 1.
    """
    torch.manual_seed(0)
    nodes, sizes = setting.topology.num_nodes - 1, (setting.latent, setting.side, setting.side)

    def made(factor: int) -> Tensor:
        shape = (setting.batch, nodes, factor * sizes[0], *sizes[1:])
        return torch.randn(shape, device=device).to(setting.dtype)

    inputs = (made(2), made(2), made(1))
    true = to_double(inputs)
    elements = inputs[2].numel()
    return Roofline(
        op="node_posterior",
        shape=setting.shape(nodes),
        dtype=setting.dtype,
        bytes=6 * elements * setting.dtype.itemsize + 4 * setting.batch * nodes,
        flops=elements * (2 * SOFTPLUS + 23),
        limit="copy",
        forms={
            "ours": lambda: node_posterior(*inputs),
            "eager": lambda: posterior_reference.node_posterior(*inputs),
            "inductor": compiled(posterior_reference.node_posterior, *inputs),
        },
        truth=lambda: posterior_reference.node_posterior(*true),
        error=ERRORS[setting.dtype],
    )


def routing(setting: Setting, device: torch.device) -> Roofline:
    """Every node's log-probability and a leaf for every image, from float32 logits.

    Bytes: logits and uniforms of B I, log-probabilities of B N, int64 leaves of B, and the table's
    N (4 + D) int32. FLOPs: a sign, a softplus and a difference for each turn on each node's path;
    the walk to one leaf is left out. The product that the reference makes of it computes more.
    """
    torch.manual_seed(0)
    tree = setting.topology
    table = type(route_table(tree))(*(part.to(device) for part in route_table(tree)))
    routers, nodes, batch = len(tree.routers), tree.num_nodes, setting.batch
    logit = torch.randn(batch, routers, device=device)
    uniform = torch.rand(batch, routers, device=device)
    turns = int(table.left.sum() + table.right.sum())

    def plain(logit: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        found = route_reference.log_node_prob(logit, table.left, table.right)
        return found, route_reference.sample_leaf(logit, uniform, table.nodes, start=0)

    return Roofline(
        op="tree_route",
        shape=f"{batch} images, {nodes} nodes",
        dtype=torch.float32,
        bytes=4 * batch * (2 * routers + nodes + 2) + 4 * table.nodes.numel(),
        flops=batch * turns * (SOFTPLUS + 2),
        limit="copy",
        forms={
            "ours": lambda: tree_route(logit, uniform, table),
            "eager": lambda: plain(logit, uniform),
            "inductor": compiled(plain, logit, uniform),
        },
        truth=lambda: plain(logit.double(), uniform.double()),
        error=ERRORS[torch.float32],
    )


BUILDERS = {
    "tree_conv3x3": conv3x3,
    "tree_node_gen": node_gen,
    "stacked_conv": stacked,
    "node_posterior": posterior,
    "tree_route": routing,
}


def tree_cases() -> list[Case]:
    """Every operation with the maps of both trees, for a batch and for one image."""
    settings = [COLOUR, GREY, replace(COLOUR, batch=1), replace(GREY, batch=1)]
    smalls = [SMALL, replace(SMALL, channels=70, batch=1), SMALL, SMALL]
    return [
        Case(op, f"{setting.batch} images, {setting.side}x{setting.side}",
             partial(build, setting), partial(build, small))
        for op, build in BUILDERS.items()
        for setting, small in zip(settings, smalls, strict=True)
    ]  # fmt: skip
