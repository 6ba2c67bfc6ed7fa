"""L2H: a worked example, laws, and the hierarchy that the logits were made of."""

from __future__ import annotations

import numpy as np
import pytest
from treediffusion.baselines.logits import merge_logits
from treediffusion.errors import ShapeError
from treediffusion.evaluate.clustering import dendrogram_purity


def test_a_worked_example() -> None:
    """Three clusters; the weakest is 2, whose only image would be 0 if it could not be 2.

    Sums of probabilities: cluster 0 has two sure images, 1 three, 2 a single one.
    """
    logits = np.array([[9, 0, 0], [9, 0, 0], [0, 9, 0], [0, 9, 0], [0, 9, 0], [3, 1, 5]], float)
    merges = merge_logits(logits).merges
    # Group 3 = {2, 0} has the sum of three images, less than 1's by what cluster 2 is unsure.
    assert merges.tolist() == [[2, 0], [3, 1]]


def test_what_is_mistaken_for_each_other_is_merged_first() -> None:
    """Two families of two classes: within a family logits are close, across they are not."""
    numbers = np.random.default_rng(0)
    cluster = np.repeat([0, 1, 2, 3], 50)
    family = np.array([[4, 3, 0, 0], [3, 4, 0, 0], [0, 0, 4, 3], [0, 0, 3, 4]], float)
    logits = family[cluster] + numbers.normal(0, 0.2, (200, 4))
    hierarchy = merge_logits(logits)
    assert {frozenset(pair) for pair in hierarchy.merges[:2].tolist()} == {
        frozenset({0, 1}),
        frozenset({2, 3}),
    }
    leaf, topology = hierarchy.tree(4)
    assert dendrogram_purity(cluster // 2, leaf[logits.argmax(1)], topology) == pytest.approx(1)


def test_a_constant_in_a_row_changes_nothing() -> None:
    """Logits are log-probabilities up to one number for each image."""
    numbers = np.random.default_rng(1)
    logits = numbers.normal(0, 2, (300, 7))
    moved = logits + numbers.normal(0, 50, (300, 1))
    np.testing.assert_array_equal(merge_logits(logits).merges, merge_logits(moved).merges)


def test_names_of_clusters_change_nothing_but_names() -> None:
    numbers = np.random.default_rng(2)
    logits = numbers.normal(0, 2, (300, 6))
    order = numbers.permutation(6)
    renamed = merge_logits(logits[:, order])
    for k in range(1, 7):
        here = merge_logits(logits).cut(k)[order]
        there = renamed.cut(k)
        assert len(set(zip(here.tolist(), there.tolist(), strict=True))) == k


def test_a_cluster_without_images_is_merged_all_the_same() -> None:
    logits = np.array([[5.0, 0, -9], [0, 5, -9], [1, 5, -9]])
    hierarchy = merge_logits(logits)
    assert hierarchy.count == 3
    assert hierarchy.merges[0, 0] == 2


@pytest.mark.parametrize(
    "logits", [np.zeros((4, 1)), np.zeros(4), np.zeros((0, 3)), np.full((2, 3), np.inf)]
)
def test_what_are_no_logits(logits: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="logits"):
        merge_logits(logits)
