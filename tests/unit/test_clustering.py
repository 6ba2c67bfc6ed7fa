"""Clustering scores: definitions by brute force, laws, and examples worked by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import assume, given, settings
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
    """Labels with gaps, leaves of which some stay empty, and a tree grown and pruned at random."""
    tree = TreeTopology.initial()
    for _ in range(draw(st.integers(0, 5))):
        tree = tree.grow(draw(st.sampled_from(tree.leaf_names)))
    for _ in range(draw(st.integers(0, 2))):
        if tree.num_leaves > 1:
            tree = tree.prune(draw(st.sampled_from(tree.leaf_names)))
    size = draw(st.integers(1, 14))
    classes = draw(st.sampled_from([(0, 1, 2), (3, 17), (-4, 0, 9, 250), (5,)]))
    some = st.integers(0, tree.num_leaves - 1)
    used = draw(st.lists(some, min_size=1, max_size=5, unique=True))
    labels = draw(st.lists(st.sampled_from(classes), min_size=size, max_size=size))
    leaf = draw(st.lists(st.sampled_from(used), min_size=size, max_size=size))
    return ids(*labels), ids(*leaf), tree


def has_pair(labels: Ids) -> bool:
    return len(set(labels.tolist())) < len(labels)


def common_ancestor(a: int, b: int, tree: TreeTopology) -> int:
    """Where the ways to the root first meet: a parent's row is smaller than its children's."""
    while a != b:
        a, b = sorted((a, b))
        b = int(tree.parent[b])
    return a


def pairwise_purity(labels: Ids, leaf: Ids, tree: TreeTopology) -> float:
    """The definition, pair by pair, from the tree's parents alone."""
    row = [int(tree.leaves[i]) for i in leaf]
    shares = []
    for i, j in combinations(range(len(labels)), 2):
        if labels[i] != labels[j]:
            continue
        top = common_ancestor(row[i], row[j], tree)
        below = [
            label
            for label, one in zip(labels.tolist(), row, strict=True)
            if common_ancestor(one, top, tree) == top
        ]
        shares.append(below.count(labels[i]) / len(below))
    return float(np.mean(shares))


def matched_accuracy(labels: Ids, clusters: Ids) -> float:
    """The best over all ways to give each class a cluster of its own, tried one by one."""
    classes, groups = set(labels.tolist()), set(clusters.tolist())
    nobody = [None] * (len(classes) - len(groups))  # for classes that are left without
    best = 0
    for order in permutations([*groups, *nobody], len(classes)):
        mine = dict(zip(classes, order, strict=True))
        pairs = zip(labels.tolist(), clusters.tolist(), strict=True)
        best = max(best, sum(mine[label] == cluster for label, cluster in pairs))
    return best / len(labels)


def entropy(values: list[object]) -> float:
    shares = [count / len(values) for count in Counter(values).values()]
    return -sum(share * math.log(share) for share in shares)


def mutual_information_ratio(labels: Ids, clusters: Ids) -> float:
    """2 I / (H + H), I = H(labels) + H(clusters) - H(both); 1 where nothing is left to tell."""
    ours, theirs = entropy(labels.tolist()), entropy(clusters.tolist())
    both = entropy(list(zip(labels.tolist(), clusters.tolist(), strict=True)))
    return 2 * (ours + theirs - both) / (ours + theirs) if ours + theirs else 1.0


def adjusted_pairs(labels: Ids, clusters: Ids) -> float:
    """Hubert and Arabie's index, pair by pair; 1 where no other value is possible."""
    pairs = list(combinations(zip(labels.tolist(), clusters.tolist(), strict=True), 2))
    classed = sum(a[0] == b[0] for a, b in pairs)
    clustered = sum(a[1] == b[1] for a, b in pairs)
    found = sum(a == b for a, b in pairs)
    chance = classed * clustered / max(len(pairs), 1)
    most = (classed + clustered) / 2
    return 1.0 if most == chance else (found - chance) / (most - chance)


def majority_share(labels: Ids, leaf: Ids, leaves: int) -> float:
    """Leaf by leaf, those without images included."""
    right = 0
    for one in range(leaves):
        inside = [
            k for k, where in zip(labels.tolist(), leaf.tolist(), strict=True) if where == one
        ]
        right += max((inside.count(k) for k in inside), default=0)
    return right / len(labels)


