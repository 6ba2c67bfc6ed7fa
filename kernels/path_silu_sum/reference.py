"""The truth: absent slots become 0, whose silu is 0."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def path_silu_sum(h: Tensor, nodes: Tensor) -> Tensor:
    """h: [B, P, E] float, nodes: [B, P] int -> [B, E]."""
    return F.silu(h.masked_fill((nodes < 0)[:, :, None], 0.0)).sum(dim=1)
