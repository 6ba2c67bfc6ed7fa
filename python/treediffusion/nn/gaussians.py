"""Diagonal Gaussians: merging, sampling, Kullback-Leibler divergence.

A Gaussian is a mean and a *variance*, or what a network's head gives for it. The published method
adds `EPS` to every variance before it divides, samples or compares, and so does this module. What
the nodes of a tree do to theirs, all three at once, is `kernels.node_posterior`.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.node_posterior.reference import EPS as EPS


class Gaussian(NamedTuple):
    """A diagonal Gaussian; mean and var have the same shape, var >= 0."""

    mean: Tensor
    var: Tensor

    @property
    def heads(self) -> Tensor:
        """[..., 2 Z, R, R], what a head would give for it."""
        return torch.cat([self.mean, self.var + torch.log(-torch.expm1(-self.var))], dim=-3)

    def sample(self, noise: Tensor) -> Tensor:
        """See the function of this name."""
        return sample(self, noise)


class HeadGaussian(NamedTuple):
    """The same as a head gives it: [..., 2 Z, R, R], means, then variances before softplus."""

    heads: Tensor

    @property
    def mean(self) -> Tensor:
        """[..., Z, R, R]."""
        return self.heads.chunk(2, dim=-3)[0]

    @property
    def var(self) -> Tensor:
        """[..., Z, R, R]."""
        return F.softplus(self.heads.chunk(2, dim=-3)[1])

    def sample(self, noise: Tensor) -> Tensor:
        """See the function of this name."""
        return sample(self, noise)


AnyGaussian: TypeAlias = Gaussian | HeadGaussian


def as_gaussian(heads: Tensor) -> Gaussian:
    """[..., 2 Z, R, R] -> mean and softplus variance, [..., Z, R, R] each."""
    mean, raw = heads.chunk(2, dim=-3)
    return Gaussian(mean, F.softplus(raw))


def merge(infer: AnyGaussian, prior: AnyGaussian) -> Gaussian:
    """The precision-weighted product of the bottom-up estimate and the prior (LadderVAE).

    1/var = 1/(var_i + eps) + 1/(var_p + eps), written without reciprocals of small numbers.
    """
    var_i, var_p = infer.var + EPS, prior.var + EPS
    total = var_i + var_p
    mean = (infer.mean * var_p + prior.mean * var_i) / total
    return Gaussian(mean, var_i * var_p / total)


def sample(gaussian: AnyGaussian, noise: Tensor) -> Tensor:
    """mean + sqrt(var + eps) noise."""
    return gaussian.mean + torch.sqrt(gaussian.var + EPS) * noise


def kl(posterior: AnyGaussian, prior: AnyGaussian) -> Tensor:
    """KL(posterior || prior) in nats, summed over channels and pixels: [..., Z, R, R] -> [...]."""
    var_q, var_p = posterior.var + EPS, prior.var + EPS
    ratio = var_q / var_p
    square = (posterior.mean - prior.mean) ** 2 / var_p
    return 0.5 * (ratio + square - 1 - torch.log(ratio)).flatten(-3).sum(-1)
