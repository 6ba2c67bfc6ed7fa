"""The truth, in plain torch: layer after layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..node_posterior.reference import EPS
from ..tree_conv3x3.reference import Activation, tree_conv3x3
from ..tree_conv3x3.tiles import Tiles
from .pack import NodeWeights


def tree_node_gen(
    z: Tensor, weights: NodeWeights, noise: Tensor, tiles: Tiles, *, activation: Activation
) -> Tensor:
    """See `op.tree_node_gen`."""
    # What a layer writes the next one reads in the same slot.
    onwards = tiles._replace(slot_in=tiles.slot_out)
    first, second, third, head, *biases = weights
    h = tree_conv3x3(z, first, biases[0], tiles, activation=activation)
    h = tree_conv3x3(h, second, biases[1], onwards, activation=activation)
    h = tree_conv3x3(h, third, biases[2], onwards, activation=activation)
    mean, raw = tree_conv3x3(h, head, biases[3], onwards, activation="none").chunk(2, dim=1)
    drawn = mean + torch.sqrt(F.softplus(raw) + EPS) * noise
    written = torch.zeros(tiles.slots, dtype=torch.bool, device=z.device)
    written = written.index_copy(0, tiles.slot_out.long(), tiles.pair_node >= 0)
    return torch.where(written[:, None, None, None], drawn, 0).to(z.dtype)
