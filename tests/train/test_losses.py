"""What a phase trains on, what it leaves alone, and that remembering changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from treediffusion.config import ContrastiveConfig, TreeConfig
from treediffusion.nn.tree_objective import contrastive_loss, subtree_elbo, tree_elbo
from treediffusion.nn.tree_vae import TreeVAE
from treediffusion.topology import TreeTopology
from treediffusion.train import losses
from treediffusion.train.images import TrainingImages
from treediffusion.train.losses import SubtreeObjective, TreeObjective, Trunk, make_views

DEEP = TreeTopology.of(["r", "r0", "r1", "r00", "r01"])
CONTRAST = ContrastiveConfig(weight=2.0)


def make_tree(**settings: object) -> TreeVAE:
    """With statistics of its own, so that eval and train mode differ."""
    torch.manual_seed(0)
    config = TreeConfig(latent_channels=3, channels=5, levels=4, max_leaves=4)
    config = config.model_copy(update=settings)
    tree = TreeVAE(config, DEEP, image_channels=1, image_size=8).double()
    with torch.no_grad():
        tree.train().infer(draw(16, seed=9))
    return tree


def draw(count: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 8, 8, dtype=torch.float64, generator=generator)


def drawn(count: int) -> TrainingImages:
    return TrainingImages(draw(count).numpy())


def subtree(tree: TreeVAE, leaf: str, members: Tensor, **keywords: int) -> SubtreeObjective:
    torch.manual_seed(1)
    children = tree.new_leaves(leaf).double().train()
    return SubtreeObjective(tree, leaf, children, drawn(12), members, **keywords)


@pytest.mark.parametrize("leaf", ["r1", "r01"])
def test_remembered_features_give_the_loss_of_fresh_ones(leaf: str) -> None:
    """Given the same random numbers, in each of the steps."""
    members, found = torch.tensor([1, 3, 4, 7, 9, 10]), {}
    for limit in (0, losses.CACHE_LIMIT):
        objective = subtree(make_tree(), leaf, members, cache_limit=limit)
        torch.manual_seed(2)
        optimizer = torch.optim.Adam(objective.trained.parameters(), 1e-2)
        found[limit] = []
        for rows in (torch.tensor([5, 0, 2]), torch.tensor([1, 4, 3])):
            loss = objective.loss(rows, 0.5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found[limit].append(loss.item())
    assert found[0] == pytest.approx(found[losses.CACHE_LIMIT], rel=1e-12)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_a_subtrees_loss_is_that_of_the_whole_tree_around_it(
    weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parent, maps and probability are those which the whole tree has for the same images."""
    contrast = {"contrastive": CONTRAST, "augmentation": "shifts"} if weight else {}
    tree = make_tree(**contrast)
    views = torch.cat([draw(3, seed=5), draw(3, seed=6)])
    if weight:
        monkeypatch.setattr(losses, "random_view", lambda images, kind: views)
    members, rows = torch.tensor([2, 5, 8]), torch.tensor([2, 0, 1])
    images = views if weight else draw(12)[members[rows]]
    objective = subtree(tree, "r01", members)
    found = tree.eval().infer(images)
    parent, log_prob = found.nodes.z[:, 4], found.nodes.log_node_prob[:, 4]
    monkeypatch.setattr(Trunk, "draw", lambda self, features: parent)
    torch.manual_seed(3)
    loss = objective.loss(rows, 0.7)
    torch.manual_seed(3)
    children = objective.trained
    part = children(parent[:, None], found.features[:, None, 2:4])
    expected = subtree_elbo(children, part, images, log_prob, likelihood="bernoulli").loss(0.7)
    if weight:
        expected += contrastive_loss(CONTRAST, children, part, None, log_prob=log_prob)
    torch.testing.assert_close(loss, expected)


