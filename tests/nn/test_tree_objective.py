"""The objective's terms against closed forms, the library, and loops over samples."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence
from treediffusion.config import ContrastiveConfig, TreeConfig
from treediffusion.nn.gaussians import Gaussian, kl
from treediffusion.nn.node_stack import TreePass
from treediffusion.nn.tree_objective import (
    KL_LIMIT,
    Elbo,
    bernoulli_kl,
    contrastive_loss,
    embedding_contrast,
    image_error,
    leaf_shares,
    router_contrast,
    subtree_elbo,
    tree_elbo,
)
from treediffusion.nn.tree_vae import Inference, TreeVAE
from treediffusion.topology import TreeTopology

TREE = TreeTopology.initial().grow("r0")  # rows: r, r0, r1, r00, r01; leaves: r1, r00, r01
CONFIG = TreeConfig(latent_channels=3, channels=5, levels=4, max_leaves=3)
BATCH = 4


def close(ours: Tensor, truth: Tensor, *, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(ours, truth, rtol=tolerance, atol=tolerance)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def make_tree(topology: TreeTopology = TREE, **settings: object) -> TreeVAE:
    torch.manual_seed(0)
    config = CONFIG.model_copy(update=settings)
    return TreeVAE(config, topology, image_channels=1, image_size=8).double().eval()


def known_pass(tree: TreeVAE, *, divergence: float = 1.0) -> Inference:
    """A pass that no network made, between Gaussians one standard deviation apart."""
    shape = (BATCH, 4, *tree.latent_shape)
    prior = Gaussian(torch.zeros(shape).double(), torch.ones(shape).double())
    posterior = Gaussian(prior.mean + math.sqrt(divergence), prior.var)
    post, previous = draw(BATCH, 2, seed=1), draw(BATCH, 2, seed=2)
    nodes = TreePass(
        z=draw(BATCH, 5, *tree.latent_shape, seed=3),
        node_kl=kl(posterior, prior),
        post_logit=post,
        prior_logit=previous,
        log_node_prob=tree.nodes.log_node_prob(post),
    )
    root_kl = kl(Gaussian(posterior.mean[:, 0], posterior.var[:, 0]),
                 Gaussian(prior.mean[:, 0], prior.var[:, 0]))  # fmt: skip
    return Inference(features=draw(BATCH, 4, 5, 2, 2), root_kl=root_kl, nodes=nodes)


def reach(logit: Tensor) -> dict[str, Tensor]:
    """[B, 2] logits of r and r0 -> probability of each node, by hand."""
    at_root, below = torch.sigmoid(logit).unbind(1)
    return {
        "r": torch.ones_like(at_root),
        "r0": at_root,
        "r1": 1 - at_root,
        "r00": at_root * below,
        "r01": at_root * (1 - below),
    }


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_terms_of_known_gaussians_are_their_closed_forms(likelihood: str) -> None:
    """Unit Gaussians a distance of 1 apart diverge by 1/2 in each of D dimensions.

    The nodes of a level share what probability reaches them.
    """
    tree = make_tree(likelihood=likelihood)
    found, images = known_pass(tree), torch.sigmoid(draw(BATCH, 1, 8, 8, seed=5))
    elbo = tree_elbo(tree.nodes, found, images, likelihood=likelihood)
    dimensions = math.prod(tree.latent_shape)
    assert found.nodes.post_logit is not None
    prob = reach(found.nodes.post_logit)
    close(elbo.kl_root, torch.tensor(dimensions / 2).double(), tolerance=1e-6)
    expected = dimensions / 2 * (1 + prob["r00"] + prob["r01"]).mean()
    close(elbo.kl_nodes, expected, tolerance=1e-6)

    q, p = (Bernoulli(logits=logit) for logit in (found.nodes.post_logit, found.nodes.prior_logit))
    decisions = kl_divergence(q, p)
    close(elbo.kl_decisions, (decisions[:, 0] + prob["r0"] * decisions[:, 1]).mean())

    outputs = tree.nodes.decode(found.nodes.z)
    total = torch.zeros(BATCH).double()
    for leaf, name in enumerate(TREE.leaf_names):
        output = outputs[:, leaf]
        if likelihood == "bernoulli":
            loss = F.binary_cross_entropy_with_logits(output, images, reduction="none")
        else:
            loss = F.mse_loss(output, images, reduction="none")
        total += prob[name] * loss.sum(dim=(1, 2, 3))
    close(elbo.reconstruction, total.mean())


def test_loss_weighs_the_divergences_alone() -> None:
    elbo = Elbo(*(torch.tensor(float(value)) for value in (100, 1, 2, 4)))
    assert elbo.kl == 7
    assert elbo.loss(0.0) == 100
    assert elbo.loss(0.5) == 103.5
    assert elbo.loss(1.0) == 107


def test_divergences_are_cut_at_a_thousand_after_weighing() -> None:
    """Of each image and node by itself; a cut one has no gradient."""
    tree = make_tree()
    found, images = known_pass(tree), torch.rand(BATCH, 1, 8, 8, dtype=torch.float64)
    node_kl = torch.full((BATCH, 4), 1500.0).double().requires_grad_()
    root_kl = torch.tensor([10.0, 999.0, 1001.0, 5000.0]).double().requires_grad_()
    nodes = TreePass(
        z=found.nodes.z,
        node_kl=node_kl,
        post_logit=found.nodes.post_logit,
        prior_logit=found.nodes.prior_logit,
        log_node_prob=found.nodes.log_node_prob,
    )
    elbo = tree_elbo(
        tree.nodes, Inference(found.features, root_kl, nodes), images, likelihood="bernoulli"
    )
    assert KL_LIMIT == 1000
    close(elbo.kl_root, torch.tensor((10 + 999 + 1000 + 1000) / 4).double())
    weighed = 1500 * found.nodes.log_node_prob.exp()[:, 1:]
    close(elbo.kl_nodes, weighed.clamp(max=1000).sum(1).mean())
    of_root, of_nodes = torch.autograd.grad(elbo.kl, [root_kl, node_kl])
    assert (of_root != 0).tolist() == [True, True, False, False]
    assert ((of_nodes != 0) == (weighed <= 1000)).all()
    assert (weighed > 1000).any()
    assert (weighed < 1000).any()


def test_a_subtrees_divergences_are_not_cut() -> None:
    """Those of the published small tree are limited after the mean alone, at 1e10 nats."""
    tree = make_tree()
    children = tree.new_leaves("r1").double().eval()
    found, images = tree.infer(draw(BATCH, 1, 8, 8).sigmoid()), draw(BATCH, 1, 8, 8).sigmoid()
    part = children(found.nodes.z[:, 2:3], found.features[:, None, 1:])
    node_kl = torch.full((BATCH, 2), 5000.0).double().requires_grad_()
    log_prob = F.logsigmoid(draw(BATCH, seed=4))
    elbo = subtree_elbo(
        children, replace(part, node_kl=node_kl), images, log_prob, likelihood="bernoulli"
    )
    weighed = 5000 * (part.log_node_prob[:, 1:] + log_prob[:, None]).exp()
    assert (weighed > KL_LIMIT).any()
    close(elbo.kl_nodes, weighed.sum(1).mean().clamp(-10, 1e10))
    (gradient,) = torch.autograd.grad(elbo.kl_nodes, node_kl)
    assert (gradient != 0).all()


def test_node_divergences_equal_the_published_sum_over_nodes_and_images() -> None:
    """One image and node after another: cut, summed, averaged, and limited to -10..1e10."""
    tree = make_tree()
    found, images = known_pass(tree), torch.rand(BATCH, 1, 8, 8, dtype=torch.float64)
    node_kl = draw(BATCH, 4, seed=6).exp() * 900
    nodes = replace(found.nodes, node_kl=node_kl)
    elbo = tree_elbo(tree.nodes, replace(found, nodes=nodes), images, likelihood="bernoulli")
    assert found.nodes.post_logit is not None
    prob, total = reach(found.nodes.post_logit), 0.0
    for image in range(BATCH):
        for row, name in enumerate(TREE.names[1:]):
            weighed = prob[name][image].item() * node_kl[image, row].item()
            total += max(-1.0, min(weighed, 1000.0))
    expected = max(-10.0, min(total / BATCH, 1e10))
    assert elbo.kl_nodes.item() == pytest.approx(expected)


SINGLE = TreeTopology.of(["r", "r0", "r1", "r00", "r10", "r11"])  # r0 has one child


@pytest.mark.parametrize("topology", [TREE, SINGLE])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_leaves_share_the_negative_elbo_without_a_rest(
    topology: TreeTopology, likelihood: str
) -> None:
    """And the reconstruction term; as long as no divergence is cut."""
    tree, images = make_tree(topology), draw(BATCH, 1, 8, 8).sigmoid()
    found = tree.infer(images)
    shares = leaf_shares(tree.nodes, found, images, likelihood=likelihood)
    elbo = tree_elbo(tree.nodes, found, images, likelihood=likelihood)
    assert shares.elbo.shape == shares.reconstruction.shape == (BATCH, topology.num_leaves)
    close(shares.elbo.sum(1).mean(), elbo.loss(1.0))
    close(shares.reconstruction.sum(1).mean(), elbo.reconstruction)


def test_a_leafs_share_is_its_probability_times_what_its_path_costs() -> None:
    tree, images = make_tree(), draw(BATCH, 1, 8, 8).sigmoid()
    found = known_pass(tree)
    seen = found.nodes
    assert seen.node_kl is not None
    assert seen.post_logit is not None
    node_kl = dict(zip(TREE.names, (found.root_kl, *seen.node_kl.unbind(1)), strict=True))
    decision = dict(
        zip(("r", "r0"), bernoulli_kl(seen.post_logit, seen.prior_logit).T, strict=True)
    )
    prob, outputs = reach(seen.post_logit), tree.nodes.decode(seen.z)
    shares = leaf_shares(tree.nodes, found, images, likelihood="bernoulli")
    for leaf, name in enumerate(TREE.leaf_names):
        above = [name[:k] for k in range(1, len(name))]
        error = image_error(outputs[:, leaf], images, "bernoulli")
        cost = error + sum(node_kl[n] for n in [*above, name]) + sum(decision[n] for n in above)
        close(shares.reconstruction[:, leaf], prob[name] * error)
        close(shares.elbo[:, leaf], prob[name] * cost)


def test_gradients_flow_through_the_probabilities_that_weigh() -> None:
    """Also where a term does not depend on the routers otherwise, as published."""
    tree = make_tree()
    found = tree.infer(torch.rand(BATCH, 1, 8, 8, dtype=torch.float64))
    elbo = tree_elbo(tree.nodes, found, torch.rand(BATCH, 1, 8, 8).double(), likelihood="bernoulli")
    bias = tree.nodes.post_routers.out.bias
    for term in (elbo.reconstruction, elbo.kl_nodes, elbo.kl_decisions):
        (gradient,) = torch.autograd.grad(term, bias, retain_graph=True)
        assert (gradient != 0).all()


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_a_subtree_is_its_share_of_the_whole_tree(likelihood: str) -> None:
    """Whole = what remains above and beside + the two leaves that grew under r0."""
    start = make_tree(TreeTopology.initial(), likelihood=likelihood)
    children = start.new_leaves("r1").double().eval()
    tree = start.grow("r0", children)
    assert tree.topology == TREE
    images, noise = draw(BATCH, 1, 8, 8).sigmoid(), draw(BATCH, 5, *tree.latent_shape, seed=1)
    whole = tree.infer(images, noise=noise)
    log_prob = whole.nodes.log_node_prob[:, 1]
    part = children(whole.nodes.z[:, 1:2], whole.features[:, None, 1:], noise=noise[:, 3:])
    small = subtree_elbo(children, part, images, log_prob, likelihood=likelihood)
    full = tree_elbo(tree.nodes, whole, images, likelihood=likelihood)

    prob = whole.nodes.log_node_prob.exp()
    assert whole.nodes.node_kl is not None
    assert whole.nodes.post_logit is not None
    right = image_error(tree.nodes.decode(whole.nodes.z)[:, 0], images, likelihood)
    close(full.reconstruction - (prob[:, 2] * right).mean(), small.reconstruction)
    above = (prob[:, 1:3] * whole.nodes.node_kl[:, :2]).sum(1).mean()
    close(full.kl_nodes - above, small.kl_nodes)
    at_root = bernoulli_kl(whole.nodes.post_logit[:, 0], whole.nodes.prior_logit[:, 0])
    close(full.kl_decisions - at_root.mean(), small.kl_decisions)
    assert small.kl_root == 0


def test_a_subtree_that_nothing_reaches_costs_nothing() -> None:
    tree = make_tree()
    children = tree.new_leaves("r1").double().eval()
    images = torch.rand(BATCH, 1, 8, 8, dtype=torch.float64)
    found = tree.infer(images)
    part = children(found.nodes.z[:, 2:3], found.features[:, None, 1:])
    never = torch.full((BATCH,), -1e4).double()
    elbo = subtree_elbo(children, part, images, never, likelihood="bernoulli")
    assert elbo.loss(1.0) == 0


def test_bernoulli_divergence_equals_the_library() -> None:
    q, p = draw(100, seed=1) * 5, draw(100, seed=2) * 5
    close(bernoulli_kl(q, p), kl_divergence(Bernoulli(logits=q), Bernoulli(logits=p)))
    assert torch.equal(bernoulli_kl(q, q), torch.zeros(100).double())


def test_bernoulli_divergence_is_the_published_one() -> None:
    """Which adds 1e-7 inside its logarithms, and so differs by no more than that order."""
    q_logit, p_logit = draw(100, seed=1) * 2, draw(100, seed=2) * 2
    q, p, eps = torch.sigmoid(q_logit), torch.sigmoid(p_logit), 1e-7
    published = q * torch.log(eps + q / (p + eps))
    published += (1 - q) * torch.log(eps + (1 - q) / (1 - p + eps))
    close(bernoulli_kl(q_logit, p_logit), published, tolerance=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("q", [-200.0, 0.0, 200.0])
@pytest.mark.parametrize("p", [-200.0, 0.0, 200.0])
def test_bernoulli_divergence_of_saturated_logits(q: float, p: float, dtype: torch.dtype) -> None:
    """Certain of the other side: 200 nats; half and half against certain: 100 less ln 2."""
    table = {(0, 0): 0.0, (1, 0): math.log(2), (0, 1): 100 - math.log(2), (1, -1): 200.0}
    side = (q > 0) - (q < 0), (p > 0) - (p < 0)
    expected = 0.0 if side[0] == side[1] else table[abs(side[0]), side[1] * (side[0] or side[1])]
    logits = [torch.tensor(value, dtype=dtype, requires_grad=True) for value in (q, p)]
    divergence = bernoulli_kl(*logits)
    assert divergence.item() == pytest.approx(expected, rel=1e-6)
    for gradient in torch.autograd.grad(divergence, logits):
        assert gradient.isfinite()


def test_image_error_equals_the_library() -> None:
    output, images = draw(2, 3, 1, 6, 6) * 5, draw(2, 1, 1, 6, 6, seed=1).sigmoid()
    assert output.abs().max() < 20  # beyond, softplus is cut to a line: 2e-9 nats less
    wide = images.expand_as(output)
    entropy = F.binary_cross_entropy_with_logits(output, wide, reduction="none")
    close(image_error(output, images, "bernoulli"), entropy.sum(dim=(2, 3, 4)))
    square = F.mse_loss(output, wide, reduction="none")
    close(image_error(output, images, "gaussian"), square.sum(dim=(2, 3, 4)))


def test_squared_error_is_a_unit_gaussian_of_half_the_variance() -> None:
    """Without the published method's missing 1/2: log N(x; mu, 1/2) up to a constant."""
    output, images = draw(3, 1, 4, 4), draw(3, 1, 4, 4, seed=1)
    log_density = Normal(output, math.sqrt(0.5)).log_prob(images).sum(dim=(1, 2, 3))
    constant = 16 * 0.5 * math.log(math.pi)
    close(image_error(output, images, "gaussian"), -log_density - constant)


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_image_error_of_saturated_logits_is_linear(logit: float) -> None:
    error = image_error(torch.full((1, 1, 2, 2), logit), torch.full((1, 1, 2, 2), 0.5), "bernoulli")
    assert error.item() == pytest.approx(4 * 0.5e4)


