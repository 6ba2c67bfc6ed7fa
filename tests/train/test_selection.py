"""The tree that is kept: by its ELBO, or because the others confirm it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score
from treediffusion.config import TreeConfig
from treediffusion.train.selection import agreement, choose_tree

BY_ELBO = TreeConfig(restarts=3)
BY_AGREEMENT = TreeConfig(restarts=3, keep="agreement")


def stage(leaf: list[int], elbo: float) -> Any:
    """A finished stage: each image surely in its leaf."""
    prob = torch.nn.functional.one_hot(torch.tensor(leaf), 3).float()
    return SimpleNamespace(
        leaf_prob=lambda: prob, state=SimpleNamespace(history=[{"elbo": 0.0}, {"elbo": elbo}])
    )


STAGES = [
    stage([0, 1, 2, 0, 1, 2], -1.0),
    stage([0, 0, 1, 1, 2, 2], -3.0),
    stage([2, 2, 0, 0, 1, 0], -2.0),  # the second, renamed, but for one image
]


@given(st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), min_size=2, max_size=4))
def test_agreement_is_the_mean_nmi_with_the_others(partitions: list[list[int]]) -> None:
    """Against scikit-learn's."""
    ours = agreement([np.array(leaf) for leaf in partitions])
    for i, found in enumerate(ours):
        others = [
            normalized_mutual_info_score(partitions[i], leaf)
            for j, leaf in enumerate(partitions)
            if j != i
        ]
        assert found == pytest.approx(np.mean(others), abs=1e-12)


def test_the_best_elbo_is_kept_unless_told_otherwise() -> None:
    assert choose_tree(STAGES, BY_ELBO) is STAGES[0]


def test_the_tree_that_others_confirm_is_kept_whatever_its_elbo() -> None:
    assert choose_tree(STAGES, BY_AGREEMENT) in STAGES[1:]


def test_a_single_tree_is_kept() -> None:
    assert choose_tree(STAGES[2:], BY_AGREEMENT) is STAGES[2]


def test_of_two_trees_that_confirm_each_other_alike_the_elbo_decides() -> None:
    assert choose_tree(STAGES[1:], BY_AGREEMENT) is STAGES[2]
