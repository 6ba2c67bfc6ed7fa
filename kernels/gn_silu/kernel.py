# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202 - arguments have the types of Triton's language
"""The device code: one program norms some groups of one sample.

Maps are read as [groups, channels of a group, pixels], whatever their layout. A loop of one chunk
is no loop to the compiler, and what is loaded in it once is not loaded again: then a map is read
once. No atomics: the sums over samples are taken afterwards, so results repeat bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..variants import Variant
from .tiles import ATTENDING, CONDITIONED, SITES, cut


@triton.jit
def _channels(D: tl.constexpr, G: tl.constexpr, BG: tl.constexpr, BD: tl.constexpr):
    """The program's sample, its first channels' places [BG, BD], which exist, and its groups."""
    TILES: tl.constexpr = (G + BG - 1) // BG
    program = tl.program_id(0)
    group = (program % TILES) * BG + tl.arange(0, BG)
    channel = tl.arange(0, BD)
    inside = (group < G)[:, None] & (channel < D)[None, :]
    return program // TILES, group[:, None] * D + channel[None, :], inside, group


@triton.jit
def _pixels(channel, inside, first, C: tl.constexpr, HW: tl.constexpr, LAST: tl.constexpr,
            BP: tl.constexpr):  # fmt: skip
    """Where the pixels of a chunk lie in a sample, and which exist: [BG, BD, BP]."""
    pixel = (first + tl.arange(0, BP))[None, None, :]
    place = channel[:, :, None] * HW + pixel
    if LAST:
        place = channel[:, :, None] + pixel * C
    return place, inside[:, :, None] & (pixel < HW)


@triton.jit
def _affine(sample, channel, inside, weight_ptr, bias_ptr, piece_ptr, piece_stride,
            C: tl.constexpr, MODE: tl.constexpr):  # fmt: skip
    """What follows the norm, z = x_hat gain + shift, what precedes it, and 1 + scale: [BG, BD]."""
    weight = tl.load(weight_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    added = tl.zeros_like(weight)
    factor = added + 1.0
    shift = added
    if MODE != "none":
        # Specialised to 1, a stride has no methods; a sample's number widens the product.
        row = piece_ptr + sample.to(tl.int64) * piece_stride
        first = tl.load(row + channel, mask=inside, other=0.0).to(tl.float32)
        if MODE == "add":
            added = first
        else:
            factor = 1.0 + first
            shift = tl.load(row + C + channel, mask=inside, other=0.0).to(tl.float32)
    return weight, bias, weight * factor, bias * factor + shift, added, factor


@triton.jit
def forward_kernel(
    x_ptr, weight_ptr, bias_ptr, piece_ptr, piece_stride, eps, y_ptr, stats_ptr,
    D: tl.constexpr, G: tl.constexpr, HW: tl.constexpr, MODE: tl.constexpr, SILU: tl.constexpr,
    LAST: tl.constexpr, BG: tl.constexpr, BD: tl.constexpr, BP: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """x -> y, and stats [B, 2, G]: mean and 1 / deviation."""
    C: tl.constexpr = G * D
    sample, channel, inside, group = _channels(D, G, BG, BD)
    _, _, gain, shift, added, _ = _affine(
        sample, channel, inside, weight_ptr, bias_ptr, piece_ptr, piece_stride, C, MODE
    )
    start = sample.to(tl.int64) * (C * HW)

    mean = tl.zeros([BG], tl.float32)
    squares = tl.zeros([BG], tl.float32)
    for chunk in range(CHUNKS):
        place, here = _pixels(channel, inside, chunk * BP, C, HW, LAST, BP)
        x = tl.load(x_ptr + start + place, mask=here, other=0.0).to(tl.float32)
        x = tl.where(here, x + added[:, :, None], 0.0)
        pixels = tl.sum((chunk * BP + tl.arange(0, BP) < HW).to(tl.float32), axis=0)
        if CHUNKS == 1:
            pixels = 1.0 * HW
        centre = tl.sum(tl.sum(x, axis=2), axis=1) / (pixels * D)
        away = tl.where(here, x - centre[:, None, None], 0.0)
        spread = tl.sum(tl.sum(away * away, axis=2), axis=1)
        # Chan's formula: what is merged are means and squares about them, never plain squares.
        before = chunk * (1.0 * BP)
        share = pixels / (before + pixels)
        step = centre - mean
        mean = mean + step * share
        squares = squares + spread + step * step * (before * share * D)
    rstd = 1.0 / tl.sqrt_rn(squares / (1.0 * D * HW) + eps)

    for chunk in range(CHUNKS):
        place, here = _pixels(channel, inside, chunk * BP, C, HW, LAST, BP)
        x = tl.load(x_ptr + start + place, mask=here, other=0.0).to(tl.float32)
        x_hat = (x + added[:, :, None] - mean[:, None, None]) * rstd[:, None, None]
        z = x_hat * gain[:, :, None] + shift[:, :, None]
        if SILU:
            z = z * tl.sigmoid(z)
        tl.store(y_ptr + start + place, z.to(y_ptr.dtype.element_ty), mask=here)
    stats = stats_ptr + sample * (2 * G) + group
    tl.store(stats, mean, mask=group < G)
    tl.store(stats + G, rstd, mask=group < G)


@triton.jit
def _gradient(dy_ptr, x_ptr, start, place, here, mean, rstd, gain, shift, added,
              SILU: tl.constexpr):  # fmt: skip
    """The normed map, and the gradient of what SiLU got: [BG, BD, BP]."""
    x = tl.load(x_ptr + start + place, mask=here, other=0.0).to(tl.float32)
    dz = tl.load(dy_ptr + start + place, mask=here, other=0.0).to(tl.float32)
    x_hat = (x + added[:, :, None] - mean[:, None, None]) * rstd[:, None, None]
    x_hat = tl.where(here, x_hat, 0.0)
    if SILU:
        z = x_hat * gain[:, :, None] + shift[:, :, None]
        sigmoid = tl.sigmoid(z)
        dz = dz * (sigmoid * (1.0 + z * (1.0 - sigmoid)))
    return x_hat, dz


@triton.jit
def backward_kernel(
    dy_ptr, x_ptr, weight_ptr, bias_ptr, piece_ptr, stats_ptr, piece_stride,
    dx_ptr, sums_ptr, dpiece_ptr,
    D: tl.constexpr, G: tl.constexpr, HW: tl.constexpr, MODE: tl.constexpr, SILU: tl.constexpr,
    LAST: tl.constexpr, BG: tl.constexpr, BD: tl.constexpr, BP: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """dy -> dx, dpiece, and sums [B, 2, C]: each sample's part of dweight and dbias."""
    C: tl.constexpr = G * D
    sample, channel, inside, group = _channels(D, G, BG, BD)
    _, _, gain, shift, added, _ = _affine(
        sample, channel, inside, weight_ptr, bias_ptr, piece_ptr, piece_stride, C, MODE
    )
    start = sample.to(tl.int64) * (C * HW)
    stats = stats_ptr + sample * (2 * G) + group
    mean = tl.load(stats, mask=group < G, other=0.0)
    rstd = tl.load(stats + G, mask=group < G, other=0.0)

    s1 = tl.zeros([BG, BD], tl.float32)  # sum of dz over pixels
    s2 = tl.zeros([BG, BD], tl.float32)  # sum of dz x_hat
    for chunk in range(CHUNKS):
        place, here = _pixels(channel, inside, chunk * BP, C, HW, LAST, BP)
        x_hat, dz = _gradient(
            dy_ptr, x_ptr, start, place, here, mean, rstd, gain, shift, added, SILU
        )
        s1 += tl.sum(dz, axis=2)
        s2 += tl.sum(dz * x_hat, axis=2)
    c1 = (tl.sum(gain * s1, axis=1) / (1.0 * D * HW))[:, None, None]
    c2 = (tl.sum(gain * s2, axis=1) / (1.0 * D * HW))[:, None, None]

    dadded = tl.zeros([BG, BD], tl.float32)
    for chunk in range(CHUNKS):
        place, here = _pixels(channel, inside, chunk * BP, C, HW, LAST, BP)
        x_hat, dz = _gradient(
            dy_ptr, x_ptr, start, place, here, mean, rstd, gain, shift, added, SILU
        )
        dx = rstd[:, None, None] * (dz * gain[:, :, None] - c1 - x_hat * c2)
        tl.store(dx_ptr + start + place, dx.to(dx_ptr.dtype.element_ty), mask=here)
        if MODE == "add":
            dadded += tl.sum(tl.where(here, dx, 0.0), axis=2)

    # Loaded again: kept since the beginning, they would take registers that the map needs.
    weight, bias, _, _, _, factor = _affine(
        sample, channel, inside, weight_ptr, bias_ptr, piece_ptr, piece_stride, C, MODE
    )
    sums = sums_ptr + sample * (2 * C) + channel
    tl.store(sums, s2 * factor, mask=inside)
    tl.store(sums + C, s1 * factor, mask=inside)
    if MODE == "add":
        row = dpiece_ptr + sample * C + channel
        tl.store(row, dadded.to(dpiece_ptr.dtype.element_ty), mask=inside)
    if MODE == "scale_shift":
        row = dpiece_ptr + sample * (2 * C) + channel
        dscale = weight * s2 + bias * s1
        tl.store(row, dscale.to(dpiece_ptr.dtype.element_ty), mask=inside)
        tl.store(row + C, s1.to(dpiece_ptr.dtype.element_ty), mask=inside)


