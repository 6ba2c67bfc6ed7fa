"""The stacked, level-wise TreeVAE against the same tree visited node by node, and its laws."""

from __future__ import annotations

import pytest
import torch
from support.node_by_node import NodeByNodeTreeVAE, Traversal
from torch import Tensor
from treediffusion.config import ContrastiveConfig, TreeConfig
from treediffusion.errors import ConfigError, TopologyError
from treediffusion.nn.gaussians import EPS
from treediffusion.nn.stacked import StackedNorm
from treediffusion.nn.tree_objective import tree_elbo
from treediffusion.nn.tree_vae import Inference, TreeVAE
from treediffusion.topology import TreeTopology

INITIAL = TreeTopology.initial()
TREES = {
    "two leaves": INITIAL,
    "full": INITIAL.grow("r0").grow("r1"),
    "irregular": INITIAL.grow("r0").grow("r01").grow("r010").grow("r1"),
    "single left child": INITIAL.grow("r1").grow("r10").prune("r11"),
    "single right child": INITIAL.grow("r0").grow("r01").prune("r00"),
    "single child of the root": INITIAL.grow("r1").grow("r10").prune("r0"),
    "two single children last": INITIAL.grow("r0").grow("r1").prune("r01").prune("r10"),
    "chain": TreeTopology.of(["r", "r1", "r10"]),
}
SMALL = TreeConfig(latent_channels=3, channels=5, levels=6)
VARIED = {
    "residual": True,
    "likelihood": "gaussian",
    "codec_sizes": (9, 5, 3),
    "codec_channels": (4,),
}
CONFIGS = {"grey": (SMALL, 1, 8), "colour": (SMALL.model_copy(update=VARIED), 3, 9)}
BATCH = 6


def make_tree(topology: TreeTopology, kind: str = "grey", *, seed: int = 0) -> TreeVAE:
    """A float64 tree whose norms, too, have weights and statistics of their own."""
    config, channels, size = CONFIGS[kind]
    torch.manual_seed(seed)
    tree = TreeVAE(config, topology, image_channels=channels, image_size=size).double()
    for module in tree.modules():
        if isinstance(module, StackedNorm | torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.3)
    return tree


