"""Growth and pruning decide from leaf probabilities alone, by the published rules."""

from __future__ import annotations

import torch
from treediffusion.config import TreeConfig
from treediffusion.topology import TreeTopology
from treediffusion.train.growth import choose_pruned, choose_split

CONFIG = TreeConfig(max_leaves=3, levels=3, batch_size=2)
TWO = TreeTopology.initial()


def prob(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows)


def test_the_leaf_with_most_images_is_split_and_takes_the_undecided_too() -> None:
    leaf_prob = prob([0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.1, 0.9], [0.4, 0.6])
    split = choose_split(leaf_prob, TWO, CONFIG)
    assert split is not None
    assert split.leaf == "r1"
    assert split.members.tolist() == [False, True, True, True, True]


def test_threshold_is_one_over_leaves() -> None:
    tree = TWO.grow("r0")  # leaves r1, r00, r01
    leaf_prob = prob([0.34, 0.33, 0.33], [0.32, 0.34, 0.34], [0.0, 0.9, 0.1])
    config = CONFIG.model_copy(update={"max_leaves": 4, "batch_size": 1, "levels": 4})
    split = choose_split(leaf_prob, tree, config)
    assert split is not None
    assert split.leaf == "r00"
    assert split.members.tolist() == [False, True, True]


def test_growth_ends_at_enough_leaves_that_hold_images() -> None:
    tree = TWO.grow("r1")
    full = torch.eye(3).repeat(4, 1)
    assert choose_split(full, tree, CONFIG) is None
    empty_leaf = full.clone()
    empty_leaf[:, 0] += empty_leaf[:, 2]
    empty_leaf[:, 2] = 0
    split = choose_split(empty_leaf, tree, CONFIG)
    assert split is not None
    assert split.leaf == "r0"


def test_growth_ends_when_the_candidate_is_too_deep_or_too_small() -> None:
    deep = TWO.grow("r1")
    config = CONFIG.model_copy(update={"max_leaves": 4})
    at_the_bottom = prob([0.0, 0.9, 0.1], [0.0, 0.9, 0.1], [0.1, 0.8, 0.1], [0.9, 0.0, 0.1])
    assert choose_split(at_the_bottom, deep, config) is None
    few = config.model_copy(update={"batch_size": 4})
    assert choose_split(torch.eye(2).repeat(3, 1), TWO, few) is None


def test_only_a_leaf_below_its_share_is_pruned() -> None:
    leaf_prob = torch.zeros(200, 2)
    leaf_prob[:, 0] = 1
    leaf_prob[0] = torch.tensor([0.0, 1.0])
    assert choose_pruned(leaf_prob, TWO, CONFIG) == "r1"
    leaf_prob[:2] = torch.tensor([0.0, 1.0])
    assert choose_pruned(leaf_prob, TWO, CONFIG) is None


def test_the_last_leaf_stays() -> None:
    assert choose_pruned(torch.ones(5, 1), TWO.prune("r0"), CONFIG) is None
