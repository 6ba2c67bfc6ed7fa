"""`tree_conv3x3`: which form runs, and the kernel as an operation that compilers know."""

from __future__ import annotations

import os
from typing import get_args

import torch
from torch import Tensor

from ...errors import ConfigError, ShapeError
from ..choice import is_exporting, kernel_choice, takes_kernel
from . import reference
from .reference import LEAK, Activation
from .tiles import Tiles, maps_of_tile

MOST_PIXELS = 128
"""Of a map: one has to fit in a tile."""
DTYPES = {torch.float32, torch.bfloat16, torch.float16}


def tree_conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    tiles: Tiles,
    *,
    activation: Activation = "none",
) -> Tensor:
    """Nodes' 3x3 convolutions, stride 1 and zeros around the map, then a nonlinearity.

    For inference: the kernel has no gradients.

    Args:
        x: [slots, C, S, S] float, in any layout.
        weight: [N, 9, C, D] float in x's type, of `pack_conv`.
        bias: [N, D] float.
        tiles: of `level_tiles` or `path_tiles`, for maps of S S pixels.
        activation: what follows.

    Returns:
        [tiles.slots, D, S, S] float in x's type; zeros where no tile writes.

    Raises:
        BackendUnavailableError: the kernel is forced, and cannot run.
        ConfigError: an activation that is none.
        ShapeError: arguments that do not fit together.
    """
    _check(x, weight, bias, tiles, activation)
    # What is exported has to run where there is no Triton, so it is the reference unless forced.
    exported = is_exporting() and kernel_choice() != "triton"
    if exported or not takes_kernel("tree_conv3x3", x, unable=_unable(x, weight, bias)):
        return reference.tree_conv3x3(x, weight, bias, tiles, activation=activation)
    tables = (tiles.slot_in, tiles.slot_out, tiles.node, tiles.begin, tiles.length)
    y: Tensor = _tree_conv3x3(x, weight, bias, *tables, tiles.slots, tiles.maps, activation)
    return y


def _check(x: Tensor, weight: Tensor, bias: Tensor, tiles: Tiles, activation: str) -> None:
    check_tiles(x, weight, tiles, activation)
    expected = (weight.shape[0], weight.shape[3])
    if bias.shape != expected:
        raise ShapeError("bias", got=tuple(bias.shape), expected=str(expected))


def check_tiles(x: Tensor, weight: Tensor, tiles: Tiles, activation: str) -> None:
    """Raises where maps, weights, tiles and the nonlinearity do not fit together."""
    if activation not in get_args(Activation):
        expected = f"one of {', '.join(get_args(Activation))}"
        raise ConfigError("activation", got=repr(activation), expected=expected)
    if weight.dim() != 4 or weight.shape[1] != 9:
        raise ShapeError("weight", got=tuple(weight.shape), expected="[N, 9, C, D]")
    if x.dim() != 4 or x.shape[1] != weight.shape[2] or x.shape[2] != x.shape[3]:
        expected = f"[slots, {weight.shape[2]}, S, S]"
        raise ShapeError("maps", got=tuple(x.shape), expected=expected)
    if tiles.maps != maps_of_tile(x.shape[2] ** 2):
        raise ShapeError("tiles", got=f"{tiles.maps} maps", expected="tiles for maps of this size")


def _unable(x: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    """Why the kernel cannot do these arguments."""
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad):
        return "gradients, which it has not"
    if x.dtype not in DTYPES or weight.dtype != x.dtype:
        return f"maps of {x.dtype} and weights of {weight.dtype}"
    if x.shape[2] ** 2 > MOST_PIXELS:
        return f"maps of {x.shape[2]}x{x.shape[3]} pixels"
    return None


@torch.library.custom_op("treediffusion::tree_conv3x3", mutates_args=())
def _tree_conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slot_in: Tensor,
    slot_out: Tensor,
    tile_node: Tensor,
    tile_begin: Tensor,
    tile_count: Tensor,
    slots: int,
    maps: int,
    activation: str,
) -> Tensor:
    from . import kernel

    y = _zeros(x, weight, slots)
    x = with_plain_pixels(x)
    (channels, side), out_channels = x.shape[1:3], weight.shape[3]
    sizes = kernel.blocks(maps, side * side, channels, out_channels)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernel.forward[(len(tile_node), -(-out_channels // sizes["BLOCK_D"]))](
            x, weight.contiguous(), bias.contiguous(),
            slot_in, slot_out, tile_node, tile_begin, tile_count,
            x.stride(0), x.stride(1), x.stride(3),
            y,
            SIDE=side, C=channels, D=out_channels, **sizes,
            ACTIVATION=kernel.ACTIVATIONS[activation], LEAK=LEAK,
            PRECISION=precision(), UPCAST=interprets(),
            num_warps=4, num_stages=3, enable_fp_fusion=True,
        )  # fmt: skip
    return y


@_tree_conv3x3.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slot_in: Tensor,
    slot_out: Tensor,
    tile_node: Tensor,
    tile_begin: Tensor,
    tile_count: Tensor,
    slots: int,
    maps: int,
    activation: str,
) -> Tensor:
    return _zeros(x, weight, slots)


def precision() -> str:
    """Of products of float32: what the framework's own convolutions are told."""
    told: str = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return "ieee" if told == "ieee" else "tf32"


def interprets() -> bool:
    """Whether Triton's interpreter runs kernels, which multiplies bfloat16 as if it were bits."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _zeros(x: Tensor, weight: Tensor, slots: int) -> Tensor:
    """[slots, D, S, S] with channels last, as the next layer reads them fastest."""
    y = x.new_zeros(slots, x.shape[2], x.shape[3], weight.shape[3])
    return y.permute(0, 3, 1, 2)


def with_plain_pixels(x: Tensor) -> Tensor:
    """x: [slots, C, S, S], a map's pixels evenly spaced."""
    even = x.stride(2) == x.shape[3] * x.stride(3) or x.shape[2] == 1
    return x if even else x.contiguous()
