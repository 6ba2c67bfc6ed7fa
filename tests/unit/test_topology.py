"""Laws of the tree as arrays, on random trees that have been grown and pruned."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from treediffusion.errors import TopologyError
from treediffusion.topology import TreeTopology

INITIAL = TreeTopology.initial()


@st.composite
def trees(draw: st.DrawFn) -> TreeTopology:
    """A root with two leaves, then up to twelve leaves grown or pruned."""
    tree = INITIAL
    for grows, place in draw(st.lists(st.tuples(st.booleans(), st.integers(0, 99)), max_size=12)):
        leaf = tree.leaf_names[place % tree.num_leaves]
        if grows:
            tree = tree.grow(leaf)
        elif tree.num_leaves > 1:
            tree = tree.prune(leaf)
    return tree


def document(tree: TreeTopology) -> dict[str, object]:
    loaded: dict[str, object] = json.loads(tree.to_json())
    return loaded


def test_the_initial_tree() -> None:
    assert INITIAL.names == ("r", "r0", "r1")
    assert (INITIAL.num_nodes, INITIAL.num_leaves, INITIAL.max_depth) == (3, 2, 1)
    assert INITIAL.parent.tolist() == [-1, 0, 0]
    assert INITIAL.left.tolist() == [1, -1, -1]
    assert INITIAL.right.tolist() == [2, -1, -1]
    assert INITIAL.paths.tolist() == [[0, 1], [0, 2]]


def test_leaves_are_breadth_first_not_left_to_right() -> None:
    """As published: the shallow right leaf comes before the deeper left ones."""
    tree = INITIAL.grow("r0")
    assert tree.leaf_names == ("r1", "r00", "r01")
    assert tree.paths.tolist() == [[0, 2, -1], [0, 1, 3], [0, 1, 4]]
    assert tree.routers.tolist() == [0, 1]


def test_a_pruned_leaf_leaves_a_single_child() -> None:
    tree = INITIAL.grow("r0").prune("r00")
    assert tree.names == ("r", "r0", "r1", "r01")
    assert tree.left.tolist() == [1, -1, -1, -1]
    assert tree.right.tolist() == [2, 3, -1, -1]
    assert tree.routers.tolist() == [0]
    assert tree.leaf_names == ("r1", "r01")


def test_pruning_takes_ancestors_that_are_left_childless() -> None:
    tree = INITIAL.grow("r0").grow("r01").prune("r00").prune("r010").prune("r011")
    assert tree.names == ("r", "r1")
    assert tree.leaf_names == ("r1",)
    assert tree.routers.size == 0


@given(trees())
def test_parents_and_children_agree(tree: TreeTopology) -> None:
    for row, name in enumerate(tree.names):
        assert tree.row(name) == row
        for turn, children in (("0", tree.left), ("1", tree.right)):
            child = int(children[row])
            if child != TreeTopology.ABSENT:
                assert tree.parent[child] == row
                assert tree.names[child] == name + turn
                assert tree.depth[child] == tree.depth[row] + 1
    assert (np.flatnonzero(tree.parent == TreeTopology.ABSENT) == [TreeTopology.ROOT]).all()
    assert (tree.left >= 0).sum() + (tree.right >= 0).sum() == tree.num_nodes - 1


@given(trees())
def test_levels_partition_the_rows_by_depth(tree: TreeTopology) -> None:
    rows = np.arange(tree.num_nodes)
    assert np.concatenate([rows[level] for level in tree.levels]).tolist() == rows.tolist()
    assert len(tree.levels) == tree.max_depth + 1
    for depth, level in enumerate(tree.levels):
        assert (tree.depth[level] == depth).all()
        assert level.stop > level.start


@given(trees())
def test_every_node_is_a_leaf_a_router_or_has_a_single_child(tree: TreeTopology) -> None:
    """A binary tree has one router less than leaves, however many single children there are."""
    children = (tree.left >= 0).astype(int) + (tree.right >= 0)
    assert tree.leaves.tolist() == np.flatnonzero(children == 0).tolist()
    assert tree.routers.tolist() == np.flatnonzero(children == 2).tolist()
    assert len(tree.routers) == tree.num_leaves - 1


@given(trees())
def test_paths_climb_to_the_root(tree: TreeTopology) -> None:
    assert tree.paths.shape == (tree.num_leaves, tree.max_depth + 1)
    everywhere = tree.paths_to(range(tree.num_nodes))
    assert (everywhere[tree.leaves] == tree.paths).all()
    for row, path in enumerate(everywhere):
        steps = path[: tree.depth[row] + 1]
        assert (path[len(steps) :] == TreeTopology.ABSENT).all()
        assert steps[0] == TreeTopology.ROOT
        assert steps[-1] == row
        assert (tree.parent[steps[1:]] == steps[:-1]).all()


@given(trees())
def test_leaves_below_are_those_whose_path_holds_the_node(tree: TreeTopology) -> None:
    for row, name in enumerate(tree.names):
        expected = np.flatnonzero((tree.paths == row).any(axis=1))
        assert tree.leaves_below(name).tolist() == expected.tolist()
    assert tree.leaves_below("r").tolist() == list(range(tree.num_leaves))
    for leaf, name in enumerate(tree.leaf_names):
        assert tree.leaves_below(name).tolist() == [leaf]


@given(trees(), st.integers(0, 99), st.booleans())
def test_grow_keeps_every_name_and_adds_two(tree: TreeTopology, place: int, left: bool) -> None:
    """Pruning takes back what growing gave; with its last child, the leaf itself goes."""
    leaf = tree.leaf_names[place % tree.num_leaves]
    grown = tree.grow(leaf)
    assert set(grown.names) - set(tree.names) == {leaf + "0", leaf + "1"}
    assert set(tree.names) <= set(grown.names)
    assert grown.num_leaves == tree.num_leaves + 1
    first, second = (leaf + "0", leaf + "1") if left else (leaf + "1", leaf + "0")
    single = grown.prune(first)
    assert set(single.names) == {*tree.names, second}
    if tree.num_leaves > 1:
        assert single.prune(second) == tree.prune(leaf)


@given(trees(), st.integers(0, 99))
def test_prune_keeps_all_other_leaves_and_their_paths(tree: TreeTopology, place: int) -> None:
    if tree.num_leaves == 1:
        return
    leaf = tree.leaf_names[place % tree.num_leaves]
    pruned = tree.prune(leaf)
    assert pruned.leaf_names == tuple(name for name in tree.leaf_names if name != leaf)
    before = {
        name: [tree.names[row] for row in path if row >= 0]
        for name, path in zip(tree.leaf_names, tree.paths, strict=True)
    }
    for name, path in zip(pruned.leaf_names, pruned.paths, strict=True):
        assert [pruned.names[row] for row in path if row >= 0] == before[name]


@given(trees())
def test_json_round_trip(tree: TreeTopology) -> None:
    """The text names every node once, so that a person can read it."""
    again = TreeTopology.from_json(tree.to_json())
    assert again == tree
    assert hash(again) == hash(tree)
    assert again.to_json() == tree.to_json()
    assert again != tree.grow(tree.leaf_names[0])


@given(trees(), st.randoms())
def test_the_order_in_which_nodes_are_given_does_not_matter(
    tree: TreeTopology, random: object
) -> None:
    names = list(tree.names)
    random.shuffle(names)  # type: ignore[attr-defined]
    assert TreeTopology.of(names) == tree


@given(trees())
def test_arrays_are_int32_and_shaped_by_the_tree(tree: TreeTopology) -> None:
    for rows in (tree.parent, tree.left, tree.right, tree.depth):
        assert rows.dtype == np.int32
        assert rows.shape == (tree.num_nodes,)
    for rows in (tree.leaves, tree.routers, tree.paths, tree.leaves_below("r")):
        assert rows.dtype == np.int32


def test_a_lone_root_is_a_leaf() -> None:
    tree = TreeTopology.of(["r"])
    assert tree.leaf_names == ("r",)
    assert tree.paths.tolist() == [[0]]
    assert tree.levels == (slice(0, 1),)
    assert tree.grow("r") == INITIAL


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        ((), "the root 'r' first"),
        (("r0", "r1"), "the root 'r' first"),
        (("", "r"), "the root 'r' first"),
        (("r", "r1", "r0"), "left to right"),
        (("r", "r0", "r00", "r1"), "level by level"),
        (("r", "r0", "r0"), "distinct"),
        (("r", "r2"), "0s and 1s"),
        (("r", "x0"), "0s and 1s"),
        (("r", "rr"), "0s and 1s"),
        (("r", "r0", "r10"), "its parent 'r1'"),
    ],
)
def test_nodes_that_are_no_tree_are_refused(names: tuple[str, ...], fault: str) -> None:
    with pytest.raises(TopologyError, match=fault):
        TreeTopology(names)


@pytest.mark.parametrize("method", [TreeTopology.grow, TreeTopology.prune])
def test_only_leaves_grow_and_are_pruned(method: Callable[[TreeTopology, str], object]) -> None:
    tree = INITIAL.grow("r0")
    with pytest.raises(TopologyError, match="one of r1, r00, r01"):
        method(tree, "r0")
    with pytest.raises(TopologyError, match="'r11'"):
        method(tree, "r11")


def test_the_last_leaf_stays() -> None:
    with pytest.raises(TopologyError, match="not the last one"):
        TreeTopology.of(["r", "r0"]).prune("r0")


@pytest.mark.parametrize("look", [TreeTopology.row, TreeTopology.leaves_below])
def test_an_unknown_node_is_named_with_the_known_ones(
    look: Callable[[TreeTopology, str], object],
) -> None:
    with pytest.raises(TopologyError, match=r"'r7'.*one of r, r0, r1"):
        look(INITIAL, "r7")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        '{"format": 1}',
        '{"format": 1, "nodes": 5}',
        '{"format": 1, "nodes": ["r"]}',
        '{"format": 1, "nodes": [{"name": "r"}]}',
        '{"format": 1, "nodes": [{"name": "r", "parent": null, "left": -1, "right": -1}]}',
        '{"format": 1, "nodes": [{"name": "r", "parent": "no", "left": -1, "right": -1}]}',
        '{"format": 1, "nodes": [{"name": 5, "parent": -1, "left": -1, "right": -1}]}',
        '{"format": 1, "nodes": []}',
    ],
)
def test_text_that_is_no_tree_is_refused_by_file_or_field(text: str) -> None:
    with pytest.raises(TopologyError, match=r"^(run/tree\.json|names): "):
        TreeTopology.from_json(text, source="run/tree.json")


def test_another_format_is_refused() -> None:
    text = json.dumps(document(INITIAL) | {"format": 2})
    with pytest.raises(TopologyError, match="format 2, expected format 1"):
        TreeTopology.from_json(text)


@pytest.mark.parametrize("key", ["parent", "left", "right"])
@given(tree=trees(), place=st.integers(0, 99), shift=st.integers(1, 50))
def test_one_wrong_link_is_refused(key: str, tree: TreeTopology, place: int, shift: int) -> None:
    """Whichever link of whichever node is changed."""
    changed = document(tree)
    nodes = changed["nodes"]
    assert isinstance(nodes, list)
    nodes[place % len(nodes)][key] += shift
    with pytest.raises(TopologyError, match=key):
        TreeTopology.from_json(json.dumps(changed))


@given(tree=trees(), place=st.integers(0, 99))
def test_a_missing_inner_node_is_refused(tree: TreeTopology, place: int) -> None:
    inner = [name for row, name in enumerate(tree.names) if row not in tree.leaves]
    gone = inner[place % len(inner)]
    with pytest.raises(TopologyError):
        TreeTopology.of(name for name in tree.names if name != gone)
