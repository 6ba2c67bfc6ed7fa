"""One set of images in memory, and how a name on the command line becomes one.

Every set is `images: [n, C, H, W] uint8`: the pixels as stored, so that a set has one fingerprint
however it was packed. `to_float` maps them to [0, 1]. Labels travel along for evaluation only;
training never reads them. Nothing here augments, shuffles or downloads.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..optional import require
from .readers import Content, read_array_file, read_folder

KINDS = (
    "'digits' (bundled with scikit-learn), a folder of idx files, a folder of images, "
    "or an .npy or .npz file"
)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size.

    Attributes:
        images: [n, C, H, W] uint8, pixels as stored.
        labels: [n] int64, ground-truth classes, used only for evaluation; None where unknown.
        name: what the set is called in tables and file names.
        class_names: name of each class; None where classes are numbers only.
        fingerprint: first 16 hexadecimal digits of the SHA-256 of shape and pixels.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    name: str
    class_names: tuple[str, ...] | None
    fingerprint: str


def load_images(source: str, *, split: Literal["train", "test"] = "train") -> ImageSet:
    """The images that `source` names.

    `digits` has no split: both splits are the same 1,797 images, so a score on its "test" set is a
    score on training images. A folder of that name is reached as `./digits`.

    Args:
        source: `digits`, a folder of idx files or images, or an .npy or .npz file.
        split: which part; a source without a test part has a train part only.

    Raises:
        DataError: no such source, no such split, or contents that cannot be used.
    """
    if source == "digits":
        return _image_set(_digits(), name="digits")
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
    if path.suffix.lower() not in (".npy", ".npz"):
        raise DataError(
            "data",
            got=f"the file {source!r}",
            expected=KINDS,
            hint="for idx files and images, name the folder they are in",
        )
    if split == "test":
        raise DataError(
            "split",
            got=f"'test' of {source!r}, which has none",
            expected="'train' for an .npy or .npz file",
            hint="keep test images in a file of their own and name that as data",
        )
    return _image_set(read_array_file(path), name=path.stem)


def to_float(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels in [0, 1], float32, of any shape: 0 stays 0 and 255 becomes 1."""
    return images.astype(np.float32) / np.float32(255)


def _digits() -> Content:
    digits = require("sklearn.datasets", extra="train").load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    names = tuple(str(name) for name in digits.target_names)
    return Content(pixels[:, np.newaxis], digits.target.astype(np.int64), names)


def _image_set(content: Content, *, name: str) -> ImageSet:
    images = np.ascontiguousarray(content.images)
    digest = hashlib.sha256(str(images.shape).encode())
    digest.update(images.data)
    return ImageSet(
        images=images,
        labels=content.labels,
        name=name,
        class_names=content.class_names,
        fingerprint=digest.hexdigest()[:16],
    )
