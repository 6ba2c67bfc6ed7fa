"""Trees together are the trees apart: values, gradients and running statistics, and their rows."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from treediffusion.config import ContrastiveConfig, TreeConfig
from treediffusion.forest import Forest
from treediffusion.nn import grove as grove_module
from treediffusion.nn.grove import Grove, join, part_from
from treediffusion.nn.node_stack import NodeStack
from treediffusion.nn.tree_objective import tree_elbo
from treediffusion.nn.tree_vae import TreeVAE
from treediffusion.topology import TreeTopology
from treediffusion.train import losses
from treediffusion.train.images import TrainingImages
from treediffusion.train.losses import SubtreeObjective, SubtreesObjective, TreeObjective

INITIAL = TreeTopology.initial()
TREES = (
    INITIAL.grow("r0").grow("r01"),
    INITIAL,
    INITIAL.grow("r1").prune("r10").grow("r11"),
)
BATCH = 5
FORMS = {
    "cnn1": (TreeConfig(latent_channels=3, channels=4, levels=5, max_leaves=8), 1, 8),
    "cnn2": (
        TreeConfig(codec="cnn2", latent_channels=2, channels=8, levels=5, max_leaves=8),
        3,
        16,
    ),
    "residual": (
        TreeConfig(latent_channels=3, channels=4, levels=5, max_leaves=8, residual=True),
        1,
        8,
    ),
    "mlp": (
        TreeConfig(
            codec="mlp_cnn1", latent_size=1, latent_channels=3, channels=4,
            encoder_channels=16, levels=5, max_leaves=8,
        ),
        1,
        28,
    ),
}  # fmt: skip


@st.composite
def topologies(draw: st.DrawFn) -> TreeTopology:
    tree = INITIAL
    for _ in range(draw(st.integers(0, 5))):
        tree = tree.grow(draw(st.sampled_from(tree.leaf_names)))
        if draw(st.booleans()) and tree.num_leaves > 2:
            tree = tree.prune(draw(st.sampled_from(tree.leaf_names)))
    return tree


@given(st.lists(topologies(), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_a_forests_rows_are_its_trees_rows(trees: list[TreeTopology]) -> None:
    """Names, parents, depths, leaves and routers are each tree's own, and levels are whole."""
    forest = Forest(tuple(trees))
    assert forest.num_nodes == sum(tree.num_nodes for tree in trees)
    assert forest.num_leaves == sum(tree.num_leaves for tree in trees)
    for number, tree in enumerate(trees):
        mine = np.flatnonzero(forest.tree_of == number)
        names = [forest.names[row] for row in mine]
        assert names == [Forest.name(number, name) for name in tree.names]
        assert forest.depth[mine].tolist() == tree.depth.tolist()
        parents = [
            row if row < 0 else int(np.searchsorted(mine, row)) for row in forest.parent[mine]
        ]
        assert parents == tree.parent.tolist()
        for kind in ("leaves", "routers"):
            rows = [row for row in getattr(forest, kind) if forest.tree_of[row] == number]
            assert np.searchsorted(mine, rows).tolist() == getattr(tree, kind).tolist()
    assert forest.levels[0] == slice(0, forest.num_roots)
    for depth, level in enumerate(forest.levels):
        assert set(forest.depth[level]) == {depth}
    assert forest.levels[-1].stop == forest.num_nodes


def test_one_tree_is_a_forest_of_one() -> None:
    tree, forest = TREES[0], Forest((TREES[0],))
    for name in ("parent", "depth", "leaves", "routers", "tree_of"):
        assert getattr(tree, name).tolist() == getattr(forest, name).tolist()
    assert tree.levels == forest.levels
    assert tree.num_roots == forest.num_roots


def make_trees(form: str, **more: object) -> list[TreeVAE]:
    """Float64 trees with weights and statistics of their own."""
    config, channels, size = FORMS[form]
    config = config.model_copy(update=more)
    trees = []
    for seed, topology in enumerate(TREES):
        torch.manual_seed(seed)
        tree = TreeVAE(config, topology, image_channels=channels, image_size=size).double()
        with torch.no_grad():
            tree.train().infer(torch.rand(8, *tree.image_shape, dtype=torch.float64))
        trees.append(tree)
    return trees


