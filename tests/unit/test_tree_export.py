"""Exports are read back by a parser, SciPy and networkx; cuts obey the laws of a hierarchy."""

from __future__ import annotations

import re
from itertools import pairwise

import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster import hierarchy
from treediffusion.errors import ConfigError, ShapeError, TopologyError
from treediffusion.topology import TreeTopology
from treediffusion.tree_export import cut, to_linkage, to_networkx, to_newick

INITIAL = TreeTopology.initial()
# r0 and r00 have one child each; leaves r10, r11 come before the deeper r000.
CHAINED = TreeTopology.of(["r", "r0", "r1", "r00", "r10", "r11", "r000"])
TOKEN = re.compile(r"[(),;]|[^(),;\[]+(?:\[[^\]]*\])?")


@st.composite
def trees(draw: st.DrawFn) -> tuple[TreeTopology, np.ndarray]:
    """A grown and pruned tree with shares that add up; some leaves are equal, some empty."""
    tree = INITIAL
    for grows, place in draw(st.lists(st.tuples(st.booleans(), st.integers(0, 99)), max_size=12)):
        leaf = tree.leaf_names[place % tree.num_leaves]
        if grows:
            tree = tree.grow(leaf)
        elif tree.num_leaves > 1:
            tree = tree.prune(leaf)
    counts = np.array([draw(st.integers(0, 3)) for _ in range(tree.num_leaves)])
    return tree, np.array([counts[tree.leaves_below(name)].sum() for name in tree.names])


def parse_newick(text: str) -> dict[str, tuple[str, float, float | None]]:
    """Parent, edge length and share by name: a stack of open brackets, and nothing of ours."""
    found: dict[str, tuple[str, float, float | None]] = {}
    groups: list[list[str]] = [[]]
    closed: list[str] = []
    for token in TOKEN.findall(text):
        if token == "(":
            groups.append([])
        elif token == ")":
            closed = groups.pop()
        elif token not in ",;":
            match = re.fullmatch(r"(\w+)(?::([\d.]+))?(?:\[&&NHX:share=(.+)\])?", token)
            assert match is not None, token
            name, length, share = match.groups()
            found[name] = ("", float(length or 0), None if share is None else float(share))
            for child in closed:
                found[child] = (name, *found[child][1:])
            groups[-1].append(name)
            closed = []
    assert text.endswith(";")
    assert len(groups) == 1
    return found


