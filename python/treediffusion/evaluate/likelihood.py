"""Log-likelihood of images under a TreeVAE, by importance weighting; and the published estimate.

    p(x) = sum_l int p(z_path(l)) p(l | z_path(l)) p(x | z_l) dz_path(l)  ~  1/S sum_s w_s

    w_s  = sum_l p(l | z) p(x | z_l) prod_{i on path(l)} p(z_i | z_parent) / q(z_i | z_parent, x)

with one posterior sample z of all nodes per draw. Where decisions are not sampled there is nothing
to correct: the inference routers do not enter. Nothing here is differentiable, and labels are not
involved. For 1000 draws of a data set expect 1000 times the work of its ELBO.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ..nn.gaussians import EPS, Gaussian, merge
from ..nn.tree_objective import image_error, leaf_shares
from ..nn.tree_vae import Inference, TreeVAE
from ..progress import Progress

CHUNK = 512


def log_likelihood(
    tree: TreeVAE,
    images: Tensor,
    *,
    samples: int = 1000,
    chunk: int = CHUNK,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Importance-weighted estimate of log p(x): log of the mean weight of S draws.

    The mean weight is unbiased for p(x). A leaf's term depends on the samples of its path alone;
    those of other nodes, drawn from their normalised posteriors, integrate to 1. So one draw of all
    nodes serves every leaf, and the sum over leaves is exact, without the variance that sampling a
    leaf would add. By Jensen the logarithm is too low on average, less so with every draw: it lies
    between the ELBO and log p(x) in expectation.

    Bernoulli: minus the cross entropy, which is normalised over black-and-white images and, as in
    the papers, applied to grey ones. Gaussian: the model's squared error has no factor 1/2, so its
    variance is 1/2; the normaliser -(D / 2) log pi of D = C H W pixels is included.

    Draw s reads the generator's s-th standard normal tensor [n, N, Z, R, R]: results do not depend
    on `chunk`. Images, bottom-up maps and one draw's noise are held for all n images, samples and
    decoded images for one chunk.

    Args:
        tree: in eval mode.
        images: [n, C, H, W] float in 0..1, n at least 1.
        samples: S, draws per image.
        chunk: images in a pass.
        generator: of the noise; PyTorch's own if None.
        progress: advanced by n with every draw; n * samples in all.

    Returns:
        [n] float64, nats per image.

    Raises:
        ConfigError: samples or chunk below 1, or a tree in training mode.
        ShapeError: images of another shape or kind, or a pixel outside 0..1.
    """
    _check(tree, images, samples=samples, chunk=chunk)
    return _log_mean_exp(_log_weight, tree, images, samples, chunk, generator, progress)