def inputs(trees: list[TreeVAE], grove: Grove) -> tuple[Tensor, Tensor]:
    """Images of each tree, [B, S, C, H, W], and noise, [B, N, Z, R, R]."""
    generator = torch.Generator().manual_seed(7)
    shape = (BATCH, len(trees), *trees[0].image_shape)
    images = torch.rand(shape, dtype=torch.float64, generator=generator)
    nodes = grove.nodes.topology.num_nodes
    shape = (BATCH, nodes, *trees[0].latent_shape)
    return images, torch.randn(shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("mapped", [True, False])
def test_a_step_together_is_a_step_apart(
    form: str, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ELBO, gradients and running statistics, in training mode; as on a GPU and as on a CPU."""
    monkeypatch.setattr(grove_module, "is_mapped", lambda x: mapped)
    trees = make_trees(form)
    with torch.random.fork_rng():
        grove = Grove(trees).train()
    images, noise = inputs(trees, grove)
    found = grove.infer_from(grove.bottom_up(images), noise=noise)
    together = tree_elbo(grove.nodes, found, images, likelihood="bernoulli").loss(0.7)
    together.backward()
    after = copy.deepcopy(trees)
    grove.give_back(after)
    tree_of = grove.nodes.topology.tree_of
    apart = torch.zeros((), dtype=torch.float64)
    for number, tree in enumerate(trees):
        rows = np.flatnonzero(tree_of == number).tolist()
        alone = tree.train().infer(images[:, number], noise=noise[:, rows])
        torch.testing.assert_close(found.features[:, number], alone.features)
        torch.testing.assert_close(found.nodes.z[:, rows], alone.nodes.z)
        loss = tree_elbo(tree.nodes, alone, images[:, number], likelihood="bernoulli").loss(0.7)
        loss.backward()
        apart += loss.detach()
        for name, buffer in tree.named_buffers():
            torch.testing.assert_close(after[number].get_buffer(name), buffer)
    torch.testing.assert_close(together.detach(), apart)
    gradients = gradients_of(grove, trees)
    for number, tree in enumerate(trees):
        for name, weight in tree.named_parameters():
            theirs = gradients[number][name]
            expected = torch.zeros_like(weight) if weight.grad is None else weight.grad
            torch.testing.assert_close(theirs, expected)


def gradients_of(grove: Grove, trees: list[TreeVAE]) -> list[dict[str, Tensor]]:
    """The grove's gradients under the trees' own names: given back in the weights' place."""
    holders = copy.deepcopy(trees)
    for weight in grove.parameters():
        weight.data = torch.zeros_like(weight) if weight.grad is None else weight.grad
    grove.give_back(holders)
    return [{name: w.detach() for name, w in holder.named_parameters()} for holder in holders]


def test_giving_back_what_was_taken_changes_nothing() -> None:
    trees = make_trees("cnn1", contrastive=ContrastiveConfig(weight=1.0), augmentation="shifts")
    before = copy.deepcopy(trees)
    grove = Grove(trees)
    grove.give_back(trees)
    for tree, old in zip(trees, before, strict=True):
        for name, tensor in tree.state_dict().items():
            assert torch.equal(tensor, old.state_dict()[name]), name


def test_every_tree_gets_what_was_learnt_for_it() -> None:
    """After each of the grove's tensors was changed, no tensor of any tree is what it was."""
    trees = make_trees("cnn1", contrastive=ContrastiveConfig(weight=1.0), augmentation="shifts")
    before, grove = copy.deepcopy(trees), Grove(trees)
    with torch.no_grad():
        for tensor in grove.state_dict(keep_vars=True).values():
            tensor.add_(1)
    grove.give_back(trees)
    for tree, old in zip(trees, before, strict=True):
        for name, tensor in tree.state_dict().items():
            assert torch.equal(tensor, old.state_dict()[name] + 1), name


def children_of(trees: list[TreeVAE], leaves: list[str]) -> list[NodeStack]:
    children = []
    for number, (tree, leaf) in enumerate(zip(trees, leaves, strict=True)):
        torch.manual_seed(10 + number)
        children.append(tree.new_leaves(leaf).double().train())
    return children


@pytest.mark.parametrize("form", ["cnn1", "mlp"])
@pytest.mark.parametrize("contrast", [0.0, 2.0])
@pytest.mark.parametrize("limit", [0, losses.CACHE_LIMIT])
def test_leaves_that_grow_together_grow_as_apart(
    form: str, contrast: float, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under leaves of different depths, with different images, remembered or not."""
    monkeypatch.setattr(grove_module, "is_mapped", lambda x: not contrast)
    more = {"contrastive": ContrastiveConfig(weight=contrast), "augmentation": "shifts"}
    trees = make_trees(form, **(more if contrast else {}))
    leaves = ["r010", "r1", "r111"]
    images = TrainingImages(torch.rand(12, *trees[0].image_shape, dtype=torch.float64).numpy())
    members = [torch.tensor(rows) for rows in ([1, 3, 4, 8], [0, 2, 5, 6, 7, 9], [11, 10, 2, 1, 0])]
    children = children_of(trees, leaves)
    monkeypatch.setattr(losses, "random_view", lambda images, kind: images.flip(-1))
    # Without noise: it has another order together than apart.
    monkeypatch.setattr(torch, "randn", lambda *shape, **kinds: torch.zeros(*shape, **kinds))
    rows = torch.tensor([[3, 5, 0], [1, 0, 4], [0, 2, 2]])
    apart, statistics = torch.zeros((), dtype=torch.float64), []
    for number, place in enumerate(zip(trees, leaves, children, strict=True)):
        alone = copy.deepcopy(place[2])
        objective = SubtreeObjective(
            place[0], place[1], alone, images, members[number], cache_limit=limit
        )
        loss = objective.loss(rows[:, number], 0.6)
        loss.backward()
        apart += loss.detach()
        statistics.append(alone)
    joined = join(children)
    objective = SubtreesObjective(trees, leaves, joined, images, members, cache_limit=limit)
    assert objective.counts == [4, 6, 5]
    together = objective.loss(rows, 0.6)
    torch.testing.assert_close(together.detach(), apart)
    together.backward()
    part_from(joined, children)
    for mine, alone in zip(children, statistics, strict=True):
        for name, buffer in alone.named_buffers():
            torch.testing.assert_close(mine.get_buffer(name), buffer)
    for weight in joined.parameters():
        if weight.numel():
            assert weight.grad is not None
            weight.data = weight.grad
    part_from(joined, children)
    for mine, alone in zip(children, statistics, strict=True):
        for name, weight in alone.named_parameters():
            if not weight.numel():
                continue
            assert weight.grad is not None
            torch.testing.assert_close(mine.get_parameter(name).detach(), weight.grad)


@pytest.mark.parametrize("contrast", [0.0, 2.0])
def test_the_loss_of_whole_trees_is_the_sum_of_theirs(
    contrast: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the contrastive terms, of views of each tree's own images."""
    more = {"contrastive": ContrastiveConfig(weight=contrast), "augmentation": "shifts"}
    trees = make_trees("cnn1", **(more if contrast else {}))
    images = TrainingImages(torch.rand(12, *trees[0].image_shape, dtype=torch.float64).numpy())
    monkeypatch.setattr(losses, "random_view", lambda images, kind: images.flip(-1))
    monkeypatch.setattr(torch, "randn", lambda *shape, **kinds: torch.zeros(*shape, **kinds))
    rows = torch.tensor([[3, 5, 0], [1, 0, 4], [0, 2, 2], [11, 9, 8]])
    together = TreeObjective(Grove(trees).train(), images).loss(rows, 0.6)
    apart = [
        TreeObjective(tree.train(), images).loss(rows[:, number], 0.6)
        for number, tree in enumerate(trees)
    ]
    torch.testing.assert_close(together, torch.stack(apart).sum())
