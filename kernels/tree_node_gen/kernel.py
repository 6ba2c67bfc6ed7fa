# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201 - arguments have the types of Triton's language
"""Device code: a whole node per tile; its maps stay with the program from first to last layer.

A tap reads a neighbouring pixel, which is another row of the tile: a gather within the program, so
that no map is written to memory and read again, and no program has to wait for its own writes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..device import softplus
from ..tree_conv3x3.kernel import ACTIVATIONS as ACTIVATIONS
from ..tree_conv3x3.kernel import activate
from ..variants import Variant


@triton.jit
def biases(
    bias, node, first_column,
    D: tl.constexpr, END: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """[BLOCK_M, BLOCK_D], what sums begin with: a node's columns of D from the first to END."""
    column = first_column + tl.arange(0, BLOCK_D)
    shift = tl.load(bias + node * D + column, mask=column < END, other=0.0).to(tl.float32)
    return tl.zeros([BLOCK_M, BLOCK_D], tl.float32) + shift[None, :]


@triton.jit
def convolve(
    h, total, weight, node, first_channel, first_column,
    SIDE: tl.constexpr, C: tl.constexpr, D: tl.constexpr, END: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Adds to total: [BLOCK_M, BLOCK_D], columns of D up to END, what h: [BLOCK_M, BLOCK_C] gives.

    h are channels of C from the first, zero beyond the last.
    """
    row = tl.arange(0, BLOCK_M)
    channel, column = first_channel + tl.arange(0, BLOCK_C), first_column + tl.arange(0, BLOCK_D)
    exists = (channel < C)[:, None] & (column < END)[None, :]
    pixel = row % (SIDE * SIDE)
    for tap in range(9):
        down, across = tap // 3 - 1, tap % 3 - 1
        seen_row, seen_col = pixel // SIDE + down, pixel % SIDE + across
        inside = (seen_row >= 0) & (seen_row < SIDE) & (seen_col >= 0) & (seen_col < SIDE)
        seen = tl.where(inside, row + down * SIDE + across, 0)
        # Rows beyond the tile's last whole map have neighbours beyond the tile.
        seen = tl.minimum(tl.maximum(seen, 0), BLOCK_M - 1)
        moved = tl.gather(h, tl.broadcast_to(seen[:, None], (BLOCK_M, BLOCK_C)), 0)
        moved = tl.where(inside[:, None], moved, 0.0).to(h.dtype)
        at = node * (9 * C * D) + (tap * C + channel) * D
        matrix = tl.load(weight + at[:, None] + column[None, :], mask=exists, other=0.0)
        if UPCAST:
            matrix = matrix.to(tl.float32)
        total = tl.dot(moved, matrix, total, input_precision=PRECISION)
    return total


@triton.jit
def forward(
    z, first, second, third, head, first_bias, second_bias, third_bias, head_bias,
    noise, slot_in, slot_out, tile_node, tile_begin, tile_count,
    z_slot, z_channel, z_pixel, noise_slot, noise_channel, noise_pixel,
    y,
    SIDE: tl.constexpr, Z: tl.constexpr, C: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_Z: tl.constexpr, BLOCK_C: tl.constexpr,
    ACTIVATION: tl.constexpr, LEAK: tl.constexpr, EPS: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """z, noise: [slots, Z, P] with strides; weights of `NodeWeights`; y: [slots, P, Z]."""
    pixels: tl.constexpr = SIDE * SIDE
    kind: tl.constexpr = tl.float32 if UPCAST else z.dtype.element_ty
    tile = tl.program_id(0)
    count = tl.load(tile_count + tile)
    if count > 0:
        begin = tl.load(tile_begin + tile)
        node = tl.load(tile_node + tile).to(tl.int64)
        row, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_Z)
        image, pixel = row // pixels, row % pixels
        live = image < count
        kept = live[:, None] & (column < Z)[None, :]
        source = tl.load(slot_in + begin + image, mask=live, other=0).to(tl.int64)
        at = z + (source * z_slot + pixel * z_pixel)[:, None] + (column * z_channel)[None, :]
        h = tl.load(at, mask=kept, other=0.0).to(kind)
        total = biases(first_bias, node, 0, Z, Z, BLOCK_M, BLOCK_Z)
        total = convolve(h, total, first, node, 0, 0,
                         SIDE, Z, Z, Z, BLOCK_M, BLOCK_Z, BLOCK_Z, PRECISION, UPCAST)  # fmt: skip
        h = activate(total, ACTIVATION, LEAK).to(kind)
        total = biases(second_bias, node, 0, Z, Z, BLOCK_M, BLOCK_Z)
        total = convolve(h, total, second, node, 0, 0,
                         SIDE, Z, Z, Z, BLOCK_M, BLOCK_Z, BLOCK_Z, PRECISION, UPCAST)  # fmt: skip
        h = activate(total, ACTIVATION, LEAK).to(kind)
        # Many channels are held in two parts: one matrix of all takes more registers than two.
        total = biases(third_bias, node, 0, C, C, BLOCK_M, BLOCK_C)
        total = convolve(h, total, third, node, 0, 0,
                         SIDE, Z, C, C, BLOCK_M, BLOCK_Z, BLOCK_C, PRECISION, UPCAST)  # fmt: skip
        low = activate(total, ACTIVATION, LEAK).to(kind)
        if C > BLOCK_C:
            total = biases(third_bias, node, BLOCK_C, C, C, BLOCK_M, BLOCK_C)
            total = convolve(h, total, third, node, 0, BLOCK_C, SIDE, Z, C, C,
                             BLOCK_M, BLOCK_Z, BLOCK_C, PRECISION, UPCAST)  # fmt: skip
            high = activate(total, ACTIVATION, LEAK).to(kind)
        mean = biases(head_bias, node, 0, 2 * Z, Z, BLOCK_M, BLOCK_Z)
        mean = convolve(low, mean, head, node, 0, 0, SIDE, C, 2 * Z, Z,
                        BLOCK_M, BLOCK_C, BLOCK_Z, PRECISION, UPCAST)  # fmt: skip
        raw = biases(head_bias, node, Z, 2 * Z, 2 * Z, BLOCK_M, BLOCK_Z)
        raw = convolve(low, raw, head, node, 0, Z, SIDE, C, 2 * Z, 2 * Z,
                       BLOCK_M, BLOCK_C, BLOCK_Z, PRECISION, UPCAST)  # fmt: skip
        if C > BLOCK_C:
            mean = convolve(high, mean, head, node, BLOCK_C, 0, SIDE, C, 2 * Z, Z,
                            BLOCK_M, BLOCK_C, BLOCK_Z, PRECISION, UPCAST)  # fmt: skip
            raw = convolve(high, raw, head, node, BLOCK_C, Z, SIDE, C, 2 * Z, 2 * Z,
                           BLOCK_M, BLOCK_C, BLOCK_Z, PRECISION, UPCAST)  # fmt: skip
        target = tl.load(slot_out + begin + image, mask=live, other=0).to(tl.int64)
        at = (target * noise_slot + pixel * noise_pixel)[:, None]
        at += (column * noise_channel)[None, :]
        drawn = tl.load(noise + at, mask=kept, other=0.0).to(tl.float32)
        drawn = mean + tl.sqrt(softplus(raw) + EPS) * drawn
        at = y + ((target * pixels + pixel) * Z)[:, None] + column[None, :]
        tl.store(at, drawn.to(y.dtype.element_ty), mask=kept)


def blocks(maps: int, pixels: int, latent_channels: int, channels: int) -> dict[str, int]:
    """The sizes of a program's matrices; 16 is the least that tensor cores take."""
    rows, of_z, of_c = (
        max(triton.next_power_of_2(size), 16) for size in (maps * pixels, latent_channels, channels)
    )
    return {"BLOCK_M": rows, "BLOCK_Z": of_z, "BLOCK_C": min(of_c, 64)}


WARPS, STAGES = 8, 1  # with two stages float32 spills on sm_80 and 120


def _variants() -> tuple[Variant, ...]:
    """The nodes of the grey (2x2) and colour (4x4) trees."""
    found = []
    weights = ("first", "second", "third", "head")
    biases = tuple(f"{name}_bias" for name in weights)
    tables = ("slot_in", "slot_out", "tile_node", "tile_begin", "tile_count")
    strides = [f"{x}_{axis}" for x in ("z", "noise") for axis in ("slot", "channel", "pixel")]
    for short, kind in (("fp32", "*fp32"), ("bf16", "*bf16")):
        for side, latent_channels, channels in ((2, 16, 32), (4, 16, 32), (4, 64, 128)):
            types = {"z": kind} | dict.fromkeys(weights, kind) | dict.fromkeys(biases, "*fp32")
            types |= {"noise": kind} | dict.fromkeys(tables, "*i32")
            types |= dict.fromkeys(strides, "i32") | {"y": kind}
            maps = max(64 // side**2, 1)
            constants = {"SIDE": side, "Z": latent_channels, "C": channels}
            constants |= blocks(maps, side**2, latent_channels, channels)
            constants |= {"ACTIVATION": 1, "LEAK": 0.3, "EPS": 1e-7}
            constants |= {"PRECISION": "tf32", "UPCAST": False}
            found.append(
                Variant(
                    name=f"tree_node_gen_{short}_s{side}_z{latent_channels}_c{channels}",
                    kernel=forward,
                    types=types | dict.fromkeys(constants, "constexpr"),
                    constants=constants,
                    num_warps=WARPS,
                    num_stages=STAGES,
                    aligned=tuple(name for name, kind in types.items() if kind[0] == "*"),
                )
            )
    return tuple(found)


VARIANTS = _variants()
