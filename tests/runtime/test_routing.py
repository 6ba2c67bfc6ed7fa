"""Laws of routing: probabilities, forced turns, single children."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from treediffusion.errors import TopologyError
from treediffusion.runtime.routing import leaf_probabilities, route, turn_probabilities
from treediffusion.topology import TreeTopology

# r1 has a right child only, whose own left child is its only one.
TREE = TreeTopology.of(["r", "r0", "r1", "r00", "r01", "r11", "r110", "r1100", "r1101"])


def turns(count: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.random((count, len(TREE.routers)), np.float32)


def test_leaf_probabilities_are_products_of_turns() -> None:
    p = np.array([[0.25, 0.5, 0.125]], np.float32)  # routers r, r0, r110
    assert [TREE.names[row] for row in TREE.routers] == ["r", "r0", "r110"]
    assert TREE.leaf_names == ("r00", "r01", "r1100", "r1101")
    expected = [0.25 * 0.5, 0.25 * 0.5, 0.75 * 0.125, 0.75 * 0.875]
    np.testing.assert_allclose(leaf_probabilities(TREE, p)[0], expected, rtol=1e-7)


@given(st.integers(0, 2**32 - 1))
def test_probabilities_sum_to_one_and_invert(seed: int) -> None:
    p = turns(3, seed)
    leaf_prob = leaf_probabilities(TREE, p)
    np.testing.assert_allclose(leaf_prob.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(turn_probabilities(TREE, leaf_prob), p, atol=2e-3)


def test_an_unreached_router_is_even() -> None:
    leaf_prob = np.array([[1.0, 0.0, 0.0, 0.0]], np.float32)
    assert turn_probabilities(TREE, leaf_prob).tolist() == [[1.0, 1.0, 0.5]]


@given(st.integers(0, 2**64 - 1), st.sampled_from(TREE.names))
def test_only_leaves_below_the_node(seed: int, node: str) -> None:
    leaf = route(TREE, turns(6), seed=seed, images=range(6), node=node)
    assert set(leaf.tolist()) <= set(TREE.leaves_below(node).tolist())


@pytest.mark.parametrize("node", ["r0", "r1", "r110"])
def test_forcing_keeps_the_turns_below(node: str) -> None:
    """An image that came below a node freely ends in the same leaf when it is sent there."""
    p, images = turns(200), range(200)
    free = route(TREE, p, seed=1, images=images)
    forced = route(TREE, p, seed=1, images=images, node=node)
    there = np.isin(free, TREE.leaves_below(node))
    assert there.any()
    assert np.array_equal(free[there], forced[there])


def test_leaf_frequencies_agree_with_their_probabilities() -> None:
    count = 4000
    p = np.tile(np.array([[0.3, 0.6, 0.9]], np.float32), (count, 1))
    leaf = route(TREE, p, seed=5, images=range(count))
    expected = leaf_probabilities(TREE, p[:1])[0]
    observed = np.bincount(leaf, minlength=TREE.num_leaves) / count
    spread = np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(observed - expected) < 4 * spread).all()


def test_sure_turns_are_taken() -> None:
    assert set(route(TREE, np.ones((50, 3), np.float32), seed=0, images=range(50))) == {0}
    assert set(route(TREE, np.zeros((50, 3), np.float32), seed=0, images=range(50))) == {3}


def test_a_tree_without_routers() -> None:
    chain = TreeTopology.of(["r", "r1", "r10"])
    nothing = np.zeros((3, 0), np.float32)
    assert route(chain, nothing, seed=0, images=range(3)).tolist() == [0, 0, 0]
    assert leaf_probabilities(chain, nothing).tolist() == [[1.0]] * 3


def test_an_unknown_node() -> None:
    with pytest.raises(TopologyError, match="r111"):
        route(TREE, turns(1), seed=0, images=[0], node="r111")
