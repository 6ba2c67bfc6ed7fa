# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202 - arguments have the types of Triton's language
"""Device code: a program does a few images and nodes, and follows table rows; no node waits.

Every node's sum runs over its own path, at most as long as the tree is deep; the gradient of a
router's logit is a sum over the nodes, in one order. No atomics, and no loop over images.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..device import softplus
from ..variants import Variant

WAY = tl.constexpr(4)
IMAGES = 16
"""Images of a program."""


@triton.jit
def forward(
    logit, uniform, nodes,
    batch, rows, logit_b, uniform_b, start,
    log_prob, leaf,
    DEPTH: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
    SAMPLES: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """logit, uniform: [B, I] with strides; nodes: [N, WAY + DEPTH]; log_prob: [B, N]; leaf: [B]."""
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    image = (tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)).to(tl.int64)
    node = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_image, is_node = image < batch, node < rows
    live = is_image[:, None] & is_node[None, :]
    total = tl.zeros([BLOCK_B, BLOCK_N], dtype)
    for step in range(DEPTH):
        turn = tl.load(nodes + node * (WAY + DEPTH) + WAY + step, mask=is_node, other=0)
        router = tl.maximum(tl.abs(turn) - 1, 0)
        at = logit + (image * logit_b)[:, None] + router[None, :]
        x = tl.load(at, mask=live & (turn != 0)[None, :], other=0.0).to(dtype)
        taken = softplus(tl.where((turn > 0)[None, :], -x, x))
        total -= tl.where((turn != 0)[None, :], taken, 0.0)
    tl.store(log_prob + (image * rows)[:, None] + node[None, :], total, mask=live)
    if SAMPLES:
        # One column of programs walks.
        walks = is_image & (tl.program_id(1) + tl.zeros([BLOCK_B], tl.int32) == 0)
        here = tl.zeros([BLOCK_B], tl.int32) + start
        for _ in range(DEPTH):
            way = nodes + here * (WAY + DEPTH)
            router = tl.load(way, mask=walks, other=-1)
            asks = walks & (router >= 0)
            column = tl.maximum(router, 0)
            x = tl.load(logit + image * logit_b + column, mask=asks, other=0.0).to(dtype)
            u = tl.load(uniform + image * uniform_b + column, mask=asks, other=0.0).to(dtype)
            is_right = tl.where(u < 1.0 / (1.0 + tl.exp(-x)), 0, 1)
            here = tl.load(way + 1 + is_right, mask=walks, other=0)
        found = tl.load(nodes + here * (WAY + DEPTH) + 3, mask=walks, other=0)
        tl.store(leaf + image, found.to(tl.int64), mask=walks)


@triton.jit
def backward(
    of_log_prob, logit, left, right,
    batch, rows, routers, logit_b,
    of_logit,
    ROWS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_I: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """of_log_prob: [B, N]; left, right: [I, N]; of_logit: [B, I]; ROWS: no fewer than N."""
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    image = (tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)).to(tl.int64)
    router = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    is_image, is_router = image < batch, router < routers
    lefts = tl.zeros([BLOCK_B, BLOCK_I], dtype)
    rights = tl.zeros([BLOCK_B, BLOCK_I], dtype)
    for row in range(ROWS):
        # Compared as blocks: the interpreter joins no block of bits with a single one.
        of_image = is_image & (tl.zeros([BLOCK_B], tl.int32) + row < rows)
        of_router = is_router & (tl.zeros([BLOCK_I], tl.int32) + row < rows)
        g = tl.load(of_log_prob + image * rows + row, mask=of_image, other=0.0).to(dtype)
        is_left = tl.load(left + router * rows + row, mask=of_router, other=0.0).to(dtype)
        is_right = tl.load(right + router * rows + row, mask=of_router, other=0.0).to(dtype)
        lefts += g[:, None] * is_left[None, :]
        rights += g[:, None] * is_right[None, :]
    live = is_image[:, None] & is_router[None, :]
    at = (image * logit_b)[:, None] + router[None, :]
    x = tl.load(logit + at, mask=live, other=0.0).to(dtype)
    found = lefts / (1.0 + tl.exp(x)) - rights / (1.0 + tl.exp(-x))
    at = (image * routers)[:, None] + router[None, :]
    tl.store(of_logit + at, found.to(of_logit.dtype.element_ty), mask=live)


def columns(count: int) -> int:
    """Nodes or routers of a program."""
    return min(max(triton.next_power_of_2(count), 1), 64)


def _variants() -> tuple[Variant, ...]:
    """A tree of 19 nodes and 9 routers, and the full one of depth 7."""
    found = []
    numbers = dict.fromkeys(("batch", "rows", "logit_b", "uniform_b", "start"), "i32")
    for depth, rows, routers in ((6, 19, 9), (7, 255, 127)):
        types = {"logit": "*fp32", "uniform": "*fp32", "nodes": "*i32"} | numbers
        types |= {"log_prob": "*fp32", "leaf": "*i64"}
        constants = {"DEPTH": depth, "BLOCK_B": IMAGES, "BLOCK_N": columns(rows)}
        for samples in (False, True):
            these = constants | {"SAMPLES": samples, "DOUBLE": False}
            name = f"tree_route_{'sample' if samples else 'forward'}_d{depth}"
            found.append(_variant(name, forward, types, these))
        types = {"of_log_prob": "*fp32", "logit": "*fp32", "left": "*fp32", "right": "*fp32"}
        types |= dict.fromkeys(("batch", "rows", "routers", "logit_b"), "i32")
        types |= {"of_logit": "*fp32"}
        constants = {"ROWS": triton.next_power_of_2(rows), "BLOCK_B": IMAGES}
        constants |= {"BLOCK_I": columns(routers), "DOUBLE": False}
        found.append(_variant(f"tree_route_backward_d{depth}", backward, types, constants))
    return tuple(found)


def _variant(name, kernel, types, constants):
    return Variant(
        name=name,
        kernel=kernel,
        types=types | dict.fromkeys(constants, "constexpr"),
        constants=constants,
        num_warps=4,
        aligned=tuple(key for key, kind in types.items() if kind[0] == "*"),
    )


VARIANTS = _variants()
