"""Log-likelihood of real trees: term by term, laws, bad input.

Closed forms are in `test_likelihood_closed_form.py`. Random tests have fixed seeds.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal
from treediffusion.config import TreeConfig
from treediffusion.errors import ConfigError, ShapeError
from treediffusion.evaluate.likelihood import log_likelihood, published_log_likelihood
from treediffusion.nn.gaussians import EPS
from treediffusion.nn.stacked import StackedNorm, by_rows
from treediffusion.nn.tree_objective import tree_elbo
from treediffusion.nn.tree_vae import TreeVAE
from treediffusion.progress import Progress
from treediffusion.topology import TreeTopology

Estimator = Callable[..., Tensor]

INITIAL = TreeTopology.initial()
TREES = {
    "two leaves": INITIAL,
    "irregular": INITIAL.grow("r0").grow("r01").grow("r1"),
    "single child": INITIAL.grow("r0").grow("r1").prune("r11"),
    "single child of the root": INITIAL.grow("r1").grow("r10").prune("r0"),
    "chain": TreeTopology.of(["r", "r1", "r10"]),
}
BOTH = [log_likelihood, published_log_likelihood]
REAL = TreeConfig(latent_channels=3, channels=5, levels=5, codec_sizes=(6, 4, 2))


def real_tree(topology: TreeTopology, *, seed: int = 0, likelihood: str = "bernoulli") -> TreeVAE:
    """Networks with random weights and norms with statistics of their own."""
    torch.manual_seed(seed)
    config = REAL.model_copy(update={"likelihood": likelihood})
    tree = TreeVAE(config, topology, image_channels=2, image_size=6).double().eval()
    for module in tree.modules():
        if isinstance(module, StackedNorm | nn.BatchNorm2d):
            module.weight.data.uniform_(1, 2)
            module.running_var.uniform_(0.1, 0.5)
            module.bias.data.normal_(0, 0.5)
    return tree


def images_for(tree: TreeVAE, n: int = 3, *, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, *tree.image_shape, dtype=torch.float64, generator=generator)


def seeded(seed: int = 2) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(tree: TreeVAE, n: int, samples: int) -> Tensor:
    """[S, n, N, Z, R, R]: the noise that an estimator takes from `seeded()`."""
    generator, shape = seeded(), (n, tree.topology.num_nodes, *tree.latent_shape)
    one = [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(samples)]
    return torch.stack(one)


def term_by_term(tree: TreeVAE, image: Tensor, noise: Tensor) -> float:
    """log w of one image and draw: densities of PyTorch's distributions, a leaf and node at a time.

    image: [1, C, H, W]; noise: [1, N, Z, R, R].
    """
    topology, nodes = tree.topology, tree.nodes
    features = tree.bottom_up(image)
    estimate = nodes.heads(features[:, None])
    root = tree.root_posterior(features)

    def normal(mean: Tensor, var: Tensor) -> Normal:
        return Normal(mean, torch.sqrt(var + EPS))

    q = {"r": normal(*root)}
    p = {"r": normal(torch.zeros_like(root.mean), torch.ones_like(root.var))}
    z = {"r": q["r"].mean + q["r"].stddev * noise[:, 0]}
    transforms = by_rows(nodes.transformations, [1] * (topology.num_nodes - 1))
    for row, name in enumerate(topology.names[1:], start=1):
        prior = transforms[row - 1](z[name[:-1]][:, None])
        mean_p, var_p = prior.mean[:, 0], prior.var[:, 0]
        mean_i, var_i = estimate.mean[:, row - 1], estimate.var[:, row - 1]
        var = 1 / (1 / (var_i + EPS) + 1 / (var_p + EPS))
        mean = var * (mean_i / (var_i + EPS) + mean_p / (var_p + EPS))
        p[name], q[name] = normal(mean_p, var_p), normal(mean, var)
        z[name] = mean + q[name].stddev * noise[:, row]
    routers = [topology.names[row] for row in topology.routers]
    everywhere = torch.stack([z[name] for name in topology.names], dim=1)
    logit = nodes.prior_routers(everywhere[:, topology.routers.tolist()])[0]
    output = nodes.decode(everywhere)[0]
    weights = []
    for leaf, name in enumerate(topology.leaf_names):
        if tree.config.likelihood == "bernoulli":
            seen = Bernoulli(logits=output[leaf], validate_args=False).log_prob(image[0])
        else:
            seen = Normal(output[leaf], math.sqrt(0.5)).log_prob(image[0])
        weight = seen.sum()
        for k in range(1, len(name) + 1):
            node = name[:k]
            weight = weight + (p[node].log_prob(z[node]) - q[node].log_prob(z[node])).sum()
            if node in routers:
                turn = Bernoulli(logits=logit[routers.index(node)])
                weight = weight + turn.log_prob(weight.new_tensor(float(name[k] == "0")))
        weights.append(weight.item())
    return float(logsumexp(weights))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("topology", TREES.values(), ids=TREES)
@torch.no_grad()
def test_weights_of_real_trees_are_those_found_term_by_term(
    topology: TreeTopology, likelihood: str
) -> None:
    tree = real_tree(topology, likelihood=likelihood)
    images, samples = images_for(tree), 3
    found = log_likelihood(tree, images, samples=samples, chunk=2, generator=seeded())
    noise = draws(tree, len(images), samples)
    for row, image in enumerate(images):
        each = [term_by_term(tree, image[None], noise[s, row : row + 1]) for s in range(samples)]
        assert found[row].item() == pytest.approx(logsumexp(each) - math.log(samples), abs=1e-9)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("topology", TREES.values(), ids=TREES)
@torch.no_grad()
def test_the_published_estimate_averages_the_exponentials_of_the_objective(
    topology: TreeTopology, likelihood: str
) -> None:
    tree = real_tree(topology, likelihood=likelihood)
    images, samples = images_for(tree), 3
    found = published_log_likelihood(tree, images, samples=samples, chunk=2, generator=seeded())
    noise = draws(tree, len(images), samples)
    normaliser = images[0].numel() / 2 * math.log(math.pi) if likelihood == "gaussian" else 0.0
    for row in range(len(images)):
        image, each = images[row : row + 1], []
        for s in range(samples):
            passed = tree.infer(image, noise=noise[s, row : row + 1])
            elbo = tree_elbo(tree.nodes, passed, image, likelihood=likelihood)
            each.append(-float(elbo.loss(1.0)) - normaliser)
        assert found[row].item() == pytest.approx(logsumexp(each) - math.log(samples), abs=1e-9)


@torch.no_grad()
def test_the_elbo_of_a_real_tree_is_below_one_draw_and_that_below_many() -> None:
    tree = real_tree(TREES["irregular"])
    many = images_for(tree, 1).repeat(1000, 1, 1, 1)
    # The published estimate of a single draw is the sampled ELBO.
    elbo = published_log_likelihood(tree, many, samples=1, chunk=1000, generator=seeded())
    one = log_likelihood(tree, many, samples=1, chunk=1000, generator=seeded())
    five = log_likelihood(tree, many, samples=5, chunk=1000, generator=seeded(5))
    for low, high in ((elbo, one), (one, five)):
        gain = high - low
        assert gain.mean() > 4 * gain.std() / math.sqrt(len(many))


@pytest.mark.parametrize("estimator", BOTH)
def test_results_do_not_depend_on_chunks_nor_on_other_images(estimator: Estimator) -> None:
    tree = real_tree(TREES["irregular"])
    images = images_for(tree, 7)
    whole = estimator(tree, images, samples=3, generator=seeded())
    assert whole.shape == (7,)
    assert whole.dtype == torch.float64
    for chunk in (1, 3, 7):
        part = estimator(tree, images, samples=3, chunk=chunk, generator=seeded())
        torch.testing.assert_close(part, whole, rtol=1e-12, atol=1e-12)
    others = torch.cat([images[:1], 1 - images[1:]])
    alone = estimator(tree, others, samples=3, generator=seeded())
    torch.testing.assert_close(alone[0], whole[0], rtol=1e-12, atol=1e-12)
    assert (alone[1:] != whole[1:]).all()


def test_the_inference_routers_do_not_enter() -> None:
    """Leaves are summed, not sampled; the published estimate does depend on them."""
    tree = real_tree(TREES["irregular"])
    images = images_for(tree)
    before = [one(tree, images, samples=3, generator=seeded()) for one in BOTH]
    tree.nodes.post_routers.out.bias.data += 1
    after = [one(tree, images, samples=3, generator=seeded()) for one in BOTH]
    assert torch.equal(before[0], after[0])
    assert (before[1] != after[1]).all()


@pytest.mark.parametrize("estimator", BOTH)
def test_float32_trees_lose_little(estimator: Estimator) -> None:
    """And take images of another precision."""
    tree = real_tree(TREES["irregular"])
    images = images_for(tree)
    noise = draws(tree, 3, 1)[0]
    truth = estimator(tree, images, samples=1, generator=seeded())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda *_, **__: noise.float())
        found = estimator(tree.float(), images, samples=1)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-3)


@pytest.mark.parametrize("estimator", BOTH)
def test_a_pass_holds_one_chunk_and_reports_to_the_bar(estimator: Estimator) -> None:
    tree = real_tree(INITIAL)
    decoded: list[int] = []
    tree.nodes.decoders.register_forward_hook(lambda _m, _i, out: decoded.append(len(out)))
    progress = Progress(15, "log-likelihood", stream=io.StringIO())
    found = estimator(tree, images_for(tree, 5), samples=3, chunk=2, progress=progress)
    assert decoded == [2, 2, 1] * 3
    assert progress.done == 15
    assert not found.requires_grad


IMAGES = torch.full((2, 2, 6, 6), 0.5)


@pytest.mark.parametrize("estimator", BOTH)
@pytest.mark.parametrize(
    "images",
    [
        IMAGES[0],
        IMAGES[:, :1],
        IMAGES[:0],
        IMAGES.to(torch.uint8),
        IMAGES.masked_fill(IMAGES > 0, torch.nan),
        IMAGES + 0.6,
        IMAGES - 0.6,
    ],
    ids=["three axes", "channels", "none", "bytes", "not a number", "above 1", "below 0"],
)
def test_images_that_do_not_fit(estimator: Estimator, images: Tensor) -> None:
    with pytest.raises(ShapeError) as caught:
        estimator(real_tree(INITIAL), images, samples=1)
    assert caught.value.name == "images"


@pytest.mark.parametrize("estimator", BOTH)
def test_settings_that_make_no_sense(estimator: Estimator) -> None:
    tree = real_tree(INITIAL)
    for name in ("samples", "chunk"):
        with pytest.raises(ConfigError) as caught:
            estimator(tree, IMAGES, **{name: 0})
        assert caught.value.name == name
    with pytest.raises(ConfigError, match=r"tree\.eval"):
        estimator(tree.train(), IMAGES, samples=1)
