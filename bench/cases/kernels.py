"""Rooflines: what the operations of `kernels/` must at least move and compute.

A `Roofline` is an operation at one shape: bytes and FLOPs in closed form, derived in the docstring
of the function that builds it, and the ways to do it, side by side. What it must move is every
input read once and every result written once, whatever is kept in caches. A FLOP is one addition,
subtraction, product, quotient, maximum, root, exponential, logarithm or change of sign of a number
of the operation's own size; what happens once per group, channel or tile is left out. A product of
matrices [M, K] times [K, N] is 2 M K N, and a convolution counts the zeros around its maps, as
libraries do.

Not here: clocks, which are `kernels_clock`'s. Needs PyTorch and this package's kernels, no more, so
that it runs on a machine that has little else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from interleave import Side
from torch import Tensor

Limit = Literal["copy", "tensor"]
ERRORS = {torch.float32: 2e-5, torch.bfloat16: 1.6e-2, torch.float16: 4e-3}
"""Largest error against float64 of an operation that rounds once, relative to 1 or the value."""


@dataclass(frozen=True)
class Roofline:
    """An operation at one shape.

    Attributes:
        op: its name, that of its folder.
        shape: what tells it from the other shapes of the operation.
        dtype: of the maps.
        bytes: the least that it moves.
        flops: what it computes.
        limit: what bounds it from below: the copy bandwidth or the rate of matrix products.
        forms: ways to do it, "ours" first; each gives the same tensors, but for random ones.
        truth: the reference on the same inputs in float64.
        error: the largest of ours against the truth, relative to 1 or to the value.
    """

    op: str
    shape: str
    dtype: torch.dtype
    bytes: int
    flops: int
    limit: Limit
    forms: Mapping[str, Side]
    truth: Side
    error: float


class Case(NamedTuple):
    """A shape that is built when it is its turn.

    Attributes:
        op: of the roofline.
        shape: of the roofline.
        build: makes the inputs on a device.
        small: the same at a size that Triton's interpreter does in seconds.
    """

    op: str
    shape: str
    build: Callable[[torch.device], Roofline]
    small: Callable[[torch.device], Roofline]


class KernelGoal(NamedTuple):
    """A number to reach on an H200; `bench/gpu/kernels.py` measures it.

    Attributes:
        name: area/what.
        goal: what is found must be at least this.
        unit: of the number; "x" is a ratio of times.
        why: what is compared.
    """

    name: str
    goal: float
    unit: str
    why: str


LOST = 1e30
"""The error of what is no number, or infinite: files hold finite ones."""
MATMUL_RATE = 790e12
"""FLOPs per second of an H200 that goals are set by, whatever a run measures."""

KERNEL_GOALS = (
    KernelGoal(
        name="kernels/norm-bandwidth-gpu",
        goal=85.0,
        unit="%",
        why="a target: of an H200's copy bandwidth, group norm with scale, shift and SiLU, on maps "
        "larger than its L2; the best published kernels reach 90 to 95 %",
    ),
    KernelGoal(
        name="kernels/norm-slowest-gpu",
        goal=1.0,
        unit="x",
        why="a target: the faster of eager PyTorch and inductor against ours, at the norm of our "
        "U-Nets and the batch where ours is worst",
    ),
    KernelGoal(
        name="kernels/generation-gpu",
        goal=50.0,
        unit="%",
        why="a target: of the 55 us that 43.5 GFLOP take at an H200's matmul rate, the samples of "
        "all nodes above 10 leaves for 256 colour images in bfloat16",
    ),
    KernelGoal(
        name="kernels/posterior-gpu",
        goal=50.0,
        unit="%",
        why="a target: of the 83 us that 65.2 GFLOP take, the posterior pass over the same nodes; "
        "with the root and the routers it would be 84",
    ),
    KernelGoal(
        name="kernels/step-graph-gpu",
        goal=8.0,
        unit="x",
        why="a target: the published CIFAR network's step on one image, eager PyTorch against ours "
        "with kernels as one CUDA graph, both in bfloat16",
    ),
)


def compiled(function: Callable[..., object], *arguments: object) -> Side:
    """A reference under `torch.compile`, which compiles it when it is first called."""
    made = torch.compile(function, fullgraph=True, dynamic=False)
    return lambda: made(*arguments)


def tensors(found: object) -> list[Tensor]:
    """The tensors of a result, in order, whatever holds them."""
    if isinstance(found, Tensor):
        return [found]
    assert isinstance(found, Sequence)
    return [tensor for part in found if part is not None for tensor in tensors(part)]


def worst_error(found: object, truth: object) -> float:
    """The largest error of any element, relative to 1 or to the true value; `LOST` for NaN.

    Args:
        found: tensors of an operation.
        truth: as many, of the same shapes.
    """
    worst = 0.0
    for ours, true in zip(tensors(found), tensors(truth), strict=True):
        assert ours.shape == true.shape
        if ours.numel():
            error = (ours.double() - true.double()).abs() / true.double().abs().clamp(min=1.0)
            worst = max(worst, error.nan_to_num(nan=LOST, posinf=LOST).max().item())
    return worst


def to_double(found: Any) -> Any:
    """The same arguments with floating-point tensors in float64, in the layouts they have."""
    if isinstance(found, Tensor):
        return found.detach().double() if found.is_floating_point() else found
    if isinstance(found, tuple) and hasattr(found, "_fields"):
        return type(found)(*map(to_double, found))
    if isinstance(found, list | tuple):
        return type(found)(map(to_double, found))
    return found
