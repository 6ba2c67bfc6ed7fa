"""What the leaves of a tree generate, as an independent classifier sees it.

    H_l = - sum_k h_lk ln h_lk,   h_lk = share of leaf l's images whose most probable class is k

and the mean of H_l over leaves, in nats: 0 if each leaf draws one class, ln K if each draws all.
It says nothing by itself: a model that draws one class everywhere has 0, too. So the entropy of the
leaves' mean histogram stands beside it; the difference of both is what a leaf tells of the class.

The papers print the mean over leaves, of generated images "with a significant probability" of
reaching the leaf. Neither that threshold nor the logarithm's base is published. Here the logarithm
is natural and every image that is given counts; choose images by their leaf probability before, if
that is wanted. The share below which `shown_classes` leaves a class out is of the picture only: no
entropy depends on it. From n images H_l comes out too low by about (K - 1) / 2n.

Not here: the classifier, the images, and whether an image looks real (see `frechet`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, ShapeError
from ..optional import require

COLLAPSED_BELOW = 0.25
"""A leaf whose images differ less than this part of what its real ones do has collapsed."""
SHOWN_FROM = 0.02
"""Share of a leaf's images from which a class is shown."""
COMPARED = 500
"""Images of a leaf whose pairs are measured, evenly spaced among them."""


@dataclass(frozen=True)
class LeafQuality:
    """Scores of L leaves under a classifier of K classes; None where there is nothing to measure.

    Attributes:
        histogram: [L][K] generated images of each leaf by predicted class.
        entropy: [L] of each leaf's histogram, in nats; None without images.
        mean_entropy: mean over the leaves that have images.
        pooled_entropy: of the mean of those leaves' histograms, in nats.
        diversity: [L] mean distance of two images of the leaf in features, relative to that of the
            real images assigned to it; None with fewer than two images of either kind, or if the
            real ones are all the same.
        mean_diversity: mean over the leaves that have one.
        collapsed: leaf ids whose diversity is below 0.25: mode collapse.
        agreement: [L] share of a leaf's images that are assigned to it again; None without images.
        mean_agreement: share of all images that return to their leaf.
    """

    histogram: tuple[tuple[int, ...], ...]
    entropy: tuple[float | None, ...]
    mean_entropy: float
    pooled_entropy: float
    diversity: tuple[float | None, ...]
    mean_diversity: float | None
    collapsed: tuple[int, ...]
    agreement: tuple[float | None, ...]
    mean_agreement: float

    def to_json(self) -> dict[str, Any]:
        """The attributes by name, as JSON has them; every number is finite."""
        return asdict(self)

    def shown_classes(self, *, share: float = SHOWN_FROM) -> list[dict[int, float]]:
        """Of each leaf, share by class, largest first, without classes below a share.

        What is left out is not given to the others: the shares need not add up to 1.
        """
        shown = []
        for row in self.histogram:
            shares = {k: count / max(1, sum(row)) for k, count in enumerate(row)}
            kept = {k: part for k, part in shares.items() if part > 0 and part >= share}
            shown.append(dict(sorted(kept.items(), key=lambda item: -item[1])))
        return shown


