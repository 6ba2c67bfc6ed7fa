"""Floats, vectors and splits in .npy and .npz files: what is accepted, what refused and where."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from treediffusion.data import load_images, to_float
from treediffusion.errors import DataError

Array = NDArray[Any]

BYTES = np.random.default_rng(0).integers(0, 256, (6, 1, 5, 4), dtype=np.uint8)
FLOATS = np.random.default_rng(1).random((6, 1, 5, 4), np.float32)
LABELS = np.array([0, 2, 1, 1, 0, 2])


def saved(folder: Path, array: Array) -> str:
    np.save(folder / "a.npy", array)
    return str(folder / "a.npy")


def packed(folder: Path, **named: Array) -> str:
    """As anybody may have written it, with pickled objects too; reading has to refuse those."""
    np.savez(folder / "a.npz", allow_pickle=True, **named)
    return str(folder / "a.npz")


def fault(source: str, *, split: Literal["train", "test"] = "train") -> DataError:
    with pytest.raises(DataError) as caught:
        load_images(source, split=split)
    return caught.value


# Floats


@settings(deadline=None, max_examples=20)
@given(arrays.arrays(np.float32, (2, 3, 4, 5), elements=st.floats(0, 1, width=32)))
def test_floats_in_0_to_1_are_kept_bit_by_bit(images: NDArray[np.float32]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = load_images(saved(Path(folder), images)).images
    assert found.dtype == np.float32
    assert found.tobytes() == images.tobytes()
    assert to_float(found).tobytes() == images.tobytes()


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.longdouble, ">f4"])
def test_floats_of_any_width_become_float32(tmp_path: Path, dtype: Any) -> None:
    images = FLOATS.astype(dtype)
    found = load_images(saved(tmp_path, images)).images
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, images.astype(np.float32))


def test_a_float64_that_rounds_to_1_is_1(tmp_path: Path) -> None:
    images = np.full((2, 4, 4), np.nextafter(1.0, 2.0))
    assert load_images(saved(tmp_path, images)).images.max() == 1


def test_float_layouts_are_those_of_bytes(tmp_path: Path) -> None:
    for layout in (FLOATS, FLOATS[:, 0], FLOATS.transpose(0, 2, 3, 1)):
        found = load_images(saved(tmp_path, layout)).images
        np.testing.assert_array_equal(found, FLOATS)
    assert "two ways" in str(fault(saved(tmp_path, np.zeros((8, 8, 3), np.float32))))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e-6, 1.001, 255.0, 1e300])
def test_a_float_out_of_range_is_named_with_its_place(tmp_path: Path, value: float) -> None:
    images = FLOATS.astype(np.float64)
    images[3, 0, 2, 1] = images[4, 0, 0, 0] = value
    error = fault(saved(tmp_path, images))
    assert error.name.endswith("a.npy:images")
    assert str(error.got) == f"{value} at [n, C, H, W] = [3, 0, 2, 1], first of 2 such values"
    assert "0..1" in error.expected
    assert "255" in error.hint


@pytest.mark.parametrize(("images", "dtype"), [(BYTES, ""), (FLOATS, "float32")])
def test_the_fingerprint_is_of_shape_type_unless_bytes_and_pixels(
    tmp_path: Path, images: Array, dtype: str
) -> None:
    content = f"(6, 1, 5, 4){dtype}".encode() + images.tobytes()
    expected = hashlib.sha256(content).hexdigest()[:16]
    assert load_images(saved(tmp_path, images)).fingerprint == expected


def test_one_image_and_images_of_one_colour_are_fine(tmp_path: Path) -> None:
    for images in (BYTES[:1], FLOATS[:1], np.ones_like(FLOATS), np.full_like(BYTES, 7)):
        np.testing.assert_array_equal(load_images(saved(tmp_path, images)).images, images)


# Vectors


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("images", [BYTES, FLOATS], ids=["bytes", "floats"])
def test_vectors_are_images_of_one_pixel(tmp_path: Path, images: Array, size: int) -> None:
    """In both forms, [n, D] and [n, D, 1, 1], they are the same set."""
    vectors = images.reshape(6, -1)[:, :size]
    flat = load_images(saved(tmp_path, vectors))
    np.testing.assert_array_equal(flat.images, vectors[:, :, np.newaxis, np.newaxis])
    assert load_images(saved(tmp_path, flat.images)).fingerprint == flat.fingerprint


# Splits and names


def divided(**more: Array) -> dict[str, Array]:
    return {
        "train_images": FLOATS,
        "train_labels": LABELS,
        "test_images": FLOATS[:2],
        "test_labels": LABELS[:2],
        **more,
    }


def test_an_npz_holds_both_splits_and_names(tmp_path: Path) -> None:
    file = packed(tmp_path, **divided(class_names=np.array(["a", "bb", "ç"])))
    train, test = load_images(file), load_images(file, split="test")
    for found, count in ((train, 6), (test, 2)):
        np.testing.assert_array_equal(found.images, FLOATS[:count])
        assert found.labels is not None
        np.testing.assert_array_equal(found.labels, LABELS[:count])
        assert found.class_names == ("a", "bb", "ç")
    assert train.fingerprint != test.fingerprint


def test_a_divided_and_an_undivided_npz_are_the_same_training_set(tmp_path: Path) -> None:
    first = load_images(packed(tmp_path, **divided())).fingerprint
    assert load_images(packed(tmp_path, images=FLOATS)).fingerprint == first


def test_labels_of_a_split_are_its_own(tmp_path: Path) -> None:
    file = packed(tmp_path, train_images=FLOATS, labels=LABELS, y=LABELS, test_images=FLOATS[:2])
    assert load_images(file).labels is None
    assert load_images(file, split="test").labels is None


@pytest.mark.parametrize("missing", ["train", "test"])
def test_an_npz_without_a_split_names_the_array(
    tmp_path: Path, missing: Literal["train", "test"]
) -> None:
    named = {key: array for key, array in divided().items() if not key.startswith(missing)}
    error = fault(packed(tmp_path, **named), split=missing)
    assert error.name == "split"
    assert f"{missing}_images" in error.expected


def test_one_set_and_its_splits_in_one_file_is_not_guessed(tmp_path: Path) -> None:
    file = packed(tmp_path, **divided(images=FLOATS))
    for split in ("train", "test"):
        assert "both images and train_images and test_images" in str(fault(file, split=split))


def test_each_split_is_checked_when_it_is_read(tmp_path: Path) -> None:
    file = packed(tmp_path, **divided(test_images=FLOATS[:2] * np.nan))
    assert len(load_images(file).images) == 6
    assert fault(file, split="test").name.endswith("a.npz:test_images")


@pytest.mark.parametrize("labels", [[5, 900, 7, 7, 5, -1], [3] * 6])
def test_labels_with_gaps_are_kept(tmp_path: Path, labels: list[int]) -> None:
    found = load_images(packed(tmp_path, images=FLOATS, labels=np.array(labels))).labels
    assert found is not None
    assert found.tolist() == labels


@pytest.mark.parametrize("labels", [LABELS[:5], LABELS[:0], LABELS * 1.0, LABELS[np.newaxis]])
def test_labels_of_a_split_that_do_not_fit(tmp_path: Path, labels: Array) -> None:
    error = fault(packed(tmp_path, **divided(train_labels=labels)))
    assert error.name.endswith("a.npz:train_labels")
    assert "(6,)" in error.expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (np.array(["a", "b"]), "labels from 0"),
        (np.array([], str), "labels from 0"),
        (np.array([b"a", b"b", b"c"]), "text"),
        (np.arange(3), "text"),
        (np.array([["a", "b", "c"]]), "text"),
        (np.array("abc"), "text"),
    ],
    ids=str,
)
def test_class_names_that_do_not_fit(tmp_path: Path, names: Array, expected: str) -> None:
    error = fault(packed(tmp_path, **divided(class_names=names)))
    assert error.name.endswith("a.npz:class_names")
    assert expected in error.expected


def test_names_without_labels_are_kept_and_unused_ones_too(tmp_path: Path) -> None:
    names = np.array(["a", "b", "c", "d"])
    for named in ({"images": FLOATS}, divided()):
        found = load_images(packed(tmp_path, class_names=names, **named))
        assert found.class_names == ("a", "b", "c", "d")


# Damage


@pytest.mark.parametrize("key", ["train_images", "train_labels", "class_names"])
def test_object_arrays_are_refused_and_never_run(tmp_path: Path, key: str) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    error = fault(packed(tmp_path, **divided(**{key: np.array([Bomb()], object)})))
    assert "pickled" in error.expected
    assert not (tmp_path / "ran").exists()


def test_a_divided_npz_cut_anywhere_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, train_images=FLOATS[:1, :, :2, :2], test_images=FLOATS[:1, :, :2, :2])
    whole, file = buffer.getvalue(), tmp_path / "a.npz"
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        assert fault(str(file), split="test").name == str(file)


@pytest.mark.parametrize("pack", [np.save, np.savez, np.savez_compressed])
def test_a_changed_byte_is_refused_or_leaves_a_valid_set(tmp_path: Path, pack: Any) -> None:
    """NumPy reports damaged headers by a dozen exceptions; a user sees one."""
    buffer = io.BytesIO()
    pack(buffer, FLOATS[:1, :, :2, :2])
    whole, file = buffer.getvalue(), tmp_path / ("a.npy" if pack is np.save else "a.npz")
    for place in range(len(whole)):
        for flip in (1, 32, 255):
            damaged = bytearray(whole)
            damaged[place] ^= flip
            file.write_bytes(damaged)
            try:
                found = load_images(str(file)).images
            except DataError:
                continue
            assert found.ndim == 4
            assert to_float(found).min() >= 0
            assert to_float(found).max() <= 1
