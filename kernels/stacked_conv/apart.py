"""Stride-1 convolutions of N nodes, one node after another, for a CPU.

The CPU's library does plain convolutions of any width at several times the rate of grouped and of
transposed ones, and all three products of training are plain (``*`` below has stride 1 and zeros
around the map):

    y = x * w        dx = dy * flip(w)        dw = x * dy,  or flip(dw) = dy * x

summed over input channels, output channels and images. Autograd would take transposed ones for
two of them, so it is told. There are no gradients of gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..choice import is_exporting

LANES = 16
"""Output channels that the library computes at once, whether they are there or not: float32 in a
vector of 512 bits."""


def correlate(x: Tensor, weight: Tensor, *, padding: int) -> Tensor:
    """Each node's stride-1 convolution of its own map.

    Args:
        x: [B, N, C, S, S] float.
        weight: [N, D, C, K, K] float.
        padding: zeros around each map, 0 to K - 1.

    Returns:
        [B, N, D, S', S'] float, S' = S + 2 padding - K + 1.
    """
    y: Tensor = _Correlation.apply(x, weight, padding)
    return y


class _Correlation(torch.autograd.Function):
    """`correlate` with its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return _rows_as_channels(x, weight, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        padding = ctx.padding
        beyond = weight.shape[-1] - 1 - padding
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _rows_as_channels(grad, weight.flip(3, 4).transpose(1, 2), beyond)
        if ctx.needs_input_grad[1]:
            # Images take the channels' place, and the smaller map the kernel's.
            if x.shape[-1] < grad.shape[-1]:
                of_weight = _plain(grad.transpose(0, 2), x.permute(1, 2, 0, 3, 4), beyond)
                of_weight = of_weight.permute(1, 0, 2, 3, 4).flip(3, 4)
            else:
                of_weight = _plain(x.transpose(0, 2), grad.permute(1, 2, 0, 3, 4), padding)
                of_weight = of_weight.permute(1, 2, 0, 3, 4)
        return of_x, of_weight, None


def _plain(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """x: [B, N, C, S, S], weight: [N, D, C, K, K] -> [B, N, D, S', S']."""
    maps = [
        F.conv2d(x_n, weight_n, padding=padding)
        for x_n, weight_n in zip(x.unbind(1), weight.unbind(0), strict=True)
    ]
    return torch.stack(maps, dim=1)


def _rows_as_channels(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """The same, with all lanes in use: D channels of neighbouring rows are D * rows channels.

    Row i of a group of rows has the kernel moved down by i rows, and the next group of rows is
    `rows` further down the map.
    """
    batch, nodes, _, size, _ = x.shape
    out_channels, kernel = weight.shape[1], weight.shape[-1]
    out_size = size + 2 * padding - kernel + 1
    groups = -(-out_size // max(LANES // out_channels, 1))
    rows = -(-out_size // groups)
    # An exported graph has no place to write into: the number of images would be fixed in it.
    if rows == 1 or is_exporting():
        return _plain(x, weight, padding)
    # The groups end with the map; rows of the first that lie above it are left out.
    above = groups * rows - out_size
    first = rows - above if above else 0
    y = x.new_empty(batch, nodes, out_channels, out_size, out_size)
    of_nodes = zip(x.unbind(1), _moved_down(weight, rows).unbind(0), y.unbind(1), strict=True)
    for x_n, weight_n, y_n in of_nodes:
        found = F.conv2d(x_n, weight_n, stride=(rows, 1), padding=(padding + above, padding))
        found = found.view(batch, out_channels, rows, groups, out_size).transpose(2, 3)
        if above:
            y_n[:, :, :first] = found[:, :, 0, above:]
            found = found[:, :, 1:]
        # Straight into its place: what is not allocated need not be paged in.
        y_n[:, :, first:].view(found.shape).copy_(found)
    return y


def _moved_down(weight: Tensor, rows: int) -> Tensor:
    """[N, D, C, K, K] -> [N, D * rows, C, K + rows - 1, K]: the kernel 0, 1, .. rows further down.

    Copies of the kernel and `rows` zeros in one column, read again with a period that is one row
    shorter: every copy begins one row later than the one before.
    """
    tall = weight.shape[3] + rows - 1
    column = F.pad(weight, (0, 0, 0, rows)).repeat(1, 1, 1, rows, 1)[..., : rows * tall, :]
    return column.view(*weight.shape[:3], rows, tall, -1).transpose(2, 3).flatten(1, 2)
