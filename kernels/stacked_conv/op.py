"""Convolutions of N nodes, each with its own weights, in one call.

Three exact forms. A *grouped* convolution is the general one, and a plain one for a single node.
*Apart*, one node after another, is faster for large maps on a CPU, and is in `apart`. On maps of a
few pixels a convolution is a small *dense* matrix, ``W[(c, p), (d, q)] = w[d, c, tap(p, q)]``, zero
where no tap joins pixel p to pixel q; then all nodes are one batched matrix product. On 2x2 maps
with a 3x3 kernel every pair of pixels is joined, so the dense form does 16 products where the
padded convolution does 36. At strides, where kernels are large, a CPU makes the matrix otherwise:
in `placed`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from .apart import correlate
from .placed import place_kernels

# Where launches cost more than arithmetic, the matrix is used up to 8x8 -> 8x8, and up to 1 MB.
DENSE_PAIRS = 4096
DENSE_ENTRIES = 262_144

# On a CPU arithmetic counts, and the form is the fastest that was measured; see README.md.
CPU_DENSE_PAIRS = 16  # always dense up to 2x2 -> 2x2
CPU_DENSE_ENTRIES = 80_000  # of a node's matrix, where a channel count is odd
CPU_VECTOR = 8  # channel counts that grouped convolutions are fast for are multiples of it

Form = Literal["dense", "placed", "grouped", "apart"]


def choose_form(
    device: str, channels: int, out_channels: int, size: int, out_size: int, *, stride: int = 1
) -> Form:
    """The form of a convolution of several nodes, from its sizes alone.

    `device` is a device's type; whatever is no CPU, a graph of operations too, counts launches.
    """
    pairs = (size * out_size) ** 2
    entries = channels * out_channels * pairs
    if device != "cpu":
        small = pairs <= DENSE_PAIRS and entries <= DENSE_ENTRIES
        return "dense" if small else "grouped"
    aligned = channels % CPU_VECTOR == 0 and out_channels % CPU_VECTOR == 0
    if pairs <= CPU_DENSE_PAIRS or (not aligned and entries <= CPU_DENSE_ENTRIES):
        return "dense" if stride == 1 else "placed"
    return "grouped" if stride > 1 or (aligned and pairs <= DENSE_PAIRS) else "apart"


def stacked_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: int) -> Tensor:
    """Each node's stride-1 convolution of its own map.

    Args:
        x: [B, N, C, S, S] float, one square map per node.
        weight: [N, D, C, K, K] float.
        bias: [N, D] float, or none.
        padding: zeros around each map.

    Returns:
        [B, N, D, S', S'] float, S' = S + 2 padding - K + 1.
    """
    batch, nodes, channels, size, _ = x.shape
    out_channels, kernel = weight.shape[1], weight.shape[-1]
    out_size = size + 2 * padding - kernel + 1
    form = choose_form(x.device.type, channels, out_channels, size, out_size)
    if form == "dense":
        taps = _conv_taps(size, out_size, kernel, padding, x.dtype, x.device)
        matrix = _times_taps(weight, taps).permute(0, 2, 3, 1, 4)
        return _plus(_dense(x, matrix, out_size), bias)
    if nodes > 1 and form == "apart" and padding < kernel:
        return _plus(correlate(x, weight, padding=padding), bias)
    y = F.conv2d(_channels(x), weight.flatten(0, 1), _flat(bias), padding=padding, groups=nodes)
    return y.view(batch, nodes, out_channels, out_size, out_size)


def stacked_conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int, padding: int
) -> Tensor:
    """Each node's transposed convolution of its own map.

    Args:
        x: [B, N, C, S, S] float, one square map per node.
        weight: [N, C, D, K, K] float.
        bias: [N, D] float, or none.
        stride: pixels of the result per pixel of the map.
        padding: rows and columns cut from each side of the result.

    Returns:
        [B, N, D, S', S'] float, S' = stride (S - 1) + K - 2 padding.
    """
    batch, nodes, channels, size, _ = x.shape
    out_channels, kernel = weight.shape[2], weight.shape[-1]
    out_size = stride * (size - 1) + kernel - 2 * padding
    form = choose_form(x.device.type, channels, out_channels, size, out_size, stride=stride)
    if form == "placed":
        matrix = place_kernels(weight, size=size, stride=stride, padding=padding)
        return _plus(_dense(x, matrix, out_size), bias)
    if form == "dense":
        taps = _transpose_taps(size, out_size, kernel, stride, padding, x.dtype, x.device)
        matrix = _times_taps(weight, taps).transpose(2, 3)
        return _plus(_dense(x, matrix, out_size), bias)
    if form == "apart" and padding < kernel:
        # At stride 1 it is a convolution with the kernel turned round.
        turned = weight.flip(3, 4).transpose(1, 2)
        return stacked_conv(x, turned, bias, padding=kernel - 1 - padding)
    y = F.conv_transpose2d(
        _channels(x),
        weight.flatten(0, 1),
        _flat(bias),
        stride=stride,
        padding=padding,
        groups=nodes,
    )
    return y.view(batch, nodes, out_channels, out_size, out_size)


def _channels(x: Tensor) -> Tensor:
    """[B, N, C, S, S] -> [B, N*C, S, S]; a single node's with channels last on a CPU.

    There its library is fastest so, and the result and what follows keep the layout. Under `vmap`,
    which knows no layouts, the nodes of all maps are many.
    """
    maps = x.flatten(1, 2)
    if x.shape[1] == 1 and x.device.type == "cpu" and not is_batchedtensor(x):
        maps = maps.contiguous(memory_format=torch.channels_last)
    return maps


def _flat(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.flatten()


def _plus(y: Tensor, bias: Tensor | None) -> Tensor:
    """y: [B, N, D, S, S], bias: [N, D]."""
    return y if bias is None else y + bias[..., None, None]


def _times_taps(weight: Tensor, taps: Tensor) -> Tensor:
    """[N, C, D, K, K] times [K*K, P, Q] zeros and ones -> [N, C, D, P, Q].

    A product instead of an index: its gradient is a product, too.
    """
    spread = weight.flatten(0, 2).flatten(1) @ taps.flatten(1)
    return spread.view(*weight.shape[:3], *taps.shape[1:])


def _dense(x: Tensor, matrix: Tensor, out_size: int) -> Tensor:
    """The batched product; matrix: [N, C, P, D, Q]."""
    batch, nodes, out_channels = *x.shape[:2], matrix.shape[3]
    matrix = matrix.flatten(3).flatten(1, 2)
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
