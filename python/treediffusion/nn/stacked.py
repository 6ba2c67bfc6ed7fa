"""Layers of many nodes, stacked along a leading row axis.

Every tensor of a layer has one row per node, so the nodes of a tree level, which are neighbours in
the topology, are a slice of it: no copy, no loop over nodes. ``rows`` selects that slice.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.stacked_conv import stacked_conv, stacked_conv_transpose

ALL = slice(None)


class StackedConv(nn.Module):
    """Bias-free stride-1 convolutions; weight: [N, D, C, K, K]."""

    def __init__(self, rows: int, channels: int, out_channels: int, *, kernel: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, out_channels, channels, kernel, kernel))
        _reset(self.weight, fan_in=channels * kernel * kernel)

    def forward(self, x: Tensor, rows: slice = ALL) -> Tensor:
        """x: [B, n, C, R, R] -> [B, n, D, R, R] for the n nodes in `rows`."""
        weight = self.weight[rows]
        return stacked_conv(x, weight, padding=weight.shape[-1] // 2)


class StackedConvTranspose(nn.Module):
    """Bias-free transposed convolutions with padding 1; weight: [N, C, D, K, K]."""

    def __init__(
        self, rows: int, channels: int, out_channels: int, *, kernel: int, stride: int
    ) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(rows, channels, out_channels, kernel, kernel))
        # The framework counts a transposed convolution's fan-in over its second axis.
        _reset(self.weight, fan_in=out_channels * kernel * kernel)

    def forward(self, x: Tensor, rows: slice = ALL) -> Tensor:
        """x: [B, n, C, S, S] -> [B, n, D, S', S']."""
        return stacked_conv_transpose(x, self.weight[rows], stride=self.stride, padding=1)


class StackedLinear(nn.Module):
    """Linear maps; weight: [N, in, out]."""

    def __init__(self, rows: int, features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, features, out_features))
        _reset(self.weight, fan_in=features)
        self.bias = nn.Parameter(torch.empty(rows, out_features)) if bias else None
        if self.bias is not None:
            _reset(self.bias, fan_in=features)

    def forward(self, x: Tensor, rows: slice = ALL) -> Tensor:
        """x: [B, n, in] -> [B, n, out]."""
        y = torch.bmm(x.transpose(0, 1), self.weight[rows]).transpose(0, 1)
        return y if self.bias is None else y + self.bias[rows]


class StackedNorm(nn.Module):
    """Batch normalisation of each node by itself, with its own running statistics; all: [N, C].

    As in the published method the statistics are over the whole batch, whatever the share of it
    that reaches the node.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, rows: int, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(rows, channels))
        self.bias = nn.Parameter(torch.zeros(rows, channels))
        self.register_buffer("running_mean", torch.zeros(rows, channels))
        self.register_buffer("running_var", torch.ones(rows, channels))

    def forward(self, x: Tensor, rows: slice = ALL) -> Tensor:
        """x: [B, n, C, ...] -> the same shape."""
        y = F.batch_norm(
            x.flatten(1, 2),
            self.running_mean[rows].flatten(),
            self.running_var[rows].flatten(),
            self.weight[rows].flatten(),
            self.bias[rows].flatten(),
            training=self.training,
            momentum=0.1,
            eps=self.eps,
        )
        return y.view(x.shape)


@torch.no_grad()
def copy_rows(target: nn.Module, source: nn.Module, rows: dict[int, int]) -> None:
    """Copies rows of every parameter and buffer; `rows` maps source rows to target rows."""
    tensors = source.state_dict(keep_vars=True)
    for name, tensor in target.state_dict(keep_vars=True).items():
        tensor[list(rows.values())] = tensors[name][list(rows)]


def _reset(tensor: Tensor, *, fan_in: int) -> None:
    """The framework's default for convolutions and linear layers: uniform in +-1/sqrt(fan-in)."""
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(tensor, -bound, bound)
