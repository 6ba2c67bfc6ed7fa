"""Rooflines of a whole tree: samples of all nodes, and the posterior pass over all of them.

Levels follow one another, so a pass is a few launches for each. The root's samples are given;
routers and decoders are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from cases.kernels import ERRORS, Case, Roofline, compiled, to_double
from cases.kernels_level import (
    COLOUR,
    GREY,
    SMALL,
    Layer,
    Setting,
    Weights,
    by_groups,
    by_node,
    drawn,
    layers,
    level_weights,
)
from cases.kernels_tree import conv_flops, map_bytes, node_bytes, node_flops, our_layers
from torch import Tensor
from treediffusion.kernels.node_posterior import node_posterior
from treediffusion.kernels.node_posterior import reference as posterior_reference
from treediffusion.kernels.tree_conv3x3 import Tiles, tree_conv3x3
from treediffusion.kernels.tree_node_gen import tree_node_gen

COMPILED = (COLOUR,)
"""What inductor is timed for: it takes long over so many convolutions."""
DEEP = 8
"""Roundings of one level go through those below: more error than an operation alone."""


class Level(NamedTuple):
    """The n nodes of one depth.

    Attributes:
        parents: of each its place in the level above.
        above: nodes of that level.
        weights: of the nodes.
        noise: [B n, Z, S, S] standard normal.
        feature: [B, C, S, S] the bottom-up map that all of them see.
        tiles: from the level above.
        under: from the bottom-up map.
    """

    parents: list[int]
    above: int
    weights: Weights
    noise: Tensor
    feature: Tensor
    tiles: Tiles
    under: Tiles


def make_levels(setting: Setting, device: torch.device) -> tuple[Tensor, list[Level]]:
    """The root's samples, [B, Z, S, S], and all levels below it."""
    torch.manual_seed(0)
    levels = []
    for above, below in pairwise([[0], *setting.levels]):
        count = len(below)
        levels.append(
            Level(
                below,
                len(above),
                level_weights(setting, count, device),
                setting.maps(count, setting.latent, device),
                setting.maps(1, setting.channels, device),
                setting.tiles(below, len(above), device),
                setting.tiles([0] * count, 1, device),
            )
        )
    return setting.maps(1, setting.latent, device), levels


def generation(setting: Setting, device: torch.device) -> Roofline:
    """All nodes' samples from the root's: all leaves at once.

    Bytes: samples of the root, noise and samples of the others, and their weights. FLOPs:
    `node_flops` for each node below the root and image, 43.5 GFLOP for 18 nodes and 256 colour
    images.
    """
    root, levels = make_levels(setting, device)
    nodes = setting.topology.num_nodes - 1
    true = to_double((root, levels))

    def ours() -> list[Tensor]:
        found = [root]
        for level in levels:
            found.append(
                tree_node_gen(found[-1], level.weights.packed, level.noise, level.tiles)
            )  # fmt: skip
        return found[1:]

    fused = compiled(generate_plainly, root, levels, by_node)
    return Roofline(
        op="generation",
        shape=setting.shape(nodes),
        dtype=setting.dtype,
        bytes=setting.batch * (1 + 2 * nodes) * map_bytes(setting, setting.latent)
        + nodes * node_bytes(setting),
        flops=setting.batch * nodes * node_flops(setting),
        limit="tensor",
        forms={
            "ours": ours,
            "eager": partial(generate_plainly, root, levels, by_node),
            "grouped": partial(generate_plainly, root, levels, by_groups),
            **({"inductor": fused} if setting in COMPILED else {}),
        },
        truth=partial(generate_plainly, *true, by_node),
        error=DEEP * ERRORS[setting.dtype],
    )


def generate_plainly(root: Tensor, levels: Sequence[Level], layer: Layer) -> list[Tensor]:
    """Samples [B n, Z, S, S] of all levels."""
    found = [root]
    for level in levels:
        heads = layers(found[-1], level.weights, level.parents, level.above, layer)
        found.append(drawn(heads, level.noise))
    return found[1:]


