"""``y = c clip(a x - b F) + e F + tau noise``, one evaluation of a solver, in one launch.

Coefficients stay on the device: nothing waits for the host, so a graph of launches can be recorded
once and follow a whole table. It rounds as the reference does and has no gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..choice import is_exporting, takes_kernel
from . import reference

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def ddim_update(
    x: Tensor,
    output: Tensor,
    row: Tensor,
    *,
    step: Tensor | None = None,
    clip_range: tuple[float, float] | None,
    noise: Tensor | None = None,
) -> Tensor:
    """What a solver makes of the network's output.

    Args:
        x: [...] float, the state.
        output: [...] float, F, which may be narrower than the state.
        row: [5] float, a, b, c, e, tau as in `SolverTable.network`, in the dtype of x; or with
            `step` [K, 5], all rows.
        step: [] int64, which row.
        clip_range: limits of a x - b F; None for none.
        noise: [...] float, standard normal in the dtype of x; where tau is 0 it has no effect,
            whatever it holds.

    Returns:
        [...] in the dtype of x.
    """
    unable = _unable(x, output, row, noise)
    if is_exporting() or not takes_kernel("ddim_update", x, unable=unable):
        return reference.ddim_update(x, output, row, step=step, clip_range=clip_range, noise=noise)
    y: Tensor = _update(x, output, row, step, clip_range, noise)
    return y


def _unable(x: Tensor, output: Tensor, row: Tensor, noise: Tensor | None) -> str | None:
    given = [x, output] if noise is None else [x, output, noise]
    if output.dtype not in FLOATS or {t.dtype for t in (x, row, *given[2:])} != {torch.float32}:
        return "a state, row or noise that is not float32, or an output that is wider"
    if any(tensor.shape != x.shape for tensor in given):
        return "an output or noise of another shape"
    if row.device != x.device:
        return "a row on another device"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return "gradients"
    return None


@torch.library.custom_op("treediffusion::ddim_update", mutates_args=())
def _update(
    x: Tensor,
    output: Tensor,
    row: Tensor,
    step: Tensor | None,
    clip_range: Sequence[float] | None,
    noise: Tensor | None,
) -> Tensor:
    from .kernel import update

    y = torch.empty_like(x)
    drawn = None if noise is None else _laid_out(noise, y)
    read = (_laid_out(x, y), _laid_out(output, y), row.contiguous())
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        update(*read, step, clip_range, drawn, y)
    return y


@_update.register_fake
def _like_update(
    x: Tensor,
    output: Tensor,
    row: Tensor,
    step: Tensor | None,
    clip_range: Sequence[float] | None,
    noise: Tensor | None,
) -> Tensor:
    return torch.empty_like(x)


def _laid_out(x: Tensor, like: Tensor) -> Tensor:
    """x with its elements in the order of another's."""
    if x.stride() == like.stride():
        return x
    return torch.empty_like(like, dtype=x.dtype).copy_(x)
