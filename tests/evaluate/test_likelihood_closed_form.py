"""Log-likelihood in linear-Gaussian trees, where p(x) is known.

It is a mixture over leaves of Gaussians, which SciPy evaluates. Linear maps take the places of a
real `TreeVAE`'s networks, whose passes, merging and densities are then what is tested. Random tests
have fixed seeds and bounds of 4 standard errors (SE) that the data themselves give.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit, logsumexp
from scipy.stats import multivariate_normal
from torch import Tensor, nn
from treediffusion.config import TreeConfig
from treediffusion.evaluate.likelihood import log_likelihood, published_log_likelihood
from treediffusion.nn.gaussians import EPS, Gaussian
from treediffusion.nn.tree_vae import TreeVAE
from treediffusion.topology import TreeTopology

Array = NDArray[np.float64]
Estimator = Callable[..., Tensor]

INITIAL = TreeTopology.initial()
TREES = {
    "two leaves": INITIAL,
    "irregular": INITIAL.grow("r0").grow("r01").grow("r1"),
    "single child": INITIAL.grow("r0").grow("r1").prune("r11"),
    "single child of the root": INITIAL.grow("r1").grow("r10").prune("r0"),
    "chain": TreeTopology.of(["r", "r1", "r10"]),
}
PIXELS = 4
LINEAR = TreeConfig(channels=PIXELS, levels=5, codec_sizes=(2, 1), likelihood="gaussian")


class Affine(nn.Module):
    """A matrix, an offset and a variance per row: [B, n, a, 1, 1] -> Gaussians over b numbers."""

    def __init__(self, weight: Tensor, bias: Tensor, var: Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.var = (nn.Parameter(t) for t in (weight, bias, var))

    def forward(self, x: Tensor, rows: slice = slice(None)) -> Gaussian:
        mean = torch.einsum("nba,Bna->Bnb", self.weight[rows], x.flatten(2)) + self.bias[rows]
        var = self.var[rows].expand_as(mean)
        return Gaussian(mean[..., None, None], var[..., None, None])


class Heads(Affine):
    """All nodes' estimates from the one feature map that there is."""

    def forward(self, features: Tensor, rows: slice = slice(None)) -> Gaussian:
        return super().forward(features[:, 0, :1].expand(-1, len(self.weight), -1, -1, -1), rows)


class RootHead(Affine):
    def forward(self, features: Tensor, rows: slice = slice(None)) -> Tensor:
        """Mean and variance before the softplus."""
        found = super().forward(features, rows)
        return torch.cat([found.mean, found.var.expm1().log()], dim=-3)


class Decoders(Affine):
    def forward(self, z: Tensor, rows: slice = slice(None)) -> Tensor:
        return super().forward(z, rows).mean.reshape(*z.shape[:2], 1, 2, 2)


class Constant(nn.Module):
    """Routers that decide without looking."""

    def __init__(self, logit: Tensor) -> None:
        super().__init__()
        self.logit = nn.Parameter(logit)

    def forward(self, x: Tensor) -> Tensor:
        return self.logit.expand(len(x), -1)


class Pixels(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        """The image itself as the feature map of every depth."""
        return images.flatten(1)[:, None, :, None, None].expand(-1, LINEAR.levels, -1, -1, -1)


def linear_tree(topology: TreeTopology, *, latents: int = 2, seed: int = 0) -> TreeVAE:
    """Random matrices; an inference that is neither exact nor far off."""
    config = LINEAR.model_copy(update={"latent_channels": latents})
    tree = TreeVAE(config, topology, image_channels=1, image_size=2)
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float) -> Tensor:
        return scale * torch.randn(shape, generator=generator)

    def affine(kind: type[Affine], rows: int, a: int, b: int, scale: float, var: float) -> Affine:
        bias = random(rows, b, scale=0.3)
        return kind(random(rows, b, a, scale=scale), bias, torch.full((rows, b), var))

    below, leaves, routers = topology.num_nodes - 1, topology.num_leaves, len(topology.routers)
    tree.bottom_up = Pixels()
    tree.root_head = affine(RootHead, 1, PIXELS, latents, 0.2, 0.8)
    tree.nodes.transformations = affine(Affine, below, latents, latents, 0.6, 0.4)
    tree.nodes.heads = affine(Heads, below, PIXELS, latents, 0.4, 1.5)
    tree.nodes.prior_routers = Constant(random(routers, scale=1))
    tree.nodes.post_routers = Constant(random(routers, scale=1))
    tree.nodes.decoders = affine(Decoders, leaves, latents, PIXELS, 0.4, 0.0)
    return tree.double().eval()


