"""Distances of a table's images: FID where its weights are at hand, and our own classifier's.

    fid_*       Frechet distance in the features of the published Inception network
    frechet_*   the same in those of a classifier of the training images; no FID

The weights are looked for where PyTorch keeps downloads, and never fetched. Only `fid_*` compares
with a paper.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data import to_bytes
from ..errors import DataError, DependencyError
from .fid_inception import Inception, default_weights
from .frechet import frechet_distance
from .reproduce_models import Bench, Models
from .statistics import ClassifierFeatures, Extractor, gather

UInt8Array = NDArray[np.uint8]


def weights_at_hand() -> Path | None:
    """The file of Inception's weights, if it and the package that reads it are there."""
    try:
        path = default_weights()
    except DependencyError:
        return None
    return path if path.is_file() else None


def distances(
    models: Models, *, generated: UInt8Array, reconstructed: UInt8Array | None = None
) -> dict[str, float]:
    """Of drawn images to the test part, and of as many training images, the least to be had.

    Args:
        models: of the cell, for the data and their classifier.
        generated: [n, C, H, W] uint8.
        reconstructed: [m, C, H, W] uint8; None where there are none.

    Raises:
        DataError: neither weights nor labels, so that there are no features.
        CheckpointError: weights that are not the published ones.
    """
    bench = models.bench
    sets = {"generation": generated, "floor": to_bytes(bench.train.images[: bench.images])}
    if reconstructed is not None:
        sets["reconstruction"] = reconstructed
    row = {}
    for name, extractor in _extractors(models):
        cache = bench.out / "models" / "features"
        real = gather(extractor, to_bytes(bench.judged.images), cache=cache).statistics
        for part, images in sets.items():
            found = gather(extractor, images).statistics
            row[f"{name}_{part}"] = frechet_distance(found, real)
    return row


def _extractors(models: Models) -> list[tuple[str, Extractor]]:
    found: list[tuple[str, Extractor]] = []
    bench: Bench = models.bench
    weights, judge = weights_at_hand(), models.judge()
    if weights is not None and bench.train.images.shape[1] in (1, 3):
        found.append(("fid", Inception(weights, device=bench.device)))
    if judge is not None:
        found.append(("frechet", ClassifierFeatures(judge)))
    if not found:
        raise DataError(
            "--dataset",
            got="images without labels or of less than 8 pixels, and no Inception weights",
            expected="features to measure distances in",
            hint="give labels, which a classifier learns, or install FID's weights",
        )
    return found
