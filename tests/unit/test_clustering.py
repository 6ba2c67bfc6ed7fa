"""Clustering scores: definitions by brute force, laws, and examples worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from treediffusion.errors import DataError, ShapeError
from treediffusion.evaluate.clustering import (
    accuracy,
    ari,
    clustering_metrics,
    dendrogram_purity,
    leaf_purity,
    nmi,
)
from treediffusion.topology import TreeTopology

Ids = NDArray[np.int64]
FOUR = TreeTopology.of(["r", "r0", "r1", "r00", "r01", "r10", "r11"])


def ids(*values: int) -> Ids:
    return np.array(values, np.int64)


@st.composite
def clusterings(draw: st.DrawFn) -> tuple[Ids, Ids, TreeTopology]:
    """Labels (two of one class at least), leaves and a tree grown and pruned at random."""
    tree = TreeTopology.initial()
    for _ in range(draw(st.integers(0, 5))):
        tree = tree.grow(draw(st.sampled_from(tree.leaf_names)))
    for _ in range(draw(st.integers(0, 2))):
        if tree.num_leaves > 1:
            tree = tree.prune(draw(st.sampled_from(tree.leaf_names)))
    size = draw(st.integers(4, 14))
    labels = draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    leaf = draw(st.lists(st.integers(0, tree.num_leaves - 1), min_size=size, max_size=size))
    return ids(*labels), ids(*leaf), tree


def pairwise_purity(labels: Ids, leaf: Ids, tree: TreeTopology) -> float:
    """The definition, pair by pair, from the leaves' names."""
    name = [tree.leaf_names[i] for i in leaf]
    shares = []
    for i, j in combinations(range(len(labels)), 2):
        if labels[i] != labels[j]:
            continue
        common = next(
            name[i][:k] for k in range(len(name[i]), 0, -1) if name[j].startswith(name[i][:k])
        )
        below = [label for label, one in zip(labels, name, strict=True) if one.startswith(common)]
        shares.append(below.count(labels[i]) / len(below))
    return float(np.mean(shares))


@given(clusterings())
def test_dendrogram_purity_is_its_pairwise_definition(case: tuple[Ids, Ids, TreeTopology]) -> None:
    assert dendrogram_purity(*case) == pytest.approx(pairwise_purity(*case), abs=1e-12)


@given(clusterings())
def test_no_score_depends_on_numbering_or_order(case: tuple[Ids, Ids, TreeTopology]) -> None:
    labels, leaf, tree = case
    before = clustering_metrics(labels, leaf, tree)
    order = np.random.default_rng(len(labels)).permutation(len(labels))
    renamed = ids(7, -2, 40)[labels]
    # Mirroring the tree swaps every pair of children, and with them the leaves' numbers.
    flip = str.maketrans("01", "10")
    mirror = TreeTopology.of(name.translate(flip) for name in tree.names)
    number = {name: i for i, name in enumerate(mirror.leaf_names)}
    mirrored = ids(*(number[name.translate(flip)] for name in tree.leaf_names))[leaf]
    after = clustering_metrics(renamed[order], mirrored[order], mirror)
    assert after == pytest.approx(before, abs=1e-9)


@given(clusterings())
def test_scores_keep_their_bounds(case: tuple[Ids, Ids, TreeTopology]) -> None:
    labels, leaf, tree = case
    scores = clustering_metrics(labels, leaf, tree)
    assert all(-1e-12 <= score <= 1 + 1e-12 for name, score in scores.items() if name != "ari")
    assert scores["ari"] <= 1 + 1e-12
    assert scores["acc"] <= scores["leaf_purity"] + 1e-12


@given(clusterings())
def test_accuracy_is_the_best_over_all_matchings(case: tuple[Ids, Ids, TreeTopology]) -> None:
    labels, leaf, tree = case
    slots = max(3, tree.num_leaves)
    if slots > 6:
        leaf, slots = leaf % 6, 6
    best = max(np.mean(np.array(match)[leaf] == labels) for match in permutations(range(slots)))
    assert accuracy(labels, leaf) == pytest.approx(best, abs=1e-12)


def test_a_perfect_tree_scores_1_everywhere() -> None:
    labels = ids(0, 1, 2, 3, 0, 1, 2, 3)
    scores = clustering_metrics(labels, (labels + 1) % 4, FOUR)
    assert scores == pytest.approx(
        dict.fromkeys(["acc", "nmi", "ari", "dendrogram_purity", "leaf_purity"], 1.0)
    )


