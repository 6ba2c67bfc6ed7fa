"""Ward and k-means on pixels, through scikit-learn.

Both minimise the sum of squared distances from each image, taken as a vector of C*H*W pixels in
[0, 1], to the mean of its cluster: Ward by merging, k-means by moving the means. They see no labels
and no augmentation, and learn nothing that could be applied to further images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..data import Pixels, to_float
from ..errors import ConfigError
from ..optional import require


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


def _pixels(images: Pixels, k: int) -> NDArray[np.float32]:
    """[n, C*H*W] float32 in [0, 1]."""
    if not 1 <= k <= len(images):
        raise ConfigError("k", got=k, expected=f"1 to {len(images)}, the number of images")
    return to_float(images).reshape(len(images), -1)
