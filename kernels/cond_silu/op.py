"""``silu(time + cond)`` with its gradients, in one launch each way.

The kernel adds in float32 and rounds once. There are no gradients of gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..choice import is_exporting, takes_kernel
from . import reference

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def cond_silu(time: Tensor, cond: Tensor) -> Tensor:
    """What every block of the U-Net projects.

    Args:
        time: [E] float, one embedding for all images, or [B, E], one for each.
        cond: [B, E] float, conditions.

    Returns:
        [B, E] in the wider of the two dtypes.
    """
    unable = None
    if time.dtype not in FLOATS or cond.dtype not in FLOATS:
        unable = f"values of type {time.dtype} and {cond.dtype}"
    elif time.shape not in (cond.shape, cond.shape[1:]):
        unable = "embeddings that are neither one for all images nor one for each"
    if is_exporting() or not takes_kernel("cond_silu", cond, unable=unable):
        return reference.cond_silu(time, cond)
    y: Tensor = _forward(time, cond)
    return y


@torch.library.custom_op("treediffusion::cond_silu", mutates_args=())
def _forward(time: Tensor, cond: Tensor) -> Tensor:
    from .kernel import forward

    y: Tensor = _like_forward(time, cond)
    with torch.cuda.device_of(cond):  # type: ignore[no-untyped-call]
        forward(_rows(time), _rows(cond), y)
    return y


@torch.library.custom_op("treediffusion::cond_silu_backward", mutates_args=())
def _backward(grad: Tensor, time: Tensor, cond: Tensor) -> Tensor:
    from .kernel import backward

    of_sum: Tensor = _like_backward(grad, time, cond)
    with torch.cuda.device_of(cond):  # type: ignore[no-untyped-call]
        backward(_rows(grad), _rows(time), _rows(cond), of_sum)
    return of_sum


@_forward.register_fake
def _like_forward(time: Tensor, cond: Tensor) -> Tensor:
    return cond.new_empty(cond.shape, dtype=torch.promote_types(time.dtype, cond.dtype))


@_backward.register_fake
def _like_backward(grad: Tensor, time: Tensor, cond: Tensor) -> Tensor:
    return grad.new_empty(cond.shape)


def _rows(x: Tensor) -> Tensor:
    """Rows may be apart, or the same; within a row there are no gaps."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    time, cond = ctx.saved_tensors
    of_sum = _backward(grad, time, cond)
    of_time = of_cond = None
    if ctx.needs_input_grad[0]:
        of_time = (of_sum.sum(dim=0) if time.ndim == 1 else of_sum).to(time.dtype)
    if ctx.needs_input_grad[1]:
        of_cond = of_sum.to(cond.dtype)
    return of_time, of_cond


_forward.register_autograd(_gradient, setup_context=_keep)
