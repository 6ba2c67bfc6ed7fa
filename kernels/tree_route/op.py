"""`log_node_prob` and `tree_route`: which form runs, and the kernel as operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import ShapeError
from ..choice import is_exporting, kernel_choice, takes_kernel
from . import reference
from .table import WAY, RouteTable

DTYPES = {torch.float32, torch.bfloat16, torch.float16, torch.float64}


def log_node_prob(logit: Tensor, table: RouteTable) -> Tensor:
    """The log-probability of reaching each node from its root.

    Args:
        logit: [B, I] float, logits of "left".
        table: of the tree or forest, on the same device.

    Returns:
        [B, N] float32 or float64.

    Raises:
        BackendUnavailableError: the kernel is forced, and cannot run.
        ShapeError: not as many logits as the tree has routers.
    """
    _check("logit", logit, table)
    if _takes_kernel("log_node_prob", logit):
        found: Tensor = _log_node_prob(logit, *table)
        return found
    return reference.log_node_prob(logit, table.left, table.right)


def tree_route(
    logit: Tensor, uniform: Tensor, table: RouteTable, *, start: int = 0
) -> tuple[Tensor, Tensor]:
    """The log-probability of reaching each node, and a sampled leaf.

    ``left iff u < p_left`` at each router on the way; u belongs to the image and the router.

    Args:
        logit: [B, I] float, logits of "left".
        uniform: [B, I] float in (0, 1).
        table: of the tree, on the same device.
        start: row of the node where the walk begins; the turns above it are forced.

    Returns:
        [B, N] float32 or float64, and [B] int64 leaf ids.

    Raises:
        BackendUnavailableError: the kernel is forced, and cannot run.
        ShapeError: not as many logits and numbers as the tree has routers, or no such node.
    """
    _check("logit", logit, table)
    _check("uniform", uniform, table)
    if uniform.shape != logit.shape:
        raise ShapeError("uniform", got=tuple(uniform.shape), expected=str(tuple(logit.shape)))
    if not 0 <= start < len(table.nodes):
        raise ShapeError("start", got=start, expected=f"a row below {len(table.nodes)}")
    if _takes_kernel("tree_route", logit):
        log_prob, leaf = _tree_route(logit, uniform, *table, start)
        return log_prob, leaf
    log_prob = reference.log_node_prob(logit, table.left, table.right)
    return log_prob, reference.sample_leaf(logit, uniform, table.nodes, start=start)


def _check(name: str, x: Tensor, table: RouteTable) -> None:
    routers = len(table.left)
    if x.dim() != 2 or x.shape[1] != routers:
        raise ShapeError(name, got=tuple(x.shape), expected=f"[B, {routers}], one per router")


def _takes_kernel(name: str, logit: Tensor) -> bool:
    # What is exported has to run where there is no Triton, so it is the reference unless forced.
    exported = is_exporting() and kernel_choice() != "triton"
    unable = None if logit.dtype in DTYPES else f"logits of {logit.dtype}"
    return not exported and takes_kernel(name, logit, unable=unable)


@torch.library.custom_op("treediffusion::log_node_prob", mutates_args=())
def _log_node_prob(logit: Tensor, nodes: Tensor, left: Tensor, right: Tensor) -> Tensor:
    log_prob = _empty(logit, nodes)
    _launch(logit, None, nodes, 0, log_prob, None)
    return log_prob


@_log_node_prob.register_fake
def _(logit: Tensor, nodes: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return _empty(logit, nodes)


@torch.library.custom_op("treediffusion::tree_route", mutates_args=())
def _tree_route(
    logit: Tensor, uniform: Tensor, nodes: Tensor, left: Tensor, right: Tensor, start: int
) -> tuple[Tensor, Tensor]:
    log_prob, leaf = _empty(logit, nodes), logit.new_empty(logit.shape[0], dtype=torch.int64)
    _launch(logit, uniform, nodes, start, log_prob, leaf)
    return log_prob, leaf


@_tree_route.register_fake
def _(
    logit: Tensor, uniform: Tensor, nodes: Tensor, left: Tensor, right: Tensor, start: int
) -> tuple[Tensor, Tensor]:
    return _empty(logit, nodes), logit.new_empty(logit.shape[0], dtype=torch.int64)


@torch.library.custom_op("treediffusion::log_node_prob_backward", mutates_args=())
def _backward(of_log_prob: Tensor, logit: Tensor, left: Tensor, right: Tensor) -> Tensor:
    from . import kernel

    of_logit = logit.new_empty(logit.shape)
    (batch, routers), rows = logit.shape, left.shape[1]
    if routers == 0:
        return of_logit
    logit, block = _rows_apart(logit), kernel.columns(routers)
    grid = (-(-batch // kernel.IMAGES), -(-routers // block))
    with torch.cuda.device_of(logit):  # type: ignore[no-untyped-call]
        kernel.backward[grid](
            of_log_prob.contiguous(), logit, left.contiguous(), right.contiguous(),
            batch, rows, routers, logit.stride(0),
            of_logit,
            ROWS=1 << (rows - 1).bit_length(), BLOCK_B=kernel.IMAGES, BLOCK_I=block,
            DOUBLE=logit.dtype == torch.float64, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return of_logit


@_backward.register_fake
def _(of_log_prob: Tensor, logit: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return logit.new_empty(logit.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Of both operations: logit first; nodes, left, right side by side."""
    left, right = inputs[2:4] if len(inputs) == 4 else inputs[3:5]
    ctx.save_for_backward(inputs[0], left, right)
    ctx.others = len(inputs) - 1


def _gradients(ctx: Any, of_log_prob: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    """Of both operations; a sampled leaf has none."""
    return _backward(of_log_prob, *ctx.saved_tensors), *[None] * ctx.others


_log_node_prob.register_autograd(_gradients, setup_context=_keep)
_tree_route.register_autograd(_gradients, setup_context=_keep)


def _empty(logit: Tensor, nodes: Tensor) -> Tensor:
    dtype = torch.promote_types(logit.dtype, torch.float32)
    return logit.new_empty(logit.shape[0], nodes.shape[0], dtype=dtype)


def _rows_apart(x: Tensor) -> Tensor:
    """x: [B, I], each row in one run."""
    return x if x.stride(1) == 1 else x.contiguous()


def _launch(
    logit: Tensor,
    uniform: Tensor | None,
    nodes: Tensor,
    start: int,
    log_prob: Tensor,
    leaf: Tensor | None,
) -> None:
    from . import kernel

    logit, nodes = _rows_apart(logit), nodes.contiguous()
    uniform = logit if uniform is None else _rows_apart(uniform)
    batch, rows = log_prob.shape
    block = kernel.columns(rows)
    with torch.cuda.device_of(logit):  # type: ignore[no-untyped-call]
        kernel.forward[(-(-batch // kernel.IMAGES), -(-rows // block))](
            logit, uniform, nodes,
            batch, rows, logit.stride(0), uniform.stride(0), start,
            log_prob, log_prob if leaf is None else leaf,
            DEPTH=nodes.shape[1] - WAY, BLOCK_B=kernel.IMAGES, BLOCK_N=block,
            SAMPLES=leaf is not None, DOUBLE=logit.dtype == torch.float64,
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
