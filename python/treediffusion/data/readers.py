"""Readers of folders: idx files and image files; each returns a `Content` or says what is wrong.

Files are data to be distrusted: sizes are compared with what the headers promise, and no reader
unpickles. A layout that could be read in two ways is an error, never a guess.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .content import Content, Split, as_labels
from .pictures import opened
from .text import is_newsgroups, read_newsgroups

IDX_PREFIX: dict[Split, str] = {"train": "train", "test": "t10k"}
IDX_UBYTE = 8
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})


def read_folder(folder: Path, *, split: Split) -> Content:
    """The images or texts of a folder, of whichever kind it is.

    Raises:
        DataError: no images, no such split, or contents that cannot be used.
    """
    if any(_idx_file(folder, prefix, "images") for prefix in IDX_PREFIX.values()):
        return _read_idx_folder(folder, split=split)
    if is_newsgroups(folder):
        return read_newsgroups(folder, split=split)
    return _read_image_folder(folder, split=split)


def read_idx(path: Path, *, ndim: int) -> NDArray[np.uint8]:
    """An idx file of unsigned bytes, plain or gzipped, with `ndim` axes.

    The header is 0, 0, type, number of axes, then each axis as a big-endian 32-bit integer.

    Raises:
        DataError: unreadable, another type or number of axes, or a size other than promised.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as fault:
        raise DataError(
            str(path),
            got=f"an unreadable file ({fault})",
            expected="an idx file, whole" + (" and gzipped" if path.suffix == ".gz" else ""),
            hint="get the file again",
        ) from fault
    magic = bytes((0, 0, IDX_UBYTE, ndim))
    if content[:4] != magic:
        raise DataError(
            str(path),
            got=f"magic bytes {content[:4].hex() or '(none)'}",
            expected=f"{magic.hex()}: unsigned bytes with {ndim} axes",
            hint="" if path.suffix == ".gz" else "a gzipped file needs the suffix .gz",
        )
    start = 4 + 4 * ndim
    axes = tuple(int.from_bytes(content[k : k + 4], "big") for k in range(4, start, 4))
    promised = start + math.prod(axes)
    if len(content) < start or len(content) != promised:
        raise DataError(
            str(path),
            got=f"{len(content)} bytes",
            expected=f"{max(promised, start)} bytes for shape {axes}",
            hint="the file is cut or damaged; get it again",
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(axes)


def _read_idx_folder(folder: Path, *, split: Split) -> Content:
    prefix = IDX_PREFIX[split]
    image_file = _idx_file(folder, prefix, "images")
    if image_file is None:
        raise DataError(
            "split",
            got=f"{split!r} of {str(folder)!r}, which has none",
            expected=f"{prefix}-images-idx3-ubyte, plain or .gz, in the folder",
        )
    images = read_idx(image_file, ndim=3)
    if images.size == 0:
        raise DataError(str(image_file), got=f"shape {images.shape}", expected="some images")
    label_file = _idx_file(folder, prefix, "labels")
    if label_file is None:
        return Content(images[:, np.newaxis], None, None)
    labels = as_labels(read_idx(label_file, ndim=1), len(images), name=str(label_file))
    return Content(images[:, np.newaxis], labels, None)


def _idx_file(folder: Path, prefix: str, kind: Literal["images", "labels"]) -> Path | None:
    name = f"{prefix}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
    files = (folder / name, folder / f"{name}.gz")
    return next((file for file in files if file.is_file()), None)


def _read_image_folder(folder: Path, *, split: Split) -> Content:
    root, files = _image_files(folder, split=split)
    if not files:
        raise DataError(
            "data",
            got=f"{str(root)!r}, which holds no image",
            expected=f"idx files, or {', '.join(sorted(IMAGE_SUFFIXES))} files",
        )
    decoded: list[NDArray[np.uint8]] = []
    for file in files:
        image = _decode(file)
        if decoded and image.shape[1:] != decoded[0].shape[1:]:
            raise DataError(
                "data",
                got=f"{_described(files[0], decoded[0])} and {_described(file, image)}",
                expected="images of one size",
                hint="resize or crop them to one size first",
            )
        decoded.append(image)
    # A colour set with a few grey files is common; grey written three times is the same picture.
    channels = max(len(image) for image in decoded)
    shape = (channels, *decoded[0].shape[1:])
    images = np.stack([np.broadcast_to(image, shape) for image in decoded])
    return Content(images, *_folder_labels(root, files))


def _image_files(folder: Path, *, split: Split) -> tuple[Path, list[Path]]:
    """The folder a split lies in and its images in a fixed order.

    Test is the sub-folder `test`. Train is all the rest, or the sub-folder `train` where that is
    all the rest: next to other classes, `train` is a class of trains.
    """
    if split == "test":
        if not (folder / "test").is_dir():
            raise DataError(
                "split",
                got=f"'test' of {str(folder)!r}, which has none",
                expected="a sub-folder 'test'",
            )
        root = folder / "test"
        return root, _images_below(root)
    rest = [file for file in _images_below(folder) if file.relative_to(folder).parts[0] != "test"]
    if rest and all(file.relative_to(folder).parts[0] == "train" for file in rest):
        return folder / "train", rest
    return folder, rest


def _images_below(folder: Path) -> list[Path]:
    # Hidden files are left out: archives made on a Mac hold "._name.png" files without a picture.
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def _folder_labels(
    root: Path, files: list[Path]
) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Classes from the first level of sub-folders; none unless at least two divide all images."""
    places = [file.relative_to(root).parts for file in files]
    names = sorted({place[0] for place in places})
    if len(names) < 2 or any(len(place) == 1 for place in places):
        return None, None
    class_of = {name: number for number, name in enumerate(names)}
    return np.array([class_of[place[0]] for place in places], np.int64), tuple(names)


def _decode(file: Path) -> NDArray[np.uint8]:
    """[1, H, W] if the file is grey, else [3, H, W]; transparency is left out."""
    with opened(file, expected="an image", hint="replace or remove it") as picture:
        deep = picture.mode.startswith(("I", "F"))
        mode = "L" if picture.mode in ("1", "L", "LA", "La") else "RGB"
        pixels = np.asarray(picture.convert(mode), np.uint8)
    if deep:
        raise DataError(
            str(file), got="more than 8 bits a pixel", expected="8 bits", hint="convert it first"
        )
    return pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _described(file: Path, image: NDArray[np.uint8]) -> str:
    return f"{file} of {image.shape[2]}x{image.shape[1]}"
