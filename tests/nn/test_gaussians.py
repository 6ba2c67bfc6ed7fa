"""Merging, sampling and comparing Gaussians against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from treediffusion.nn.gaussians import EPS, Gaussian, HeadGaussian, as_gaussian, kl, merge, sample

SHAPE = (6, 3, 2, 4, 4)  # B, N, Z, R, R


def draw(seed: int, *, dtype: torch.dtype = torch.float64) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    mean, log_var = torch.randn(2, *SHAPE, dtype=torch.float64, generator=generator)
    return Gaussian(mean.to(dtype), (2 * log_var).exp().to(dtype))


def close(ours: Tensor, truth: Tensor) -> None:
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)


def test_a_heads_gaussian_and_a_gaussians_head_are_the_same() -> None:
    """Also of no variance, and of those beyond 20, from where softplus leaves out exp(-20)."""
    one = draw(0)
    extreme = Gaussian(one.mean, torch.tensor([0.0, 1e-30, 1e-7, 1e18]).double().expand(SHAPE))
    for gaussian in (one, extreme):
        again = HeadGaussian(gaussian.heads)
        assert torch.equal(again.mean, gaussian.mean)
        torch.testing.assert_close(again.var, gaussian.var, rtol=2e-10, atol=0)
        for ours, theirs in zip(as_gaussian(gaussian.heads), (again.mean, again.var), strict=True):
            assert torch.equal(ours, theirs)


def test_divergence_of_equals_is_exactly_zero() -> None:
    for dtype in (torch.float32, torch.float64):
        one = draw(0, dtype=dtype)
        assert torch.equal(kl(one, one), torch.zeros(6, 3, dtype=dtype))


def test_divergence_equals_the_library_summed_over_a_latent() -> None:
    q, p = draw(0), draw(1)
    normals = (Normal(g.mean, (g.var + EPS).sqrt()) for g in (q, p))
    close(kl(q, p), kl_divergence(*normals).sum(dim=(-3, -2, -1)))


def test_divergence_is_not_negative() -> None:
    """Also in float32 between almost equal Gaussians, up to rounding."""
    q = draw(0, dtype=torch.float32)
    p = Gaussian(q.mean + 1e-4, q.var * (1 + 1e-4))
    assert kl(q, p).min() > -1e-4


def test_merge_equals_the_published_reciprocals() -> None:
    """1/(1/a + 1/b) and the mean weighed by precision, eps added to each variance."""
    infer, prior = draw(0), draw(1)
    var = 1 / (1 / (infer.var + EPS) + 1 / (prior.var + EPS))
    mean = var * (infer.mean / (infer.var + EPS) + prior.mean / (prior.var + EPS))
    merged = merge(infer, prior)
    close(merged.var, var)
    close(merged.mean, mean)


def test_merge_is_the_normalised_product_of_the_densities() -> None:
    """log N_i + log N_p - log N_merged does not depend on where it is evaluated."""
    infer, prior = draw(0), draw(1)
    merged = merge(infer, prior)

    def log_density(gaussian: Gaussian, at: Tensor, eps: float) -> Tensor:
        return Normal(gaussian.mean, (gaussian.var + eps).sqrt()).log_prob(at)

    constants = [
        log_density(infer, at, EPS) + log_density(prior, at, EPS) - log_density(merged, at, 0.0)
        for at in (torch.zeros(SHAPE).double(), torch.ones(SHAPE).double())
    ]
    torch.testing.assert_close(*constants, rtol=1e-9, atol=1e-9)


def test_merge_is_symmetric_sharper_than_either_and_between_them() -> None:
    a, b = draw(0), draw(1)
    one, other = merge(a, b), merge(b, a)
    close(one.mean, other.mean)
    close(one.var, other.var)
    assert (one.var < torch.minimum(a.var, b.var) + EPS).all()
    assert (one.mean <= torch.maximum(a.mean, b.mean) + 1e-12).all()
    assert (one.mean >= torch.minimum(a.mean, b.mean) - 1e-12).all()


def test_a_vague_estimate_leaves_the_prior_alone() -> None:
    prior = draw(1)
    vague = Gaussian(torch.full_like(prior.mean, 5.0), torch.full_like(prior.var, 1e18))
    merged = merge(vague, prior)
    close(merged.mean, prior.mean)
    torch.testing.assert_close(merged.var, prior.var + EPS, rtol=1e-9, atol=0)


def test_sample_is_affine_in_the_noise() -> None:
    gaussian = draw(0)
    noise = torch.randn(SHAPE, dtype=torch.float64)
    close(sample(gaussian, torch.zeros_like(noise)), gaussian.mean)
    close((sample(gaussian, noise) - gaussian.mean) ** 2, (gaussian.var + EPS) * noise**2)


@pytest.mark.parametrize("var_q", [0.0, 1e-30, 1e-7, 1.0, 1e15])
@pytest.mark.parametrize("var_p", [0.0, 1e-30, 1e-7, 1.0, 1e15])
@pytest.mark.parametrize("distance", [0.0, 1e4])
def test_extremes_stay_finite_in_float32(var_q: float, var_p: float, distance: float) -> None:
    """Softplus underflows to a variance of 0; values and gradients survive it."""
    full = [torch.full((1, 1, 2, 2), value) for value in (distance, var_q, 0.0, var_p)]
    q_mean, q_var, p_mean, p_var = (tensor.requires_grad_() for tensor in full)
    q, p = Gaussian(q_mean, q_var), Gaussian(p_mean, p_var)
    merged = merge(q, p)
    values = torch.stack([merged.mean.sum(), merged.var.sum(), kl(q, p).sum(), kl(merged, p).sum()])
    assert values.isfinite().all()
    assert sample(merged, torch.ones(1, 1, 2, 2)).isfinite().all()
    for gradient in torch.autograd.grad(values.sum(), [q_mean, q_var, p_mean, p_var]):
        assert gradient.isfinite().all()
