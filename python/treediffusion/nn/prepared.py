"""A network for many calls on a CPU: everything that depends on the weights alone is done before.

* Kernels lie in the order in which the CPU's convolutions read them, instead of being sorted anew
  in every call; where maps are small, that is a good part of a call.
* Those of enlarging convolutions are summed before that (`enlarge`).
* In float32, large maps are convolved in Winograd's form (`winograd`); those of so few tiles that
  they do not fill products of matrices, one image after the other.

The numbers are the same up to rounding. Weights that change afterwards are not seen, and there are
no gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import winograd
from .enlarge import Enlarge, transposed
from .twin import Module, twin
from .unet import Norm
from .winograd import POINTS, SPAN, TILE, WIDTH, matrices

MANY_TILES = 128
"""So many are convolved together."""
LARGE_SIDE = 16
"""Smaller maps of fewer tiles are convolved faster by the plain sum."""
LARGE_KERNEL = 2**15
"""A network without kernels of so many numbers stays as it is, and is quicker so."""
SMALL_NORM, LARGE_NORM = 32, 1024
"""Between so many pixels PyTorch's norm is slower with channels last, in bfloat16 several times,
and in float32 less exact: it takes the variance as a difference of squares."""


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
    return twin(module, {nn.Conv2d: _Conv, Norm: _Norm})


class _Conv(nn.Module):
    """A convolution whose kernel is put in form at the first call, when the side is known."""

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.plain = plain
        self.form: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C_out, H', W']."""
        if self.form is None:
            self.form = _form(self.plain, x)
        return self.form(x)


class _Norm(nn.Module):
    """A group norm that brings middling maps into the layout in which it is quick and exact."""

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


def _form(plain: nn.Conv2d, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The fastest for maps of a size."""
    if isinstance(plain, Enlarge):
        return _enlarging(plain, x)
    if winograd.pays(plain, x) and len(x) * x.shape[2] * x.shape[3] >= MANY_TILES * TILE**2:
        return _together(plain)
    return _one_by_one(plain) if _is_large(plain, x) else _packed(plain, x)


def _enlarging(plain: nn.Conv2d, x: Tensor) -> Callable[[Tensor], Tensor]:
    where = [[1, 1], [0, 0], [2, 2], [1, 1], 1]
    kernel = torch.ops.mkldnn._reorder_convolution_transpose_weight(
        transposed(plain.weight.detach()).contiguous(), *where, list(x.shape)
    )

    def apply(x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
            x, kernel, plain.bias, *where, "none", [], ""
        )
        return out

    return apply


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


def _together(plain: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    kernel = winograd.transformed(plain.weight.detach()).contiguous()
    bias = None if plain.bias is None else plain.bias.detach()
    return lambda x: winograd.convolve(x, kernel, bias)


def _is_large(plain: nn.Conv2d, x: Tensor) -> bool:
    """Whether Winograd's form is faster than the plain sum for single images."""
    fits = plain.kernel_size == (3, 3) and plain.stride == (1, 1) and x.dtype == torch.float32
    sides, widths = x.shape[2:], (plain.in_channels, plain.out_channels)
    return (
        fits
        and all(side % TILE == 0 and side >= LARGE_SIDE for side in sides)
        and min(widths) >= WIDTH
    )


def _one_by_one(plain: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    of_map, _, of_result = matrices()
    outputs, inputs = plain.weight.shape[:2]
    # One product of matrices for each of the 36 numbers: a convolution of as many groups.
    kernel = winograd.transformed(plain.weight.detach()).transpose(1, 2)
    kernel = kernel.reshape(POINTS * outputs, inputs, 1, 1)
    where = [[0, 0], [1, 1], [1, 1], POINTS]
    kernel = torch.ops.mkldnn._reorder_convolution_weight(kernel, *where, None)

    def apply(x: Tensor) -> Tensor:
        out = [convolve(image) for image in x.permute(0, 2, 3, 1)]
        return (torch.stack(out) if len(out) > 1 else out[0][None]).permute(0, 3, 1, 2)

    def convolve(image: Tensor) -> Tensor:  # [H, W, C]
        height, width, _ = image.shape
        padded = F.pad(image, (0, 0, 1, 1, 1, 1))
        tiles = padded.unfold(0, SPAN, TILE).unfold(1, SPAN, TILE).permute(0, 1, 3, 4, 2)
        moved = of_map @ tiles.reshape(-1, POINTS, inputs)  # [tiles, 36, C]
        columns = moved.reshape(1, len(moved), 1, -1).permute(0, 3, 1, 2)
        products: Tensor = torch.ops.mkldnn._convolution_pointwise(
            columns, kernel, None, *where, "none", [], ""
        )
        found = of_result @ products.permute(0, 2, 3, 1).reshape(-1, POINTS, outputs)
        shape = height // TILE, width // TILE, TILE, TILE, outputs
        found = found.reshape(shape).transpose(1, 2).reshape(height, width, outputs)
        return found if plain.bias is None else found.add_(plain.bias.detach())

    return apply
