"""Merges: cuts agree with SciPy's, trees with cuts, and Ward finds what is apart."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import AgglomerativeClustering
from treediffusion.baselines.dendrogram import Dendrogram
from treediffusion.baselines.flat import ward_merges
from treediffusion.errors import ConfigError, ShapeError
from treediffusion.evaluate.clustering import accuracy, clustering_metrics, dendrogram_purity
from treediffusion.topology import TreeTopology

POINTS = np.random.default_rng(3).normal(size=(40, 3)).astype(np.float32)
MERGES = ward_merges(POINTS)


def partition(cluster: NDArray[np.int64]) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(cluster == k).tolist()) for k in set(cluster.tolist())}


@pytest.mark.parametrize("k", [1, 2, 7, 39, 40])
def test_a_cut_is_scipys_and_scikit_learns(k: int) -> None:
    mine = MERGES.cut(k)
    assert set(mine.tolist()) == set(range(k))
    assert partition(mine) == partition(fcluster(MERGES.linkage, k, "maxclust"))
    model = AgglomerativeClustering(n_clusters=k, linkage="ward").fit(POINTS)
    assert partition(mine) == partition(model.labels_)


def test_the_linkage_is_scipys_own() -> None:
    np.testing.assert_allclose(MERGES.linkage, linkage(POINTS.astype(np.float64), "ward"), 1e-5)


@pytest.mark.parametrize("k", [1, 2, 7, 40])
def test_the_leaves_of_a_tree_are_the_clusters_of_its_cut(k: int) -> None:
    leaf, topology = MERGES.tree(k)
    assert topology.num_leaves == k
    assert partition(leaf) == partition(MERGES.cut(k))


def test_every_smaller_cut_is_a_union_of_leaves_below_one_node() -> None:
    leaf, topology = MERGES.tree(9)
    nodes = [frozenset(np.flatnonzero(np.isin(leaf, topology.leaves_below(name))).tolist())
             for name in topology.names]  # fmt: skip
    for k in range(1, 10):
        assert partition(MERGES.cut(k)) <= set(nodes)


def test_clusters_are_numbered_by_their_first_observation() -> None:
    first = [int(np.flatnonzero(MERGES.cut(6) == k)[0]) for k in range(6)]
    assert first == sorted(first)


def test_a_worked_example() -> None:
    """Four points: (0, 1), then (2, 3), then both; 4 and 5 are the pairs."""
    merges = Dendrogram(np.array([[0, 1], [2, 3], [4, 5]]))
    assert merges.cut(2).tolist() == [0, 0, 1, 1]
    assert merges.cut(3).tolist() == [0, 0, 1, 2]
    leaf, topology = merges.tree(3)
    assert topology == TreeTopology.of(["r", "r0", "r1", "r10", "r11"])
    assert [topology.leaf_names[k] for k in leaf] == ["r0", "r0", "r10", "r11"]
    np.testing.assert_array_equal(merges.linkage[:, 2:], [[1, 2], [2, 2], [3, 4]])


def test_ward_is_exact_on_classes_that_are_apart() -> None:
    """Five balls in a row: every score is 1 at five leaves, and purity at any more."""
    numbers = np.random.default_rng(0)
    labels = numbers.integers(0, 5, 200)
    points = numbers.normal(0, 0.1, (200, 4)) + 10.0 * labels[:, None]
    merges = ward_merges(points.astype(np.float32))
    scores = clustering_metrics(labels, *merges.tree(5))
    assert all(score == pytest.approx(1) for score in scores.values())
    assert accuracy(labels, merges.cut(5)) == 1
    assert dendrogram_purity(labels, *merges.tree(30)) == pytest.approx(1)


@pytest.mark.parametrize("k", [0, 41, -1])
def test_no_more_clusters_than_observations(k: int) -> None:
    with pytest.raises(ConfigError, match="1 to 40"):
        MERGES.cut(k)
    with pytest.raises(ConfigError, match="1 to 40"):
        MERGES.tree(k)


@pytest.mark.parametrize(
    "merges",
    [[[0, 1], [0, 2]], [[0, 3], [1, 2]], [[0, 4], [1, 2]], [[0, 1, 2]], np.zeros((0, 2))],
    ids=["twice", "before it exists", "never", "three", "none"],
)
def test_what_is_no_sequence_of_merges(merges: list[list[int]]) -> None:
    with pytest.raises(ShapeError, match="merges"):
        Dendrogram(np.array(merges, np.int64))


@pytest.mark.parametrize("shape", [(1, 3), (4,), (2, 2, 2)])
def test_ward_needs_two_vectors(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="vectors"):
        ward_merges(np.zeros(shape, np.float32))
