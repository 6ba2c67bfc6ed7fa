"""Reader of .npy and .npz files.

An .npz holds `images` and perhaps `labels`, or these of each split: `train_images`, `train_labels`,
`test_images`, `test_labels`; and `class_names` in both cases. Nothing is ever unpickled.
"""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from ..errors import DataError
from .content import Content, Split, as_class_names, as_images, as_labels

IMAGE_KEYS = ("images", "data", "x")
LABEL_KEYS = ("labels", "y")
NAMES_KEY = "class_names"

# NumPy and zipfile report damage as whatever they stumbled over.
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_array_file(path: Path, *, split: Split) -> Content:
    """The images of an .npy file, or the images, labels and class names of an .npz file.

    Raises:
        DataError: unreadable, no array of images, no such split, or contents that cannot be used.
    """
    arrays = _load_arrays(path, split=split)
    image_key = _image_key(path, list(arrays), split=split)
    images = as_images(arrays[image_key], name=f"{path}:{image_key}")
    divided = image_key.startswith(f"{split}_")
    label_keys = (f"{split}_labels",) if divided else LABEL_KEYS
    label_key = next((key for key in label_keys if key in arrays), None)
    labels = None
    if label_key is not None:
        labels = as_labels(arrays[label_key], len(images), name=f"{path}:{label_key}")
    if NAMES_KEY not in arrays:
        return Content(images, labels, None)
    names = as_class_names(arrays[NAMES_KEY], labels, name=f"{path}:{NAMES_KEY}")
    return Content(images, labels, names)


def _image_key(path: Path, keys: list[str], *, split: Split) -> str:
    whole = next((key for key in IMAGE_KEYS if key in keys), None)
    divided = [key for key in ("train_images", "test_images") if key in keys]
    if whole is not None and divided:
        raise DataError(
            str(path),
            got=f"both {whole} and {' and '.join(divided)}",
            expected="one set of images, or one of each split",
        )
    if whole is None and not divided:
        raise DataError(
            str(path),
            got=f"arrays {', '.join(sorted(keys)) or '(none)'}",
            expected=f"images under one of {', '.join(IMAGE_KEYS)}, or train_images",
        )
    if f"{split}_images" in divided:
        return f"{split}_images"
    if whole is not None and split == "train":
        return whole
    raise DataError(
        "split",
        got=f"{split!r} of {str(path)!r}, which has none",
        expected=f"{split}_images in an .npz file",
        hint="" if split == "train" else "or keep test images in a file of their own",
    )


def _load_arrays(path: Path, *, split: Split) -> dict[str, object]:
    """The arrays by name; None for those that nobody will read, which may be large."""
    wanted = {*IMAGE_KEYS, *LABEL_KEYS, NAMES_KEY, f"{split}_images", f"{split}_labels"}
    try:
        # Opened here, because np.load leaves the file open when the archive turns out to be cut.
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {IMAGE_KEYS[0]: loaded}
            return {key: loaded[key] if key in wanted else None for key in loaded.files}
    except DAMAGE as fault:
        raise DataError(
            str(path),
            got=f"an unreadable file ({fault})",
            expected="an .npy or .npz file without pickled objects, whole",
        ) from fault
