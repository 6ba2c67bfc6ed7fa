"""Layers of many nodes, stacked along a leading row axis.

Every tensor of a layer has one row per node, and nodes of a tree level are neighbours in the
topology. So a level's layer is the same layer with parts of the tensors: `by_rows`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..kernels.choice import is_exporting
from ..kernels.stacked_conv import stacked_conv, stacked_conv_transpose

SMALL_MAP = 9
"""Pixels of a map up to which a CPU normalises it with its pixels in the images' place."""
ROW_ENTRIES = 512
"""Entries of a node's map, C S S, from which on a CPU takes nodes one by one."""


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

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, n, C, S, S] -> [B, n, D, S', S']."""
        return stacked_conv(x, self.weight, self.bias, padding=self.padding)


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

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, n, C, S, S] -> [B, n, D, S', S']; S' as the framework's layer has it."""
        more = self.output_padding
        if not more:
            return stacked_conv_transpose(
                x, self.weight, self.bias, stride=self.stride, padding=self.padding
            )
        y = stacked_conv_transpose(x, self.weight, stride=self.stride, padding=0)
        # Rows and columns that the cut at the end would have taken, or zeros beyond it.
        first, last = -self.padding, more - self.padding
        y = F.pad(y, (first, last, first, last))
        return y if self.bias is None else y + self.bias[..., None, None]


class StackedLinear(nn.Module):
    """Linear maps; weight: [N, in, out]."""

    def __init__(self, rows: int, features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, features, out_features))
        _reset(self.weight, fan_in=features)
        self.bias = nn.Parameter(torch.empty(rows, out_features)) if bias else None
        if self.bias is not None:
            _reset(self.bias, fan_in=features)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, n, in] -> [B, n, out]."""
        y = torch.bmm(x.transpose(0, 1), self.weight).transpose(0, 1)
        return y if self.bias is None else y + self.bias


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

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, n, C, ...] -> the same shape."""
        y, pixels = x.flatten(1, 2), math.prod(x.shape[3:])
        # A CPU sums a channel's pixels one image after another, which small maps make slow: at 2x2
        # it is 2 to 6 times faster with pixels in the images' place, at 4x4 slower.
        aside = self.training and x.device.type == "cpu" and 1 < pixels <= SMALL_MAP
        if aside:
            y = y.flatten(2).transpose(1, 2).flatten(0, 1)
        y = F.batch_norm(
            y,
            self.running_mean.flatten(),
            self.running_var.flatten(),
            self.weight.flatten(),
            self.bias.flatten(),
            training=self.training,
            momentum=0.1,
            eps=self.eps,
        )
        if aside:
            y = y.view(len(x), pixels, -1).transpose(1, 2)
        return y.reshape(x.shape)


def by_rows(module: nn.Module, sizes: Sequence[int]) -> list[Callable[[Tensor], Any]]:
    """The function of a module for each of some groups of neighbouring rows, which cover it.

    All tensors are cut once, before any group is used: the gradient of a cut is a concatenation,
    that of a slice is as large as the whole tensor.
    """
    tensors = [*module.named_parameters(), *module.named_buffers()]
    parts = [(name, torch.split(tensor, list(sizes))) for name, tensor in tensors]
    return [
        partial(functional_call, module, {name: part[k] for name, part in parts})
        for k in range(len(sizes))
    ]


def one_by_one(x: Tensor) -> bool:
    """Whether a CPU does the rows of x, [B, n, C, S, S], faster one after another.

    It does where a row is work enough to hide the calls: its maps stay in the caches from one
    layer to the next, and its convolutions are plain ones. An exported graph, which pays for
    operations, has all of them at once.
    """
    if is_exporting():
        return False
    return x.device.type == "cpu" and math.prod(x.shape[2:]) >= ROW_ENTRIES


def apply_rows(module: nn.Module, x: Tensor) -> Tensor:
    """x: [B, n, C, S, S] through a module of n rows, all at once or one by one."""
    if not one_by_one(x):
        y: Tensor = module(x)
        return y
    rows = by_rows(module, [1] * x.shape[1])
    return torch.cat(
        [row(x_n) for row, x_n in zip(rows, torch.split(x, 1, dim=1), strict=True)], dim=1
    )


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