def test_a_class_split_over_siblings_keeps_dendrogram_purity_but_not_accuracy() -> None:
    labels, leaf = ids(0, 0, 0, 1, 1, 1), ids(0, 1, 1, 2, 3, 3)
    scores = clustering_metrics(labels, leaf, FOUR)
    assert scores["dendrogram_purity"] == pytest.approx(1)
    assert scores["leaf_purity"] == pytest.approx(1)
    assert scores["acc"] == pytest.approx(4 / 6)
    # The same leaves hung so that each class is torn across the root.
    torn = clustering_metrics(labels, ids(0, 2, 2, 1, 3, 3), FOUR)
    # Per class, one pair in its pure leaf scores 1 and two pairs at the root score 3/6.
    assert torn["dendrogram_purity"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert {**torn, "dendrogram_purity": 1} == pytest.approx({**scores, "dendrogram_purity": 1})


def test_one_cluster_scores_the_classes_shares() -> None:
    labels, leaf = ids(0, 0, 0, 1), ids(0, 0, 0, 0)
    scores = clustering_metrics(labels, leaf, TreeTopology.initial())
    # The only pairs are the three of class 0, three quarters of the leaf.
    assert scores["dendrogram_purity"] == pytest.approx(3 / 4)
    assert scores["leaf_purity"] == scores["acc"] == pytest.approx(3 / 4)
    assert scores["nmi"] == pytest.approx(0)
    assert scores["ari"] == pytest.approx(0)


def test_a_single_child_is_passed_through() -> None:
    pruned = FOUR.prune("r11")  # leaves r00, r01, r10, the last an only child
    direct = TreeTopology.of(["r", "r0", "r1", "r00", "r01"])  # leaves r1, r00, r01
    labels, leaf = ids(0, 1, 0, 1, 0, 0), ids(0, 1, 2, 2, 2, 1)
    same = ids(1, 2, 0)[leaf]
    assert pruned.leaf_names == ("r00", "r01", "r10")
    assert direct.leaf_names == ("r1", "r00", "r01")
    assert dendrogram_purity(labels, leaf, pruned) == dendrogram_purity(labels, same, direct)


def test_nmi_is_normalised_by_the_arithmetic_mean() -> None:
    # Clusters halve each of two classes: I = ln 2, H(labels) = ln 2, H(clusters) = ln 4.
    assert nmi(ids(0, 0, 1, 1), ids(0, 1, 2, 3)) == pytest.approx(2 / 3)


def test_ari_by_hand() -> None:
    # Pairs together in both: 1; in labels: 2; in clusters: 3; of 6: (1 - 1) / (2.5 - 1).
    assert ari(ids(0, 0, 1, 1), ids(0, 0, 0, 1)) == pytest.approx(0)


def test_leaves_without_images_weigh_nothing() -> None:
    labels, leaf = ids(0, 0, 1, 1), ids(0, 0, 3, 3)
    assert leaf_purity(labels, leaf) == 1
    assert dendrogram_purity(labels, leaf, FOUR) == 1


def test_counts_of_many_images_do_not_overflow() -> None:
    labels = np.zeros(3_000_000, np.int8)
    leaf = np.arange(3_000_000, dtype=np.int8) % 2
    assert dendrogram_purity(labels, leaf, TreeTopology.initial()) == pytest.approx(1)


@pytest.mark.parametrize("score", [accuracy, nmi, ari, leaf_purity])
@pytest.mark.parametrize(
    ("labels", "clusters"),
    [
        (ids(0, 1, 1), ids(0, 1)),
        (ids(), ids()),
        (ids(0, 1).reshape(1, 2), ids(0, 1).reshape(1, 2)),
        (np.array([0.0, 1.0]), ids(0, 1)),
    ],
    ids=["lengths differ", "empty", "two axes", "floats"],
)
def test_ids_that_do_not_fit(
    score: Callable[[Ids, Ids], float], labels: Ids, clusters: Ids
) -> None:
    with pytest.raises(ShapeError):
        score(labels, clusters)


@pytest.mark.parametrize("leaf", [ids(0, 4), ids(-1, 0), ids(0)], ids=["above", "below", "length"])
def test_leaves_that_are_not_in_the_tree(leaf: Ids) -> None:
    with pytest.raises(ShapeError):
        dendrogram_purity(ids(0, 0), leaf, FOUR)


def test_purity_without_a_pair_is_undefined() -> None:
    with pytest.raises(DataError, match="without two of one class"):
        dendrogram_purity(ids(0, 1, 2), ids(0, 1, 2), FOUR)
