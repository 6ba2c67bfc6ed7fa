"""Device code: a program is `BLOCK` consecutive elements.

Products and sums are not fused, so that it gives the bits of the reference.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-call"
from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import triton
import triton.language as tl

from ..variants import Variant

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1024


def update(
    x: Tensor,
    output: Tensor,
    row: Tensor,
    step: Tensor | None,
    clip_range: Sequence[float] | None,
    noise: Tensor | None,
    y: Tensor,
) -> None:
    """Writes y, from x, output and noise with their elements in the same order and without gaps."""
    low, high = clip_range or (0.0, 0.0)
    _update[(triton.cdiv(x.numel(), BLOCK),)](
        x,
        output,
        row,
        row if step is None else step,
        x if noise is None else noise,
        float(low),
        float(high),
        x.numel(),
        y,
        STEP=step is not None,
        CLIP=clip_range is not None,
        NOISE=noise is not None,
        BLOCK=BLOCK,
        enable_fp_fusion=False,
    )


@triton.jit
def _update(
    x: tl.tensor,
    output: tl.tensor,
    row: tl.tensor,
    step: tl.tensor,
    noise: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    count: tl.tensor,
    y: tl.tensor,
    STEP: tl.constexpr,
    CLIP: tl.constexpr,
    NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    if STEP:
        row += 5 * tl.load(step)
    found = tl.load(output + place, mask=inside, other=0.0).to(tl.float32)
    x0 = tl.load(row) * tl.load(x + place, mask=inside, other=0.0) - tl.load(row + 1) * found
    if CLIP:
        x0 = tl.clamp(x0, low, high, propagate_nan=tl.PropagateNan.ALL)
    result = tl.load(row + 2) * x0 + tl.load(row + 3) * found
    if NOISE:
        tau = tl.load(row + 4)
        drawn = tl.load(noise + place, mask=inside, other=0.0)
        result = tl.where(tau == 0.0, result, result + tau * drawn)
    tl.store(y + place, result, mask=inside)


def _variants() -> tuple[Variant, ...]:
    """Of steps in int64, and any number of elements."""
    found = []
    for kind, *flags in product(
        ("fp32", "bf16", "fp16"), (False, True), (False, True), (False, True)
    ):
        named = dict(zip(("STEP", "CLIP", "NOISE"), flags, strict=True))
        constants = {**named, "BLOCK": BLOCK}
        pointers = {
            "x": "*fp32",
            "output": f"*{kind}",
            "row": "*fp32",
            "step": "*i64" if named["STEP"] else "*fp32",
            "noise": "*fp32",
        }
        scalars = {"low": "fp32", "high": "fp32", "count": "i32"}
        name = "_".join([kind, *(flag.lower() for flag, is_set in named.items() if is_set)])
        found.append(
            Variant(
                f"ddim_update_{name}",
                _update,
                {**pointers, **scalars, "y": "*fp32", **dict.fromkeys(constants, "constexpr")},
                constants,
                aligned=("x", "output", "noise", "y"),
                precise=True,
            )
        )
    return tuple(found)


VARIANTS = _variants()
