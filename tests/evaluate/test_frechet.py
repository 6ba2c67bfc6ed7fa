"""The Fréchet distance against closed forms, and statistics in parts against those at once."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from scipy.stats import ortho_group
from treediffusion.errors import CheckpointError, DataError, ShapeError
from treediffusion.evaluate.classifier import Classifier, ResNet
from treediffusion.evaluate.frechet import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
    image_statistics,
    merge,
    statistics_key,
)
from treediffusion.train.checkpoint import load, save

Float64Array = NDArray[np.float64]


def gaussian(mean: list[float] | Float64Array, covariance: Float64Array) -> FeatureStatistics:
    return FeatureStatistics("", 11, np.asarray(mean, np.float64), 10 * covariance)


def random_covariance(rng: np.random.Generator, size: int) -> Float64Array:
    factor = rng.normal(size=(size, size + 3))
    covariance: Float64Array = factor @ factor.T
    return covariance


def features(count: int, size: int = 6, *, seed: int = 0) -> Float64Array:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, size)) @ rng.normal(size=(size, size)) + 3


def of(values: Float64Array) -> FeatureStatistics:
    return feature_statistics([values])


@pytest.mark.parametrize(("m1", "s1", "m2", "s2"), [(0, 1, 3, 1), (1, 2, -1, 0.5), (0, 1, 0, 0)])
def test_in_one_dimension_it_is_the_squared_differences_of_mean_and_deviation(
    m1: float, s1: float, m2: float, s2: float
) -> None:
    one, other = gaussian([m1], np.array([[s1**2]])), gaussian([m2], np.array([[s2**2]]))
    assert frechet_distance(one, other) == pytest.approx((m1 - m2) ** 2 + (s1 - s2) ** 2)


def test_of_covariances_that_commute_it_is_the_sum_over_axes() -> None:
    s1, s2 = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 0.5])
    distance = frechet_distance(
        gaussian(np.zeros(3), np.diag(s1**2)), gaussian(np.ones(3), np.diag(s2**2))
    )
    assert distance == pytest.approx(3 + ((s1 - s2) ** 2).sum())


def test_of_covariances_that_do_not_commute_it_is_the_trace_of_the_matrix_root() -> None:
    rng = np.random.default_rng(0)
    first, second = random_covariance(rng, 8), random_covariance(rng, 8)
    expected = np.trace(first + second - 2 * np.real(sqrtm(first @ second)))
    found = frechet_distance(gaussian(np.zeros(8), first), gaussian(np.zeros(8), second))
    assert found == pytest.approx(expected, rel=1e-10)


def test_a_set_and_itself_are_at_no_distance_however_few_images_it_has() -> None:
    """With 5 images of 40 features the covariance has rank 4; nothing warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for count in (2, 5, 300):
            values = features(count, 40)
            scale = np.trace(of(values).covariance)
            assert frechet_distance(of(values), of(values)) <= 1e-12 * scale


@pytest.mark.parametrize("count", [5, 300])
def test_a_shift_by_c_is_c_squared(count: int) -> None:
    values, shift = features(count, 20), np.linspace(-1, 2, 20)
    expected = shift @ shift
    assert frechet_distance(of(values), of(values + shift)) == pytest.approx(expected, rel=1e-9)


def test_scaling_by_a_is_the_squared_change_of_every_deviation() -> None:
    values = features(200) - features(200).mean(0)
    expected = 0.25 * np.trace(of(values).covariance)
    assert frechet_distance(of(values), of(values * 1.5)) == pytest.approx(expected)


def test_it_is_symmetric_and_blind_to_rotations_and_shifts_of_both() -> None:
    one, other = features(100), features(80, seed=1)
    turn, shift = ortho_group.rvs(6, random_state=0), np.arange(6.0)
    distance = frechet_distance(of(one), of(other))
    assert distance > 1
    assert frechet_distance(of(other), of(one)) == pytest.approx(distance, rel=1e-12)
    turned = frechet_distance(of(one @ turn + shift), of(other @ turn + shift))
    assert turned == pytest.approx(distance, rel=1e-10)


def test_of_sets_of_one_gaussian_it_falls_with_the_number_of_images() -> None:
    rng = np.random.default_rng(0)
    distances = [
        frechet_distance(of(rng.normal(size=(n, 5))), of(rng.normal(size=(n, 5))))
        for n in (50, 500, 5000)
    ]
    assert distances[0] > 3 * distances[1] > 9 * distances[2]


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_statistics_in_parts_are_those_of_numpy_at_once(size: int) -> None:
    values = features(150) + 1e4  # far from 0, where sums of squares would cancel
    found = feature_statistics(values[start : start + size] for start in range(0, 150, size))
    assert found.count == 150
    np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(values.T), rtol=1e-9)


