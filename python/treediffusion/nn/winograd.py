"""3x3 convolutions of float32 maps on a CPU by Winograd's F(4x4, 3x3), with gradients.

Tiles of 6x6 numbers d and kernels g become B' d B and G g G', are multiplied pointwise, summed over
channels, and A' m A is a tile of 4x4 results: 36 products instead of 144. With a tile's numbers as
rows, (x) for Kronecker's product and p for each of the 36, all of it is products of matrices,

    V = (B (x) B)' D    U = (G (x) G) g    M_p = V_p U_p    Y = (A (x) A)' M

and a few images go through all of them before the next, so that their tiles stay in the cache. The
gradient of the map is a convolution, too; that of the kernel is

    dM = (A (x) A) dY    dU_p = V_p' dM_p    dg = (G (x) G)' dU

The points 0, 3/4, -3/4, 3/2, -3/2 keep the error at twice that of the plain sum; the customary
0, 1, -1, 2, -2 would have four times.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..kernels.choice import is_exporting

TILE, SPAN = 4, 6
"""Sides of a tile of results, and of the pixels that they see."""
POINTS = SPAN * SPAN
BLOCK = 8192
"""Tiles times channels at a time: enough for products of matrices, few enough for the cache."""
FEWEST = 64
"""Tiles at a time where channels are many; fewer do not pay for reading so large a kernel."""
MOST = 256
"""Tiles of an image; more leave the cache."""
WIDTH = 64
"""Fewer channels in or out do not pay for the transforms."""


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution that keeps the side; of channels-last maps in this form, where faster."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """From `inputs` to `outputs` channels."""
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C_out, H, W]."""
        last = x.is_contiguous(memory_format=torch.channels_last)
        if not last or not pays(self, x) or _is_rewritten():
            return super().forward(x)
        out: Tensor = _Convolution.apply(x, self.weight, self.bias)
        return out


