"""The kernel distance against closed forms, its definition by loops, and torch-fidelity's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from treediffusion.errors import ConfigError, ShapeError
from treediffusion.evaluate.kid import kernel_distance, squared_discrepancy


def features(count: int, size: int = 6, *, seed: int = 0, shift: float = 0.0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(count, size)) + shift)


def by_loops(x: Tensor, y: Tensor) -> float:
    """The definition, pair by pair."""
    size = x.shape[1]

    def k(a: Tensor, b: Tensor) -> float:
        return (float((a * b).sum()) / size + 1) ** 3

    n, m = len(x), len(y)
    first = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    second = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    between = sum(k(x[i], y[j]) for i in range(n) for j in range(m)) / (n * m)
    return first + second - 2 * between


def test_it_is_the_mean_over_all_pairs_but_those_of_an_image_with_itself() -> None:
    x, y = features(9), features(7, seed=1, shift=1)
    assert squared_discrepancy(x, y) == pytest.approx(by_loops(x, y), rel=1e-12)


def test_of_two_points_each_it_is_the_closed_form() -> None:
    """In one dimension with x = (a, b), y = (c, d): kernels of numbers."""
    a, b, c, d = 0.5, -1.0, 2.0, 1.5
    x, y = torch.tensor([[a], [b]]).double(), torch.tensor([[c], [d]]).double()
    between = sum((u * v + 1) ** 3 for u in (a, b) for v in (c, d)) / 4
    expected = (a * b + 1) ** 3 + (c * d + 1) ** 3 - 2 * between
    assert squared_discrepancy(x, y) == pytest.approx(expected)


def test_its_expectation_over_sets_of_one_distribution_is_zero() -> None:
    """Without bias, however few images; the biased estimate is far above 0."""
    rng = np.random.default_rng(0)
    values = [
        squared_discrepancy(*(torch.from_numpy(rng.normal(size=(5, 3))) for _ in "xy"))
        for _ in range(2000)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0


def test_subsets_of_whole_sets_are_the_estimate_at_once() -> None:
    x, y = features(40), features(40, seed=1, shift=0.5)
    found = kernel_distance(x, y, subsets=3)
    assert found.mean == pytest.approx(squared_discrepancy(x, y), rel=1e-12)
    assert found.deviation == pytest.approx(0, abs=1e-12)


def test_subsets_vary_around_it_and_equal_seeds_are_equal() -> None:
    x, y = features(200), features(150, seed=1, shift=0.5)
    found = kernel_distance(x, y, subsets=200, size=50, seed=3)
    assert found == kernel_distance(x, y, subsets=200, size=50, seed=3)
    assert found.deviation > 0
    error = 4 * found.deviation / np.sqrt(200)
    assert found.mean == pytest.approx(squared_discrepancy(x, y), abs=error)


def test_it_is_torch_fidelitys() -> None:
    library = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = features(30), features(30, seed=1, shift=0.3)
    theirs = library.kid_features_to_metric(x, y, kid_subsets=2, kid_subset_size=30, verbose=False)
    assert kernel_distance(x, y, subsets=2).mean == pytest.approx(
        theirs["kernel_inception_distance_mean"], rel=1e-9
    )


def test_what_cannot_be_compared_is_refused() -> None:
    x = features(9)
    spoilt = x.clone()
    spoilt[1, 1] = torch.nan
    for wrong in (x[:, :3], x[0], x[:1], x.long(), spoilt):
        with pytest.raises(ShapeError, match="other"):
            kernel_distance(x, wrong)
    with pytest.raises(ConfigError, match="size"):
        kernel_distance(x, x, size=1)
    with pytest.raises(ConfigError, match="subsets"):
        kernel_distance(x, x, subsets=0)
