"""Which program does which node's maps: one table for all nodes of a level and for sampled paths.

A slot is one map of one node. A list of pairs, slot to read and slot to write, is sorted by node,
and a tile is a run of it that has one node. The number of tiles has a bound that the host knows
from sizes alone, and those that are not needed are empty: nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 64
"""Rows of a tile's matrix product, one per pixel: small maps share a tile."""


class Tiles(NamedTuple):
    """T tiles over K pairs of slots; all tensors int32.

    Attributes:
        node: [T] the tile's node.
        begin: [T] its first pair.
        length: [T] its pairs, 0 to `maps`.
        slot_in: [K] slots to read.
        slot_out: [K] slots to write.
        pair_node: [K] every pair's node; -1 if it is in no tile.
        slots: of the result; those that are written to by no tile are zeros.
        maps: the most pairs of a tile.
    """

    node: Tensor
    begin: Tensor
    length: Tensor
    slot_in: Tensor
    slot_out: Tensor
    pair_node: Tensor
    slots: int
    maps: int


def maps_of_tile(pixels: int) -> int:
    """How many maps of so many pixels share a tile."""
    return max(ROWS // pixels, 1)


def level_tiles(
    parents: Sequence[int], above: int, *, batch: int, pixels: int, device: torch.device
) -> Tiles:
    """All nodes of a level: maps [B, above, C, S, S] in, maps [B, n, D, S, S] out, B and n as one.

    Args:
        parents: of the n nodes, each one's place in the level above.
        above: nodes of the level above.
        batch: B.
        pixels: of a map.
        device: of the tables.
    """
    nodes, maps = len(parents), maps_of_tile(pixels)
    tiles_of_node = -(-batch // maps)

    def numbers(end: int) -> Tensor:
        return torch.arange(end, dtype=torch.int32, device=device)

    first = numbers(tiles_of_node) * maps
    node, image = numbers(nodes)[:, None], numbers(batch)
    parent = torch.tensor(parents, dtype=torch.int32, device=device)[:, None]
    return Tiles(
        node=node.expand(-1, tiles_of_node).flatten(),
        begin=(node * batch + first).flatten(),
        length=(batch - first).clamp(max=maps).repeat(nodes),
        slot_in=(image * above + parent).flatten(),
        slot_out=(image * nodes + node).flatten(),
        pair_node=node.expand(-1, batch).flatten(),
        slots=batch * nodes,
        maps=maps,
    )


def path_tiles(node: Tensor, nodes: int, *, pixels: int) -> Tiles:
    """One node for each image: maps [B, C, S, S] in and [B, D, S, S] out.

    Args:
        node: [B] int, each image's node in [0, nodes); -1 if it has arrived, and has no tile.
        nodes: how many there are.
        pixels: of a map.
    """
    batch, maps = node.shape[0], maps_of_tile(pixels)
    everyone = torch.arange(nodes, device=node.device)
    # Those without a node come last. No two keys are equal, so that any sort keeps images in order.
    key = torch.where(node < 0, nodes, node)
    order = torch.argsort(key * batch + torch.arange(batch, device=node.device))
    pair_node = key[order]
    images = (key[:, None] == everyone).sum(0)
    before = images.cumsum(0) - images
    wanted = (images + maps - 1) // maps
    until = wanted.cumsum(0)
    # Every node but one has at most one tile that is not full.
    tile = torch.arange(-(-batch // maps) + nodes, device=node.device)
    of_tile = (tile[:, None] >= until).sum(1)
    is_used = of_tile < nodes
    of_tile = of_tile.clamp(max=nodes - 1)
    done = (tile - until[of_tile] + wanted[of_tile]) * maps
    length = (images[of_tile] - done).clamp(0, maps)
    order = order.int()
    return Tiles(
        node=of_tile.int(),
        begin=torch.where(is_used, before[of_tile] + done, 0).int(),
        length=torch.where(is_used, length, 0).int(),
        slot_in=order,
        slot_out=order,
        pair_node=torch.where(pair_node < nodes, pair_node, -1).int(),
        slots=batch,
        maps=maps,
    )
