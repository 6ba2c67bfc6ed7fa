"""The reference with its gradients by the formulas of README.md, for one operation after another.

Half the operations that automatic differentiation needs. Compilers get the reference, whose
gradients they fuse by themselves.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .reference import EPS


def node_posterior(infer: Tensor, prior: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """See `op.node_posterior`; float16 and bfloat16 are computed in float32."""
    dtype = torch.promote_types(infer.dtype, torch.float32)
    z, kl = _NodePosterior.apply(infer.to(dtype), prior.to(dtype), noise.to(dtype))
    return z.to(noise.dtype), kl


class _NodePosterior(torch.autograd.Function):
    """Of one dtype; heads are [..., 2 Z, R, R], noise and z [..., Z, R, R], kl [...]."""

    @staticmethod
    def forward(ctx: Any, infer: Tensor, prior: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        (mean_i, raw_i), (mean_p, raw_p) = (heads.chunk(2, dim=-3) for heads in (infer, prior))
        var_i, var_p = F.softplus(raw_i).add_(EPS), F.softplus(raw_p).add_(EPS)
        apart, both = mean_i - mean_p, var_i + var_p
        share_i, share_p = var_i / both, var_p / both
        std = (share_i * var_p).add_(EPS).sqrt_()
        moved, off = share_p * apart, apart / both
        # Sums and products apart: fused, an element's bits would depend on its place in the stack.
        z = (mean_p + moved).add_(std * noise)
        more = EPS / var_p
        excess = more - share_p
        logs = more.add_(share_i).log_()
        kl = (moved * off).add_(excess).sub_(logs).flatten(-3).sum(-1).mul_(0.5)
        ctx.save_for_backward(raw_i, raw_p, noise, var_p, share_i, share_p, std, off, excess)
        return z, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_z: Tensor, g_kl: Tensor) -> tuple[Tensor, Tensor, None]:
        raw_i, raw_p, noise, var_p, share_i, share_p, std, off, excess = ctx.saved_tensors
        g_kl = g_kl[..., None, None, None]
        direct = g_kl * off
        g_mean = g_z + direct
        by_var = g_mean * off
        slope = g_kl * excess
        g_var = torch.addcdiv(g_z * noise, slope, std).div_(std).mul_(0.5)

        g_var_i = (g_var * share_p).sub_(by_var).mul_(share_p)
        of_infer = torch.cat([g_mean * share_p, g_var_i.mul_(torch.sigmoid(raw_i))], dim=-3)

        straight = torch.addcmul(slope / var_p, direct, off).mul_(0.5)
        g_var_p = (g_var * share_i).add_(by_var).mul_(share_i).sub_(straight)
        g_mean_p = (g_z * share_i).addcmul_(direct, share_p, value=-1)
        of_prior = torch.cat([g_mean_p, g_var_p.mul_(torch.sigmoid(raw_p))], dim=-3)
        return of_infer, of_prior, None