def closed_form(tree: TreeVAE, images: Tensor) -> Array:
    """[n] log p(x): each leaf's Gaussian by pushing the root's through the maps of its path."""
    topology, nodes = tree.topology, tree.nodes
    step = {k: v.detach().numpy() for k, v in nodes.transformations.named_parameters()}
    last = {k: v.detach().numpy() for k, v in nodes.decoders.named_parameters()}
    logit = dict(zip(topology.routers.tolist(), nodes.prior_routers.logit.tolist(), strict=True))
    latents = tree.latent_shape[0]
    terms = []
    for leaf, name in enumerate(topology.leaf_names):
        mean, cov, log_prob = np.zeros(latents), (1 + EPS) * np.eye(latents), 0.0
        for k in range(1, len(name)):
            parent, row = topology.row(name[:k]), topology.row(name[: k + 1]) - 1
            mean = step["weight"][row] @ mean + step["bias"][row]
            cov = step["weight"][row] @ cov @ step["weight"][row].T
            cov = cov + np.diag(step["var"][row] + EPS)
            if parent in logit:
                log_prob += np.log(expit(logit[parent] if name[k] == "0" else -logit[parent]))
        mean = last["weight"][leaf] @ mean + last["bias"][leaf]
        cov = last["weight"][leaf] @ cov @ last["weight"][leaf].T + 0.5 * np.eye(PIXELS)
        pixels = images.flatten(1).double().numpy()
        terms.append(log_prob + multivariate_normal(mean, cov).logpdf(pixels))
    return np.asarray(logsumexp(terms, axis=0))


def exact_tree(topology: TreeTopology, *, a: float = 1.2, v: float = 0.3) -> TreeVAE:
    """z_i ~ N(a z_parent, v), x ~ N(z_leaf + c, 1/2), all leaves alike, with the true posterior."""
    tree = linear_tree(topology, latents=PIXELS)
    centre, unit = 0.5, torch.eye(PIXELS, dtype=torch.float64)
    below, leaves, height = topology.num_nodes - 1, topology.num_leaves, topology.max_depth
    # What x - c says of a node at each depth, leaf first: x - c ~ N(scale z, noise).
    scale, noise = [1.0], [0.5]
    for _ in range(height):
        scale, noise = [a * scale[0], *scale], [scale[0] ** 2 * (v + EPS) + noise[0], *noise]
    says = [(1 / s, e / s**2) for s, e in zip(scale, noise, strict=True)]
    depth = topology.depth[1:].tolist()

    def stack(kind: type[Affine], weight: list[float], bias: list[float], var: list[float]) -> None:
        name = {Affine: "transformations", Heads: "heads", Decoders: "decoders"}[kind]
        w, b, s = (torch.tensor(t, dtype=torch.float64)[:, None] for t in (weight, bias, var))
        ones = unit.new_ones(PIXELS)
        setattr(tree.nodes, name, kind(w[..., None] * unit, b * ones, s * ones))

    stack(Affine, [a] * below, [0.0] * below, [v] * below)
    slope, var = [says[d][0] for d in depth], [says[d][1] - EPS for d in depth]
    stack(Heads, slope, [-centre * s for s in slope], var)
    stack(Decoders, [1.0] * leaves, [centre] * leaves, [0.0] * leaves)
    slope_r, var_r = says[0]
    root_var = 1 / (1 / (1 + EPS) + 1 / var_r)
    share = slope_r * root_var / var_r
    ones = unit.new_ones(1, PIXELS)
    tree.root_head = RootHead(share * unit[None], -centre * share * ones, (root_var - EPS) * ones)
    return tree.eval()


def images_for(tree: TreeVAE, n: int = 3, *, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, *tree.image_shape, dtype=torch.float64, generator=generator)


def seeded(seed: int = 2) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mean_and_se(values: Array) -> tuple[Array, Array]:
    """Over the first axis."""
    return values.mean(0), values.std(0, ddof=1) / math.sqrt(len(values))


def repeated(
    estimator: Estimator, tree: TreeVAE, images: Tensor, *, times: int, samples: int
) -> Array:
    """[times, n] independent estimates: copies of an image have noise of their own."""
    many = images.repeat(times, 1, 1, 1)
    found = estimator(tree, many, samples=samples, chunk=len(many), generator=seeded())
    return found.reshape(times, len(images)).numpy()