GROUPS, BATCH = 32, 256  # of the U-Nets, and more samples than leave programs idle
POINTERS = {
    forward_kernel: ("x_ptr", "weight_ptr", "bias_ptr", "piece_ptr", "y_ptr", "stats_ptr"),
    backward_kernel: (
        *("dy_ptr", "x_ptr", "weight_ptr", "bias_ptr", "piece_ptr", "stats_ptr"),
        *("dx_ptr", "sums_ptr", "dpiece_ptr"),
    ),
}
WIDE = ("weight_ptr", "bias_ptr", "stats_ptr", "sums_ptr")  # always float32


def _variant(kernel, channels, side, mode, silu, dtype, last):
    size = 4 if dtype == "fp32" else 2
    deep, pixels = channels // GROUPS, side * side
    tile = cut(BATCH, GROUPS, deep, pixels, channels_last=last, itemsize=size)
    constants = {"D": deep, "G": GROUPS, "HW": pixels, "MODE": mode, "SILU": silu, "LAST": last}
    constants |= dict(zip(("BG", "BD", "BP", "CHUNKS"), tile, strict=False))
    if mode == "none":
        absent = {"piece_ptr", "dpiece_ptr"} & set(kernel.arg_names)
        constants |= dict.fromkeys(absent) | {"piece_stride": 0}
    types = {name: "*fp32" if name in WIDE else f"*{dtype}" for name in POINTERS[kernel]}
    types |= {"piece_stride": "i32", "eps": "fp32"} | dict.fromkeys(constants, "constexpr")
    way = "forward" if kernel is forward_kernel else "backward"
    name = f"gn_{'silu' if silu else 'plain'}_{way}_{mode}_{dtype}_{'nhwc' if last else 'nchw'}"
    return Variant(
        name=f"{name}_c{channels}_s{side}",
        kernel=kernel,
        types={argument: types[argument] for argument in kernel.arg_names},
        constants=constants,
        num_warps=tile.warps,
        num_stages=1,
        aligned=tuple(
            argument
            for argument in (*POINTERS[kernel], "piece_stride")
            if argument not in constants
        ),
    )


NORMS = (
    *((site, "none", True) for site in SITES),
    *((site, "none", False) for site in ATTENDING),
    *((site, "scale_shift", True) for site in CONDITIONED),
)
# Ahead of time: bfloat16 with channels last, as servers run it. Others are compiled when used.
VARIANTS = tuple(
    _variant(kernel, *site, mode, silu, "bf16", True)
    for site, mode, silu in NORMS
    for kernel in POINTERS
)
