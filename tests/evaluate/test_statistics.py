"""Gathered features: in parts as at once, and a cache that is of its images or nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from treediffusion.errors import CheckpointError, DataError, ShapeError
from treediffusion.evaluate import statistics
from treediffusion.evaluate.classifier import Classifier, ResNet
from treediffusion.evaluate.statistics import (
    ClassifierFeatures,
    Moments,
    evenly_spaced,
    gather,
    gather_batches,
    gathered_key,
)
from treediffusion.train.checkpoint import load, save


class Pixels:
    """The first four pixels as features, and how many images it has seen."""

    name, width, device = "pixels", 4, torch.device("cpu")

    def __init__(self, key: str = "k") -> None:
        self.key, self.seen = key, 0

    def extract(self, pixels: Tensor) -> Tensor:
        self.seen += len(pixels)
        return pixels.flatten(1)[:, :4].float()


def pictures(count: int = 40) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 1, 4, 4), dtype=np.uint8)


def test_what_is_gathered_in_parts_is_what_numpy_finds_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "CHUNK", 7)
    found = gather(Pixels(), pictures())
    values = pictures().reshape(40, -1)[:, :4].astype(np.float64)
    np.testing.assert_allclose(found.statistics.mean, values.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.statistics.covariance, np.cov(values.T), rtol=1e-12)
    assert np.array_equal(found.features.numpy(), values)


@pytest.mark.parametrize("parts", [[40], [1] * 40, [13, 27], [39, 1]])
def test_of_many_images_evenly_spaced_features_stay_however_they_come(
    parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "KEPT", 9)
    batches = np.split(pictures(), np.cumsum(parts)[:-1])
    found = gather_batches(Pixels(), batches, 40)
    rows = [0, 5, 10, 15, 20, 24, 29, 34, 39]
    assert np.array_equal(found.features.numpy(), pictures().reshape(40, -1)[rows, :4])
    assert found.statistics.count == 40


@pytest.mark.parametrize(("count", "most"), [(1, 5), (5, 5), (6, 5), (50_000, 10_000), (7, 1)])
def test_positions_are_different_and_in_range(count: int, most: int) -> None:
    found = evenly_spaced(count, most)
    assert len(set(found.tolist())) == len(found) == min(count, most)
    assert found.min() >= 0
    assert found.max() < count


def test_moments_far_from_zero_do_not_cancel() -> None:
    values = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)).double() + 1e6
    moments = Moments()
    for part in values.split(64):
        moments.add(part)
    found = moments.statistics("k").covariance
    np.testing.assert_allclose(found, np.cov(values.numpy().T), rtol=1e-8)


def test_a_cache_is_read_for_the_same_images_alone(tmp_path: Path) -> None:
    """Other images, or another extractor, make another file; floats of the same bytes do not."""
    first = Pixels()
    written = gather(first, pictures(), cache=tmp_path)
    again = Pixels()
    read = gather(again, pictures() / 255, cache=tmp_path)
    assert (first.seen, again.seen) == (40, 0)
    assert read.statistics.count == written.statistics.count
    assert np.array_equal(read.statistics.scatter, written.statistics.scatter)
    assert torch.equal(read.features, written.features)
    changed = pictures()
    changed[3, 0, 3, 3] ^= 1
    for extractor, images in ((Pixels("other"), pictures()), (Pixels(), changed)):
        gather(extractor, images, cache=tmp_path)
        assert extractor.seen == 40
    files = list(tmp_path.iterdir())
    assert len(files) == 3
    assert {file.suffix for file in files} == {".safetensors"}


def test_the_key_depends_on_the_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    before = gathered_key(Pixels(), pictures())
    monkeypatch.setattr(statistics, "ROUNDING", "cut off")
    assert gathered_key(Pixels(), pictures()) != before


def test_a_damaged_cache_is_refused_and_stays(tmp_path: Path) -> None:
    gather(Pixels(), pictures(), cache=tmp_path)
    (file,) = tmp_path.iterdir()
    tensors, state = load(file)
    tensors["features"][0, 0] += 1
    save(file, tensors, state)
    spoilt = hashlib.sha256(file.read_bytes()).digest()
    with pytest.raises(CheckpointError, match="not those that were written"):
        gather(Pixels(), pictures(), cache=tmp_path)
    assert hashlib.sha256(file.read_bytes()).digest() == spoilt


def test_floats_out_of_range_are_clamped_and_not_wrapped_around() -> None:
    """-0.05 is 0 and 1.05 is 255; half a step up is the next byte."""
    images = np.zeros((2, 1, 2, 2), np.float32)
    images[0, 0] = [[-0.05, 1.05], [0.5 / 255, 0.49 / 255]]
    found = gather(Pixels(), images)
    assert found.features[0].tolist() == [0, 255, 1, 0]


def test_a_classifiers_features_are_an_extractors() -> None:
    network = ResNet("resnet18", width=2, channels=1, classes=2)
    classifier = Classifier(network, image_shape=(1, 8, 8), key="of this")
    images = np.random.default_rng(0).integers(0, 256, (9, 1, 8, 8), dtype=np.uint8)
    extractor = ClassifierFeatures(classifier)
    found = gather(extractor, images)
    assert found.statistics.extractor == "of this"
    assert found.features.shape == (9, extractor.width)
    np.testing.assert_allclose(found.features.numpy(), classifier.features(images), rtol=1e-5)
    with pytest.raises(ShapeError, match=r"expected \[n, 1, 8, 8\]"):
        gather(extractor, pictures())


def test_another_number_of_images_than_announced_is_an_error() -> None:
    with pytest.raises(DataError, match="got 40, expected 41"):
        gather_batches(Pixels(), [pictures()], 41)
    with pytest.raises(DataError, match="expected 39"):
        gather_batches(Pixels(), [pictures()], 39)
    with pytest.raises(ShapeError, match="images"):
        gather(Pixels(), np.zeros((2, 3)))
