# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201 - arguments have the types of Triton's language
"""Device code: an implicit matrix product per tile, [maps x pixels, 9 C] times [9 C, D].

A row is a pixel; for tap (i, j) it reads the pixel i - 1 rows down and j - 1 to the right, or zero
beyond the border: no patches are written. Sums are float32, bias and activation come at the end.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..variants import Variant

ACTIVATIONS = {"none": 0, "silu": 1, "relu": 2, "leaky_relu": 3}


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, LEAK: tl.constexpr):
    """None, SiLU, ReLU or leaky ReLU; what is not a number stays so."""
    if ACTIVATION == 1:
        x = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == 2:
        x = tl.where(x < 0.0, 0.0, x)
    elif ACTIVATION == 3:
        x = tl.where(x < 0.0, LEAK * x, x)
    return x


@triton.jit
def forward(
    x, weight, bias, slot_in, slot_out, tile_node, tile_begin, tile_count,
    x_slot, x_channel, x_pixel,
    y,
    SIDE: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
    ACTIVATION: tl.constexpr, LEAK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """x: [slots, C, P] with strides; weight: [N, 9, C, D]; bias: [N, D]; y: [slots, P, D]."""
    pixels: tl.constexpr = SIDE * SIDE
    chunks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    tile = tl.program_id(0)
    count = tl.load(tile_count + tile)
    if count > 0:
        begin = tl.load(tile_begin + tile)
        node = tl.load(tile_node + tile).to(tl.int64)
        row = tl.arange(0, BLOCK_M)
        image, pixel = row // pixels, row % pixels
        pixel_row, pixel_col = pixel // SIDE, pixel % SIDE
        live = image < count
        source = tl.load(slot_in + begin + image, mask=live, other=0).to(tl.int64)
        column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        is_column = column < D
        total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for step in range(9 * chunks):
            tap, chunk = step // chunks, step % chunks
            down, across = tap // 3 - 1, tap % 3 - 1
            seen_row, seen_col = pixel_row + down, pixel_col + across
            inside = live & (seen_row >= 0) & (seen_row < SIDE)
            inside = inside & (seen_col >= 0) & (seen_col < SIDE)
            channel = chunk * BLOCK_C + tl.arange(0, BLOCK_C)
            is_channel = channel < C
            at = source * x_slot + (seen_row * SIDE + seen_col) * x_pixel
            a = tl.load(
                x + at[:, None] + (channel * x_channel)[None, :],
                mask=inside[:, None] & is_channel[None, :],
                other=0.0,
            )
            at = node * (9 * C * D) + (tap * C + channel) * D
            b = tl.load(
                weight + at[:, None] + column[None, :],
                mask=is_channel[:, None] & is_column[None, :],
                other=0.0,
            )
            if UPCAST:
                a, b = a.to(tl.float32), b.to(tl.float32)
            total = tl.dot(a, b, total, input_precision=PRECISION)
        # Read as late as it can be: what is held through the loop takes registers from it.
        target = tl.load(slot_out + begin + image, mask=live, other=0).to(tl.int64)
        shift = tl.load(bias + node * D + column, mask=is_column, other=0.0).to(tl.float32)
        total = activate(total + shift[None, :], ACTIVATION, LEAK)
        at = y + ((target * pixels + pixel) * D)[:, None] + column[None, :]
        kept = live[:, None] & is_column[None, :]
        tl.store(at, total.to(y.dtype.element_ty), mask=kept)


def blocks(maps: int, pixels: int, channels: int, out_channels: int) -> dict[str, int]:
    """The sizes of a program's matrices; 16 is the least that tensor cores take."""

    def fit(size: int, most: int) -> int:
        return min(max(triton.next_power_of_2(size), 16), most)

    return {
        "BLOCK_M": fit(maps * pixels, 128),
        "BLOCK_C": fit(channels, 64),
        "BLOCK_D": fit(out_channels, 64),
    }


def _variants() -> tuple[Variant, ...]:
    """The layers of the grey (2x2) and colour (4x4) trees, and an odd one."""
    found = []
    tables = ("slot_in", "slot_out", "tile_node", "tile_begin", "tile_count")
    for short, kind in (("fp32", "*fp32"), ("bf16", "*bf16")):
        for side, channels, out_channels in ((2, 16, 32), (4, 64, 64), (4, 64, 128), (7, 12, 24)):
            types = {"x": kind, "weight": kind, "bias": "*fp32"} | dict.fromkeys(tables, "*i32")
            types |= dict.fromkeys(("x_slot", "x_channel", "x_pixel"), "i32") | {"y": kind}
            maps = max(64 // side**2, 1)
            constants = {"SIDE": side, "C": channels, "D": out_channels}
            constants |= blocks(maps, side**2, channels, out_channels)
            constants |= {"ACTIVATION": 1, "LEAK": 0.3, "PRECISION": "tf32", "UPCAST": False}
            found.append(
                Variant(
                    name=f"tree_conv3x3_{short}_s{side}_c{channels}_d{out_channels}",
                    kernel=forward,
                    types=types | dict.fromkeys(constants, "constexpr"),
                    constants=constants,
                    num_warps=4,
                    num_stages=3,
                    aligned=("x", "weight", "bias", "y", *tables),
                )
            )
    return tuple(found)


VARIANTS = _variants()
