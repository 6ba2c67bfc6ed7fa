"""Device code: a program is `COLUMNS` columns of one image."""

# mypy: disable-error-code="untyped-decorator,no-untyped-call"
from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from ..variants import Variant

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS = 512


def forward(time: Tensor, cond: Tensor, y: Tensor) -> None:
    """Writes y [B, E] from time [E] or [B, E] and cond [B, E], rows without gaps."""
    batch, width = cond.shape
    grid = (batch, triton.cdiv(width, COLUMNS))
    steps = (_row_step(time), cond.stride(0), y.stride(0))
    _forward[grid](time, cond, y, width, *steps, COLUMNS=COLUMNS, enable_fp_fusion=True)


def backward(grad: Tensor, time: Tensor, cond: Tensor, of_sum: Tensor) -> None:
    """Writes of_sum [B, E] from grad [B, E] and what `forward` reads, rows without gaps."""
    batch, width = cond.shape
    grid = (batch, triton.cdiv(width, COLUMNS))
    steps = (grad.stride(0), _row_step(time), cond.stride(0), of_sum.stride(0))
    _backward[grid](grad, time, cond, of_sum, width, *steps, COLUMNS=COLUMNS, enable_fp_fusion=True)


def _row_step(time: Tensor) -> int:
    return time.stride(0) if time.ndim == 2 else 0


@triton.jit
def _forward(
    time: tl.tensor,
    cond: tl.tensor,
    y: tl.tensor,
    width: tl.tensor,
    time_step: tl.tensor,
    cond_step: tl.tensor,
    y_step: tl.tensor,
    COLUMNS: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    t = tl.load(time + row * time_step + column, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cond + row * cond_step + column, mask=inside, other=0.0).to(tl.float32)
    x = t + c
    found = x * tl.sigmoid(x)
    tl.store(y + row * y_step + column, found.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    grad: tl.tensor,
    time: tl.tensor,
    cond: tl.tensor,
    of_sum: tl.tensor,
    width: tl.tensor,
    grad_step: tl.tensor,
    time_step: tl.tensor,
    cond_step: tl.tensor,
    of_sum_step: tl.tensor,
    COLUMNS: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    g = tl.load(grad + row * grad_step + column, mask=inside, other=0.0).to(tl.float32)
    t = tl.load(time + row * time_step + column, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cond + row * cond_step + column, mask=inside, other=0.0).to(tl.float32)
    x = t + c
    sigmoid = tl.sigmoid(x)
    found = g * (sigmoid * (1.0 + x * (1.0 - sigmoid)))
    tl.store(of_sum + row * of_sum_step + column, found.to(of_sum.dtype.element_ty), mask=inside)


def _variants() -> tuple[Variant, ...]:
    """Of one dtype, and widths that are multiples of 16."""
    found = []
    for kind in ("fp32", "bf16", "fp16"):
        for name, kernel, tensors in (
            ("forward", _forward, ("time", "cond", "y")),
            ("backward", _backward, ("grad", "time", "cond", "of_sum")),
        ):
            integers = ("width", *(f"{tensor}_step" for tensor in tensors))
            types = dict.fromkeys(tensors, f"*{kind}") | dict.fromkeys(integers, "i32")
            found.append(
                Variant(
                    f"cond_silu_{name}_{kind}",
                    kernel,
                    {**types, "COLUMNS": "constexpr"},
                    {"COLUMNS": COLUMNS},
                    aligned=tuple(types),
                )
            )
    return tuple(found)


VARIANTS = _variants()
