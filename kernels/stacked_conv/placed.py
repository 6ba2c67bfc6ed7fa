"""The matrices of strided transposed convolutions, by writing each kernel into its places.

Pixel p's block of the matrix W[(c, p), (d, q)] is the kernel itself, moved to where p lies in the
result and cut off at its border. Where kernels are large this is a few copies of long rows; a
product with zeros and ones (`op`) multiplies mostly zeros and leaves the axes in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Place = tuple[int, int, slice, slice, slice, slice]


def place_kernels(weight: Tensor, *, size: int, stride: int, padding: int) -> Tensor:
    """The matrix of each node's transposed convolution.

    Args:
        weight: [N, C, D, K, K] float.
        size: S, the map's side.
        stride: pixels of the result per pixel of the map.
        padding: rows and columns cut from each side of the result.

    Returns:
        [N, C, S*S, D, S'*S'] float, S' = stride (S - 1) + K - 2 padding.
    """
    matrix: Tensor = _PlaceKernels.apply(weight, size, stride, padding)
    return matrix.flatten(5).flatten(2, 3)


class _PlaceKernels(torch.autograd.Function):
    """[N, C, D, K, K] -> [N, C, S, S, D, S', S']; the gradient gathers what was placed."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, size: int, stride: int, padding: int) -> Tensor:
        nodes, channels, out_channels, kernel, _ = weight.shape
        ctx.shape = weight.shape
        ctx.places = tuple(_places(size, kernel, stride, padding))
        out_size = stride * (size - 1) + kernel - 2 * padding
        matrix = weight.new_zeros(nodes, channels, size, size, out_channels, out_size, out_size)
        for i, j, to_row, to_col, row, col in ctx.places:
            matrix[:, :, i, j, :, to_row, to_col] = weight[..., row, col]
        return matrix

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        of_weight = grad.new_zeros(ctx.shape)
        for i, j, to_row, to_col, row, col in ctx.places:
            of_weight[..., row, col] += grad[:, :, i, j, :, to_row, to_col]
        return of_weight, None, None, None


def _places(size: int, kernel: int, stride: int, padding: int) -> Iterator[Place]:
    """For every pixel: its row and column, the part of the result, the part of the kernel."""
    out_size = stride * (size - 1) + kernel - 2 * padding
    spans = []
    for pixel in range(size):
        first = stride * pixel - padding
        low = max(first, 0)
        high = max(min(first + kernel, out_size), low)
        spans.append((slice(low, high), slice(low - first, high - first)))
    for i, (to_row, row) in enumerate(spans):
        for j, (to_col, col) in enumerate(spans):
            yield i, j, to_row, to_col, row, col
