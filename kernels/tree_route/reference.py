"""The truth, in plain torch: sums over paths as a product, and a walk of D steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .table import WAY


def log_node_prob(logit: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The sum of the log-probabilities of the turns on each path, as one product.

    Args:
        logit: [B, I] float.
        left: [I, N] of a `RouteTable`.
        right: [I, N] of a `RouteTable`.

    Returns:
        [B, N] float32 or float64.
    """
    dtype = torch.promote_types(logit.dtype, torch.float32)
    logit, left, right = logit.to(dtype), left.to(dtype), right.to(dtype)
    # -softplus(-x) and not logsigmoid(x), which ONNX knows only as log(sigmoid(x)): that is
    # -inf for a decided router, and -inf times an edge that is not there is not a number.
    return -(F.softplus(-logit) @ left + F.softplus(logit) @ right)


def sample_leaf(logit: Tensor, uniform: Tensor, nodes: Tensor, *, start: int) -> Tensor:
    """[B] int64 leaf ids; left iff u < p_left at each router on the way down from row `start`."""
    here = torch.full_like(logit[:, :0].sum(1), start, dtype=torch.int64)
    if logit.shape[1]:
        dtype = torch.promote_types(logit.dtype, torch.float32)
        turns_left = uniform < torch.sigmoid(logit.to(dtype))
    for _ in range(nodes.shape[1] - WAY):
        way = nodes[here].long()
        child = way[:, 2]
        if logit.shape[1]:
            column = way[:, 0].clamp(min=0)
            is_left = turns_left.gather(1, column[:, None])[:, 0]
            child = torch.where(is_left, way[:, 1], child)
        here = child
    return nodes[here, 3].long()
