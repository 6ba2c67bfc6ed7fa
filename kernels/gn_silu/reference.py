"""The truth: group norm, the condition and SiLU, one after another."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Mode = Literal["none", "scale_shift", "add"]


def gn_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int,
    piece: Tensor | None = None,
    mode: Mode = "none",
    silu: bool = True,
    eps: float = 1e-5,
) -> Tensor:
    """x: [B, C, H, W], weight and bias: [C], piece: [B, 2C] or [B, C] -> [B, C, H, W]."""
    if piece is not None:
        piece = piece[:, :, None, None]
    if piece is not None and mode == "add":
        x = x + piece
    h = F.group_norm(x, groups, weight, bias, eps)
    if piece is not None and mode == "scale_shift":
        scale, shift = piece.chunk(2, dim=1)
        h = h * (1.0 + scale) + shift
    return F.silu(h) if silu else h
