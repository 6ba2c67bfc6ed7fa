"""Sheets of images without any decoration, pixel for pixel: NumPy in, PNG out."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from ...errors import ShapeError
from ...files import write_atomic
from .checks import UInt8Array, check_images

WHITE = 255


def image_grid(images: UInt8Array, columns: int) -> UInt8Array:
    """Images row by row on white, one pixel apart.

    Args:
        images: [n, C, H, W] uint8, C of 1 or 3.
        columns: images in a row.

    Returns:
        [H', W'] uint8 for one channel, [3, H', W'] for three; a side of m images of s pixels is
        m (s + 1) - 1 long.

    Raises:
        ShapeError: not such images, or no columns.

    Example:
        >>> image_grid(np.zeros((3, 1, 2, 2), np.uint8), 2).shape
        (5, 5)
    """
    check_images("images", images, n=None)
    if columns < 1:
        raise ShapeError("columns", got=columns, expected="at least 1")
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    cells = np.full((rows * columns, channels, height + 1, width + 1), WHITE, np.uint8)
    cells[:count, :, :-1, :-1] = images
    cells = cells.reshape(rows, columns, channels, height + 1, width + 1)
    sheet = cells.transpose(2, 0, 3, 1, 4)  # [C, rows, H + 1, columns, W + 1]
    sheet = sheet.reshape(channels, rows * (height + 1), columns * (width + 1))[:, :-1, :-1]
    return sheet[0] if channels == 1 else sheet


def save_png(path: str | Path, array: UInt8Array) -> None:
    """Writes pixels as they are; the file is either complete or not there.

    Args:
        path: the file to write or replace.
        array: [H, W] or [3, H, W] uint8, as `image_grid` returns.

    Raises:
        ShapeError: another shape or type.
    """
    colour = array.ndim == 3 and array.shape[0] == 3
    if array.dtype != np.uint8 or array.size == 0 or not (colour or array.ndim == 2):
        raise ShapeError(
            "array",
            got=f"{list(array.shape)} {array.dtype}",
            expected="[H, W] or [3, H, W] uint8",
            hint="put single images through image_grid first",
        )
    pixels = np.ascontiguousarray(array.transpose(1, 2, 0) if colour else array)

    def write(stream: BinaryIO) -> None:
        Image.fromarray(pixels).save(stream, format="PNG")

    write_atomic(Path(path), write)