@settings(deadline=None)
@given(clusterings())
def test_dendrogram_purity_is_its_pairwise_definition(case: tuple[Ids, Ids, TreeTopology]) -> None:
    assume(has_pair(case[0]))
    assert dendrogram_purity(*case) == pytest.approx(pairwise_purity(*case), abs=1e-12)


@settings(deadline=None)
@given(clusterings())
def test_no_score_depends_on_numbering_or_order(case: tuple[Ids, Ids, TreeTopology]) -> None:
    labels, leaf, tree = case
    assume(has_pair(labels))
    before = clustering_metrics(labels, leaf, tree)
    order = np.random.default_rng(len(labels)).permutation(len(labels))
    renamed = 40 - 3 * labels
    # Mirroring the tree swaps every pair of children, and with them the leaves' numbers.
    flip = str.maketrans("01", "10")
    mirror = TreeTopology.of(name.translate(flip) for name in tree.names)
    number = {name: i for i, name in enumerate(mirror.leaf_names)}
    mirrored = ids(*(number[name.translate(flip)] for name in tree.leaf_names))[leaf]
    after = clustering_metrics(renamed[order], mirrored[order], mirror)
    assert after == pytest.approx(before, abs=1e-9)


@settings(deadline=None)
@given(clusterings())
def test_scores_keep_their_bounds(case: tuple[Ids, Ids, TreeTopology]) -> None:
    labels, leaf, tree = case
    assume(has_pair(labels))
    scores = clustering_metrics(labels, leaf, tree)
    assert all(-1e-12 <= score <= 1 + 1e-12 for name, score in scores.items() if name != "ari")
    assert scores["ari"] <= 1 + 1e-12
    assert scores["acc"] <= scores["leaf_purity"] + 1e-12


@settings(deadline=None)
@given(clusterings())
def test_accuracy_is_the_best_over_all_matchings(case: tuple[Ids, Ids, TreeTopology]) -> None:
    labels, leaf, _ = case
    assert accuracy(labels, leaf) == pytest.approx(matched_accuracy(labels, leaf), abs=1e-12)


@settings(deadline=None)
@given(clusterings())
def test_nmi_is_its_definition_by_entropies(case: tuple[Ids, Ids, TreeTopology]) -> None:
    labels, leaf, _ = case
    assert nmi(labels, leaf) == pytest.approx(mutual_information_ratio(labels, leaf), abs=1e-9)


@settings(deadline=None)
@given(clusterings())
def test_ari_is_its_definition_by_pairs(case: tuple[Ids, Ids, TreeTopology]) -> None:
    labels, leaf, _ = case
    assert ari(labels, leaf) == pytest.approx(adjusted_pairs(labels, leaf), abs=1e-12)


@settings(deadline=None)
@given(clusterings())
def test_leaf_purity_counts_each_leafs_majority(case: tuple[Ids, Ids, TreeTopology]) -> None:
    labels, leaf, tree = case
    truth = majority_share(labels, leaf, tree.num_leaves)
    assert leaf_purity(labels, leaf) == pytest.approx(truth, abs=1e-12)


@settings(deadline=None)
@given(clusterings())
def test_ids_may_be_as_narrow_as_bytes(case: tuple[Ids, Ids, TreeTopology]) -> None:
    """As data sets store them; sums of counts must not stay in that type."""
    labels, leaf, tree = abs(case[0]), case[1], case[2]
    assume(has_pair(labels))
    narrow = clustering_metrics(labels.astype(np.uint8), leaf.astype(np.uint8), tree)
    assert narrow == pytest.approx(clustering_metrics(labels, leaf, tree), abs=1e-12)


def test_one_image_is_clustered_perfectly_but_has_no_pair() -> None:
    label, leaf = ids(17), ids(2)
    for score in (accuracy, nmi, ari, leaf_purity):
        assert score(label, leaf) == 1, score
    with pytest.raises(DataError, match="1 images without two of one class"):
        dendrogram_purity(label, leaf, FOUR)


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
