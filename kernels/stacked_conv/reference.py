"""The truth: one convolution per node, one after another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def stacked_conv(x: Tensor, weight: Tensor, *, padding: int) -> Tensor:
    """x: [B, N, C, H, W], weight: [N, D, C, K, K] -> [B, N, D, H', W']."""
    nodes = [F.conv2d(x[:, n], weight[n], padding=padding) for n in range(x.shape[1])]
    return torch.stack(nodes, dim=1)


def stacked_conv_transpose(x: Tensor, weight: Tensor, *, stride: int, padding: int) -> Tensor:
    """x: [B, N, C, H, W], weight: [N, C, D, K, K] -> [B, N, D, H', W']."""
    nodes = [
        F.conv_transpose2d(x[:, n], weight[n], stride=stride, padding=padding)
        for n in range(x.shape[1])
    ]
    return torch.stack(nodes, dim=1)
