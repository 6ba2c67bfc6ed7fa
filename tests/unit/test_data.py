"""Reading images: every packing gives the same set, and every damaged source a DataError."""

from __future__ import annotations

import gzip
import io
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from treediffusion.data import ImageSet, load_images, to_float
from treediffusion.errors import DataError

Pixels = NDArray[np.uint8]

GREY = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)  # [n, H, W]
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)  # [n, H, W, C]
LABELS = np.array([0, 2, 1, 1, 0, 2])


def idx_bytes(array: NDArray[Any]) -> bytes:
    axes = b"".join(axis.to_bytes(4, "big") for axis in array.shape)
    return bytes((0, 0, 8, array.ndim)) + axes + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, images: Pixels, labels: NDArray[Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "train-images-idx3-ubyte").write_bytes(idx_bytes(images))
    if labels is not None:
        (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return folder


def write_image(file: Path, pixels: Pixels) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return file


def write_npz(file: Path, **arrays: NDArray[Any]) -> Path:
    np.savez(file, allow_pickle=True, **arrays)
    return file


def fault(source: Path | str, *, split: Literal["train", "test"] = "train") -> DataError:
    with pytest.raises(DataError) as caught:
        load_images(str(source), split=split)
    return caught.value


def assert_is(found: ImageSet, pixels: Pixels, labels: NDArray[Any] | None) -> None:
    assert found.images.dtype == np.uint8
    np.testing.assert_array_equal(found.images, pixels)
    if labels is None:
        assert found.labels is None
    else:
        assert found.labels is not None
        assert found.labels.dtype == np.int64
        np.testing.assert_array_equal(found.labels, labels)


def test_digits_are_all_1797_in_both_splits() -> None:
    train, test = load_images("digits"), load_images("digits", split="test")
    assert train.images.shape == (1797, 1, 8, 8)
    assert train.fingerprint == test.fingerprint
    assert train.class_names == tuple("0123456789")
    assert train.labels is not None
    assert np.bincount(train.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_use_the_whole_range_in_17_steps() -> None:
    values = np.unique(load_images("digits").images)
    assert values.tolist() == [round(v * 255 / 16) for v in range(17)]


def test_to_float_maps_ends_exactly_and_inverts() -> None:
    every = np.arange(256, dtype=np.uint8)
    scaled = to_float(every)
    assert scaled.dtype == np.float32
    assert scaled[0] == 0
    assert scaled[-1] == 1
    np.testing.assert_array_equal(np.round(scaled * 255).astype(np.uint8), every)


def test_the_same_pixels_in_any_packing_are_the_same_set(tmp_path: Path) -> None:
    grey = GREY[:, np.newaxis]
    np.save(tmp_path / "nhw.npy", GREY)
    np.save(tmp_path / "nchw.npy", grey)
    np.save(tmp_path / "nhwc.npy", GREY[..., np.newaxis])
    for number, image in enumerate(GREY):
        write_image(tmp_path / "pictures" / f"{number}.png", image)
    sources = [
        write_idx(tmp_path / "idx", GREY),
        tmp_path / "pictures",
        tmp_path / "nhw.npy",
        tmp_path / "nchw.npy",
        tmp_path / "nhwc.npy",
        write_npz(tmp_path / "a.npz", images=GREY),
    ]
    found = [load_images(str(source)) for source in sources]
    for one in found:
        assert_is(one, grey, None)
    assert len({one.fingerprint for one in found}) == 1
    assert [one.name for one in found] == ["idx", "pictures", "nhw", "nchw", "nhwc", "a"]


def test_fingerprint_changes_with_a_pixel_and_with_the_shape(tmp_path: Path) -> None:
    changed = GREY.copy()
    changed[3, 2, 1] ^= 1
    prints = set()
    for number, pixels in enumerate((GREY, changed, GREY.reshape(6, 4, 5))):
        np.save(tmp_path / f"{number}.npy", pixels)
        prints.add(load_images(str(tmp_path / f"{number}.npy")).fingerprint)
    assert len(prints) == 3
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in prints)


def test_missing_source_says_what_was_given_and_what_works() -> None:
    message = str(fault("no/such/place"))
    for part in ("no/such/place", "digits", "idx", "folder of images", ".npz"):
        assert part in message


def test_file_of_another_kind(tmp_path: Path) -> None:
    file = write_image(tmp_path / "one.png", GREY[0])
    assert "folder" in fault(file).hint


# idx


def test_idx_plain_and_gzipped_with_both_splits(tmp_path: Path) -> None:
    write_idx(tmp_path, GREY, LABELS)
    for kind, array in (("images-idx3", GREY[:2]), ("labels-idx1", LABELS[:2])):
        (tmp_path / f"t10k-{kind}-ubyte.gz").write_bytes(gzip.compress(idx_bytes(array)))
    assert_is(load_images(str(tmp_path)), GREY[:, np.newaxis], LABELS)
    assert_is(load_images(str(tmp_path), split="test"), GREY[:2, np.newaxis], LABELS[:2])


def test_idx_without_test_files_says_so(tmp_path: Path) -> None:
    error = fault(write_idx(tmp_path, GREY), split="test")
    assert error.name == "split"
    assert "has none" in str(error)
    assert "t10k-images-idx3-ubyte" in error.expected


def test_idx_cut_at_any_byte_is_refused_with_both_sizes(tmp_path: Path) -> None:
    whole = idx_bytes(GREY[:2, :3, :3])
    file = write_idx(tmp_path, GREY) / "train-images-idx3-ubyte"
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        error = fault(tmp_path)
        assert error.name == str(file)
        if length >= 16:
            assert str(error.got) == f"{length} bytes"
            assert f"{len(whole)} bytes" in error.expected
    file.write_bytes(whole + b"x")
    fault(tmp_path)


def test_gz_cut_at_any_byte_or_of_other_content_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(idx_bytes(GREY[:2, :3, :3]))
    file = tmp_path / "train-images-idx3-ubyte.gz"
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    for content in (*(whole[:length] for length in range(len(whole))), bytes(damaged), b"text"):
        file.write_bytes(content)
        assert fault(tmp_path).name == str(file)


def test_idx_of_wrong_magic_names_both(tmp_path: Path) -> None:
    file = write_idx(tmp_path, GREY) / "train-images-idx3-ubyte"
    file.write_bytes(idx_bytes(LABELS))
    error = fault(tmp_path)
    assert "00000801" in str(error.got)
    assert "00000803" in error.expected
    file.write_bytes(gzip.compress(idx_bytes(GREY)))
    assert ".gz" in fault(tmp_path).hint


def test_idx_without_images_is_refused(tmp_path: Path) -> None:
    assert "some images" in fault(write_idx(tmp_path, GREY[:0])).expected


def test_idx_labels_of_other_length(tmp_path: Path) -> None:
    error = fault(write_idx(tmp_path, GREY, LABELS[:5]))
    assert "(5,)" in str(error.got)
    assert "(6,)" in error.expected


# Folders of images


@pytest.mark.parametrize("suffix", ["png", "PNG", "bmp", "webp", "jpg", "jpeg"])
def test_every_image_format_in_colour_and_grey(tmp_path: Path, suffix: str) -> None:
    flat = np.full((8, 8), 100, np.uint8)  # flat, so that JPEG keeps it exactly
    write_image(tmp_path / "grey" / f"a.{suffix}", flat)
    write_image(tmp_path / "colour" / f"a.{suffix}", np.stack([flat] * 3, axis=-1))
    # WebP has no grey.
    channels = 3 if suffix == "webp" else 1
    assert load_images(str(tmp_path / "grey")).images.shape == (1, channels, 8, 8)
    assert load_images(str(tmp_path / "colour")).images.shape == (1, 3, 8, 8)
    assert abs(int(load_images(str(tmp_path / "colour")).images.max()) - 100) <= 2


def test_sub_folders_become_classes_in_sorted_order(tmp_path: Path) -> None:
    names = ["b", "a", "b", "c", "a", "c"]
    for number, (name, image) in enumerate(zip(names, COLOUR, strict=True)):
        write_image(tmp_path / name / "deeper" / f"{number}.png", image)
    found = load_images(str(tmp_path))
    order = [1, 4, 0, 2, 3, 5]
    assert_is(found, COLOUR[order].transpose(0, 3, 1, 2), np.array([0, 0, 1, 1, 2, 2]))
    assert found.class_names == ("a", "b", "c")


def test_images_outside_class_folders_or_in_a_single_one_have_no_labels(tmp_path: Path) -> None:
    write_image(tmp_path / "only" / "0.png", GREY[0])
    assert load_images(str(tmp_path)).labels is None
    write_image(tmp_path / "other" / "1.png", GREY[1])
    assert load_images(str(tmp_path)).labels is not None
    write_image(tmp_path / "2.png", GREY[2])
    assert load_images(str(tmp_path)).labels is None
    assert load_images(str(tmp_path)).class_names is None


def test_test_images_are_never_trained_on(tmp_path: Path) -> None:
    for number, place in enumerate(("cat", "dog", "test/cat", "test/dog")):
        write_image(tmp_path / place / f"{number}.png", GREY[number])
    assert_is(load_images(str(tmp_path)), GREY[:2, np.newaxis], np.array([0, 1]))
    test = load_images(str(tmp_path), split="test")
    assert_is(test, GREY[2:4, np.newaxis], np.array([0, 1]))
    assert test.class_names == ("cat", "dog")


def test_a_train_folder_is_the_split_only_where_it_is_all_the_rest(tmp_path: Path) -> None:
    for number, place in enumerate(("train/cat", "train/dog", "test/cat")):
        write_image(tmp_path / place / f"{number}.png", GREY[number])
    assert load_images(str(tmp_path)).class_names == ("cat", "dog")
    write_image(tmp_path / "bus" / "3.png", GREY[3])
    found = load_images(str(tmp_path))
    assert found.class_names == ("bus", "cat", "train")
    assert found.labels is not None
    assert found.labels.tolist() == [0, 2, 2]


def test_a_class_has_one_number_in_both_parts(tmp_path: Path) -> None:
    for number, place in enumerate(("cat", "dog", "eel", "test/eel", "test/dog")):
        write_image(tmp_path / place / f"{number}.png", GREY[number])
    test = load_images(str(tmp_path), split="test")
    assert test.class_names == ("cat", "dog", "eel")
    assert test.labels is not None
    assert test.labels.tolist() == [1, 2]


def test_folder_without_test_sub_folder_says_so(tmp_path: Path) -> None:
    write_image(tmp_path / "0.png", GREY[0])
    error = fault(tmp_path, split="test")
    assert error.name == "split"
    assert "has none" in str(error)


def test_images_of_two_sizes_are_named_with_their_sizes(tmp_path: Path) -> None:
    one = write_image(tmp_path / "a.png", GREY[0])
    two = write_image(tmp_path / "b.png", GREY[1, :3])
    message = str(fault(tmp_path))
    for part in (str(one), str(two), "4x5", "4x3"):
        assert part in message


def test_grey_files_in_a_colour_set_become_colour(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", GREY[0])
    write_image(tmp_path / "b.png", COLOUR[1])
    found = load_images(str(tmp_path)).images
    np.testing.assert_array_equal(found[0], np.stack([GREY[0]] * 3))
    np.testing.assert_array_equal(found[1], COLOUR[1].transpose(2, 0, 1))


def test_black_and_white_is_0_and_255_and_transparency_is_left_out(tmp_path: Path) -> None:
    Image.fromarray(GREY[0] > 127).save(tmp_path / "a.png")
    bits = load_images(str(tmp_path)).images
    np.testing.assert_array_equal(bits[0, 0], np.where(GREY[0] > 127, 255, 0))
    Image.fromarray(np.dstack([COLOUR[0], GREY[0]])).save(tmp_path / "a.png")
    assert_is(load_images(str(tmp_path)), COLOUR[:1].transpose(0, 3, 1, 2), None)


def test_deep_images_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    Image.fromarray(GREY[0].astype(np.uint16) * 256).save(tmp_path / "a.png")
    assert "8 bits" in fault(tmp_path).expected


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
def test_an_image_cut_anywhere_is_named_unless_all_its_pixels_are_there(
    tmp_path: Path, suffix: str
) -> None:
    file = write_image(tmp_path / f"a.{suffix}", COLOUR[0])
    whole, intact = file.read_bytes(), load_images(str(tmp_path)).fingerprint
    refused = 0
    for length in range(0, len(whole), 3):
        file.write_bytes(whole[:length])
        try:
            found = load_images(str(tmp_path))
        except DataError as error:
            refused += error.name == str(file)
        else:
            # A PNG's pixels end before its check sums and closing chunk do.
            assert found.fingerprint == intact
            refused += 1
    assert refused == len(range(0, len(whole), 3))


def test_hidden_and_other_files_are_left_out_and_nothing_else_is_empty(tmp_path: Path) -> None:
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    (tmp_path / "notes.txt").write_text("no image")
    assert "holds no image" in str(fault(tmp_path))
    write_image(tmp_path / "a.png", GREY[0])
    assert len(load_images(str(tmp_path)).images) == 1


# Array files


@pytest.mark.parametrize("label_key", ["labels", "y"])
@pytest.mark.parametrize("image_key", ["images", "data", "x"])
def test_npz_keys(tmp_path: Path, image_key: str, label_key: str) -> None:
    arrays: dict[str, NDArray[Any]] = {
        image_key: COLOUR,
        label_key: LABELS.astype(np.uint8),
        "other": np.zeros(3),
    }
    file = write_npz(tmp_path / "a.npz", **arrays)
    assert_is(load_images(str(file)), COLOUR.transpose(0, 3, 1, 2), LABELS)


@given(channels=st.sampled_from([1, 3]), height=st.integers(4, 7), width=st.integers(4, 7))
def test_channels_first_and_last_are_told_apart(channels: int, height: int, width: int) -> None:
    shape = (2, channels, height, width)
    first = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    with tempfile.TemporaryDirectory() as folder:
        for array in (first, first.transpose(0, 2, 3, 1)):
            np.save(f"{folder}/a.npy", array)
            assert_is(load_images(f"{folder}/a.npy"), first, None)


@pytest.mark.parametrize("shape", [(4, 3, 8, 3), (4, 1, 8, 1), (4, 3, 8, 1), (8, 8, 3), (9, 8, 1)])
def test_a_layout_that_reads_in_two_ways_is_not_guessed(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    assert "two ways" in str(fault(tmp_path / "a.npy"))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 8, 8), np.int64),
        np.zeros((4, 8, 8), np.bool_),
        np.zeros((4, 8, 8), np.complex64),
        np.zeros((4, 2, 8, 8), np.uint8),
        np.zeros((4, 2, 8, 8), np.float32),
        np.zeros((2, 4, 1, 8, 8), np.uint8),
        np.zeros(8, np.float32),
        np.zeros((0, 8), np.float32),
        np.zeros((8, 0), np.float32),
        np.zeros((0, 8, 8), np.uint8),
        np.zeros((), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_arrays_that_are_not_images(tmp_path: Path, array: NDArray[Any]) -> None:
    np.save(tmp_path / "a.npy", array)
    error = fault(tmp_path / "a.npy")
    assert "uint8 images [n, H, W]" in error.expected


def test_npz_without_images_lists_what_is_there(tmp_path: Path) -> None:
    error = fault(write_npz(tmp_path / "a.npz", pictures=GREY, labels=LABELS))
    assert "labels, pictures" in str(error.got)


@pytest.mark.parametrize("labels", [LABELS[:4], LABELS * 1.0, np.eye(6, dtype=np.int64)])
def test_npz_labels_that_do_not_fit(tmp_path: Path, labels: NDArray[Any]) -> None:
    error = fault(write_npz(tmp_path / "a.npz", images=GREY, labels=labels))
    assert error.name.endswith("a.npz:labels")
    assert "(6,)" in error.expected


def test_array_files_have_no_test_split(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", GREY)
    for file in (tmp_path / "a.npy", write_npz(tmp_path / "a.npz", images=GREY)):
        assert fault(file, split="test").name == "split"


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_array_file_cut_anywhere_is_refused(tmp_path: Path, suffix: str) -> None:
    buffer = io.BytesIO()
    if suffix == "npy":
        np.save(buffer, GREY[:2, :3, :4])
    else:
        np.savez_compressed(buffer, images=GREY[:2, :3, :4])
    whole, file = buffer.getvalue(), tmp_path / f"a.{suffix}"
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert fault(file).name == str(file)


def test_pickled_arrays_are_refused_and_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    np.save(tmp_path / "a.npy", np.array([Bomb()], object), allow_pickle=True)
    write_npz(tmp_path / "a.npz", images=np.array([Bomb()], object))
    for file in (tmp_path / "a.npy", tmp_path / "a.npz"):
        assert "pickled" in fault(file).expected
    assert not (tmp_path / "ran").exists()
