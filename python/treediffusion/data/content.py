"""What every reader returns, and the checks that all of them share.

Pixels are bytes, or floats in [0, 1]; vectors are images of one pixel, `[n, D]` -> `[n, D, 1, 1]`.
Nothing here scales or guesses: values out of range are an error that says where the first one is.
"""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

Split = Literal["train", "test"]
Pixels: TypeAlias = NDArray[np.uint8 | np.float32]

CHANNELS = (1, 3)
LAYOUTS = "[n, H, W], [n, H, W, C] or [n, C, H, W] with C = 1 or 3, or vectors [n, D]"
EXPECTED = f"uint8 images {LAYOUTS}; or the same as floats in 0..1"


class Content(NamedTuple):
    """What a source holds.

    Attributes:
        images: [n, C, H, W] uint8, or float32 in 0..1.
        labels: [n] int64, or None.
        class_names: name of each class, or None.
    """

    images: Pixels
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...] | None


def as_images(array: object, *, name: str) -> Pixels:
    """[n, C, H, W] from grey images, from images with channels first or last, or from vectors.

    Floats of any width become float32.

    Raises:
        DataError: another type or shape, a layout that reads in two ways, or a float that is not
            in 0..1.
    """
    if not isinstance(array, np.ndarray):
        raise DataError(name, got=type(array).__name__, expected=EXPECTED)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        hint = "scale to 0..255 and store as uint8"
        raise DataError(name, got=array.dtype, expected=EXPECTED, hint=hint)
    images = _to_nchw(array, name=name)
    return images if images.dtype == np.uint8 else _to_unit_floats(images, name=name)


def as_labels(array: object, count: int, *, name: str) -> NDArray[np.int64]:
    """[n] int64, one label per image; numbers need not be consecutive.

    Raises:
        DataError: not integers, or not as many as images.
    """
    if isinstance(array, np.ndarray) and array.dtype.kind in "iu" and array.shape == (count,):
        return array.astype(np.int64)
    got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
    raise DataError(name, got=got, expected=f"integers ({count},), one label per image")


def as_class_names(
    array: object, labels: NDArray[np.int64] | None, *, name: str
) -> tuple[str, ...]:
    """The names of the classes; label k is called `names[k]`.

    Raises:
        DataError: not an array of text, or a label without a name.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind != "U" or array.ndim != 1:
        got = getattr(array, "dtype", type(array).__name__)
        shape = getattr(array, "shape", "")
        raise DataError(name, got=f"{got} {shape}", expected="text [K], stored as an array of str")
    if labels is not None and not 0 <= labels.min() <= labels.max() < len(array):
        raise DataError(
            name,
            got=f"{len(array)} names for labels {labels.min()} to {labels.max()}",
            expected="labels from 0 to the number of names - 1",
        )
    return tuple(str(one) for one in array)


def fingerprint(images: Pixels) -> str:
    """First 16 hexadecimal digits of the SHA-256 of shape, type unless uint8, and pixels.

    Args:
        images: [n, C, H, W], contiguous.
    """
    digest = hashlib.sha256(str(images.shape).encode())
    if images.dtype != np.uint8:
        digest.update(str(images.dtype).encode())
    digest.update(images.data)
    return digest.hexdigest()[:16]


def _to_nchw(array: Pixels, *, name: str) -> Pixels:
    """Axes in order; the type stays as it is."""
    if array.ndim not in (2, 3, 4) or array.size == 0:
        raise DataError(name, got=f"shape {array.shape}", expected=EXPECTED)
    if array.ndim == 2:
        return array[:, :, np.newaxis, np.newaxis]
    if array.shape[2:] == (1, 1):
        return array
    last, first = array.shape[-1] in CHANNELS, array.ndim == 4 and array.shape[1] in CHANNELS
    # Three axes that end in 1 or 3 are as likely one picture [H, W, C] as n of that width.
    if (last and first) or (last and array.ndim == 3):
        raise DataError(
            name,
            got=f"shape {array.shape}, which can be read in two ways",
            expected="one axis that can only be the channels, or none",
            hint="store [n, C, H, W] with sides other than 1 and 3",
        )
    if array.ndim == 3:
        return array[:, np.newaxis]
    if not (last or first):
        raise DataError(name, got=f"shape {array.shape}", expected=EXPECTED)
    return array if first else array.transpose(0, 3, 1, 2)


def _to_unit_floats(images: Pixels, *, name: str) -> NDArray[np.float32]:
    # What is too large for float32 becomes infinite, and is refused below by its own value.
    with np.errstate(over="ignore"):
        unit = images.astype(np.float32, copy=False)
    # Comparing the two ends costs no array of the set's size, and a NaN fails both.
    if unit.min() >= 0 and unit.max() <= 1:
        return unit
    wrong = ~((unit >= 0) & (unit <= 1))
    first = tuple(int(axis[0]) for axis in np.nonzero(wrong))
    raise DataError(
        name,
        got=f"{images[first]} at [n, C, H, W] = {list(first)}, first of {wrong.sum()} such values",
        expected="finite numbers in 0..1",
        hint="divide by 255 if they are 0..255; replace what is not a number",
    )
