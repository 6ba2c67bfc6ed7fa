"""The flat baselines on the digits give the scores that the tree has to beat."""

from __future__ import annotations

import numpy as np
import pytest
from treediffusion.baselines.flat import k_means, ward
from treediffusion.data import load_images
from treediffusion.errors import ConfigError
from treediffusion.evaluate.clustering import accuracy, nmi

DIGITS = load_images("digits")
# Ward is deterministic: room for the rounding of the numbers below and one image of 1797 (0.0006),
# should another version break a tie between equal merges the other way.
WARD_TOLERANCE = 0.001
# Measured over seeds 0 to 19: ACC 0.7885 to 0.7974, NMI 0.7385 to 0.7498. The band is the range,
# widened by half of it on either side.
K_MEANS_BAND = {"acc": (0.784, 0.802), "nmi": (0.733, 0.756)}


def test_ward_on_the_digits() -> None:
    assert DIGITS.labels is not None
    clusters = ward(DIGITS.images, 10)
    assert clusters.shape == (1797,)
    assert clusters.dtype == np.int64
    assert accuracy(DIGITS.labels, clusters) == pytest.approx(0.8403, abs=WARD_TOLERANCE)
    assert nmi(DIGITS.labels, clusters) == pytest.approx(0.8682, abs=WARD_TOLERANCE)


@pytest.mark.parametrize("seed", [0, 1])
def test_k_means_on_the_digits(seed: int) -> None:
    assert DIGITS.labels is not None
    clusters = k_means(DIGITS.images, 10, seed)
    low, high = K_MEANS_BAND["acc"]
    assert low <= accuracy(DIGITS.labels, clusters) <= high
    low, high = K_MEANS_BAND["nmi"]
    assert low <= nmi(DIGITS.labels, clusters) <= high


def test_k_means_repeats_with_its_seed() -> None:
    images = DIGITS.images[:200]
    np.testing.assert_array_equal(k_means(images, 5, 3), k_means(images, 5, 3))


@pytest.mark.parametrize("k", [1, 3, 20])
def test_both_find_k_clusters(k: int) -> None:
    images = DIGITS.images[:20]
    assert set(ward(images, k)) == set(k_means(images, k, 0)) == set(range(k))


@pytest.mark.parametrize("k", [0, 21])
def test_k_must_fit_the_images(k: int) -> None:
    with pytest.raises(ConfigError, match="1 to 20"):
        ward(DIGITS.images[:20], k)
    with pytest.raises(ConfigError, match="1 to 20"):
        k_means(DIGITS.images[:20], k, 0)