def naive_contrast(vectors: Tensor, temperature: float) -> list[Tensor]:
    """-log( S_ii' / sum_{j != i} S_ij ) for each sample i with partner i', one after another."""
    count = len(vectors)
    losses = []
    for i in range(count):
        score = {}
        for j in range(count):
            cosine = vectors[i] @ vectors[j] / (vectors[i].norm() * vectors[j].norm())
            score[j] = torch.exp(cosine / temperature)
        others = sum(score[j] for j in range(count) if j != i)
        losses.append(-torch.log(score[(i + count // 2) % count] / others))
    return losses


def test_router_contrast_equals_a_loop_over_samples() -> None:
    """Temperature 1, weighed by the probability of reaching the router, summed over routers."""
    logit, prob = draw(8, 3), draw(8, 3, seed=1).sigmoid()
    expected = torch.zeros(()).double()
    for router in range(3):
        left = torch.sigmoid(logit[:, router])
        losses = naive_contrast(torch.stack([left, 1 - left], dim=1), 1.0)
        weights = prob[:, router]
        expected += sum(w * loss for w, loss in zip(weights, losses, strict=True)) / weights.sum()
    close(router_contrast(logit, prob.log()), expected)


def test_the_weights_of_the_router_contrast_have_no_gradient() -> None:
    prob = draw(8, 3, seed=1).sigmoid().requires_grad_()
    logit = draw(8, 3).requires_grad_()
    loss = router_contrast(logit, prob.log())
    of_logit, of_prob = torch.autograd.grad(loss, [logit, prob], allow_unused=True)
    assert of_prob is None
    assert of_logit.abs().max() > 0


def test_a_router_that_no_image_reaches_has_a_finite_contrast() -> None:
    """Probabilities of exp(-1000) vanish in floating point; their ratios do not."""
    logit, log_prob = draw(8, 3), draw(8, 3, seed=1) - 1000
    close(router_contrast(logit, log_prob), router_contrast(logit, log_prob + 1000))


def test_embedding_contrast_equals_a_loop_over_samples_and_levels() -> None:
    embedding = draw(6, 4, 10)
    levels = [torch.stack(naive_contrast(embedding[:, k], 0.5)).mean() for k in range(4)]
    close(embedding_contrast(embedding, temperature=0.5), torch.stack(levels).mean())


def test_contrast_prefers_agreeing_views() -> None:
    """Equal views of unlike images cost less than unlike views, and least at low temperature."""
    images = F.one_hot(torch.arange(4), 10).double()[:, None]
    agreeing = torch.cat([images, images])
    crossed = torch.cat([images, images.roll(1, dims=0)])
    low = embedding_contrast(agreeing, temperature=0.5)
    assert low < embedding_contrast(crossed, temperature=0.5)
    assert embedding_contrast(agreeing, temperature=0.01) < 1e-6
    close(low, torch.log(1 + 6 * torch.exp(torch.tensor(-2.0).double())))


def test_contrast_does_not_know_which_view_is_first() -> None:
    logit, prob, embedding = draw(8, 3), draw(8, 3, seed=1).sigmoid(), draw(8, 2, 10)
    log_prob = prob.log()
    swapped = router_contrast(logit.roll(4, 0), log_prob.roll(4, 0))
    close(swapped, router_contrast(logit, log_prob))
    swapped = embedding_contrast(embedding.roll(4, 0), temperature=0.5)
    close(swapped, embedding_contrast(embedding, temperature=0.5))


def test_contrastive_loss_is_weight_times_both_terms() -> None:
    """A subtree has no embedding term, and its router counts by its leaf's probability."""
    tree, config = make_tree(), ContrastiveConfig(weight=100.0, temperature=0.3)
    found, embedding = known_pass(tree).nodes, draw(BATCH, 4, 10, seed=7)
    assert found.post_logit is not None
    log_reach = found.log_node_prob[:, :2]
    routers = router_contrast(found.post_logit, log_reach)
    images = embedding_contrast(embedding, temperature=0.3)
    close(contrastive_loss(config, tree.nodes, found, embedding), 100 * (routers + images))
    close(contrastive_loss(config, tree.nodes, found, None), 100 * routers)
    log_prob = F.logsigmoid(draw(BATCH, seed=8))
    weighed = router_contrast(found.post_logit, log_reach + log_prob[:, None])
    close(contrastive_loss(config, tree.nodes, found, None, log_prob=log_prob), 100 * weighed)
