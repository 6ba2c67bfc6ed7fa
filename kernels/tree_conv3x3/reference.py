"""The truth, in plain torch: each pair's patches times its own node's weights."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .tiles import Tiles

Activation = Literal["none", "silu", "relu", "leaky_relu"]

LEAK = 0.3
"""Slope of the leaky ReLU below zero, as published."""


def tree_conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor, tiles: Tiles, *, activation: Activation
) -> Tensor:
    """See `op.tree_conv3x3`; it holds a copy of the weights for every pair."""
    has_node = tiles.pair_node >= 0
    node = tiles.pair_node.clamp(min=0).long()
    patches = F.unfold(x[tiles.slot_in.long()], 3, padding=1)  # [K, C*9, P]
    matrix = weight[node].permute(0, 3, 2, 1).flatten(2)  # [K, D, C*9]
    y = activate(torch.bmm(matrix, patches) + bias[node].to(x.dtype)[..., None], activation)
    y = torch.where(has_node[:, None, None], y, 0)
    blank = y.new_zeros(tiles.slots, *y.shape[1:])
    found = blank.index_copy(0, tiles.slot_out.long(), y)
    return found.view(*found.shape[:2], *x.shape[2:])


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The nonlinearity of this name."""
    if activation == "silu":
        return F.silu(x)
    if activation == "relu":
        return F.relu(x)
    return F.leaky_relu(x, LEAK) if activation == "leaky_relu" else x
