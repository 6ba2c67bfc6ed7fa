"""Leaf scores against closed forms: entropy, diversity, collapse and agreement."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from treediffusion.errors import ConfigError, ShapeError
from treediffusion.evaluate.leaf_quality import (
    COMPARED,
    LeafQuality,
    class_histogram,
    entropy,
    leaf_quality,
    spread,
)

K = 4


def one_hot(classes: NDArray[Any]) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = np.eye(K, dtype=np.float32)[classes]
    return rows


def scores(**changes: Any) -> LeafQuality:
    """Two leaves of 8 images: leaf 0 draws class 2 only, leaf 1 each class twice."""
    rng = np.random.default_rng(0)
    leaf = np.repeat([0, 1], 8)
    arguments: dict[str, Any] = {
        "leaf": leaf,
        "probabilities": one_hot(np.concatenate([np.full(8, 2), np.arange(8) % K])),
        "features": rng.normal(size=(16, 3)),
        "assigned": leaf,
        "real_leaf": np.repeat([0, 1], 10),
        "real_features": rng.normal(size=(20, 3)),
        "leaves": 2,
    } | changes
    return leaf_quality(
        arguments.pop("leaf"),
        arguments.pop("probabilities"),
        arguments.pop("features"),
        **arguments,
    )


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_the_entropy_of_k_equal_shares_is_ln_k(classes: int) -> None:
    assert entropy(np.full(classes, 1 / classes)) == pytest.approx(math.log(classes))


def test_the_entropy_of_one_class_is_zero_without_a_sign() -> None:
    found = entropy(np.eye(3))
    assert np.array_equal(found, np.zeros(3))
    assert not np.signbit(found).any()


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(any))
def test_entropy_lies_in_its_bounds_and_ignores_the_order_of_classes(counts: list[int]) -> None:
    shares = np.array(counts) / sum(counts)
    found = float(entropy(shares))
    assert 0 <= found <= math.log(np.count_nonzero(shares)) + 1e-12
    assert found == pytest.approx(float(entropy(shares[::-1])))


def test_leaves_are_scored_by_their_most_probable_classes() -> None:
    found = scores()
    assert found.histogram == ((0, 0, 8, 0), (2, 2, 2, 2))
    assert found.entropy == pytest.approx((0, math.log(4)))
    assert found.mean_entropy == pytest.approx(math.log(4) / 2)
    mixed = np.array([1, 1, 5, 1]) / 8
    assert found.pooled_entropy == pytest.approx(-(mixed * np.log(mixed)).sum())


def test_only_the_largest_probability_counts() -> None:
    vague = np.array([[0.26, 0.24, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4]])
    assert class_histogram(np.array([0, 0]), vague, leaves=1).tolist() == [[1, 0, 0, 1]]


def test_a_model_of_one_class_shows_in_the_pooled_entropy() -> None:
    """Its mean entropy is 0, as good as that of a leaf for each class."""
    same = scores(probabilities=one_hot(np.full(16, 1)))
    apart = scores(probabilities=one_hot(np.repeat([0, 1], 8)))
    assert same.mean_entropy == apart.mean_entropy == 0
    assert same.pooled_entropy == 0
    assert apart.pooled_entropy == pytest.approx(math.log(2))


def test_a_leaf_that_draws_one_image_has_no_diversity_and_has_collapsed() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(16, 3))
    features[:8] = features[0]
    found = scores(features=features)
    assert found.diversity[0] == 0
    assert found.diversity[1] is not None
    assert found.diversity[1] > 0.5
    assert found.collapsed == (0,)


def test_the_real_images_themselves_have_diversity_one_and_half_as_far_apart_a_half() -> None:
    real = np.random.default_rng(1).normal(size=(16, 3))
    leaf = np.repeat([0, 1], 8)
    found = scores(features=real, real_features=real, real_leaf=leaf)
    assert found.diversity == pytest.approx((1, 1))
    halved = scores(features=5 + real / 2, real_features=real, real_leaf=leaf)
    assert halved.diversity == pytest.approx((0.5, 0.5))
    assert halved.mean_diversity == pytest.approx(0.5)
    assert halved.collapsed == ()


def test_spread_is_the_mean_over_pairs_and_of_evenly_spaced_rows_when_there_are_many() -> None:
    assert spread(np.array([[0.0, 0], [3, 4], [0, 0]])) == pytest.approx(10 / 3)
    assert spread(np.zeros((1, 2))) is None
    # Sorted by value: the first rows alone would be all alike.
    many = np.repeat([0.0, 1.0], 3 * COMPARED)[:, None]
    expected = COMPARED / 2 / (COMPARED - 1)
    assert spread(many) == pytest.approx(expected)


def test_agreement_is_the_share_of_images_that_return_to_their_leaf() -> None:
    assigned = np.concatenate([np.zeros(6, int), np.ones(2, int), np.ones(8, int)])
    found = scores(assigned=assigned)
    assert list(found.agreement) == [0.75, 1]
    assert found.mean_agreement == 14 / 16


def test_leaves_without_images_have_no_scores_and_count_in_no_mean() -> None:
    found = scores(leaves=3)
    assert found.histogram[2] == (0, 0, 0, 0)
    assert (found.entropy[2], found.diversity[2], found.agreement[2]) == (None, None, None)
    assert found.mean_entropy == scores().mean_entropy
    assert found.pooled_entropy == scores().pooled_entropy


def test_without_different_real_images_there_is_no_diversity() -> None:
    found = scores(real_features=np.ones((20, 3)))
    assert (found.diversity, found.mean_diversity, found.collapsed) == ((None, None), None, ())


def test_the_scores_are_json_and_come_back() -> None:
    found = scores(leaves=3)
    read = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert read["entropy"] == list(found.entropy)
    assert read["histogram"] == [list(row) for row in found.histogram]
    assert set(read) == set(LeafQuality.__dataclass_fields__)


def test_the_threshold_is_of_the_picture_only() -> None:
    counts = np.array([90, 9, 1, 0])
    few = scores(
        leaf=np.zeros(100, int),
        probabilities=one_hot(np.repeat(np.arange(K), counts)),
        features=np.zeros((100, 3)),
        assigned=np.zeros(100, int),
    )
    assert few.shown_classes() == [{0: 0.9, 1: 0.09}, {}]
    assert few.shown_classes(share=0) == [{0: 0.9, 1: 0.09, 2: 0.01}, {}]
    shares = counts[:3] / 100
    assert few.entropy[0] == pytest.approx(-(shares * np.log(shares)).sum())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("leaf", np.zeros(16)),
        ("leaf", np.full(16, 2)),
        ("leaf", np.zeros(0, int)),
        ("assigned", np.zeros(15, int)),
        ("assigned", np.full(16, -1)),
        ("real_leaf", np.zeros((20, 1), int)),
        ("real_leaf", np.zeros(0, int)),
        ("probabilities", np.full((16, K), np.nan)),
        ("probabilities", np.zeros((15, K))),
        ("features", np.zeros(16)),
        ("features", np.full((16, 3), np.inf)),
        ("real_features", np.zeros((20, 4))),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(name: str, value: NDArray[Any]) -> None:
    with pytest.raises(ShapeError) as caught:
        scores(**{name: value})
    assert caught.value.name == name


def test_a_tree_has_a_leaf() -> None:
    with pytest.raises(ConfigError, match="leaves"):
        scores(leaves=0)
