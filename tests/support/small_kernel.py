"""A kernel of four lines; tests of what compiles kernels put it into a folder of their own."""

from __future__ import annotations

import triton
import triton.language as tl

from ..variants import Variant


@triton.jit
def scale(x, factor, rows, y, BLOCK: tl.constexpr):  # noqa: ANN001, ANN201
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < rows) * factor, mask=at < rows)


TYPES = {"x": "*fp32", "factor": "fp32", "rows": "i32", "y": "*fp32", "BLOCK": "constexpr"}
VARIANTS = (
    Variant("scale_fp32_b256", scale, TYPES, {"BLOCK": 256}, aligned=("x", "y")),
    Variant("scale_fp32_b64", scale, TYPES, {"BLOCK": 64}, num_warps=1, precise=True),
)