def pays(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether a layer's work on a map can be done in this form, and is done faster."""
    if x.is_cuda or x.dtype != torch.float32:
        return False
    height, width = x.shape[2:]
    each = (height // TILE) * (width // TILE)
    narrowest = min(conv.in_channels, conv.out_channels)
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == conv.padding == conv.dilation == (1, 1)
        and conv.groups == 1
        and height % TILE == width % TILE == 0
        and narrowest >= WIDTH
        and len(x) * each >= FEWEST
        and len(x) * each * narrowest >= BLOCK
        and each <= MOST
    )


def _is_rewritten() -> bool:
    """Whether somebody else decides how, or in which precision, operations are done."""
    return is_exporting() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")


def transformed(weight: Tensor, *, turned: bool = False) -> Tensor:
    """U, a kernel's 36 matrices.

    Args:
        weight: [C_out, C, 3, 3].
        turned: by half a turn and transposed: the kernel that takes gradients of results to
            gradients of maps.

    Returns:
        [36, C, C_out], or [36, C_out, C] if turned.
    """
    taps = weight.permute(2, 3, 0, 1).reshape(9, -1)
    found = matrices().of_kernel @ (taps.flip(0) if turned else taps)
    found = found.view(POINTS, *weight.shape[:2])
    return found if turned else found.transpose(1, 2)


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of a map; without gradients.

    Args:
        x: [B, C, H, W], the sides multiples of `TILE`.
        kernel: [36, C, C_out], `transformed`.
        bias: [C_out].

    Returns:
        [B, C_out, H, W], channels last.
    """
    outputs = kernel.shape[2]
    maps, out = _Maps(x), x.new_empty(len(x), *x.shape[2:], outputs)
    room_m, room_y = maps.room(POINTS, outputs), maps.room(TILE * TILE, outputs)
    for images in maps.blocks:
        m = torch.bmm(maps.transformed(images), kernel, out=room_m(images))
        y = torch.mm(matrices().of_result, m.flatten(1), out=room_y(images).flatten(1))
        tiles = _tiles(out[images])
        b, h, _, w, _, _ = tiles.shape
        y = y.view(TILE, TILE, b, h, w, outputs).permute(2, 3, 0, 4, 1, 5)
        torch.add(y, 0.0 if bias is None else bias, out=tiles)
    return out.permute(0, 3, 1, 2)


def kernel_gradient(x: Tensor, of_y: Tensor) -> Tensor:
    """The gradient of a loss with respect to the kernel.

    Args:
        x: [B, C, H, W], the map.
        of_y: [B, C_out, H, W], the gradient with respect to the convolution's result.

    Returns:
        [C_out, C, 3, 3].
    """
    inputs, outputs = x.shape[1], of_y.shape[1]
    maps, plane = _Maps(x), of_y.permute(0, 2, 3, 1).contiguous()
    room_m, room_y = maps.room(POINTS, outputs), maps.room(TILE * TILE, outputs)
    total = x.new_zeros(POINTS, inputs, outputs)
    for images in maps.blocks:
        tiles, y, m = _tiles(plane[images]), room_y(images), room_m(images)
        tiles = tiles.permute(2, 4, 0, 1, 3, 5)
        y.view(tiles.shape).copy_(tiles)
        torch.mm(matrices().of_result.T, y.flatten(1), out=m.flatten(1))
        torch.baddbmm(total, maps.transformed(images).transpose(1, 2), m, out=total)
    taps = matrices().of_kernel.T @ total.flatten(1)
    return taps.view(3, 3, inputs, outputs).permute(3, 2, 0, 1)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return convolve(x, transformed(weight), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_map, by_kernel, by_bias = ctx.needs_input_grad
        return (
            convolve(of_y, transformed(weight, turned=True), None) if by_map else None,
            kernel_gradient(x, of_y) if by_kernel else None,
            of_y.sum((0, 2, 3)) if by_bias else None,
        )


class _Maps:
    """A batch of maps, [B, C, H, W], some images at a time.

    Attributes:
        blocks: which images go together; the first are as many as any.
    """

    def __init__(self, x: Tensor) -> None:
        self._plane = x.permute(0, 2, 3, 1)
        images, height, width, channels = self._plane.shape
        self._each = (height // TILE) * (width // TILE)
        together = max(1, max(BLOCK // channels, FEWEST) // self._each)
        self.blocks = [slice(k, min(k + together, images)) for k in range(0, images, together)]
        self._room_d, self._room_v = (self.room(POINTS, channels) for _ in range(2))
        largest = self.blocks[0].stop
        self._padded = x.new_zeros(largest, height + 2, width + 2, channels)

    def room(self, rows: int, width: int) -> Callable[[slice], Tensor]:
        """Memory that every block uses again, as new memory would be the greater cost.

        Returns:
            Gives a block its [rows, tiles, width].
        """
        memory = self._plane.new_empty(rows * self.blocks[0].stop * self._each * width)

        def of(images: slice) -> Tensor:
            tiles = (images.stop - images.start) * self._each
            return memory[: rows * tiles * width].view(rows, tiles, width)

        return of

    def transformed(self, images: slice) -> Tensor:
        """V of a block, [36, tiles, C]."""
        padded = self._padded[: images.stop - images.start]
        padded[:, 1:-1, 1:-1] = self._plane[images]
        seen = padded.unfold(1, SPAN, TILE).unfold(2, SPAN, TILE).permute(4, 5, 0, 1, 2, 3)
        d, v = self._room_d(images), self._room_v(images)
        d.view(seen.shape).copy_(seen)
        torch.mm(matrices().of_map, d.flatten(1), out=v.flatten(1))
        return v


def _tiles(plane: Tensor) -> Tensor:
    """A view of [b, H, W, C] as tiles, [b, h, 4, w, 4, C]."""
    b, height, width, channels = plane.shape
    return plane.view(b, height // TILE, TILE, width // TILE, TILE, channels)


class Matrices(NamedTuple):
    """(B (x) B)', [36, 36], G (x) G, [36, 9], and (A (x) A)', [16, 36], in float32."""

    of_map: Tensor
    of_kernel: Tensor
    of_result: Tensor


@cache
def matrices() -> Matrices:
    """Toom and Cook's.

    Polynomials of degree 3 and 2 are known by their product's values at five points and its leading
    coefficient; a convolution is this read backwards.
    """
    points = np.array([0.0, 0.75, -0.75, 1.5, -1.5])
    others = [np.delete(points, k) for k in range(len(points))]
    of_map = np.zeros((SPAN, SPAN))
    for k, zeros in enumerate(others):
        of_map[k, :-1] = np.poly(zeros)[::-1]
    of_map[-1] = np.poly(points)[::-1]
    powers = np.vander(points, TILE, increasing=True)  # [5, 4]
    scale = np.array([np.prod(point - rest) for point, rest in zip(points, others, strict=True)])
    of_kernel = np.vstack([powers[:, :3] / scale[:, None], [0.0, 0.0, 1.0]])
    of_result = np.hstack([powers.T, [[0.0]] * (TILE - 1) + [[1.0]]])
    both = (np.kron(matrix, matrix) for matrix in (of_map, of_kernel, of_result))
    return Matrices(*(torch.from_numpy(matrix).float() for matrix in both))
