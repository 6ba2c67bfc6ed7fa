"""One set of images in memory, and how a name on the command line becomes one.

Every set is `images: [n, C, H, W]`, bytes as stored or floats in [0, 1], so that a set has one
fingerprint however it was packed; vectors are images of one pixel, [n, D, 1, 1]. `to_float` maps
them to [0, 1]. Labels travel along for evaluation only; training never reads them. Nothing here
augments or shuffles; only `newsgroups20` and `omniglot5` are downloaded, by other libraries, where
there is no copy.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..optional import require
from .arrays import read_array_file
from .content import Content, Pixels, Split
from .omniglot import load_omniglot5
from .readers import read_folder
from .text import ARCHIVES, fetch_newsgroups, read_newsgroups

KINDS = (
    "'digits' (bundled with scikit-learn), 'newsgroups20', 'omniglot5' or 'omniglot5:FOLDER', "
    "a folder of idx files, a folder of images, 20 Newsgroups as a folder or archive, "
    "or an .npy or .npz file"
)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size.

    Attributes:
        images: [n, C, H, W], pixels as stored: uint8, or float32 in 0..1.
        labels: [n] int64, ground-truth classes, used only for evaluation; None where unknown.
        name: what the set is called in tables and file names.
        class_names: name of each class; None where classes are numbers only.
        fingerprint: first 16 hexadecimal digits of the SHA-256 of shape, type unless uint8, and
            pixels.
    """

    images: Pixels
    labels: NDArray[np.int64] | None
    name: str
    class_names: tuple[str, ...] | None
    fingerprint: str


def load_images(source: str, *, split: Split = "train") -> ImageSet:
    """The images that `source` names.

    `digits` has no split: both splits are the same 1,797 images, so a score on its "test" set is a
    score on training images. A folder with the name of a source is reached as `./digits`.

    Args:
        source: `digits`, `newsgroups20`, `omniglot5` or `omniglot5:FOLDER`; a folder of idx files,
            images or 20 Newsgroups; an archive of the latter; or an .npy or .npz file.
        split: which part; a source without a test part has a train part only.

    Raises:
        DataError: no such source, no such split, or contents that cannot be used.
    """
    if source == "digits":
        return _image_set(_digits(), name=source)
    if source == "newsgroups20":
        return _image_set(fetch_newsgroups(split=split), name=source)
    kind, _, root = source.partition(":")
    if kind == "omniglot5":
        return _image_set(load_omniglot5(Path(root) if root else None, split=split), name=kind)
    path = Path(source)
    if not path.exists():
        raise DataError(
            "data",
            got=f"{source!r}, which does not exist",
            expected=KINDS,
            hint="check the path, or begin with 'digits'",
        )
    if path.is_dir():
        return _image_set(read_folder(path, split=split), name=path.resolve().name)
    archive = next((suffix for suffix in ARCHIVES if path.name.lower().endswith(suffix)), None)
    if archive:
        content = read_newsgroups(path, split=split)
        return _image_set(content, name=path.name[: -len(archive)])
    if path.suffix.lower() not in (".npy", ".npz"):
        raise DataError(
            "data",
            got=f"the file {source!r}",
            expected=KINDS,
            hint="for idx files and images, name the folder they are in",
        )
    return _image_set(read_array_file(path, split=split), name=path.stem)


def to_float(images: Pixels) -> NDArray[np.float32]:
    """Pixels in [0, 1], float32, of any shape: 0 stays 0 and 255 becomes 1.

    Floats are in that range already, and the array itself is returned.
    """
    if images.dtype == np.float32:
        return images.astype(np.float32, copy=False)
    return images.astype(np.float32) / np.float32(255)


def to_bytes(images: Pixels) -> NDArray[np.uint8]:
    """Pixels of 0 to 255, of any shape; floats are rounded to the nearest."""
    if images.dtype == np.uint8:
        return images.astype(np.uint8, copy=False)
    rounded: NDArray[np.uint8] = np.floor(images * np.float32(255) + np.float32(0.5)).astype(
        np.uint8
    )
    return rounded


def _digits() -> Content:
    digits = require("sklearn.datasets", extra="train").load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    names = tuple(str(name) for name in digits.target_names)
    return Content(pixels[:, np.newaxis], digits.target.astype(np.int64), names)


def _image_set(content: Content, *, name: str) -> ImageSet:
    images = np.ascontiguousarray(content.images)
    digest = hashlib.sha256(str(images.shape).encode())
    if images.dtype != np.uint8:
        digest.update(str(images.dtype).encode())
    digest.update(images.data)
    return ImageSet(
        images=images,
        labels=content.labels,
        name=name,
        class_names=content.class_names,
        fingerprint=digest.hexdigest()[:16],
    )
