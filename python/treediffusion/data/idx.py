"""Idx files, the format of MNIST: each returns a `Content` or says what is wrong.

A file of images `X-images-idx3-ubyte` has its labels in `X-labels-idx1-ubyte`, and X is `train` or
`t10k` in a folder of both parts. Files are data to be distrusted: sizes are compared with what the
headers promise.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .content import Content, Split, as_labels

PREFIX: dict[Split, str] = {"train": "train", "test": "t10k"}
UBYTE = 8
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"


def is_idx_folder(folder: Path) -> bool:
    """Whether a folder holds images in idx files."""
    return any(_file(folder, f"{prefix}-{IMAGES}") for prefix in PREFIX.values())


def is_idx_file(path: Path) -> bool:
    """Whether a file's name is that of images in an idx file."""
    return path.name.removesuffix(".gz").endswith(IMAGES)


def read_idx_folder(folder: Path, *, split: Split) -> Content:
    """The images of one part, and their labels if they are there.

    Raises:
        DataError: no such part, or contents that cannot be used.
    """
    image_file = _file(folder, f"{PREFIX[split]}-{IMAGES}")
    if image_file is None:
        raise DataError(
            "split",
            got=f"{split!r} of {str(folder)!r}, which has none",
            expected=f"{PREFIX[split]}-{IMAGES}, plain or .gz, in the folder",
        )
    return _read_pair(image_file)


def read_idx_file(path: Path, *, split: Split) -> Content:
    """The images of one file, for training, and their labels if they lie beside it.

    Raises:
        DataError: the test part is wanted, or contents that cannot be used.
    """
    if split == "test":
        raise DataError(
            "split",
            got=f"'test' of {str(path)!r}, which has none",
            expected=f"a folder with {PREFIX['train']}-{IMAGES} and {PREFIX['test']}-{IMAGES}",
            hint="name the folder they are in",
        )
    return _read_pair(path)


def _read_pair(image_file: Path) -> Content:
    images = read_idx(image_file, ndim=3)
    if images.size == 0:
        raise DataError(str(image_file), got=f"shape {images.shape}", expected="some images")
    name = image_file.name.removesuffix(".gz").removesuffix(IMAGES) + LABELS
    label_file = _file(image_file.parent, name)
    if label_file is None:
        return Content(images[:, np.newaxis], None, None)
    labels = as_labels(read_idx(label_file, ndim=1), len(images), name=str(label_file))
    return Content(images[:, np.newaxis], labels, None)


def _file(folder: Path, name: str) -> Path | None:
    files = (folder / name, folder / f"{name}.gz")
    return next((file for file in files if file.is_file()), None)


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
    magic = bytes((0, 0, UBYTE, ndim))
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
