"""Convolutions of N nodes, each with its own weights, in one call.

Two exact forms. A *grouped* convolution is the general one. On maps of a few pixels a convolution
is a small dense matrix, ``W[(c, p), (d, q)] = w[d, c, tap(p, q)]``, zero where no tap joins pixel p
to pixel q; then all nodes are one batched matrix product. On 2x2 maps with a 3x3 kernel every pair
of pixels is joined, so the dense form does 16 products where the padded convolution does 36.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Pairs of pixels up to which the matrix is used. Measured on a CPU: at 576 pairs (4x4 to 6x6) it is
# several times faster than a grouped convolution; at 9,604 (7x7 to 14x14) several times slower.
DENSE_PAIRS = 4096


def stacked_conv(x: Tensor, weight: Tensor, *, padding: int) -> Tensor:
    """Each node's stride-1 convolution of its own map.

    Args:
        x: [B, N, C, S, S] float, one square map per node.
        weight: [N, D, C, K, K] float.
        padding: zeros around each map.

    Returns:
        [B, N, D, S', S'] float, S' = S + 2 padding - K + 1.
    """
    batch, nodes, _, size, _ = x.shape
    kernel = weight.shape[-1]
    out_size = size + 2 * padding - kernel + 1
    if (size * out_size) ** 2 <= DENSE_PAIRS:
        taps = _conv_taps(size, out_size, kernel, padding, x.dtype, x.device)
        return _dense(x, weight.transpose(1, 2), taps, out_size)
    y = F.conv2d(x.flatten(1, 2), weight.flatten(0, 1), padding=padding, groups=nodes)
    return y.view(batch, nodes, -1, out_size, out_size)


def stacked_conv_transpose(x: Tensor, weight: Tensor, *, stride: int, padding: int) -> Tensor:
    """Each node's transposed convolution of its own map.

    Args:
        x: [B, N, C, S, S] float, one square map per node.
        weight: [N, C, D, K, K] float.
        stride: pixels of the result per pixel of the map.
        padding: rows and columns cut from each side of the result.

    Returns:
        [B, N, D, S', S'] float, S' = stride (S - 1) + K - 2 padding.
    """
    batch, nodes, _, size, _ = x.shape
    kernel = weight.shape[-1]
    out_size = stride * (size - 1) + kernel - 2 * padding
    if (size * out_size) ** 2 <= DENSE_PAIRS:
        taps = _transpose_taps(size, out_size, kernel, stride, padding, x.dtype, x.device)
        return _dense(x, weight, taps, out_size)
    y = F.conv_transpose2d(
        x.flatten(1, 2), weight.flatten(0, 1), stride=stride, padding=padding, groups=nodes
    )
    return y.view(batch, nodes, -1, out_size, out_size)


def _dense(x: Tensor, weight: Tensor, taps: Tensor, out_size: int) -> Tensor:
    """The batched product; weight: [N, C, D, K, K], taps: [K*K, P, Q] zeros and ones."""
    batch, nodes, channels, size, _ = x.shape
    out_channels = weight.shape[2]
    # A product with zeros and ones instead of an index: its gradient is a product, too.
    matrix = weight.flatten(3) @ taps.flatten(1)  # [N, C, D, P*Q]
    matrix = matrix.view(nodes, channels, out_channels, size * size, out_size * out_size)
    columns = out_channels * out_size * out_size
    matrix = matrix.transpose(2, 3).reshape(nodes, channels * size * size, columns)
    y = torch.bmm(x.flatten(2).transpose(0, 1), matrix)  # [N, B, D*Q]
    return y.transpose(0, 1).reshape(batch, nodes, out_channels, out_size, out_size)


@lru_cache(maxsize=64)
def _conv_taps(
    size: int, out_size: int, kernel: int, padding: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[K*K, P, Q]: 1 where tap k reads pixel p for result q."""
    near = np.arange(size)[:, None] - np.arange(out_size)[None] + padding  # [in, out] tap
    return _taps(near, kernel, dtype, device)


@lru_cache(maxsize=64)
def _transpose_taps(
    size: int,
    out_size: int,
    kernel: int,
    stride: int,
    padding: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """[K*K, P, Q]: 1 where tap k writes pixel p into result q."""
    near = np.arange(out_size)[None] - stride * np.arange(size)[:, None] + padding
    return _taps(near, kernel, dtype, device)


def _taps(near: np.ndarray, kernel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Rows and columns combined; near: [in, out] tap along one axis, outside 0..K-1 if none."""
    line = (near[None] == np.arange(kernel)[:, None, None]).astype(np.float32)  # [K, in, out]
    grid = np.einsum("aio,bjp->abijop", line, line)
    size, out_size = near.shape
    taps = grid.reshape(kernel * kernel, size * size, out_size * out_size)
    # The cache outlives the mode it is filled in; a tensor born in inference mode cannot train.
    with torch.inference_mode(False):
        return torch.from_numpy(taps).to(device=device, dtype=dtype)
