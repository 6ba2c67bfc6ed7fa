"""Diagonal Gaussians: merging, sampling, Kullback-Leibler divergence.

A Gaussian is a mean and a *variance*, as the networks' heads give them. The published method adds
`EPS` to every variance before it divides, samples or compares, and so does this module.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPS = 1e-7


class Gaussian(NamedTuple):
    """A diagonal Gaussian; mean and var have the same shape, var >= 0."""

    mean: Tensor
    var: Tensor


def merge(infer: Gaussian, prior: Gaussian) -> Gaussian:
    """The precision-weighted product of the bottom-up estimate and the prior (LadderVAE).

    1/var = 1/(var_i + eps) + 1/(var_p + eps), written without reciprocals of small numbers.
    """
    var_i, var_p = infer.var + EPS, prior.var + EPS
    total = var_i + var_p
    mean = (infer.mean * var_p + prior.mean * var_i) / total
    return Gaussian(mean, var_i * var_p / total)


def sample(gaussian: Gaussian, noise: Tensor) -> Tensor:
    """mean + sqrt(var + eps) noise."""
    return gaussian.mean + torch.sqrt(gaussian.var + EPS) * noise


def kl(posterior: Gaussian, prior: Gaussian) -> Tensor:
    """KL(posterior || prior) in nats, summed over channels and pixels: [..., Z, R, R] -> [...]."""
    var_q, var_p = posterior.var + EPS, prior.var + EPS
    ratio = var_q / var_p
    square = (posterior.mean - prior.mean) ** 2 / var_p
    return 0.5 * (ratio + square - 1 - torch.log(ratio)).flatten(-3).sum(-1)
