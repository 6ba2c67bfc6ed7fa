"""Device code: a program is one path and `COLUMNS` columns, with all slots in one tile.

Absent slots are not read. Each result is written by one program: nothing is atomic.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-call"
from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from ..variants import Variant

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS = 128


def forward(h: Tensor, nodes: Tensor, y: Tensor) -> None:
    """Writes y [B, E] from h [B, P, E] and nodes [B, P] int, all contiguous."""
    batch, slots, width = h.shape
    grid = (batch, triton.cdiv(width, COLUMNS))
    constants = {"SLOTS": triton.next_power_of_2(max(slots, 1)), "COLUMNS": COLUMNS}
    _forward[grid](h, nodes, y, slots, width, **constants, enable_fp_fusion=True)


def backward(grad: Tensor, h: Tensor, nodes: Tensor, of_h: Tensor) -> None:
    """Writes of_h [B, P, E] from grad [B, E], h [B, P, E] and nodes [B, P] int, all contiguous."""
    batch, slots, width = h.shape
    grid = (batch, triton.cdiv(width, COLUMNS))
    constants = {"SLOTS": triton.next_power_of_2(max(slots, 1)), "COLUMNS": COLUMNS}
    _backward[grid](grad, h, nodes, of_h, slots, width, **constants, enable_fp_fusion=True)


@triton.jit
def _forward(
    h: tl.tensor,
    nodes: tl.tensor,
    y: tl.tensor,
    slots: tl.tensor,
    width: tl.tensor,
    SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    path = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, SLOTS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    node = tl.load(nodes + path * slots + slot, mask=slot < slots, other=-1)
    read = (node >= 0)[:, None] & (column < width)[None, :]
    place = (path * slots + slot)[:, None] * width + column[None, :]
    # What is not read counts as 0, whose silu is 0.
    x = tl.load(h + place, mask=read, other=0.0).to(tl.float32)
    total = tl.sum(x * tl.sigmoid(x), axis=0)
    tl.store(y + path * width + column, total.to(y.dtype.element_ty), mask=column < width)


@triton.jit
def _backward(
    grad: tl.tensor,
    h: tl.tensor,
    nodes: tl.tensor,
    of_h: tl.tensor,
    slots: tl.tensor,
    width: tl.tensor,
    SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    path = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, SLOTS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    node = tl.load(nodes + path * slots + slot, mask=slot < slots, other=-1)
    read = (node >= 0)[:, None] & (column < width)[None, :]
    place = (path * slots + slot)[:, None] * width + column[None, :]
    x = tl.load(h + place, mask=read, other=0.0).to(tl.float32)
    g = tl.load(grad + path * width + column, mask=column < width, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(x)
    found = g[None, :] * (sigmoid * (1.0 + x * (1.0 - sigmoid)))
    found = tl.where(read, found, 0.0)
    write = (slot < slots)[:, None] & (column < width)[None, :]
    tl.store(of_h + place, found.to(of_h.dtype.element_ty), mask=write)


def _variants() -> tuple[Variant, ...]:
    """Of ids in int64, widths that are multiples of 16, and paths of up to 16 slots."""
    found = []
    for kind in ("fp32", "bf16", "fp16"):
        pointer = f"*{kind}"
        for slots in (1, 2, 4, 8, 16):
            sizes = {"slots": "i32", "width": "i32"}
            constants = {"SLOTS": slots, "COLUMNS": COLUMNS}
            read = {"h": pointer, "nodes": "*i64"}
            for name, kernel, types in (
                ("forward", _forward, {**read, "y": pointer}),
                ("backward", _backward, {"grad": pointer, **read, "of_h": pointer}),
            ):
                found.append(
                    Variant(
                        f"path_silu_sum_{name}_{kind}_p{slots}",
                        kernel,
                        {**types, **sizes, **dict.fromkeys(constants, "constexpr")},
                        constants,
                        aligned=(*types, "width"),
                    )
                )
    return tuple(found)


VARIANTS = _variants()