def posterior_pass(setting: Setting, device: torch.device) -> Roofline:
    """Priors, estimates from the bottom-up maps, samples of the posteriors, and nats, of all nodes.

    Bytes: as `generation`, and a bottom-up map for each level, the weights of the estimates, 9 C
    2 Z, and 4 for each node and image. FLOPs: `node_flops` and the estimate's convolution for each
    node below the root and image, 65.2 GFLOP for 18 nodes and 256 colour images; the root's own
    estimate and the routers would make 66.7 of them.
    """
    root, levels = make_levels(setting, device)
    batch, nodes = setting.batch, setting.topology.num_nodes - 1
    true = to_double((root, levels))
    heads = setting.channels, 2 * setting.latent
    dense = nodes * 9 * heads[0] * heads[1] * setting.dtype.itemsize
    each = node_flops(setting) + conv_flops(1, setting.pixels, *heads)
    fused = compiled(infer_plainly, root, levels, by_node)
    return Roofline(
        op="posterior pass",
        shape=setting.shape(nodes),
        dtype=setting.dtype,
        bytes=batch * (1 + 2 * nodes) * map_bytes(setting, setting.latent)
        + nodes * node_bytes(setting)
        + batch * len(levels) * map_bytes(setting, setting.channels)
        + dense
        + 4 * batch * nodes,
        flops=batch * nodes * each,
        limit="tensor",
        forms={
            "ours": partial(infer, root, levels, setting),
            "eager": partial(infer_plainly, root, levels, by_node),
            "grouped": partial(infer_plainly, root, levels, by_groups),
            **({"inductor": fused} if setting in COMPILED else {}),
        },
        truth=partial(infer_plainly, *true, by_node),
        error=DEEP * ERRORS[setting.dtype],
    )


def infer(root: Tensor, levels: Sequence[Level], setting: Setting) -> list[Tensor]:
    """By kernels: samples [B n, Z, S, S] and nats [B, n] of all levels.

    A pixel's channels lie side by side, means before variances, so that to `node_posterior` every
    pixel of a map is a node of its own, and nothing is copied.
    """
    z, found = root, []
    for level in levels:
        count = len(level.parents)
        estimate = tree_conv3x3(level.feature, *level.weights.packed_dense, level.under)
        prior = our_layers(z, level.weights, level.tiles)
        parts = [
            maps.permute(0, 2, 3, 1).reshape(setting.batch, -1, maps.shape[1], 1, 1)
            for maps in (estimate, prior, level.noise)
        ]
        rows, nats = node_posterior(*parts)
        shape = (setting.batch * count, setting.side, setting.side, setting.latent)
        z = rows.view(shape).permute(0, 3, 1, 2)
        found += [z, nats.unflatten(1, (count, -1)).sum(dim=2)]
    return found


def infer_plainly(root: Tensor, levels: Sequence[Level], layer: Layer) -> list[Tensor]:
    """As `infer`, by PyTorch."""
    z, found = root, []
    for level in levels:
        count, dense = len(level.parents), level.weights.dense
        none = dense.new_zeros(dense.shape[:2])
        estimate = layer(level.feature, dense, none, [0] * count, 1)
        prior = layers(z, level.weights, level.parents, level.above, layer)
        parts = [maps.unflatten(0, (-1, count)) for maps in (estimate, prior, level.noise)]
        samples, nats = posterior_reference.node_posterior(*parts)
        z = samples.flatten(0, 1)
        found += [z, nats]
    return found


def pass_cases() -> list[Case]:
    """Both passes with the maps of both trees; a batch, and one image."""
    settings = [COLOUR, GREY, replace(COLOUR, batch=1), replace(GREY, batch=1)]
    builders = {"generation": generation, "posterior pass": posterior_pass}
    return [
        Case(op, setting.shape(setting.topology.num_nodes - 1), partial(build, setting),
             partial(build, SMALL))
        for setting in settings
        for op, build in builders.items()
    ]  # fmt: skip