def published_log_likelihood(
    tree: TreeVAE,
    images: Tensor,
    *,
    samples: int = 1000,
    chunk: int = CHUNK,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """What the published code reports as log-likelihood: log 1/S sum_s exp(-E_s).

    E_s is the sampled negative ELBO: Gaussian KLs in closed form (that code, unlike this, cuts a
    node's at 1000 nats) and the exact mean over leaves of the reconstruction error. This is no
    importance weighting and no bound of log p(x): a KL is an average over samples already, not the
    weight of the sample at hand. With a perfect posterior the ELBO is log p(x), and averaging
    exp(-E_s) instead of -E_s can only add to it, so that the estimate is too high by about half the
    variance of E_s. A poor posterior takes off its divergence, which nothing corrects; either error
    can be the larger one.

    It serves comparison with published tables only. Arguments, noise, units and errors are those
    of `log_likelihood`, and so are both likelihoods with their normalisers.
    """
    _check(tree, images, samples=samples, chunk=chunk)
    return _log_mean_exp(_sampled_elbo, tree, images, samples, chunk, generator, progress)


@torch.no_grad()
def _log_mean_exp(
    value: Callable[[TreeVAE, Tensor, Inference], Tensor],
    tree: TreeVAE,
    images: Tensor,
    samples: int,
    chunk: int,
    generator: torch.Generator | None,
    progress: Progress | None,
) -> Tensor:
    """[n] float64, log of the mean over draws of exp(value), kept as a running sum."""
    some = next(tree.parameters())
    images = images.to(device=some.device, dtype=some.dtype)
    device = some.device if generator is None else generator.device
    shape = (len(images), tree.topology.num_nodes, *tree.latent_shape)
    parts = torch.split(images, chunk)
    features = [tree.bottom_up(part) for part in parts]
    total = torch.full((len(images),), -torch.inf, dtype=torch.float64, device=some.device)
    for _ in range(samples):
        noise = torch.randn(shape, dtype=some.dtype, device=device, generator=generator)
        values = [
            value(tree, part, tree.infer(features=maps, noise=one.to(some.device)))
            for part, maps, one in zip(parts, features, torch.split(noise, chunk), strict=True)
        ]
        total = torch.logaddexp(total, torch.cat(values))
        if progress is not None:
            progress.advance(len(images), "log-likelihood")
    return total - math.log(samples)


def _log_weight(tree: TreeVAE, images: Tensor, found: Inference) -> Tensor:
    """[n, C, H, W] images and a draw -> [n] float64, log w."""
    topology = tree.topology
    log_leaf = tree.nodes.log_node_prob(found.nodes.prior_logit)[:, topology.leaves.tolist()]
    # A path's empty slots are -1, the column of zeros.
    log_path = F.pad(_log_ratio(tree, found), (0, 1))[:, topology.paths.tolist()].sum(-1)
    return torch.logsumexp(log_path + log_leaf + _log_image(tree, images, found), dim=1)


def _log_ratio(tree: TreeVAE, found: Inference) -> Tensor:
    """[n, N] float64, log p(z_i | z_parent) - log q(z_i | z_parent, x) of each node's sample."""
    z, stack = found.nodes.z, tree.nodes
    # Priors depend on finished samples alone here, so that all levels are one call.
    prior = stack.transformations(z[:, tree.topology.parent[1:].tolist()])
    posterior = merge(stack.heads(found.features[:, None]), prior)
    root = tree.root_posterior(found.features)
    unit = Gaussian(torch.zeros_like(root.mean), torch.ones_like(root.var))
    return torch.cat(
        [
            (_log_density(unit, z[:, 0]) - _log_density(root, z[:, 0]))[:, None],
            _log_density(prior, z[:, 1:]) - _log_density(posterior, z[:, 1:]),
        ],
        dim=1,
    )


def _log_density(gaussian: Gaussian, z: Tensor) -> Tensor:
    """[..., Z, R, R] -> [...] float64, nats, less the constant that ratios do not have."""
    mean, var = gaussian.mean.double(), gaussian.var.double() + EPS
    return -0.5 * ((z - mean) ** 2 / var + torch.log(var)).flatten(-3).sum(-1)


def _log_image(tree: TreeVAE, images: Tensor, found: Inference) -> Tensor:
    """[n, L] float64, log p(x | z_l) in nats."""
    output = tree.nodes.decode(found.nodes.z)
    error = image_error(output, images[:, None], tree.config.likelihood)
    return _log_normaliser(tree) - error.double()


def _log_normaliser(tree: TreeVAE) -> float:
    """What a density has besides exp(-error): that of D Gaussians of variance 1/2, or nothing."""
    gaussian = tree.config.likelihood == "gaussian"
    return -math.prod(tree.image_shape) / 2 * math.log(math.pi) if gaussian else 0.0


def _sampled_elbo(tree: TreeVAE, images: Tensor, found: Inference) -> Tensor:
    """[n, C, H, W] images and a draw -> [n] float64, -E."""
    shares = leaf_shares(tree.nodes, found, images, likelihood=tree.config.likelihood)
    return _log_normaliser(tree) - shares.elbo.double().sum(1)


def _check(tree: TreeVAE, images: Tensor, *, samples: int, chunk: int) -> None:
    for name, count in (("samples", samples), ("chunk", chunk)):
        if count < 1:
            raise ConfigError(name, got=count, expected="1 or more")
    if tree.training:
        raise ConfigError(
            "tree",
            got="training mode, whose norms mix images",
            expected="eval mode",
            hint="call tree.eval() first",
        )
    expected = f"float [n, {', '.join(map(str, tree.image_shape))}] in 0..1, n at least 1"
    if images.shape[1:] != tree.image_shape or not len(images) or not images.is_floating_point():
        raise ShapeError("images", got=f"{images.dtype} {list(images.shape)}", expected=expected)
    outside = ~((images >= 0) & (images <= 1))  # which a NaN is, too
    if outside.any():
        raise ShapeError("images", got=f"a pixel of {images[outside][0]:g}", expected=expected)
