"""The truth."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cond_silu(time: Tensor, cond: Tensor) -> Tensor:
    """time: [E] or [B, E] float, cond: [B, E] float -> [B, E]."""
    return F.silu(time + cond)
