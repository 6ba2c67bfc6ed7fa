"""What a figure asks of its arrays, checked once at the public edge.

Axes are given by letter and size, in order; a size of None means any, but not zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ShapeError

UInt8Array = NDArray[np.uint8]
Array = NDArray[Any]


def check_images(name: str, images: Array, **axes: int | None) -> None:
    """Refuses anything but uint8 images with one or three channels behind the given axes.

    Raises:
        ShapeError: another shape or type.
    """
    shape = images.shape
    fits = _fits(shape[:-3], axes) and len(shape) >= 3 and shape[-3] in (1, 3) and min(shape) > 0
    if fits and images.dtype == np.uint8:
        return
    hint = "scale to 0..255, round and use .astype(np.uint8)" if images.dtype != np.uint8 else ""
    raise ShapeError(
        name,
        got=_described(images),
        expected=f"[{_letters(axes)}, C=1 or 3, H, W] uint8",
        hint=hint,
    )


def check_range(
    name: str, values: Array, low: float, high: float, *, kinds: str = "biuf", **axes: int | None
) -> None:
    """Refuses values of another shape or kind, or any not finite and within low..high.

    Raises:
        ShapeError: another shape or kind, or a value out of range.
    """
    kind = "numbers" if "f" in kinds else "integers"
    bounds = f"from {low:g}" + (f" to {high:g}" if np.isfinite(high) else "")
    expected = f"[{_letters(axes)}] {kind} {bounds}"
    if not _fits(values.shape, axes) or values.dtype.kind not in kinds:
        raise ShapeError(name, got=_described(values), expected=expected)
    # Sums of float32 shares miss 1 by some rounding, which no reader of a percentage can see.
    inside = np.isfinite(values) & (values >= low - 1e-4) & (values <= high + 1e-4)
    if not inside.all():
        raise ShapeError(name, got=f"a value of {values[~inside][0]:g}", expected=expected)


def check_names(name: str, names: Sequence[str] | None, count: int) -> None:
    """Refuses another number of names than there are things to name; None is no names.

    Raises:
        ShapeError: too many or too few.
    """
    if names is not None and len(names) != count:
        raise ShapeError(name, got=f"{len(names)} names", expected=f"{count}, one for each")


def _fits(shape: tuple[int, ...], axes: dict[str, int | None]) -> bool:
    return len(shape) == len(axes) and all(
        size > 0 if wanted is None else size == wanted
        for size, wanted in zip(shape, axes.values(), strict=True)
    )


def _letters(axes: dict[str, int | None]) -> str:
    return ", ".join(a if size is None else f"{a}={size}" for a, size in axes.items())


def _described(array: Array) -> str:
    return f"{list(array.shape)} {array.dtype}"
