"""A network for many calls on a CPU: everything that depends on the weights alone is done before.

* Kernels lie in the order in which the CPU's convolutions read them, instead of being sorted anew
  in every call; where maps are small, that is a good part of a call.
* Kernels of enlarging convolutions are summed (`enlarge`).
* In float32, large maps are convolved by Winograd's F(4x4, 3x3): tiles of 6x6 numbers d and kernels
  g become B' d B and G g G', multiplied pointwise, summed over channels, and A' m A is a tile of
  4x4 results: 36 products instead of 144. The points 0, 3/4, -3/4, 3/2, -3/2 keep the error at
  twice that of the plain sum; the customary 0, 1, -1, 2, -2 would have four times.

The numbers are the same up to rounding. Weights that change afterwards are not seen, and there are
no gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .enlarge import Enlarge, transposed
from .twin import Module, twin
from .unet import Norm

TILE = 4
WINOGRAD_SIDE = 16
"""Smaller maps have so few tiles that products of the plain sum are faster."""
WINOGRAD_WIDTH = 32
"""Fewer channels in or out do not pay for the transforms."""
LARGE_KERNEL = 2**15
"""A network without kernels of so many numbers stays as it is, and is quicker so."""

SMALL_NORM, LARGE_NORM = 32, 1024
"""Between so many pixels PyTorch's norm is several times slower with channels last."""


def prepared(module: Module) -> Module:
    """A copy of a network in evaluation mode for a run of calls, or itself where none is faster.

    Args:
        module: on any device, in any dtype; is left as it is and shares its weights.
    """
    kernels = [child.weight for child in module.modules() if isinstance(child, nn.Conv2d)]
    largest = max(kernels, key=torch.numel)
    if largest.numel() < LARGE_KERNEL or largest.is_cuda or not _packs(largest.dtype):
        return module
    # All of them, so that maps keep one layout, with channels last.
    return twin(module, {Enlarge: _Enlarge, nn.Conv2d: _Conv, Norm: _Norm})


class _Conv(nn.Module):
    """A convolution whose kernel is put in form at the first call, when the side is known."""

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.plain = plain
        self.form: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C_out, H', W']."""
        if self.form is None:
            self.form = (
                _winograd(self.plain) if _is_large(self.plain, x) else _packed(self.plain, x)
            )
        return self.form(x)


class _Enlarge(nn.Module):
    """`Enlarge` with its kernels summed beforehand."""

    def __init__(self, plain: Enlarge) -> None:
        super().__init__()
        self.bias = plain.bias
        self.kernel = transposed(plain.weight.detach()).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C_out, 2 H, 2 W]."""
        return F.conv_transpose2d(x, self.kernel, self.bias, stride=2, padding=1)


class _Norm(nn.Module):
    """A group norm that brings middling maps into the layout in which it is quick."""

    def __init__(self, plain: Norm) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, x: Tensor, piece: Tensor | None = None) -> Tensor:
        """As `Norm`."""
        middling = SMALL_NORM < x.shape[2] * x.shape[3] < LARGE_NORM
        out: Tensor = self.plain(x.contiguous() if middling else x, piece)
        return out


def _packs(dtype: torch.dtype) -> bool:
    """Whether the CPU's library has convolutions with kernels in its own order."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _packed(plain: nn.Conv2d, x: Tensor) -> Callable[[Tensor], Tensor]:
    where = [plain.padding, plain.stride, plain.dilation, plain.groups]
    kernel = torch.ops.mkldnn._reorder_convolution_weight(
        plain.weight.detach(), *where, list(x.shape)
    )

    def apply(x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, kernel, plain.bias, *where, "none", [], ""
        )
        return out

    return apply


def _is_large(plain: nn.Conv2d, x: Tensor) -> bool:
    """Whether Winograd's form is faster than the plain sum."""
    fits = plain.kernel_size == (3, 3) and plain.stride == (1, 1) and x.dtype == torch.float32
    sides, widths = x.shape[2:], (plain.in_channels, plain.out_channels)
    return (
        fits
        and all(side % TILE == 0 and side >= WINOGRAD_SIDE for side in sides)
        and min(widths) >= WINOGRAD_WIDTH
    )


def _winograd(plain: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    of_map, of_kernel, of_result = _transforms()
    outputs, inputs = plain.weight.shape[:2]
    tile, points = TILE + 2, len(of_map)
    taps = plain.weight.detach().reshape(outputs * inputs, 9)
    kernel = (taps @ of_kernel.T).reshape(outputs, inputs, points).permute(2, 0, 1)
    # One product of matrices for each of the 36 numbers: a convolution of as many groups.
    kernel = kernel.reshape(points * outputs, inputs, 1, 1)
    where = [[0, 0], [1, 1], [1, 1], points]
    kernel = torch.ops.mkldnn._reorder_convolution_weight(kernel, *where, None)

    def apply(x: Tensor) -> Tensor:
        # Image by image, because a tile's numbers are more than twice the map's: those of one
        # image stay in the cache.
        out = [convolve(image) for image in x.permute(0, 2, 3, 1)]
        return torch.stack(out).permute(0, 3, 1, 2)

    def convolve(image: Tensor) -> Tensor:  # [H, W, C]
        height, width, _ = image.shape
        padded = F.pad(image, (0, 0, 1, 1, 1, 1))
        tiles = padded.unfold(0, tile, TILE).unfold(1, tile, TILE).permute(0, 1, 3, 4, 2)
        moved = of_map @ tiles.reshape(-1, points, inputs)  # [tiles, 36, C]
        columns = moved.reshape(1, len(moved), 1, -1).permute(0, 3, 1, 2)
        products: Tensor = torch.ops.mkldnn._convolution_pointwise(
            columns, kernel, None, *where, "none", [], ""
        )
        found = of_result @ products.permute(0, 2, 3, 1).reshape(-1, points, outputs)
        shape = height // TILE, width // TILE, TILE, TILE, outputs
        found = found.reshape(shape).transpose(1, 2).reshape(height, width, outputs)
        return found if plain.bias is None else found.add_(plain.bias.detach())

    return apply


@cache
def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Of tiles, [36, 36], of kernels, [36, 9], and of results, [16, 36], float32.

    Toom and Cook's: polynomials of degree 3 and 2 are known by their product's values at five
    points and its leading coefficient; a convolution is this read backwards.
    """
    points = np.array([0.0, 0.75, -0.75, 1.5, -1.5])
    others = [np.delete(points, k) for k in range(len(points))]
    of_map = np.zeros((TILE + 2, TILE + 2))
    for k, zeros in enumerate(others):
        of_map[k, :-1] = np.poly(zeros)[::-1]
    of_map[-1] = np.poly(points)[::-1]
    powers = np.vander(points, TILE, increasing=True)  # [5, 4]
    scale = np.array([np.prod(point - rest) for point, rest in zip(points, others, strict=True)])
    of_kernel = np.vstack([powers[:, :3] / scale[:, None], [0.0, 0.0, 1.0]])
    of_result = np.hstack([powers.T, [[0.0]] * (TILE - 1) + [[1.0]]])
    both = (np.kron(matrix, matrix) for matrix in (of_map, of_kernel, of_result))
    first, second, third = (torch.from_numpy(matrix).float() for matrix in both)
    return first, second, third
