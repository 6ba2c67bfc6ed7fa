"""Features of a set of images: their mean and scatter, and the features of some of them.

    mean = 1/n sum_i f_i,   scatter = sum_i (f_i - mean)(f_i - mean)^T

Both are gathered where the extractor computes, in float64, a batch at a time, and merged as

    mean' = mean + (n_b / n') d,   scatter' = scatter + scatter_b + (n n_b / n') d d^T

with d = mean_b - mean, so that neither a sum of squares cancels nor all features are held. Of at
most 10,000 images, evenly spaced in the set, the features stay, for measures that compare images
with each other.

Images are bytes. Floats are clamped to 0..1, multiplied by 255 and rounded half up, real and
generated ones alike; nothing is compressed, and only an extractor resizes. What is kept on a disk
is under a hash of the extractor, this rule and the images: other images, however named, are other
statistics. Not here: distances, and what extracts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, ShapeError
from ..progress import Progress
from .classifier import Classifier, as_bytes
from .keyed import content_key, load_keyed, save_keyed

KIND, GATHERED = "feature statistics", "features of images"
ROUNDING = "floats clamped to 0..1, times 255, rounded half up"
KEPT = 10_000
"""Images of a set whose features stay."""
CHUNK = 250

Float64Array = NDArray[np.float64]
UInt8Array = NDArray[np.uint8]


class Extractor(Protocol):
    """What turns images into features; two of one key give the same features.

    Attributes:
        name: in the names of measures, such as `inception`.
        key: content hash of everything that features depend on besides images.
        width: D.
        device: where it computes.
    """

    name: str
    key: str
    width: int
    device: torch.device

    def extract(self, pixels: Tensor) -> Tensor:
        """[n, C, H, W] uint8 on the device -> [n, D] float32 on the device."""
        ...


class ClassifierFeatures:
    """Our classifier as an extractor, for measures without the Inception network."""

    name = "classifier"

    def __init__(self, classifier: Classifier) -> None:
        self._network, self._shape = classifier.network, classifier.image_shape
        self.key, self.width = classifier.key, classifier.width
        self.device = classifier.network.mean.device

    def extract(self, pixels: Tensor) -> Tensor:
        """[n, C, H, W] uint8 -> [n, D] float32.

        Raises:
            ShapeError: images of another shape than it was trained on.
        """
        if tuple(pixels.shape[1:]) != tuple(self._shape):
            raise ShapeError(
                "images",
                got=f"shape {list(pixels.shape)}",
                expected=f"[n, {', '.join(map(str, self._shape))}], as it was trained on",
            )
        return self._network.features(pixels)


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean and scatter of a set of features, in a form of which two add up.

    Attributes:
        extractor: key of what extracted these features.
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


@dataclass(frozen=True, eq=False)
class Gathered:
    """A set of images, as measures see it.

    Attributes:
        statistics: of all of them.
        features: [m, D] float32 on the CPU, of at most 10,000 of them, evenly spaced.
    """

    statistics: FeatureStatistics
    features: Tensor


class Moments:
    """Mean and scatter that grow with every batch, on the batches' device."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._scatter = torch.empty(0)

    def add(self, features: Tensor) -> None:
        """Counts a batch in.

        Args:
            features: [b, D] float, b of 1 or more.

        Raises:
            ShapeError: another shape or type, or a number that is not finite.
        """
        _check(features)
        values = features.to(torch.float64)
        mean = values.mean(0)
        apart = values - mean
        scatter = apart.T @ apart
        if self.count == 0:
            self.count, self._mean, self._scatter = len(values), mean, scatter
            return
        count = self.count + len(values)
        step = mean - self._mean
        self._mean = self._mean + step * (len(values) / count)
        between = torch.outer(step, step) * (self.count * len(values) / count)
        self._scatter, self.count = self._scatter + scatter + between, count

    def statistics(self, extractor: str) -> FeatureStatistics:
        """What was counted.

        Raises:
            DataError: nothing.
        """
        if self.count == 0:
            raise DataError("batches", got="none", expected="features of one image or more")
        mean, scatter = self._mean.cpu().numpy(), self._scatter.cpu().numpy()
        return FeatureStatistics(extractor, self.count, mean, scatter)