def same_partition(mine: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(((mine[:, None] == mine) == (theirs[:, None] == theirs)).all())


@given(trees())
def test_newick_is_read_back_with_every_node_and_share(drawn: tuple) -> None:
    tree, share = drawn
    found = parse_newick(to_newick(tree, share=share / 7))
    assert set(found) == set(tree.names)
    for row, name in enumerate(tree.names):
        assert found[name] == (name[:-1], float(row > 0), share[row] / 7)
    plain = parse_newick(to_newick(tree))
    assert {name: entry[0] for name, entry in plain.items()} == {n: n[:-1] for n in tree.names}


def test_newick_of_small_trees() -> None:
    assert to_newick(TreeTopology.of(["r"])) == "r;"
    assert to_newick(CHAINED) == "(((r000:1)r00:1)r0:1,(r10:1,r11:1)r1:1)r;"


@given(trees())
def test_scipy_cuts_the_linkage_as_we_cut_the_tree(drawn: tuple) -> None:
    tree, share = drawn
    if tree.num_leaves == 1:
        return
    linkage = to_linkage(tree, share=share)
    assert linkage.shape == (tree.num_leaves - 1, 4)
    assert hierarchy.is_valid_linkage(linkage, throw=True)
    assert hierarchy.is_monotonic(linkage)
    for k in range(1, tree.num_leaves + 1):
        theirs = hierarchy.fcluster(linkage, k, "maxclust")
        assert same_partition(cut(tree, k, share=share), theirs)


@given(trees())
def test_scipy_counts_the_leaves_and_draws_them_left_to_right(drawn: tuple) -> None:
    tree, share = drawn
    if tree.num_leaves == 1:
        return
    linkage = to_linkage(tree, share=share)
    root = hierarchy.to_tree(linkage)
    assert root.get_count() == linkage[-1, 3] == tree.num_leaves
    drawing = hierarchy.dendrogram(linkage, no_plot=True, labels=list(tree.leaf_names))
    assert drawing["ivl"] == sorted(tree.leaf_names)


def test_linkage_by_hand() -> None:
    """r0, with no fork, is the leaf r000; r1 merges first."""
    assert to_linkage(CHAINED).tolist() == [[0, 1, 1, 2], [2, 3, 2, 3]]


@given(trees())
def test_networkx_has_the_tree_with_its_attributes(drawn: tuple) -> None:
    tree, share = drawn
    graph = to_networkx(tree, share=share)
    assert list(graph) == list(tree.names)
    assert networkx.is_arborescence(graph)
    for row, name in enumerate(tree.names):
        node = graph.nodes[name]
        assert (node["name"], node["depth"], node["share"]) == (name, len(name) - 1, share[row])
        assert (node["leaf"] >= 0) == (graph.out_degree(name) == 0)
        turns = {graph.edges[name, child]["turn"]: child for child in graph.successors(name)}
        children = {"left": name + "0", "right": name + "1"}
        assert turns.items() <= children.items()
    leaves = {graph.nodes[name]["leaf"]: name for name in graph if graph.nodes[name]["leaf"] >= 0}
    assert tuple(leaves[number] for number in range(tree.num_leaves)) == tree.leaf_names
    assert "share" not in to_networkx(tree).nodes["r"]


def test_networkx_survives_graphml() -> None:
    graph = to_networkx(CHAINED, share=np.ones(CHAINED.num_nodes))
    again = networkx.parse_graphml("\n".join(networkx.generate_graphml(graph)))
    assert dict(again.nodes(data=True)) == dict(graph.nodes(data=True))
    assert set(again.edges(data="turn")) == set(graph.edges(data="turn"))


@given(trees())
def test_cuts_are_subtrees_that_refine_one_another(drawn: tuple) -> None:
    tree, share = drawn
    cuts = [cut(tree, k, share=share) for k in range(1, tree.num_leaves + 1)]
    assert cuts[0].tolist() == [0] * tree.num_leaves
    assert cuts[-1].tolist() == list(range(tree.num_leaves))
    for k, clusters in enumerate(cuts, 1):
        _, first = np.unique(clusters, return_index=True)
        assert clusters[first].tolist() == list(range(k))
        assert (np.diff(first) > 0).all()  # numbered by their first leaf
        below = {tuple(tree.leaves_below(name).tolist()) for name in tree.names}
        assert {tuple(np.flatnonzero(clusters == c).tolist()) for c in range(k)} <= below
    for coarse, fine in pairwise(cuts):
        assert len(set(zip(coarse.tolist(), fine.tolist(), strict=True))) == fine.max() + 1


@given(trees(), st.integers(1, 99))
def test_the_fullest_subtree_is_opened(drawn: tuple, place: int) -> None:
    """The cluster that the next cut splits has the largest share of all that can be split."""
    tree, share = drawn
    if tree.num_leaves == 1:
        return
    k = 1 + place % (tree.num_leaves - 1)
    coarse, fine = cut(tree, k, share=share), cut(tree, k + 1, share=share)
    held = np.bincount(coarse, weights=share[tree.leaves])
    splittable = np.bincount(coarse) > 1
    (split,) = [c for c in range(k) if len(set(fine[coarse == c])) == 2]
    assert held[split] == held[splittable].max()


def test_equal_shares_open_the_shallow_and_left_one_first() -> None:
    tree = INITIAL.grow("r0").grow("r1")
    assert tree.leaf_names == ("r00", "r01", "r10", "r11")
    assert cut(tree, 3).tolist() == [0, 1, 2, 2]
    assert cut(tree, 3, share=np.array([8, 3, 5, 1, 2, 2, 3])).tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize("k", [0, 4, -1, 2.0, True, "2", None])
def test_an_impossible_cut_says_what_is_possible(k: object) -> None:
    with pytest.raises(ConfigError, match="from 1 to 3") as caught:
        cut(CHAINED, k)  # type: ignore[arg-type]
    assert caught.value.got == repr(k)
    assert cut(CHAINED, np.int64(2)).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("share", "fault"),
    [
        (np.ones(2), r"float64 \[2\], expected \[3\]"),
        (np.array(["a", "b", "c"]), "one per node"),
        (np.array([1, np.nan, 0]), "0 or more"),
        (np.array([1, 2, -1]), "0 or more"),
    ],
)
def test_shares_that_are_none(share: np.ndarray, fault: str) -> None:
    for export in (to_newick, to_linkage, to_networkx, lambda t, share: cut(t, 2, share=share)):
        with pytest.raises(ShapeError, match=fault):
            export(INITIAL, share=share)


def test_one_leaf_has_no_linkage() -> None:
    with pytest.raises(TopologyError, match="one leaf, expected two"):
        to_linkage(TreeTopology.of(["r"]))
