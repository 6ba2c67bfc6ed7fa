"""Ward and k-means on vectors, through scikit-learn.

Both minimise the sum of squared distances from each vector to the mean of its cluster: Ward by
merging, k-means by moving the means. Images are taken as vectors of C*H*W pixels in [0, 1]. They
see no labels and no augmentation, and learn nothing that could be applied to further images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..data import Pixels, to_float
from ..errors import ConfigError, ShapeError
from ..optional import require
from .dendrogram import Dendrogram


def ward(images: Pixels, k: int) -> NDArray[np.int64]:
    """Agglomerative clustering with Ward's criterion, cut at k clusters; deterministic.

    It holds all n(n-1)/2 distances, 14 GB for 60,000 images.

    Args:
        images: [n, C, H, W] uint8, or float32 in 0..1.
        k: clusters, 1 to n.

    Returns:
        [n] int64, cluster ids from 0 to k - 1.
    """
    pixels = _pixels(images, k)
    cluster = require("sklearn.cluster", extra="train")
    model = cluster.AgglomerativeClustering(n_clusters=k, linkage="ward")
    return np.asarray(model.fit_predict(pixels), np.int64)


def ward_merges(vectors: NDArray[np.float32]) -> Dendrogram:
    """All of Ward's merges, of which `ward` is one cut; memory as there.

    Args:
        vectors: [n, D] float, n of 2 or more.
    """
    if vectors.ndim != 2 or len(vectors) < 2:
        raise ShapeError("vectors", got=list(vectors.shape), expected="[n, D] with n of 2 or more")
    cluster = require("sklearn.cluster", extra="train")
    model = cluster.AgglomerativeClustering(
        n_clusters=1, linkage="ward", compute_full_tree=True, compute_distances=True
    ).fit(vectors)
    return Dendrogram(np.asarray(model.children_, np.int64), np.asarray(model.distances_))


def k_means(images: Pixels, k: int, seed: int) -> NDArray[np.int64]:
    """k-means, the best of 10 k-means++ starts.

    Args:
        images: [n, C, H, W] uint8, or float32 in 0..1.
        k: clusters, 1 to n.
        seed: seed of the starts, 0 to 2**32 - 1.

    Returns:
        [n] int64, cluster ids from 0 to k - 1.
    """
    pixels = _pixels(images, k)
    cluster = require("sklearn.cluster", extra="train")
    model = cluster.KMeans(n_clusters=k, n_init=10, random_state=seed)
    return np.asarray(model.fit_predict(pixels), np.int64)


def as_vectors(images: Pixels) -> NDArray[np.float32]:
    """[n, C*H*W] float32 in [0, 1]."""
    return to_float(images).reshape(len(images), -1)


def _pixels(images: Pixels, k: int) -> NDArray[np.float32]:
    if not 1 <= k <= len(images):
        raise ConfigError("k", got=k, expected=f"1 to {len(images)}, the number of images")
    return as_vectors(images)
