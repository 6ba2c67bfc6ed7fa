"""``y[b] = sum over p with nodes[b, p] >= 0 of silu(h[b, p])``, with its gradient.

The kernel sums in float32 and rounds once. There are no gradients of gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..choice import is_exporting, takes_kernel
from . import reference

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SLOTS = 64
"""Of the longest path that the kernel takes."""


def path_silu_sum(h: Tensor, nodes: Tensor) -> Tensor:
    """The sum over each path.

    Args:
        h: [B, P, E] float, one row per slot; whatever an absent slot holds, NaN included, has no
            effect on values, and its gradient is 0.
        nodes: [B, P] int, ids; below 0 for a slot that the path does not use.

    Returns:
        [B, E] in the dtype of h.
    """
    unable = None
    if h.dtype not in FLOATS:
        unable = f"values of type {h.dtype}"
    elif h.shape[1] > SLOTS:
        unable = f"paths of more than {SLOTS} slots"
    if is_exporting() or not takes_kernel("path_silu_sum", h, unable=unable):
        return reference.path_silu_sum(h, nodes)
    y: Tensor = _forward(h, nodes)
    return y


@torch.library.custom_op("treediffusion::path_silu_sum", mutates_args=())
def _forward(h: Tensor, nodes: Tensor) -> Tensor:
    from .kernel import forward

    y: Tensor = _like_forward(h, nodes)
    with torch.cuda.device_of(h):  # type: ignore[no-untyped-call]
        forward(h.contiguous(), nodes.contiguous(), y)
    return y


@torch.library.custom_op("treediffusion::path_silu_sum_backward", mutates_args=())
def _backward(grad: Tensor, h: Tensor, nodes: Tensor) -> Tensor:
    from .kernel import backward

    of_h: Tensor = _like_backward(grad, h, nodes)
    with torch.cuda.device_of(h):  # type: ignore[no-untyped-call]
        backward(grad.contiguous(), h.contiguous(), nodes.contiguous(), of_h)
    return of_h


@_forward.register_fake
def _like_forward(h: Tensor, nodes: Tensor) -> Tensor:
    return h.new_empty(h.shape[0], h.shape[2])


@_backward.register_fake
def _like_backward(grad: Tensor, h: Tensor, nodes: Tensor) -> Tensor:
    return h.new_empty(h.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _backward(grad, *ctx.saved_tensors), None


_forward.register_autograd(_gradient, setup_context=_keep)
