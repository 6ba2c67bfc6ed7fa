"""Growth and pruning decide from leaf probabilities and scores alone, by the published rules."""

from __future__ import annotations

import pytest
import torch
from treediffusion.config import TreeConfig
from treediffusion.nn.tree_vae import TreeVAE
from treediffusion.topology import TreeTopology
from treediffusion.train.growth import choose_pruned, choose_split, effective_leaves, members
from treediffusion.train.images import TrainingImages
from treediffusion.train.measure import leaf_prob, mean_elbo, split_score

CONFIG = TreeConfig(max_leaves=3, levels=3, batch_size=2)
TWO = TreeTopology.initial()


def prob(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows)


def test_the_leaf_with_most_images_is_split_and_takes_the_undecided_too() -> None:
    probs = prob([0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.1, 0.9], [0.4, 0.6])
    assert choose_split(probs, TWO, CONFIG) == "r1"
    assert members(probs, CONFIG)[:, 1].tolist() == [False, True, True, True, True]


def test_threshold_is_one_over_leaves() -> None:
    tree = TWO.grow("r0")  # leaves r1, r00, r01
    probs = prob([0.34, 0.33, 0.33], [0.32, 0.34, 0.34], [0.0, 0.9, 0.1])
    config = CONFIG.model_copy(update={"max_leaves": 4, "batch_size": 1, "levels": 4})
    assert choose_split(probs, tree, config) == "r00"
    assert members(probs, config)[:, 1].tolist() == [False, True, True]


def test_growth_ends_at_enough_leaves_that_hold_images() -> None:
    tree = TWO.grow("r1")
    full = torch.eye(3).repeat(4, 1)
    assert choose_split(full, tree, CONFIG) is None
    empty_leaf = full.clone()
    empty_leaf[:, 0] += empty_leaf[:, 2]
    empty_leaf[:, 2] = 0
    assert effective_leaves(empty_leaf, CONFIG) == 2
    assert choose_split(empty_leaf, tree, CONFIG) == "r0"


@pytest.mark.parametrize(("rule", "expected"), [("next", "r0"), ("stop", None)])
def test_a_candidate_at_full_depth_is_passed_over_or_ends_growth(
    rule: str, expected: str | None
) -> None:
    tree = TWO.grow("r1")  # leaves r0, r10, r11, the latter two as deep as three levels allow
    config = CONFIG.model_copy(update={"max_leaves": 4, "at_full_depth": rule})
    probs = prob(*[[0.0, 0.9, 0.1]] * 3, *[[0.9, 0.0, 0.1]] * 2)
    assert choose_split(probs, tree, config) == expected
    nobody_above = prob(*[[0.0, 0.9, 0.1]] * 3, [0.9, 0.0, 0.1])
    assert choose_split(nobody_above, tree, config) is None


@pytest.mark.parametrize("rule", ["next", "stop"])
def test_a_leaf_of_less_than_a_batch_is_passed_over(rule: str) -> None:
    """As published under both rules; with other scores than numbers it need not be the last."""
    config = CONFIG.model_copy(update={"at_full_depth": rule})
    probs = prob([0.9, 0.1], [0.2, 0.8], [0.1, 0.9])
    assert choose_split(probs, TWO, config, score=torch.tensor([9.0, 1.0])) == "r1"
    few = CONFIG.model_copy(update={"batch_size": 4, "at_full_depth": rule})
    assert choose_split(torch.eye(2).repeat(3, 1), TWO, few) is None


def test_the_score_decides_among_leaves_of_a_batch() -> None:
    probs = prob(*[[0.9, 0.1]] * 3, *[[0.1, 0.9]] * 2)
    assert choose_split(probs, TWO, CONFIG) == "r0"
    assert choose_split(probs, TWO, CONFIG, score=torch.tensor([1.0, 2.0])) == "r1"
    # Of equals the first: the same choice on every machine.
    assert choose_split(probs, TWO, CONFIG, score=torch.tensor([2.0, 2.0])) == "r0"


def test_a_leaf_without_images_is_never_chosen_and_one_with_all_can_be() -> None:
    probs = prob(*[[1.0, 0.0]] * 5)
    for score in (None, torch.tensor([0.0, 9.0])):
        assert choose_split(probs, TWO, CONFIG, score=score) == "r0"
    assert members(probs, CONFIG).sum(0).tolist() == [5, 0]
    nothing = torch.full((4, 200), 1 / 200)  # no leaf holds its share
    assert effective_leaves(nothing, CONFIG) == 0
    assert not members(nothing, CONFIG).any()


def test_fewer_images_than_a_batch_are_a_batch() -> None:
    config = CONFIG.model_copy(update={"batch_size": 256})
    assert choose_split(prob(*[[1.0, 0.0]] * 5), TWO, config) == "r0"
    assert choose_split(prob(*[[1.0, 0.0]] * 4, [0.0, 1.0]), TWO, config) is None


def test_only_a_leaf_below_its_share_is_pruned() -> None:
    probs = torch.zeros(200, 2)
    probs[:, 0] = 1
    probs[0] = torch.tensor([0.0, 1.0])
    assert choose_pruned(probs, TWO, CONFIG) == "r1"
    probs[:2] = torch.tensor([0.0, 1.0])
    assert choose_pruned(probs, TWO, CONFIG) is None


def test_the_last_leaf_stays() -> None:
    assert choose_pruned(torch.ones(5, 1), TWO.prune("r0"), CONFIG) is None


@pytest.mark.parametrize("criterion", ["samples", "reconstruction", "elbo"])
def test_scores_sum_to_the_trees_own_terms(criterion: str) -> None:
    """Over all leaves: the summed reconstruction error, or the summed negative ELBO."""
    torch.manual_seed(0)
    config = TreeConfig(
        latent_channels=2, channels=4, levels=3, max_leaves=3, batch_size=4, criterion=criterion
    )
    tree = TreeVAE(config, TWO.grow("r0"), image_channels=1, image_size=8)
    images = TrainingImages(torch.rand(10, 1, 8, 8).numpy())
    torch.manual_seed(1)
    score = split_score(tree, images)
    if criterion == "samples":
        assert score is None
        return
    torch.manual_seed(1)  # the same latents
    terms = mean_elbo(tree, images)
    total = -terms["elbo"] if criterion == "elbo" else terms["reconstruction"]
    assert score is not None
    assert score.sum().item() / 10 == pytest.approx(total, rel=1e-5)
    assert (score > 0).all()


def test_leaf_probabilities_do_not_depend_on_the_mode_or_on_chance() -> None:
    torch.manual_seed(0)
    config = TreeConfig(latent_channels=2, channels=4, levels=3, max_leaves=3)
    tree = TreeVAE(config, TWO, image_channels=1, image_size=8).train()
    images = TrainingImages(torch.rand(6, 1, 8, 8).numpy())
    first, state = leaf_prob(tree, images), torch.get_rng_state()
    assert torch.equal(leaf_prob(tree.train(), images), first)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(first.sum(1), torch.ones(6))