def leaf_quality(
    leaf: NDArray[Any],
    probabilities: NDArray[Any],
    features: NDArray[Any],
    *,
    assigned: NDArray[Any],
    real_leaf: NDArray[Any],
    real_features: NDArray[Any],
    leaves: int,
) -> LeafQuality:
    """Every score of this module.

    Args:
        leaf: [n] int, the leaf each image was generated in, 0 to L - 1.
        probabilities: [n, K] float, the classifier's; the largest one counts.
        features: [n, D] float, the classifier's.
        assigned: [n] int, the leaf each generated image is assigned to.
        real_leaf: [m] int, the leaf each real image is assigned to.
        real_features: [m, D] float, of the real images.
        leaves: L.

    Raises:
        ConfigError: no leaves.
        ShapeError: arrays that do not fit each other, or numbers that are not finite.
    """
    if leaves < 1:
        raise ConfigError("leaves", got=leaves, expected="1 or more")
    _check_ids("leaf", leaf, len(leaf), leaves)
    _check_ids("assigned", assigned, len(leaf), leaves)
    _check_ids("real_leaf", real_leaf, len(real_leaf), leaves)
    _check_rows("probabilities", probabilities, len(leaf))
    _check_rows("features", features, len(leaf))
    _check_rows("real_features", real_features, len(real_leaf), width=features.shape[1])

    histogram = class_histogram(leaf, probabilities, leaves=leaves)
    count = histogram.sum(1)
    shares = histogram / np.maximum(count, 1)[:, None]
    entropies = entropy(shares)
    diversity = [
        _ratio(spread(features[leaf == row]), spread(real_features[real_leaf == row]))
        for row in range(leaves)
    ]
    known = [value for value in diversity if value is not None]
    same = np.bincount(leaf[leaf == assigned], minlength=leaves)
    return LeafQuality(
        histogram=tuple(tuple(row) for row in histogram.tolist()),
        entropy=tuple(_where(count, entropies)),
        mean_entropy=float(entropies[count > 0].mean()),
        pooled_entropy=float(entropy(shares[count > 0].mean(0))),
        diversity=tuple(diversity),
        mean_diversity=float(np.mean(known)) if known else None,
        collapsed=tuple(
            row for row, value in enumerate(diversity)
            if value is not None and value < COLLAPSED_BELOW
        ),
        agreement=tuple(_where(count, same / np.maximum(count, 1))),
        mean_agreement=float(np.mean(leaf == assigned)),
    )  # fmt: skip


def class_histogram(
    leaf: NDArray[Any], probabilities: NDArray[Any], *, leaves: int
) -> NDArray[np.int64]:
    """[L, K] images of each leaf whose most probable class is k.

    Args:
        leaf: [n] int, 0 to L - 1.
        probabilities: [n, K] float.
        leaves: L.
    """
    histogram = np.zeros((leaves, probabilities.shape[1]), np.int64)
    np.add.at(histogram, (leaf, probabilities.argmax(1)), 1)
    return histogram


def entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """[..., K] shares that add up to 1 -> [...] nats; 0 ln 0 is 0."""
    # Subtracted from 0 and not negated, because -0.0 would show as such.
    found: NDArray[np.float64] = 0.0 - (shares * np.log(np.where(shares > 0, shares, 1.0))).sum(-1)
    return found


def spread(features: NDArray[Any]) -> float | None:
    """Mean Euclidean distance of two different rows; None with fewer than two.

    Args:
        features: [n, D] float; of more than 500 rows, 500 evenly spaced ones are compared.
    """
    if len(features) < 2:
        return None
    some = np.linspace(0, len(features) - 1, min(len(features), COMPARED)).round().astype(np.intp)
    distances = require("scipy.spatial.distance", extra="train").pdist(features[some])
    return float(distances.mean())


def _ratio(found: float | None, real: float | None) -> float | None:
    return None if found is None or real is None or real == 0 else found / real


def _where(count: NDArray[np.int64], values: NDArray[np.float64]) -> list[float | None]:
    """The values as floats, None for leaves without images."""
    return [float(v) if n else None for n, v in zip(count, values, strict=True)]


def _check_ids(name: str, ids: NDArray[Any], count: int, leaves: int) -> None:
    expected = f"integers [{count or 'n'}] from 0 to {leaves - 1}, n from 1"
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or len(ids) != count or count == 0:
        raise ShapeError(name, got=f"{ids.dtype} {list(ids.shape)}", expected=expected)
    if ids.min() < 0 or ids.max() >= leaves:
        raise ShapeError(name, got=f"ids from {ids.min()} to {ids.max()}", expected=expected)


def _check_rows(name: str, rows: NDArray[Any], count: int, *, width: int | None = None) -> None:
    expected = f"finite floats [{count}, {'k' if width is None else width}]"
    right = rows.ndim == 2 and rows.dtype.kind == "f" and len(rows) == count and rows.shape[1] > 0
    if not right or (width is not None and rows.shape[1] != width):
        raise ShapeError(name, got=f"{rows.dtype} {list(rows.shape)}", expected=expected)
    if not np.isfinite(rows).all():
        raise ShapeError(name, got="a number that is not finite", expected=expected)
