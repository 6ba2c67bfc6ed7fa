# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201 - arguments have the types of Triton's language
"""Functions that several kernels call on the device."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def softplus(x):
    """max(x, 0) + log(1 + exp(-|x|)), to full relative accuracy: logarithms are taken of it."""
    t = tl.exp(-tl.abs(x))
    u = 1.0 + t
    # What rounding 1 + t lost is made up by t / (u - 1).
    log1p = tl.where(u == 1.0, t, tl.log(u) * (t / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.maximum(x, 0.0) + log1p