def test_merging_is_the_union_in_either_order() -> None:
    values = features(90)
    one, other = of(values[:20]), of(values[20:])
    for merged in (merge(one, other), merge(other, one)):
        assert merged.count == 90
        np.testing.assert_allclose(merged.mean, values.mean(0), rtol=1e-13)
        np.testing.assert_allclose(merged.covariance, np.cov(values.T), rtol=1e-12)


def test_features_of_two_classifiers_or_sizes_are_not_compared() -> None:
    one = feature_statistics([features(9)], extractor="a")
    with pytest.raises(ShapeError, match=r"extractor: got 'b', expected 'a'"):
        frechet_distance(one, feature_statistics([features(9)], extractor="b"))
    with pytest.raises(ShapeError, match=r"features: got \[n, 5\]"):
        merge(one, feature_statistics([features(9, 5)], extractor="a"))


def test_what_is_no_set_of_features_is_refused() -> None:
    with pytest.raises(DataError, match="got none"):
        feature_statistics([])
    with pytest.raises(DataError, match="2 images or more"):
        frechet_distance(of(features(1)), of(features(9)))
    spoilt = features(9)
    spoilt[3, 2] = np.nan
    for wrong in (spoilt, np.zeros(3), np.zeros((0, 4)), np.zeros((3, 2), np.int64)):
        with pytest.raises(ShapeError, match="features"):
            feature_statistics([wrong])


def judge(key: str = "k") -> Classifier:
    """A network of random weights, whose features are as good as any here."""
    network = ResNet("resnet18", width=2, channels=1, classes=2)
    return Classifier(network, image_shape=(1, 8, 8), key=key)


def pictures(count: int = 30) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)


def test_statistics_of_images_are_those_of_their_features(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classifier, images = judge(), pictures()
    expected = of(classifier.features(images).astype(np.float64))
    monkeypatch.setattr("treediffusion.evaluate.frechet.CHUNK", 7)
    found = image_statistics(classifier, images)
    assert (found.extractor, found.count) == ("k", 30)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-5)
    np.testing.assert_allclose(found.scatter, expected.scatter, rtol=1e-4, atol=1e-6)


def test_statistics_come_back_from_their_file_and_not_for_other_images(tmp_path: Path) -> None:
    path, classifier = tmp_path / "reference.safetensors", judge()
    written = image_statistics(classifier, pictures(), path=path)
    classifier.network.stem = None  # type: ignore[assignment]  # nothing can be computed again
    read = image_statistics(classifier, pictures(), path=path)
    assert (read.extractor, read.count) == (written.extractor, written.count)
    assert np.array_equal(read.mean, written.mean)
    assert np.array_equal(read.scatter, written.scatter)
    with pytest.raises(CheckpointError, match="with the key"):
        image_statistics(classifier, pictures(29), path=path)
    with pytest.raises(CheckpointError, match="with the key"):
        image_statistics(judge("another"), pictures(), path=path)


def test_statistics_of_another_resolution_are_refused_by_both_sizes(tmp_path: Path) -> None:
    path, count = tmp_path / "reference.safetensors", 30
    image_statistics(judge(), pictures(count), path=path)
    network = ResNet("resnet18", width=2, channels=1, classes=2)
    larger = Classifier(network, image_shape=(1, 16, 16), key="k")
    images = pictures(count).repeat(2, axis=2).repeat(2, axis=3)
    with pytest.raises(CheckpointError) as caught:
        image_statistics(larger, images, path=path)
    assert str(caught.value.got).endswith(", image shape [1, 8, 8]")
    assert ", image shape [1, 16, 16], which is of these images" in caught.value.expected
    assert "count" not in str(caught.value)
    assert caught.value.hint.startswith("name another path")


def test_a_damaged_file_of_statistics_is_refused(tmp_path: Path) -> None:
    path, classifier = tmp_path / "reference.safetensors", judge()
    image_statistics(classifier, pictures(), path=path)
    tensors, state = load(path)
    tensors["mean"][0] += 1
    save(path, tensors, state)
    with pytest.raises(CheckpointError, match="not those that were written"):
        image_statistics(classifier, pictures(), path=path)
    save(path, {"mean": tensors["mean"]}, state)
    with pytest.raises(CheckpointError, match="not those that were written"):
        image_statistics(classifier, pictures(), path=path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="not a readable"):
        image_statistics(classifier, pictures(), path=path)


def test_the_key_is_of_bytes_so_that_floats_of_the_same_bytes_have_it_too() -> None:
    images, classifier = pictures(), judge()
    assert statistics_key(classifier, images) == statistics_key(classifier, images / 255)
    other = images.copy()
    other[4, 0, 3, 3] ^= 1
    assert statistics_key(classifier, images) != statistics_key(classifier, other)
    assert statistics_key(classifier, images) != statistics_key(judge("another"), images)
