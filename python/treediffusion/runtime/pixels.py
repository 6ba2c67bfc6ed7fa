"""Bytes to floats and back: ``byte = floor(255 clip((x - low) / (high - low), 0, 1) + 1/2)``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_uint8(x: NDArray[np.float32], pixel_range: tuple[float, float]) -> NDArray[np.uint8]:
    """Floats in a range to bytes, half rounded up.

    Args:
        x: [...] float, pixels; what lies outside the range is clipped.
        pixel_range: what becomes 0 and 255.

    Returns:
        [...] uint8.
    """
    low, high = np.float32(pixel_range[0]), np.float32(pixel_range[1])
    unit = np.clip((x - low) / (high - low), np.float32(0.0), np.float32(1.0))
    pixels: NDArray[np.uint8] = np.floor(unit * np.float32(255.0) + np.float32(0.5)).astype(
        np.uint8
    )
    return pixels


def to_unit(images: NDArray[Any]) -> NDArray[np.float32]:
    """[...] uint8 to float32 in 0..1."""
    unit: NDArray[np.float32] = images.astype(np.float32) / np.float32(255.0)
    return unit