def gather(
    extractor: Extractor,
    images: NDArray[Any],
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Gathered:
    """Features of images at hand, or those that a folder keeps of the same images.

    Args:
        extractor: whose features.
        images: [n, C, H, W] uint8, or float, which is clamped to 0..1 and rounded to bytes.
        cache: a folder; a file in it is read if it is of these images and written if there is none.
        progress: advanced by n in all.

    Raises:
        ShapeError: not such images.
        CheckpointError: the cache holds a damaged file, or cannot be written.
    """
    pixels = as_bytes(images, name="images")
    key = gathered_key(extractor, pixels)
    path = None if cache is None else cache / f"{extractor.name}-{key}.safetensors"
    if path is not None and path.exists():
        if progress is not None:
            progress.skip(len(pixels))
        return _read(path, extractor.key, key, facts_of(pixels))
    batches = (pixels[start : start + CHUNK] for start in range(0, len(pixels), CHUNK))
    found = gather_batches(extractor, batches, len(pixels), progress=progress)
    if path is not None:
        kept = found.statistics
        tensors = {
            "mean": torch.from_numpy(kept.mean),
            "scatter": torch.from_numpy(kept.scatter),
            "features": found.features,
        }
        save_keyed(path, tensors, facts_of(pixels), kind=GATHERED, key=key)
    return found


def gather_batches(
    extractor: Extractor,
    batches: Iterable[UInt8Array],
    count: int,
    *,
    progress: Progress | None = None,
) -> Gathered:
    """Features of images that come in parts and are not held.

    Args:
        extractor: whose features.
        batches: each [b, C, H, W] uint8 or float, in any division.
        count: images in all, which decides of which ones features stay.
        progress: advanced by n in all.

    Raises:
        ShapeError: not such images.
        DataError: another number of images than announced.
    """
    stays = torch.zeros(max(count, 1), dtype=torch.bool)
    stays[torch.from_numpy(evenly_spaced(count, KEPT))] = True
    moments, kept = Moments(), []
    for features in _extracted(extractor, batches):
        start, stop = moments.count, moments.count + len(features)
        if stop > count:
            raise DataError("images", got=f"{stop} or more", expected=f"{count}")
        moments.add(features)
        kept.append(features.cpu()[stays[start:stop]])
        if progress is not None:
            progress.advance(len(features), "features")
    if moments.count != count:
        raise DataError("images", got=moments.count, expected=f"{count}")
    return Gathered(moments.statistics(extractor.key), torch.cat(kept))


def gathered_key(extractor: Extractor, pixels: UInt8Array) -> str:
    """Content hash of what gathered features are of."""
    return content_key(GATHERED, extractor.key, ROUNDING, str(KEPT), pixels)


def facts_of(pixels: UInt8Array) -> dict[str, Any]:
    """What a file says of its images besides their hash."""
    return {"count": len(pixels), "image_shape": list(pixels.shape[1:])}


def evenly_spaced(count: int, most: int) -> NDArray[np.int64]:
    """At most so many different positions among count ones, the first and the last among them."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def feature_statistics(
    batches: Iterable[NDArray[Any]], *, extractor: str = ""
) -> FeatureStatistics:
    """Statistics of features that come in parts; only one part is held.

    Args:
        batches: each [b, D] float, b of 1 or more, in any division.
        extractor: key of what the features are of.

    Raises:
        ShapeError: a part of another shape, or with numbers that are not finite.
        DataError: no parts.
    """
    moments = Moments()
    for batch in batches:
        moments.add(torch.as_tensor(batch))
    return moments.statistics(extractor)


def merge(one: FeatureStatistics, other: FeatureStatistics) -> FeatureStatistics:
    """Statistics of both sets together, equal to those of all their features at once.

    Raises:
        ShapeError: features of another extractor or size.
    """
    check_pair(one, other)
    count = one.count + other.count
    step = other.mean - one.mean
    between = np.outer(step, step) * (one.count * other.count / count)
    return FeatureStatistics(
        one.extractor,
        count,
        one.mean + step * (other.count / count),
        one.scatter + other.scatter + between,
    )


def check_pair(one: FeatureStatistics, other: FeatureStatistics) -> None:
    """Refuses to compare features of two extractors.

    Raises:
        ShapeError: another extractor or size.
    """
    for name, first, second in (
        ("extractor", repr(one.extractor), repr(other.extractor)),
        ("features", f"[n, {len(one.mean)}]", f"[n, {len(other.mean)}]"),
    ):
        if first != second:
            raise ShapeError(
                name,
                got=second,
                expected=f"{first}, as in the other statistics",
                hint="take both from one extractor",
            )


@torch.no_grad()
def _extracted(extractor: Extractor, batches: Iterable[UInt8Array]) -> Iterator[Tensor]:
    for batch in batches:
        pixels = as_bytes(batch, name="images")
        for start in range(0, len(pixels), CHUNK):
            part = torch.tensor(pixels[start : start + CHUNK], device=extractor.device)
            yield extractor.extract(part)


def _read(path: Path, extractor: str, key: str, expected: dict[str, Any]) -> Gathered:
    tensors, facts = load_keyed(path, kind=GATHERED, key=key, facts=expected)
    mean, scatter = tensors["mean"].numpy(), tensors["scatter"].numpy()
    statistics = FeatureStatistics(extractor, facts["count"], mean, scatter)
    return Gathered(statistics, tensors["features"])


def _check(features: Tensor) -> None:
    if features.ndim != 2 or features.numel() == 0 or not features.is_floating_point():
        kind = str(features.dtype).removeprefix("torch.")
        got = f"{kind} {list(features.shape)}"
        raise ShapeError("features", got=got, expected="float [n, D], n from 1")
    if not torch.isfinite(features).all():
        raise ShapeError("features", got="a number that is not finite", expected="finite numbers")
