"""A user's own pictures: any size, from folders, zips and lists; and all that can be wrong."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.upstream import idx_bytes
from treediffusion.config import parse_config
from treediffusion.data import decoding, load, load_to_train
from treediffusion.errors import DataError

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)


def write(file: Path, pixels: NDArray[np.uint8], **options: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)
    return file


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def deep_png(pixels: NDArray[np.uint16]) -> bytes:
    """[H, W, C] in 16 bits, which Pillow does not write."""
    height, width, channels = pixels.shape
    kind = {2: 4, 3: 2, 4: 6}[channels]

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def deep_tiff(pixels: NDArray[np.uint16]) -> bytes:
    """[H, W, 3] in 16 bits: header, one directory, three bit depths, one strip."""
    height, width, channels = pixels.shape
    content, count = pixels.astype("<u2").tobytes(), 9
    depths = 8 + 2 + 12 * count + 4
    short, long = 3, 4
    entries = (
        (256, short, 1, width), (257, short, 1, height), (258, short, channels, depths),
        (259, short, 1, 1), (262, short, 1, 2), (273, long, 1, depths + 2 * channels),
        (277, short, 1, channels), (278, short, 1, height), (279, long, 1, len(content)),
    )  # fmt: skip
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return (
        b"II*\0" + struct.pack("<IH", 8, count) + directory + struct.pack("<I", 0)
        + struct.pack(f"<{channels}H", *[16] * channels) + content
    )  # fmt: skip


def write_zip(file: Path, names: list[str], **more: bytes) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, image in zip(names, IMAGES, strict=False):
            archive.writestr(name, png(image))
        for name, content in more.items():
            archive.writestr(name, content)
    return file


def fault(source: Path | str, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        load(str(source), **options)
    assert "\n" not in str(caught.value)
    return caught.value


# Sizes


def test_pictures_of_any_size_become_squares_of_one(tmp_path: Path) -> None:
    """The middle is kept: a cross of one colour at the edges leaves no trace."""
    for name, height, width in (("wide", 10, 30), ("tall", 30, 10), ("square", 20, 20)):
        pixels = np.full((height, width, 3), 255, np.uint8)
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels[top : top + side, left : left + side] = 40
        write(tmp_path / f"{name}.png", pixels)
    found = load(str(tmp_path), size=8)
    assert found.images.shape == (3, 3, 8, 8)
    assert np.unique(found.images).tolist() == [40]


def test_scaling_is_an_average_and_not_a_choice_of_pixels(tmp_path: Path) -> None:
    board = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    write(tmp_path / "board.png", board.astype(np.uint8))
    small = load(str(tmp_path), size=8).images
    assert np.abs(small.astype(int) - 127).max() <= 2


def test_without_a_size_two_sizes_are_an_error_that_says_how(tmp_path: Path) -> None:
    write(tmp_path / "a.png", IMAGES[0])
    write(tmp_path / "b.png", IMAGES[1, :3])
    assert "--image-size" in fault(tmp_path).hint
    assert "1 pixel or more" in fault(tmp_path, size=0).expected


def test_arrays_are_scaled_like_pictures(tmp_path: Path) -> None:
    np.save(tmp_path / "bytes.npy", IMAGES)
    np.save(tmp_path / "floats.npy", (IMAGES / 255).astype(np.float32))
    write(tmp_path / "one" / "0.png", IMAGES[0])
    scaled, unit = (load(str(tmp_path / f"{kind}.npy"), size=2) for kind in ("bytes", "floats"))
    np.testing.assert_array_equal(scaled.images[0], load(str(tmp_path / "one"), size=2).images[0])
    np.testing.assert_allclose(unit.images * 255, scaled.images, atol=1)
    np.save(tmp_path / "words.npy", np.eye(4, dtype=np.float32))
    assert "vectors" in fault(tmp_path / "words.npy", size=8).expected


def test_photographs_are_turned_as_the_camera_says(tmp_path: Path) -> None:
    picture = Image.fromarray(IMAGES[0])
    exif = picture.getexif()
    exif[0x0112] = 6  # a quarter to the right
    picture.save(tmp_path / "a.png", exif=exif)
    turned = np.rot90(IMAGES[0], -1).transpose(2, 0, 1)
    np.testing.assert_array_equal(load(str(tmp_path)).images[0], turned)


def test_the_order_is_that_of_the_names_however_many_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        side = 300 if number % 7 == 0 else 8  # some take long
        write(tmp_path / f"{number:02}.png", np.full((side, side), number, np.uint8))
    monkeypatch.setattr(decoding, "CHUNK", 16)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert load(str(tmp_path), size=8).images[:, 0, 0, 0].tolist() == list(range(40))


def test_a_long_wait_has_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        write(tmp_path / "photos" / f"{number}.png", IMAGES[0])
    load(str(tmp_path / "photos"))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(decoding, "PATIENCE_S", -1.0)
    load(str(tmp_path / "photos"))
    assert "reading photos: 4/4, 100 %" in capsys.readouterr().err


# What is in a file


@pytest.mark.parametrize("suffix", ["gif", "tif", "tiff"])
def test_single_gifs_and_tiffs_are_pictures(tmp_path: Path, suffix: str) -> None:
    flat = np.full((8, 8), 100, np.uint8)
    write(tmp_path / f"a.{suffix}", flat)
    assert np.unique(load(str(tmp_path)).images).tolist() == [100]


def test_modes_may_be_mixed_and_any_colour_makes_all_colour(tmp_path: Path) -> None:
    grey = IMAGES[0, :, :, 0]
    modes = ["1", "L", "LA", "P", "RGB", "RGBA"]
    for number, mode in enumerate(modes):
        Image.fromarray(grey).convert(mode).save(tmp_path / f"{number}.png")
    found = load(str(tmp_path)).images
    assert found.shape == (6, 3, 5, 4)
    for row in (1, 2, 4, 5):
        np.testing.assert_array_equal(found[row], np.stack([grey] * 3))
    for number in (3, 4, 5):
        (tmp_path / f"{number}.png").unlink()
    assert load(str(tmp_path)).images.shape == (3, 1, 5, 4)


@pytest.mark.parametrize("kind", ["png", "tiff", "float"])
def test_more_than_8_bits_are_refused(tmp_path: Path, kind: str) -> None:
    deep = IMAGES[0, :, :, 0].astype(np.float32 if kind == "float" else np.uint16)
    file = tmp_path / ("a.png" if kind == "png" else "a.tiff")
    Image.fromarray(deep).save(file)
    error = fault(tmp_path)
    assert error.name == str(file)
    assert error.expected == "8 bits"


@pytest.mark.parametrize("kind", ["LA png", "RGB png", "RGBA png", "RGB tiff"])
def test_colours_of_more_than_8_bits_are_refused(tmp_path: Path, kind: str) -> None:
    """Pillow itself reads them with a mode of 8 bits, and drops the lower half."""
    mode, suffix = kind.split()
    deep = RANDOM.integers(0, 2**16, (5, 4, len(mode)), dtype=np.uint16)
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(deep_png(deep) if suffix == "png" else deep_tiff(deep))
    with Image.open(file) as opened:
        assert opened.mode in ("RGB", "RGBA")
    error = fault(tmp_path)
    assert error.name == str(file)
    assert error.expected == "8 bits"


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *product(["1", "L", "RGB"], ["png", "bmp", "webp", "tiff", "gif", "jpg"]),
        *product(["P"], ["png", "bmp", "webp", "tiff", "gif"]),  # a JPEG has no palette
    ],
)
def test_pictures_of_8_bits_or_less_are_never_deep(tmp_path: Path, mode: str, suffix: str) -> None:
    Image.fromarray(IMAGES[0]).convert(mode).save(tmp_path / f"a.{suffix}")
    assert load(str(tmp_path)).images.shape[2:] == (5, 4)


def test_printers_inks_are_refused(tmp_path: Path) -> None:
    Image.fromarray(IMAGES[0]).convert("CMYK").save(tmp_path / "a.jpg")
    error = fault(tmp_path)
    assert "CMYK" in str(error.got)
    assert error.expected == "grey or RGB"


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_animations_are_refused(tmp_path: Path, suffix: str) -> None:
    first, *rest = (Image.fromarray(image) for image in IMAGES[:3])
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=rest, duration=100)
    error = fault(tmp_path)
    assert "3 pictures in one" in str(error.got)
    assert error.expected == "one picture"


def test_a_telephones_second_view_is_left_out(tmp_path: Path) -> None:
    first, second = (Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (100, 200))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    assert np.unique(load(str(tmp_path)).images).tolist() == [100]


def test_text_with_the_name_of_a_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    error = fault(tmp_path)
    assert "no picture that is known" in str(error.got)
    assert "0x" not in str(error)


def test_a_file_too_large_to_be_a_picture_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.png", IMAGES[0])
    monkeypatch.setattr("treediffusion.data.listing.LARGEST", 10)
    assert "at most 10" in fault(tmp_path).expected


def test_all_files_that_cannot_be_used_are_named_and_left_out_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, image in enumerate(IMAGES):
        write(tmp_path / f"{number}.png", image)
    for number in (1, 2, 4):
        (tmp_path / f"{number}.png").write_bytes(b"damaged")
    message = str(fault(tmp_path))
    for part in ("1.png", "2.png", "4.png", "3 files of 6", "--skip-corrupt", "treediffusion data"):
        assert part in message
    found = load(str(tmp_path), skip_corrupt=True)
    np.testing.assert_array_equal(found.images, IMAGES[[0, 3, 5]].transpose(0, 3, 1, 2))
    assert "3 of 6 pictures left out" in capsys.readouterr().err
    for number in (0, 3, 5):
        (tmp_path / f"{number}.png").unlink()
    assert "without a picture" in str(fault(tmp_path, skip_corrupt=True))


def test_three_pictures_are_too_few_to_train_on(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.png", IMAGES[number])
    config = parse_config({"data": str(tmp_path), "tree": {"max_leaves": 10}}, source="the test")
    with pytest.raises(DataError) as caught:
        load_to_train(config)
    assert "3 images" in str(caught.value.got)
    assert "at least 20, 2 for each of 10 leaves" in caught.value.expected


def test_settings_carry_size_and_leniency(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / f"{number}.png", IMAGES[number])
    (tmp_path / "bad.png").write_bytes(b"")
    settings = {"data": str(tmp_path), "image_size": 8, "skip_corrupt": True}
    config = parse_config(settings | {"tree": {"max_leaves": 2}}, source="the test")
    assert load_to_train(config).images.shape == (4, 3, 8, 8)


# Zips


def test_a_zip_is_read_like_the_folder_it_was_made_of(tmp_path: Path) -> None:
    names = [f"{place}/{k}.png" for k, place in enumerate(["cat", "dog", "test/cat", "test/dog"])]
    for number, name in enumerate(names):
        write(tmp_path / "photos" / name, IMAGES[number])
    flat = write_zip(tmp_path / "flat.zip", names, **{"notes.txt": b"text"})
    nested = write_zip(tmp_path / "nested.zip", [f"my/photos/{name}" for name in names])
    mac = write_zip(tmp_path / "mac.zip", names, **{"__MACOSX/cat/._0.png": b"resource fork"})
    for split in ("train", "test"):
        folder = load(str(tmp_path / "photos"), split=split)
        assert folder.class_names == ("cat", "dog")
        for file in (flat, nested, mac):
            found = load(str(file), split=split)
            assert found.fingerprint == folder.fingerprint
            assert (found.name, found.class_names) == (file.stem, folder.class_names)
            assert found.labels is not None
            assert found.labels.tolist() == [0, 1]


def test_a_zip_cut_anywhere_is_refused(tmp_path: Path) -> None:
    file = write_zip(tmp_path / "a.zip", ["a.png", "b.png"])
    whole = file.read_bytes()
    for length in range(0, len(whole), 5):
        file.write_bytes(whole[:length])
        assert fault(file).name == str(file)


def test_a_damaged_picture_in_a_zip_is_named(tmp_path: Path) -> None:
    file = write_zip(tmp_path / "a.zip", ["a.png", "b.png"])
    content = bytearray(file.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 0xFF  # stored: the zip's own sum notices
    file.write_bytes(bytes(content))
    assert fault(file).name == f"{file}:a.png"
    assert len(load(str(file), skip_corrupt=True).images) == 1


def test_a_zip_without_pictures(tmp_path: Path) -> None:
    assert "holds no image" in str(fault(write_zip(tmp_path / "a.zip", [], **{"a.txt": b"a"})))
    assert "has none" in str(fault(write_zip(tmp_path / "b.zip", ["a.png"]), split="test"))


# Lists


def write_list(folder: Path, *lines: str) -> Path:
    for number, image in enumerate(IMAGES):
        write(folder / "pictures" / f"{number}.png", image)
    (folder / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "list.csv"


def test_a_list_gives_order_classes_and_parts(tmp_path: Path) -> None:
    file = write_list(
        tmp_path,
        "\ufeffSplit, file ,label,note",
        "train,pictures/3.png,dog,x",
        'test,"pictures/1.png",eel,"a, b"',
        "",
        "train,pictures/0.png,cat,",
        f"train,{tmp_path / 'pictures' / '2.png'},dog,",
    )
    train, test = load(str(file)), load(str(file), split="test")
    np.testing.assert_array_equal(train.images, IMAGES[[3, 0, 2]].transpose(0, 3, 1, 2))
    assert train.class_names == test.class_names == ("cat", "dog", "eel")
    assert train.labels is not None
    assert train.labels.tolist() == [1, 0, 1]
    assert test.labels is not None
    assert test.labels.tolist() == [2]


def test_numbers_are_classes_in_order_of_their_size_with_gaps_closed(tmp_path: Path) -> None:
    file = write_list(
        tmp_path, "file,label", "pictures/0.png,10", "pictures/1.png,2", "pictures/2.png,-1"
    )
    found = load(str(file))
    assert found.class_names == ("-1", "2", "10")
    assert found.labels is not None
    assert found.labels.tolist() == [2, 1, 0]


def test_a_list_without_labels(tmp_path: Path) -> None:
    for header, tail in (("file", ""), ("file,label", ",")):
        file = write_list(tmp_path, header, f"pictures/0.png{tail}")
        assert load(str(file)).labels is None
    assert "has none" in str(fault(file, split="test"))


WRONG_LISTS: dict[str, tuple[list[str], str, str]] = {
    "gaps in the labels": (
        ["file,label", "pictures/0.png,a", "pictures/1.png,", "pictures/2.png, "],
        "column label: got no value in line 3, 4",
        "in every line, or in none",
    ),
    "gaps in the files": (["file,label", ",a"], "column file: got no value in line 2", "every"),
    "no column of files": (["path,label", "pictures/0.png,a"], "path, label", "columns file"),
    "another part": (["file,split", "pictures/0.png,val"], "line 2: got the split 'val'", "train"),
    "too many values": (["file,label", "pictures/0.png,a,b"], "line 2: got 3 values", "2, one"),
    "nothing": ([], "(none)", "columns file"),
    "no rows": (["file,label"], "has none", "rows with 'train'"),
    "an open quote": (["file,label", '"pictures/0.png,a'], "cannot be read", "commas"),
    "an absent file": (["file", "pictures/absent.png"], "absent.png", "whole"),
}


@pytest.mark.parametrize("case", WRONG_LISTS)
def test_a_list_with_a_mistake_says_where(tmp_path: Path, case: str) -> None:
    lines, got, expected = WRONG_LISTS[case]
    error = fault(write_list(tmp_path, *lines))
    assert got in str(error)
    assert expected in error.expected


def test_a_list_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes("file,label\nä.png,a".encode("utf-16"))
    assert "UTF-8" in fault(tmp_path / "list.csv").expected


# Single idx files, and things that are nothing


def test_a_single_idx_file_brings_its_labels(tmp_path: Path) -> None:
    grey, labels = IMAGES[..., 0], np.array([3, 1, 2, 0, 1, 2])
    file = tmp_path / "birds-images-idx3-ubyte"
    file.write_bytes(idx_bytes(grey))
    assert load(str(file)).labels is None
    (tmp_path / "birds-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    found = load(str(file))
    np.testing.assert_array_equal(found.images[:, 0], grey)
    assert found.labels is not None
    assert found.labels.tolist() == labels.tolist()
    assert "name the folder" in fault(file, split="test").hint


@pytest.mark.parametrize("name", ["absent", "absent.zip", "a.txt", "a.tar"])
def test_a_path_that_is_no_set(tmp_path: Path, name: str) -> None:
    if not name.startswith("absent"):
        (tmp_path / name).write_text("text")
    error = fault(tmp_path / name)
    assert name in str(error.got)
    for part in ("folder of images", ".zip", ".csv", ".npy"):
        assert part in error.expected
