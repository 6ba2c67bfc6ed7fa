"""Fréchet distance in classifier features: two sets of images as two Gaussians, and how far apart.

    d = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)
      = |m1 - m2|^2 + tr C1 + tr C2 - 2 |C1^1/2 C2^1/2|_*

with the nuclear norm, the sum of singular values. It is the squared 2-Wasserstein distance of the
Gaussians with the means and covariances of the features.

This is no FID and must not be called one: FID is this formula in the features of one certain
Inception network trained on ImageNet, and its numbers say nothing beside those of another network.
Here the features are those of `classifier`, trained on the data at hand; values compare only under
one classifier (the statistics carry its key, and two keys refuse to be compared) and, because the
estimate from n images lies above the limit by about 1/n, at equal numbers of images. With no more
images than features the covariance has no full rank, and that error is large.

Features are those of uint8 images: floats are clamped to 0..1, multiplied by 255 and rounded half
up; nothing is resized or compressed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DataError, ShapeError
from ..progress import Progress
from .classifier import CHUNK, Classifier, as_bytes
from .keyed import content_key, load_keyed, save_keyed

KIND = "feature statistics"

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean and scatter of a set of features, in a form of which two add up.

    Attributes:
        extractor: key of the classifier whose features these are.
        count: n, images.
        mean: [D] float64.
        scatter: [D, D] float64, sum over images of (f - mean)(f - mean)^T.
    """

    extractor: str
    count: int
    mean: Float64Array
    scatter: Float64Array

    @property
    def covariance(self) -> Float64Array:
        """[D, D] float64, with the divisor n - 1."""
        if self.count < 2:
            raise DataError("statistics", got=f"{self.count} image", expected="2 images or more")
        return self.scatter / (self.count - 1)


def image_statistics(
    classifier: Classifier,
    images: NDArray[Any],
    *,
    path: Path | None = None,
    progress: Progress | None = None,
) -> FeatureStatistics:
    """Statistics of images, a part at a time; or those of `path`, if they are of the same images.

    A file of other images or of another classifier is an error: a stale reference would go
    unnoticed in the number.

    Args:
        classifier: whose features.
        images: [n, C, H, W] uint8, or float, which is clamped to 0..1 and rounded to bytes.
        path: a safetensors file, read if it is there and written if not; None keeps nothing.
        progress: advanced by n in all.

    Raises:
        ShapeError: images that the classifier does not take.
        CheckpointError: `path` holds something else, is damaged or cannot be written.
    """
    pixels = as_bytes(images, name="images")
    key = statistics_key(classifier, pixels)
    if path is not None and path.exists():
        if progress is not None:
            progress.skip(len(pixels))
        stored, facts = load_keyed(path, kind=KIND, key=key)
        mean, scatter = stored["mean"].numpy(), stored["scatter"].numpy()
        return FeatureStatistics(classifier.key, facts["count"], mean, scatter)

    def parts() -> Iterable[NDArray[np.float32]]:
        for start in range(0, len(pixels), CHUNK):
            part = pixels[start : start + CHUNK]
            yield classifier.features(part)
            if progress is not None:
                progress.advance(len(part), "features")

    found = feature_statistics(parts(), extractor=classifier.key)
    if path is not None:
        tensors = {"mean": torch.tensor(found.mean), "scatter": torch.tensor(found.scatter)}
        save_keyed(path, tensors, {"count": found.count}, kind=KIND, key=key)
    return found


def feature_statistics(
    batches: Iterable[NDArray[Any]], *, extractor: str = ""
) -> FeatureStatistics:
    """Statistics of features that come in parts; only one part is held.

    Args:
        batches: each [b, D] float, b of 1 or more, in any division.
        extractor: what the features are of.

    Raises:
        ShapeError: a part of another shape, or with numbers that are not finite.
        DataError: no parts.
    """
    total: FeatureStatistics | None = None
    for batch in batches:
        found = _of_batch(batch, extractor)
        total = found if total is None else merge(total, found)
    if total is None:
        raise DataError("batches", got="none", expected="features of one image or more")
    return total


def merge(one: FeatureStatistics, other: FeatureStatistics) -> FeatureStatistics:
    """Statistics of both sets together, equal to those of all their features at once.

    Raises:
        ShapeError: features of another classifier or size.
    """
    _check_pair(one, other)
    count = one.count + other.count
    step = other.mean - one.mean
    between = np.outer(step, step) * (one.count * other.count / count)
    return FeatureStatistics(
        one.extractor,
        count,
        one.mean + step * (other.count / count),
        one.scatter + other.scatter + between,
    )


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """Fréchet distance of two Gaussians in classifier features, squared as is the custom; not FID.

    Args:
        one: statistics of 2 images or more.
        other: the same; the order does not matter.

    Returns:
        0 or more, in squared units of the features.

    Raises:
        ShapeError: features of another classifier or size.
        DataError: fewer than 2 images.
    """
    _check_pair(one, other)
    shift = one.mean - other.mean
    first, second = one.covariance, other.covariance
    # Singular values of the roots' product: the eigenvalues of the product of covariances are their
    # squares, and would lose half of the digits to a square root at the end.
    common = np.linalg.svd(_root(first).T @ _root(second), compute_uv=False).sum()
    distance = shift @ shift + np.trace(first) + np.trace(second) - 2 * common
    return max(0.0, float(distance))


def statistics_key(classifier: Classifier, images: NDArray[Any]) -> str:
    """Content hash of what statistics are of: the classifier's key and the images' bytes."""
    return content_key(KIND, classifier.key, as_bytes(images, name="images"))


def _of_batch(batch: NDArray[Any], extractor: str) -> FeatureStatistics:
    if batch.ndim != 2 or batch.size == 0 or batch.dtype.kind != "f":
        raise ShapeError(
            "features", got=f"{batch.dtype} {list(batch.shape)}", expected="float [n, D], n from 1"
        )
    values = batch.astype(np.float64)
    if not np.isfinite(values).all():
        raise ShapeError("features", got="a number that is not finite", expected="finite numbers")
    mean = values.mean(0)
    apart = values - mean
    return FeatureStatistics(extractor, len(values), mean, apart.T @ apart)


def _root(covariance: Float64Array) -> Float64Array:
    """[D, D] R with R R^T = C."""
    value, vector = np.linalg.eigh(covariance)
    # What rounding left of a zero would, by the root, count as half of the digits.
    noise = len(value) * np.finfo(np.float64).eps * max(float(value[-1]), 0.0)
    root: Float64Array = vector * np.sqrt(np.where(value > noise, value, 0.0))
    return root


def _check_pair(one: FeatureStatistics, other: FeatureStatistics) -> None:
    for name, first, second in (
        ("extractor", repr(one.extractor), repr(other.extractor)),
        ("features", f"[n, {len(one.mean)}]", f"[n, {len(other.mean)}]"),
    ):
        if first != second:
            raise ShapeError(
                name,
                got=second,
                expected=f"{first}, as in the other statistics",
                hint="take both from one classifier",
            )
