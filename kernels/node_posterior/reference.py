"""The truth, in plain torch: merge, sample and compare, as `nn/gaussians.py` has them.

Written with the shares of the two variances, as in README.md: the textbook's differences of almost
equal numbers would cost gradients their digits in float32.
"""

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
    apart, both = mean_i - mean_p, var_i + var_p
    share_i, share_p = var_i / both, var_p / both
    z = mean_p + share_p * apart + torch.sqrt(share_i * var_p + EPS) * noise
    more = EPS / var_p
    square = share_p * apart * (apart / both)
    kl = 0.5 * (square + (more - share_p) - torch.log(share_i + more)).flatten(-3).sum(-1)
    return z.to(noise.dtype), kl


def _mean_and_variance(heads: Tensor) -> tuple[Tensor, Tensor]:
    """[..., 2 Z, R, R] -> mean and variance, [..., Z, R, R] each."""
    mean, raw = heads.chunk(2, dim=-3)
    return mean, F.softplus(raw) + EPS
