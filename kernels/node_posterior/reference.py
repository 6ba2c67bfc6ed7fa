"""The truth, in plain torch: merge, sample and compare, as `nn/gaussians.py` has them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-7
"""Added to every variance before it divides, samples or is compared, as published."""


def node_posterior(infer: Tensor, prior: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """See `op.node_posterior`; float16 and bfloat16 are computed in float32."""
    dtype = torch.promote_types(infer.dtype, torch.float32)
    mean_i, var_i = _mean_and_variance(infer.to(dtype))
    mean_p, var_p = _mean_and_variance(prior.to(dtype))
    total = var_i + var_p
    mean = (mean_i * var_p + mean_p * var_i) / total
    var = var_i * var_p / total + EPS
    z = mean + torch.sqrt(var) * noise
    ratio = var / var_p
    square = (mean - mean_p) ** 2 / var_p
    kl = 0.5 * (ratio + square - 1 - torch.log(ratio)).flatten(-3).sum(-1)
    return z.to(noise.dtype), kl


def _mean_and_variance(heads: Tensor) -> tuple[Tensor, Tensor]:
    """[..., 2 Z, R, R] -> mean and variance, [..., Z, R, R] each."""
    mean, raw = heads.chunk(2, dim=-3)
    return mean, F.softplus(raw) + EPS
