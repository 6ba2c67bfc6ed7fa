"""`node_posterior`: which form runs, and the kernel as an operation that compilers know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import ShapeError
from ..choice import is_exporting, kernel_choice, takes_kernel
from . import by_hand, reference

DTYPES = {torch.float32, torch.bfloat16, torch.float16, torch.float64}


def node_posterior(infer: Tensor, prior: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes' posteriors, merged from the bottom-up estimates and the priors; sampled and compared.

    Args:
        infer: [B, N, 2 Z, R, R] float, the estimates' means, then their variances before softplus.
        prior: [B, N, 2 Z, R, R] float, the same of the priors.
        noise: [B, N, Z, R, R] float, standard normal.

    Returns:
        [B, N, Z, R, R] samples in the noise's type, and [B, N] nats, float32 or float64:
        KL(posterior || prior), summed over a node's elements.

    Raises:
        BackendUnavailableError: the kernel is forced, and cannot run.
        ShapeError: arguments that do not fit together.
    """
    _check(infer, prior, noise)
    # What is exported has to run where there is no Triton, so it is the reference unless forced.
    exported = is_exporting() and kernel_choice() != "triton"
    unable = _unable(infer, prior, noise)
    if exported or not takes_kernel("node_posterior", infer, unable=unable):
        return _plain(infer, prior, noise)
    z, kl = _forward(infer, prior, noise)
    return z, kl


def _plain(infer: Tensor, prior: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The reference, with its gradients by hand where some are asked for one after another."""
    trains = torch.is_grad_enabled() and (infer.requires_grad or prior.requires_grad)
    if trains and not noise.requires_grad and not torch.compiler.is_compiling():
        return by_hand.node_posterior(infer, prior, noise)
    return reference.node_posterior(infer, prior, noise)


def _check(infer: Tensor, prior: Tensor, noise: Tensor) -> None:
    if noise.dim() != 5:
        raise ShapeError("noise", got=tuple(noise.shape), expected="[B, N, Z, R, R]")
    batch, nodes, channels, height, width = noise.shape
    expected = (batch, nodes, 2 * channels, height, width)
    for name, heads in (("infer", infer), ("prior", prior)):
        if heads.shape != expected:
            raise ShapeError(name, got=tuple(heads.shape), expected=str(expected))


def _unable(infer: Tensor, prior: Tensor, noise: Tensor) -> str | None:
    """Why the kernel cannot do these arguments."""
    if infer.dtype != prior.dtype or {infer.dtype, noise.dtype} - DTYPES:
        return f"tensors of {infer.dtype}, {prior.dtype} and {noise.dtype}"
    if noise.requires_grad:
        return "noise that has a gradient"
    return None


@torch.library.custom_op("treediffusion::node_posterior", mutates_args=())
def _forward(infer: Tensor, prior: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    from . import kernel

    z, kl = _empty(infer, noise)
    inputs, constants = _arguments(infer, prior, noise)
    with torch.cuda.device_of(infer):  # type: ignore[no-untyped-call]
        kernel.forward[(kl.numel(),)](*inputs, z, kl, **constants)
    return z, kl


@_forward.register_fake
def _(infer: Tensor, prior: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    return _empty(infer, noise)


@torch.library.custom_op("treediffusion::node_posterior_backward", mutates_args=())
def _backward(
    of_z: Tensor, of_kl: Tensor, infer: Tensor, prior: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    from . import kernel

    of_infer, of_prior = _like(infer), _like(prior)
    inputs, constants = _arguments(infer, prior, noise)
    with torch.cuda.device_of(infer):  # type: ignore[no-untyped-call]
        kernel.backward[(of_kl.numel(),)](
            of_z.contiguous(), of_kl.contiguous(), *inputs, of_infer, of_prior, **constants
        )
    return of_infer, of_prior


@_backward.register_fake
def _(
    of_z: Tensor, of_kl: Tensor, infer: Tensor, prior: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    return _like(infer), _like(prior)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, of_z: Tensor, of_kl: Tensor) -> tuple[Tensor, Tensor, None]:
    of_infer, of_prior = _backward(of_z, of_kl, *ctx.saved_tensors)
    return of_infer, of_prior, None


_forward.register_autograd(_gradients, setup_context=_keep)


def _empty(infer: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    kl_dtype = torch.promote_types(infer.dtype, torch.float32)
    return _like(noise), noise.new_empty(noise.shape[:2], dtype=kl_dtype)


def _like(x: Tensor) -> Tensor:
    """Contiguous, whatever x is."""
    return x.new_empty(x.shape)


def _arguments(infer: Tensor, prior: Tensor, noise: Tensor) -> tuple[list[Any], dict[str, Any]]:
    """The kernels' inputs with their strides, and their constants."""
    from . import kernel

    tensors = [_with_plain_maps(tensor) for tensor in (infer, prior, noise)]
    strides = [stride for tensor in tensors for stride in tensor.stride()[:2]]
    elements = noise.shape[2:].numel()
    block, warps = kernel.sizes(elements)
    constants = {"ELEMENTS": elements, "BLOCK": block, "EPS": reference.EPS}
    constants |= {"DOUBLE": infer.dtype == torch.float64, "num_warps": warps}
    return [*tensors, noise.shape[1], *strides], constants | {"enable_fp_fusion": True}


def _with_plain_maps(x: Tensor) -> Tensor:
    """x: [B, N, ...]; each node's map in one run, which a level's part of a stack has already."""
    size = x.shape[2:].numel()
    runs = x.stride()[2:] == torch.empty(x.shape[2:], device="meta").stride()
    return x if runs or size == 1 else x.contiguous()
