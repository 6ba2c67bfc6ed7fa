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
    """Stride-1 convolutions, which keep the side unless told otherwise; weight: [N, D, C, K, K]."""

    def __init__(
        self,
        rows: int,
        channels: int,
        out_channels: int,
        *,
        kernel: int = 3,
        padding: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.padding = kernel // 2 if padding is None else padding
        self.weight = nn.Parameter(torch.empty(rows, out_channels, channels, kernel, kernel))
        _reset(self.weight, fan_in=channels * kernel * kernel)
        self.bias = nn.Parameter(torch.empty(rows, out_channels)) if bias else None
        if self.bias is not None:
            _reset(self.bias, fan_in=channels * kernel * kernel)

    def forward(self, x: Tensor, rows: slice = ALL) -> Tensor:
        """x: [B, n, C, S, S] -> [B, n, D, S', S'] for the n nodes in `rows`."""
        y = stacked_conv(x, _part(self.weight, rows), padding=self.padding)
        return y if self.bias is None else y + _part(self.bias, rows)[..., None, None]


class StackedConvTranspose(nn.Module):
    """Transposed convolutions; weight: [N, C, D, K, K]."""

    def __init__(
        self,
        rows: int,
        channels: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int,
        padding: int = 1,
        output_padding: int = 0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.output_padding = stride, padding, output_padding
        self.weight = nn.Parameter(torch.empty(rows, channels, out_channels, kernel, kernel))
        # The framework counts a transposed convolution's fan-in over its second axis.
        _reset(self.weight, fan_in=out_channels * kernel * kernel)
        self.bias = nn.Parameter(torch.empty(rows, out_channels)) if bias else None
        if self.bias is not None:
            _reset(self.bias, fan_in=out_channels * kernel * kernel)

    def forward(self, x: Tensor, rows: slice = ALL) -> Tensor:
        """x: [B, n, C, S, S] -> [B, n, D, S', S']; S' as the framework's layer has it."""
        more = self.output_padding
        cut = 0 if more else self.padding
        y = stacked_conv_transpose(x, _part(self.weight, rows), stride=self.stride, padding=cut)
        if more:  # rows and columns that the cut at the end would have taken, or zeros beyond it
            first, last = -self.padding, more - self.padding
            y = F.pad(y, (first, last, first, last))
        return y if self.bias is None else y + _part(self.bias, rows)[..., None, None]


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
        y = torch.bmm(x.transpose(0, 1), _part(self.weight, rows)).transpose(0, 1)
        return y if self.bias is None else y + _part(self.bias, rows)


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
            _part(self.running_mean, rows).flatten(),
            _part(self.running_var, rows).flatten(),
            _part(self.weight, rows).flatten(),
            _part(self.bias, rows).flatten(),
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


def _part(tensor: Tensor, rows: slice) -> Tensor:
    """The chosen rows; all of them without a slice, whose gradient would be a copy."""
    return tensor if rows == ALL else tensor[rows]


def _reset(tensor: Tensor, *, fan_in: int) -> None:
    """The framework's default for convolutions and linear layers: uniform in +-1/sqrt(fan-in)."""
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(tensor, -bound, bound)