def batch_for(tree: TreeVAE, *, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images and noise."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(BATCH, *tree.image_shape, dtype=torch.float64, generator=generator)
    shape = (BATCH, tree.topology.num_nodes, *tree.latent_shape)
    return images, torch.randn(shape, dtype=torch.float64, generator=generator)


def close(ours: Tensor, truth: Tensor, *, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(ours, truth, rtol=tolerance, atol=tolerance)


def assert_same_pass(tree: TreeVAE, found: Inference, truth: Traversal) -> None:
    topology, nodes = tree.topology, found.nodes
    close(nodes.z, torch.stack([truth.z[name] for name in topology.names], dim=1))
    prob = torch.stack([truth.prob[name] for name in topology.names], dim=1)
    close(nodes.log_node_prob.exp(), prob)
    close(found.root_kl, truth.node_kl["r"])
    assert nodes.node_kl is not None
    kls = [truth.node_kl[name] for name in topology.names[1:]]
    close(nodes.node_kl, torch.stack(kls, dim=1))
    images = torch.stack([truth.images[name] for name in topology.leaf_names], dim=1)
    close(tree.nodes.decode(nodes.z), images)
    shown = torch.sigmoid(images) if tree.config.likelihood == "bernoulli" else images
    close(tree.decode(nodes.z), shown)


@pytest.mark.parametrize("topology", TREES.values(), ids=TREES)
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("training", [True, False])
def test_level_by_level_equals_node_by_node(
    topology: TreeTopology, kind: str, training: bool
) -> None:
    """Samples, probabilities, divergences, images, loss, all gradients, all running statistics."""
    tree = make_tree(topology, kind).train(training)
    plain = NodeByNodeTreeVAE.from_stacked(tree)
    images, noise = batch_for(tree)
    found = tree.infer(images, noise=noise)
    elbo = tree_elbo(tree.nodes, found, images, likelihood=tree.config.likelihood)
    ours, truth = elbo.loss(0.37), plain.loss(images, noise, 0.37)
    close(ours, truth)

    ours.backward()
    truth.backward()
    stacked = dict(tree.named_parameters()) | dict(tree.named_buffers())
    for tensor, name, part in plain.links():
        close(part(stacked[name].detach()), tensor.detach())
        if tensor.requires_grad:
            gradient = stacked[name].grad
            assert gradient is not None, name
            close(part(gradient), tensor.grad, tolerance=1e-8)

    tree.eval()
    plain = NodeByNodeTreeVAE.from_stacked(tree)
    with torch.no_grad():
        assert_same_pass(tree, tree.infer(images, noise=noise), plain(images, noise))


def test_the_comparison_covers_every_weight_and_statistic() -> None:
    tree = make_tree(TREES["irregular"])
    compared: dict[str, int] = {}
    for tensor, name, _ in NodeByNodeTreeVAE.from_stacked(tree).links():
        compared[name] = compared.get(name, 0) + tensor.numel()
    for name, tensor in tree.state_dict().items():
        if not name.endswith("num_batches_tracked"):  # a counter that nothing reads
            assert compared.pop(name) == tensor.numel(), name
    assert not compared


def test_a_training_pass_moves_every_running_statistic() -> None:
    tree = make_tree(TREES["irregular"])
    before = {name: buffer.clone() for name, buffer in tree.named_buffers() if "running" in name}
    images, noise = batch_for(tree)
    tree.train().decode(tree.infer(images, noise=noise).nodes.z)
    after = dict(tree.named_buffers())
    for name, buffer in before.items():
        assert (after[name] != buffer).all(), name


def test_every_weight_gets_a_gradient() -> None:
    """There is none that the objective does not depend on."""
    tree = make_tree(TREES["single right child"]).train()
    images, noise = batch_for(tree)
    found = tree.infer(images, noise=noise)
    tree_elbo(tree.nodes, found, images, likelihood="bernoulli").loss(1.0).backward()
    for name, weight in tree.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("topology", TREES.values(), ids=TREES)
def test_leaf_probabilities_sum_to_one_and_inner_ones_to_their_leaves(
    topology: TreeTopology,
) -> None:
    tree = make_tree(topology).eval()
    images, noise = batch_for(tree)
    prob = tree.infer(images, noise=noise).nodes.log_node_prob.exp()
    leaf_prob = prob[:, topology.leaves.tolist()]
    close(leaf_prob.sum(1), torch.ones(BATCH).double())
    for row, name in enumerate(topology.names):
        close(leaf_prob[:, topology.leaves_below(name).tolist()].sum(1), prob[:, row])


@pytest.mark.parametrize("topology", TREES.values(), ids=TREES)
def test_assign_is_deterministic_and_what_infer_says(topology: TreeTopology) -> None:
    """Whatever the noise: leaf probabilities do not depend on samples."""
    tree = make_tree(topology).eval()
    images, _ = batch_for(tree)
    assigned = tree.assign(images)
    assert torch.equal(assigned, tree.assign(images))
    for _ in range(2):
        found = tree.infer(images)
        assert torch.equal(assigned, found.nodes.log_node_prob[:, topology.leaves.tolist()])


def test_probabilities_survive_saturated_routers() -> None:
    """In float32, where the product of probabilities would be 0 and its logarithm lost."""
    tree = make_tree(TREES["irregular"]).float()
    logit = torch.full((1, len(tree.topology.routers)), 200.0)
    log_prob = tree.nodes.log_node_prob(logit)[0]
    assert log_prob.isfinite().all()
    names = tree.topology.names
    assert log_prob[names.index("r00")] == 0
    assert log_prob[names.index("r11")] == -400


@pytest.mark.parametrize("training", [True, False])
def test_permuting_the_batch_permutes_the_result(training: bool) -> None:
    """Also in training: the batch's statistics do not know its order."""
    tree = make_tree(TREES["irregular"]).train(training)
    images, noise = batch_for(tree)
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(3))
    found = tree.infer(images, noise=noise)
    moved = tree.infer(images[order], noise=noise[order])
    close(moved.nodes.z, found.nodes.z[order])
    close(moved.nodes.log_node_prob, found.nodes.log_node_prob[order])
    close(moved.root_kl, found.root_kl[order])
    close(tree.decode(moved.nodes.z), tree.decode(found.nodes.z)[order])


def test_a_batch_is_its_rows_in_eval_mode() -> None:
    tree = make_tree(TREES["irregular"]).eval()
    images, noise = batch_for(tree)
    found = tree.infer(images, noise=noise)
    for row in range(BATCH):
        alone = tree.infer(images[row : row + 1], noise=noise[row : row + 1])
        close(alone.nodes.z[0], found.nodes.z[row])
        close(alone.nodes.log_node_prob[0], found.nodes.log_node_prob[row])
        close(tree.assign(images[row : row + 1])[0], tree.assign(images)[row])


def test_an_empty_batch_is_assigned_to_nothing() -> None:
    tree = make_tree(TREES["irregular"]).eval()
    images, _ = batch_for(tree)
    assert tree.assign(images[:0]).shape == (0, tree.topology.num_leaves)


def test_features_may_be_computed_once() -> None:
    tree = make_tree(TREES["irregular"]).eval()
    images, noise = batch_for(tree)
    features = tree.bottom_up(images)
    assert features.shape == (BATCH, SMALL.levels, SMALL.channels, 2, 2)
    ours = tree.infer(features=features, noise=noise)
    assert torch.equal(ours.nodes.z, tree.infer(images, noise=noise).nodes.z)


@pytest.mark.parametrize("topology", TREES.values(), ids=TREES)
def test_growing_changes_no_other_node_by_a_single_bit(topology: TreeTopology) -> None:
    """Samples and images; probabilities are sums over edges, whose number changes their order."""
    tree = make_tree(topology).eval()
    images, noise = batch_for(tree)
    leaf = topology.leaf_names[-1]
    grown = tree.grow(leaf, tree.new_leaves(leaf).double()).eval()
    rows = [grown.topology.row(name) for name in topology.names]
    wider = torch.randn(BATCH, grown.topology.num_nodes, *tree.latent_shape, dtype=torch.float64)
    wider[:, rows] = noise
    before, after = tree.infer(images, noise=noise), grown.infer(images, noise=wider)
    assert torch.equal(after.nodes.z[:, rows], before.nodes.z)
    torch.testing.assert_close(
        after.nodes.log_node_prob[:, rows], before.nodes.log_node_prob, rtol=1e-14, atol=1e-14
    )
    assert torch.equal(after.root_kl, before.root_kl)
    kept = [name for name in topology.leaf_names if name != leaf]
    old = [topology.leaf_names.index(name) for name in kept]
    new = [grown.topology.leaf_names.index(name) for name in kept]
    ours, truth = grown.decode(after.nodes.z), tree.decode(before.nodes.z)
    assert torch.equal(ours[:, new], truth[:, old])


def test_grown_leaves_are_the_networks_that_were_attached() -> None:
    """The subtree's pass below the leaf's sample is the grown tree's."""
    tree = make_tree(TREES["irregular"]).eval()
    children = tree.new_leaves("r00").double().eval()
    grown = tree.grow("r00", children)
    images, noise = batch_for(grown)
    found = grown.infer(images, noise=noise)
    rows = [grown.topology.row(name) for name in ("r00", "r000", "r001")]
    below = children(
        found.nodes.z[:, rows[:1]], found.features[:, None, 2:], noise=noise[:, rows[1:]]
    )
    close(below.z, found.nodes.z[:, rows])
    log_reach = found.nodes.log_node_prob[:, rows[:1]]
    close(below.log_node_prob + log_reach, found.nodes.log_node_prob[:, rows])
    leaves = [grown.topology.leaf_names.index(name) for name in ("r000", "r001")]
    close(children.decode(below.z), grown.nodes.decode(found.nodes.z)[:, leaves])


def test_growing_then_pruning_gives_every_weight_back() -> None:
    """Pruning both leaves of another branch, and growing, leave shared rows as they were."""
    tree = make_tree(TREES["full"])
    back = tree.grow("r00", tree.new_leaves("r00").double()).prune("r000").prune("r001")
    truth = tree.prune("r00")
    assert back.topology == truth.topology
    for name, tensor in truth.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    assert back.training == tree.training


def test_pruning_keeps_the_samples_of_all_that_stays() -> None:
    tree = make_tree(TREES["irregular"]).eval()
    pruned = tree.prune("r011")
    images, noise = batch_for(tree)
    rows = [tree.topology.row(name) for name in pruned.topology.names]
    before, after = tree.infer(images, noise=noise), pruned.infer(images, noise=noise[:, rows])
    assert torch.equal(after.nodes.z, before.nodes.z[:, rows])
    only = pruned.topology.row("r010")
    reach = pruned.topology.row("r01")
    assert torch.equal(after.nodes.log_node_prob[:, only], after.nodes.log_node_prob[:, reach])


def test_a_chain_samples_its_nodes_as_the_whole_tree_does() -> None:
    tree = make_tree(TREES["irregular"]).eval()
    chain = tree.chain("r010")
    assert chain.topology.names == ("r", "r0", "r01", "r010")
    images, noise = batch_for(tree)
    rows = [tree.topology.row(name) for name in chain.topology.names]
    whole, part = tree.infer(images, noise=noise), chain.infer(images, noise=noise[:, rows])
    assert torch.equal(part.nodes.z, whole.nodes.z[:, rows])


def test_other_topologies_keep_type_mode_and_projections() -> None:
    config = SMALL.model_copy(update={"contrastive": ContrastiveConfig(weight=1.0)})
    tree = TreeVAE(config, TREES["full"], image_channels=1, image_size=8).double().eval()
    assert tree.projections is not None
    truth = tree.projections.state_dict()
    for other in (tree.grow("r00", tree.new_leaves("r00").double()), tree.prune("r00")):
        assert not other.training
        assert {weight.dtype for weight in other.parameters()} == {torch.float64}
        assert other.projections is not None
        for name, tensor in other.projections.state_dict().items():
            assert torch.equal(tensor, truth[name])


def test_projections_embed_each_level_by_itself() -> None:
    """The published count, less the second head; and no level reads another's map."""
    config = TreeConfig(augmentation="shifts", contrastive=ContrastiveConfig(weight=1.0))
    tree = TreeVAE(config, INITIAL, image_channels=1, image_size=28).eval()
    assert tree.projections is not None
    unused = 128 * 10 + 10
    weights = sum(weight.numel() for weight in tree.projections.parameters())
    assert weights == 7 * (3_636 - unused)
    features = torch.randn(2, 7, 32, 2, 2, requires_grad=True)
    embedding = tree.projections(features)
    assert embedding.shape == (2, 7, 10)
    (gradient,) = torch.autograd.grad(embedding[:, 3].sum(), features)
    assert gradient[:, [0, 1, 2, 4, 5, 6]].abs().max() == 0
    assert gradient[:, 3].abs().max() > 0


@pytest.mark.parametrize("topology", TREES.values(), ids=TREES)
def test_generated_samples_follow_the_prior(topology: TreeTopology) -> None:
    """z_root = noise; z_i = mu_i(z_parent) + sqrt(var_i(z_parent) + eps) noise_i."""
    tree = make_tree(topology).eval()
    plain = NodeByNodeTreeVAE.from_stacked(tree)
    _, noise = batch_for(tree)
    found = tree.generate(noise)
    assert found.node_kl is None
    assert found.post_logit is None
    assert torch.equal(found.z[:, 0], noise[:, 0])
    for row, name in enumerate(topology.names[1:], 1):
        node, parent_z = plain.nodes[name], found.z[:, topology.parent[row]]
        mean, var = node.prior_head(node.transformation(parent_z))
        close(found.z[:, row], mean + torch.sqrt(var + EPS) * noise[:, row])


@pytest.mark.parametrize("topology", TREES.values(), ids=TREES)
def test_generated_probabilities_are_the_generative_routers(topology: TreeTopology) -> None:
    tree = make_tree(topology).eval()
    plain = NodeByNodeTreeVAE.from_stacked(tree)
    found = tree.generate(batch_for(tree)[1])
    prob = {"r": torch.ones(BATCH).double()}
    for row, name in enumerate(topology.names):
        children, router = plain.nodes[name].children_names, plain.nodes[name].prior_router
        left = torch.sigmoid(router(found.z[:, row])) if router is not None else None
        for child in children:
            share = 1 if left is None else left if child.endswith("0") else 1 - left
            prob[child] = prob[name] * share
        close(found.log_node_prob[:, row].exp(), prob[name])


def test_noise_is_drawn_from_the_seed_if_none_is_given() -> None:
    tree = make_tree(TREES["full"]).eval()
    images, _ = batch_for(tree)
    torch.manual_seed(5)
    one, other = tree.infer(images).nodes.z, tree.infer(images).nodes.z
    torch.manual_seed(5)
    assert torch.equal(tree.infer(images).nodes.z, one)
    assert not torch.equal(one, other)


def test_a_tree_deeper_than_its_levels_is_refused() -> None:
    config = TreeConfig(levels=3, max_leaves=4)
    deep = INITIAL.grow("r0").grow("r00")
    with pytest.raises(TopologyError, match=r"depth 3, expected at most levels - 1 = 2.*levels"):
        TreeVAE(config, deep, image_channels=1, image_size=8)
    tree = TreeVAE(config, INITIAL.grow("r0"), image_channels=1, image_size=8)
    with pytest.raises(TopologyError, match=r"raise tree\.levels"):
        tree.grow("r00", tree.new_leaves("r00"))


@pytest.mark.parametrize("sizes", [(9, 4), (8, 4, 6), (8,)])
def test_codec_sizes_that_do_not_fit_the_image_are_refused(sizes: tuple[int, ...]) -> None:
    config = TreeConfig(codec_sizes=sizes)
    with pytest.raises(ConfigError, match="shrinking sides from 8 on"):
        TreeVAE(config, INITIAL, image_channels=1, image_size=8)


@pytest.mark.parametrize(
    ("size", "sizes"),
    [(8, None), (28, None), (32, (32, 20, 12, 4)), (16, (16, 8, 8, 3)), (2, None)],
)
def test_decoded_images_have_the_images_shape(size: int, sizes: tuple[int, ...] | None) -> None:
    config = TreeConfig(codec_sizes=sizes, channels=8, latent_channels=4)
    tree = TreeVAE(config, INITIAL, image_channels=3, image_size=size).eval()
    images = torch.rand(2, 3, size, size)
    pixels = tree.decode(tree.infer(images).nodes.z)
    assert pixels.shape == (2, 2, 3, size, size)
    assert pixels.min() >= 0
    assert pixels.max() <= 1
