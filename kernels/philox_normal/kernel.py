"""Device code: a program is `BLOCKS` blocks of Philox4x64-10 of one image, 8 normals each.

The transform is that of `treediffusion.noise`, operation by operation; nothing is fused, and the
square root is the one that is rounded correctly.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-call"
from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from ... import noise_series
from ..variants import Variant

if TYPE_CHECKING:
    from torch import Tensor

BLOCKS = 128

# Device code reads no other globals than these.
LOG_SHIFT = tl.constexpr(noise_series.LOG_SHIFT)
SQRT_HALF_BITS = tl.constexpr(noise_series.SQRT_HALF_BITS)
LN2_HIGH = tl.constexpr(noise_series.LN2_HIGH)
LN2_LOW = tl.constexpr(noise_series.LN2_LOW)
ANGLE_STEP = tl.constexpr(noise_series.ANGLE_STEP)
LOG_COEFS = tl.constexpr(noise_series.LOG_COEFS)
SIN_COEFS = tl.constexpr(noise_series.SIN_COEFS)
COS_COEFS = tl.constexpr(noise_series.COS_COEFS)
UNIT = tl.constexpr(2.0**-24)


def fill(state: Tensor, y: Tensor) -> None:
    """Writes y [B, count] float32 from state [B, 5] int64, both contiguous."""
    batch, count = y.shape
    _fill[(batch * triton.cdiv(count, 8 * BLOCKS),)](
        state, count, y, BLOCKS=BLOCKS, enable_fp_fusion=False
    )


@triton.jit
def _fill(state: tl.tensor, count: tl.tensor, y: tl.tensor, BLOCKS: tl.constexpr) -> None:
    tiles = tl.cdiv(count, 8 * BLOCKS)
    image = tl.program_id(0) // tiles
    first = (tl.program_id(0) % tiles) * BLOCKS
    state += image.to(tl.int64) * 5
    block = (first + tl.arange(0, BLOCKS)).to(tl.uint64)
    zero = block * 0
    key_0 = zero + tl.load(state).to(tl.uint64, bitcast=True)
    key_1 = zero + tl.load(state + 1).to(tl.uint64, bitcast=True)
    step = zero + tl.load(state + 2).to(tl.uint64, bitcast=True)
    stream = zero + tl.load(state + 3).to(tl.uint64, bitcast=True)
    draw = zero + tl.load(state + 4).to(tl.uint64, bitcast=True)
    words = _words(key_0, key_1, block + 1, step, stream, draw, BLOCKS)
    radius = _radius(words.to(tl.uint32))
    cos, sin = _direction((words >> 32).to(tl.uint32))
    normals = tl.join(radius * cos, radius * sin).reshape(8 * BLOCKS)
    place = first * 8 + tl.arange(0, 8 * BLOCKS)
    tl.store(y + image.to(tl.int64) * count + place, normals, mask=place < count)


@triton.jit
def _words(
    key_0: tl.tensor,
    key_1: tl.tensor,
    c0: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    c3: tl.tensor,
    BLOCKS: tl.constexpr,
) -> tl.tensor:
    """The words of all blocks, in order."""
    for _ in tl.static_range(10):
        high_0 = tl.umulhi(c0, 0xD2E7470EE14C6C93 + c0 * 0)
        high_2 = tl.umulhi(c2, 0xCA5A826395121157 + c2 * 0)
        low_0 = c0 * 0xD2E7470EE14C6C93
        low_2 = c2 * 0xCA5A826395121157
        c0, c1, c2, c3 = high_2 ^ c1 ^ key_0, low_2, high_0 ^ c3 ^ key_1, low_0
        key_0 = key_0 + 0x9E3779B97F4A7C15
        key_1 = key_1 + 0xBB67AE8584CAA73B
    return tl.join(tl.join(c0, c2), tl.join(c1, c3)).reshape(4 * BLOCKS)


@triton.jit
def _radius(low: tl.tensor) -> tl.tensor:
    """sqrt(-2 ln u) with u = ((low >> 8) + 1) 2^-24 in (0, 1]."""
    u = ((low >> 8).to(tl.int32) + 1).to(tl.float32) * UNIT
    bits = u.to(tl.int32, bitcast=True) + LOG_SHIFT
    exponent = ((bits >> 23) - 127).to(tl.float32)
    f = ((bits & 0x7FFFFF) + SQRT_HALF_BITS).to(tl.float32, bitcast=True) - 1.0
    f2 = f * f
    log = (f * f2) * _horner(f, LOG_COEFS, 8)
    log = log - 0.5 * f2
    log = log + exponent * LN2_LOW
    log = log + f
    log = log + exponent * LN2_HIGH
    # The sum with zero makes a negative zero positive.
    return tl.sqrt_rn(tl.maximum(log * -2.0, 0.0) + 0.0)


@triton.jit
def _direction(high: tl.tensor) -> tl.tensor:
    """Cosine and sine of a quarter turn (2 bits) plus an angle within 1/8 turn (24 bits)."""
    quadrant = (high >> 30).to(tl.int32)
    fine = ((high >> 6) & 0xFFFFFF).to(tl.int32)
    angle = (2 * fine - 0xFFFFFF).to(tl.float32) * ANGLE_STEP
    square = angle * angle
    sin = (angle * square) * _horner(square, SIN_COEFS, 3) + angle
    cos = (square * square) * _horner(square, COS_COEFS, 3) + (1.0 - 0.5 * square)
    is_odd = (quadrant & 1) == 1
    turned_cos, turned_sin = tl.where(is_odd, sin, cos), tl.where(is_odd, cos, sin)
    cos = tl.where((quadrant == 1) | (quadrant == 2), -turned_cos, turned_cos)
    return cos, tl.where(quadrant >= 2, -turned_sin, turned_sin)


@triton.jit
def _horner(x: tl.tensor, coefs: tl.constexpr, COUNT: tl.constexpr) -> tl.tensor:
    """Polynomial in x, coefficients from the highest power down."""
    total = x * coefs[0] + coefs[1]
    for i in tl.static_range(2, COUNT):
        total = total * x + coefs[i]
    return total


VARIANTS = (
    Variant(
        "philox_normal",
        _fill,
        {"state": "*i64", "count": "i32", "y": "*fp32", "BLOCKS": "constexpr"},
        {"BLOCKS": BLOCKS},
        aligned=("y",),
        precise=True,
    ),
)