@pytest.mark.parametrize("topology", TREES.values(), ids=TREES)
@pytest.mark.parametrize(("samples", "times"), [(1, 20_000), (4, 5_000)])
def test_the_mean_weight_is_unbiased_for_the_closed_form(
    topology: TreeTopology, samples: int, times: int
) -> None:
    """In p(x), however few the draws; known to a few per cent."""
    tree = linear_tree(topology)
    images = images_for(tree)
    found = repeated(log_likelihood, tree, images, times=times, samples=samples)
    mean, se = mean_and_se(np.exp(found - closed_form(tree, images)))
    assert (se < 0.03).all()
    assert (abs(mean - 1) < 4 * se).all()


def test_the_error_shrinks_with_the_root_of_the_draws() -> None:
    """In logarithms it is the relative error of the mean weight."""
    tree = linear_tree(TREES["irregular"], seed=3)
    images = images_for(tree)
    truth = closed_form(tree, images)
    weights = np.exp(repeated(log_likelihood, tree, images, times=20_000, samples=1) - truth)
    for samples in (25, 400):
        found = log_likelihood(tree, images, samples=samples, generator=seeded(7))
        se = weights.std(0, ddof=1) / math.sqrt(samples)
        assert (abs(found.numpy() - truth) < 4 * se).all()
    assert (se < 0.1).all()


def test_estimates_rise_with_the_draws_and_stay_below_log_p() -> None:
    tree = linear_tree(TREES["irregular"])
    images = images_for(tree)
    truth = closed_form(tree, images)
    before, before_se = np.full(3, -np.inf), np.zeros(3)
    for samples in (1, 4, 16):
        found = repeated(log_likelihood, tree, images, times=2000, samples=samples)
        mean, se = mean_and_se(found)
        assert (mean - before > 4 * np.hypot(se, before_se)).all()
        before, before_se = mean, se
    assert (before < truth).all()
    assert (before > truth - 0.2).all()


@pytest.mark.parametrize("name", ["r r1 r10", "r r0 r1 r00 r10", "r r0 r1 r00 r01 r10 r11"])
def test_with_the_true_posterior_every_single_draw_is_exact(name: str) -> None:
    """No Monte-Carlo error to hide in: a density that is off by anything shows."""
    tree = exact_tree(TreeTopology.of(name.split()))
    images = images_for(tree, 50)
    found = log_likelihood(tree, images, samples=1, generator=seeded())
    np.testing.assert_allclose(found.numpy(), closed_form(tree, images), atol=1e-5)


def test_the_published_estimate_goes_beyond_log_p() -> None:
    """To log p(x) plus the spread log E[p(x|z)] - E[log p(x|z)], which is known here.

    The leaf hangs on its root so loosely that its KL is the same whatever the root's sample.
    """
    tree = exact_tree(TreeTopology.of(["r", "r1"]), a=1e-4, v=1.0)
    images = images_for(tree)
    truth = closed_form(tree, images)
    shift, var = images.flatten(1).numpy() - 0.5, 1 / 3  # the posterior's: prior 1, image 1/2
    rest = shift - 2 * var * shift  # x less its posterior mean
    log_mean = (-(rest**2) / (1 + 2 * var) - 0.5 * np.log(np.pi * (1 + 2 * var))).sum(1)
    mean_log = (-(rest**2) - var - 0.5 * np.log(np.pi)).sum(1)
    limit = truth + log_mean - mean_log
    assert (limit > truth + 0.2).all()

    found = repeated(published_log_likelihood, tree, images, times=20_000, samples=1)
    mean, se = mean_and_se(np.exp(found - limit))
    assert (abs(mean - 1) < 4 * se).all()
    assert (se < 0.01).all()
    elbo, se = mean_and_se(found)  # a single draw's, which nothing is gained on
    assert (abs(elbo - truth) < 4 * se).all()
    many = published_log_likelihood(tree, images, samples=400, generator=seeded()).numpy()
    assert (many > truth + 0.1).all()
    proper = log_likelihood(tree, images, samples=400, generator=seeded()).numpy()
    np.testing.assert_allclose(proper, truth, atol=1e-5)


def test_images_of_no_probability_have_a_finite_logarithm() -> None:
    """Of which no float64 holds the exponential."""
    tree = exact_tree(TREES["chain"])
    tree.nodes.decoders.bias.data += 300
    tree.root_head.bias.data -= 300 * tree.root_head.weight.data[0].diagonal()
    tree.nodes.heads.bias.data -= 300 * tree.nodes.heads.weight.data.diagonal(dim1=1, dim2=2)
    images = images_for(tree)
    truth = closed_form(tree, images)
    found = log_likelihood(tree, images, samples=5, generator=seeded())
    assert (truth < -1e4).all()
    np.testing.assert_allclose(found.numpy(), truth, rtol=1e-5)
