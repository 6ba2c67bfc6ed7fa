"""Fréchet distance: two sets of images as two Gaussians of features, and how far these are apart.

    d = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)
      = |m1 - m2|^2 + tr C1 + tr C2 - 2 |C1^1/2 C2^1/2|_*

with the nuclear norm, the sum of singular values. It is the squared 2-Wasserstein distance of the
Gaussians with the means and covariances of the features.

In the features of `classifier` this is no FID and must not be called one: FID is this formula in
the features of one certain Inception network trained on ImageNet (see `fid`), and its numbers say
nothing beside those of another network. Values compare only under one extractor (statistics carry
its key, and two keys refuse to be compared) and, because the estimate from n images lies above the
limit by about 1/n, at equal numbers of images. With no more images than features the covariance has
no full rank, and that error is large.

Features are those of uint8 images: floats are clamped to 0..1, multiplied by 255 and rounded half
up; nothing is resized or compressed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..progress import Progress
from .classifier import CHUNK, Classifier, as_bytes
from .keyed import content_key, load_keyed, save_keyed
from .statistics import (
    KIND,
    ClassifierFeatures,
    FeatureStatistics,
    Float64Array,
    check_pair,
    facts_of,
    feature_statistics,
    gather_batches,
    merge,
)

__all__ = [
    "FeatureStatistics",
    "feature_statistics",
    "frechet_distance",
    "image_statistics",
    "merge",
    "statistics_key",
]


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
    key, described = statistics_key(classifier, pixels), facts_of(pixels)
    if path is not None and path.exists():
        if progress is not None:
            progress.skip(len(pixels))
        stored, facts = load_keyed(path, kind=KIND, key=key, facts=described)
        mean, scatter = stored["mean"].numpy(), stored["scatter"].numpy()
        return FeatureStatistics(classifier.key, facts["count"], mean, scatter)

    parts = (pixels[start : start + CHUNK] for start in range(0, len(pixels), CHUNK))
    extractor = ClassifierFeatures(classifier)
    found = gather_batches(extractor, parts, len(pixels), progress=progress).statistics
    if path is not None:
        tensors = {"mean": torch.tensor(found.mean), "scatter": torch.tensor(found.scatter)}
        save_keyed(path, tensors, described, kind=KIND, key=key)
    return found


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """Fréchet distance of two Gaussians of features, squared as is the custom.

    Args:
        one: statistics of 2 images or more.
        other: the same; the order does not matter.

    Returns:
        0 or more, in squared units of the features.

    Raises:
        ShapeError: features of another extractor or size.
        DataError: fewer than 2 images.
    """
    check_pair(one, other)
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


def _root(covariance: Float64Array) -> Float64Array:
    """[D, D] R with R R^T = C."""
    value, vector = np.linalg.eigh(covariance)
    # What rounding left of a zero would, by the root, count as half of the digits.
    noise = len(value) * np.finfo(np.float64).eps * max(float(value[-1]), 0.0)
    root: Float64Array = vector * np.sqrt(np.where(value > noise, value, 0.0))
    return root
