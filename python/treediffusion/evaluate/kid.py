"""Kernel distance of two sets of features: the unbiased squared maximum mean discrepancy.

    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)
    k(a, b) = (a b / D + 1)^3

In the features of the Inception network of FID this is KID (Binkowski et al., 2018), as customary
the mean over 100 random subsets of 1,000 images of each set, and the deviation over the subsets. It
is without bias, so sets of other sizes compare, and a value can be a little below 0. Sums are in
float64, where the features are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError

SUBSETS, SUBSET = 100, 1000


class KernelDistance(NamedTuple):
    """What `kernel_distance` found.

    Attributes:
        mean: over the subsets.
        deviation: of a subset's value, of the population as is the custom.
    """

    mean: float
    deviation: float


def kernel_distance(
    one: Tensor, other: Tensor, *, subsets: int = SUBSETS, size: int = SUBSET, seed: int = 0
) -> KernelDistance:
    """The mean of the squared discrepancy over random subsets.

    Args:
        one: [n, D] float, n of 2 or more.
        other: [m, D] float.
        subsets: how many.
        size: images of each set in a subset, without repetition; all of a smaller set.
        seed: of the choice.

    Raises:
        ShapeError: features of another shape, or too few.
        ConfigError: no subsets, or subsets of fewer than two.
    """
    check_features(one, other)
    for name, value, least in (("subsets", subsets, 1), ("size", size, 2)):
        if value < least:
            raise ConfigError(name, got=value, expected=f"{least} or more")
    rng = np.random.default_rng(seed)
    size = min(size, len(one), len(other))
    x, y = one.to(torch.float64), other.to(torch.float64)
    values = []
    for _ in range(subsets):
        rows = [
            torch.from_numpy(rng.choice(len(each), size, replace=False)).to(each.device)
            for each in (x, y)
        ]
        values.append(squared_discrepancy(x[rows[0]], y[rows[1]]))
    return KernelDistance(float(np.mean(values)), float(np.std(values)))


def squared_discrepancy(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate from two sets at once; x: [n, D], y: [m, D] float64, of 2 or more."""
    between = float(_kernel(x, y).mean())
    return _within(x) + _within(y) - 2 * between


def check_features(one: Tensor, other: Tensor) -> None:
    """Refuses what are no two sets of features of one extractor.

    Raises:
        ShapeError: another shape or type, fewer than two rows, or a number that is not finite.
    """
    for name, rows in (("one", one), ("other", other)):
        fits = rows.ndim == 2 and rows.is_floating_point() and len(rows) > 1 and rows.shape[1] > 0
        if not fits or rows.shape[1] != one.shape[1]:
            kind = str(rows.dtype).removeprefix("torch.")
            expected = f"float [n, {one.shape[1] if one.ndim == 2 else 'D'}], n from 2"
            raise ShapeError(name, got=f"{kind} {list(rows.shape)}", expected=expected)
        if not torch.isfinite(rows).all():
            raise ShapeError(name, got="a number that is not finite", expected="finite numbers")


def _within(x: Tensor) -> float:
    kernel = _kernel(x, x)
    pairs = len(x) * (len(x) - 1)
    return float(kernel.sum() - kernel.diagonal().sum()) / pairs


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3