def test_parents_are_drawn_afresh_from_the_whole_trees_posterior() -> None:
    """Given the noise: the sample of the path alone is that of the whole tree."""
    tree = make_tree().eval()
    trunk, images = Trunk(tree, "r01"), draw(4)
    features, log_prob = trunk.describe(images)
    assert features.shape[1] == 4  # root's, r0's, r01's, and its children's
    path, noise = [0, 1, 4], torch.randn(4, 5, *tree.latent_shape, dtype=torch.float64)
    whole = tree.infer(images, noise=noise).nodes
    chain = tree.chain("r01").eval().infer(features=features, noise=noise[:, path]).nodes
    torch.testing.assert_close(chain.z[:, -1], whole.z[:, 4])
    torch.testing.assert_close(log_prob, whole.log_node_prob[:, 4])
    assert not torch.equal(trunk.draw(features), trunk.draw(features))


def test_the_tree_above_is_untouched_and_decodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make_tree()
    before = copy.deepcopy(tree.state_dict())

    def never(*_: object) -> None:
        pytest.fail("the frozen tree decoded an image")

    monkeypatch.setattr(tree.nodes.decoders, "forward", never)
    for limit in (0, losses.CACHE_LIMIT):
        objective = subtree(tree, "r1", torch.arange(12), cache_limit=limit)
        objective.loss(torch.arange(12), 1.0).backward()
        moved = [p.grad is not None for p in objective.trained.parameters()]
        assert all(moved)
    assert all(p.grad is None for p in tree.parameters())
    after = tree.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not tree.training


def test_making_a_trunk_leaves_the_random_numbers_alone() -> None:
    """A continued run makes it once more than one that was not stopped."""
    tree, state = make_tree(), torch.get_rng_state()
    Trunk(tree, "r00").known(drawn(12), torch.arange(12), losses.CACHE_LIMIT)
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_is_remembered_beyond_the_limit_or_of_random_views() -> None:
    tree, rows = make_tree(), torch.arange(12)
    trunk = Trunk(tree, "r1")
    bytes_needed = 12 * trunk.describe(draw(1))[0].nbytes
    assert trunk.known(drawn(12), rows, bytes_needed) is not None
    assert trunk.known(drawn(12), rows, bytes_needed - 1) is None
    objective = subtree(make_tree(augmentation="shifts"), "r1", rows)
    first, second = (objective.loss(rows, 1.0).item() for _ in range(2))
    assert first != second


def test_a_whole_trees_loss_is_its_elbo_and_contrast(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make_tree(contrastive=CONTRAST, augmentation="shifts").eval()
    views, rows = torch.cat([draw(3, seed=5), draw(3, seed=6)]), torch.tensor([4, 0, 7])
    monkeypatch.setattr(losses, "random_view", lambda images, kind: views)
    torch.manual_seed(3)
    loss = TreeObjective(tree, drawn(12)).loss(rows, 0.3)
    torch.manual_seed(3)
    found = tree.infer(views)
    assert tree.projections is not None
    embedding = tree.projections(found.features)
    expected = tree_elbo(tree.nodes, found, views, likelihood="bernoulli").loss(0.3)
    expected = expected + contrastive_loss(CONTRAST, tree.nodes, found.nodes, embedding)
    torch.testing.assert_close(loss, expected)


def test_one_view_without_contrast_two_stacked_with_it() -> None:
    images = draw(5)
    none = TreeConfig()
    assert make_views(images, none) is images
    torch.manual_seed(0)
    one = make_views(images, TreeConfig(augmentation="shifts"))
    assert one.shape == images.shape
    assert not torch.equal(one, images)
    both = make_views(images, TreeConfig(augmentation="shifts", contrastive=CONTRAST))
    assert both.shape == (10, 1, 8, 8)
    # The same image in rows b and b + B, and not the same view of it.
    first, second = both.chunk(2)
    assert not torch.equal(first, second)
    assert (first - second).abs().mean() < (first - second.roll(1, 0)).abs().mean()
