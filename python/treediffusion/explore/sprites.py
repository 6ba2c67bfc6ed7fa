"""All pictures in one: a sheet of tiles, row by row, as WebP, without loss where it stays small.

Tile k of `columns` columns is at column ``k mod columns`` and row ``k // columns``. There is no
space between tiles: the page cuts them out pixel by pixel and never scales the sheet.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from ..errors import ShapeError

BUDGET = 2_100_000
"""Bytes of a sheet; base 64 makes a third more of them, and the page shall stay below 3 MB."""
LARGEST_SIDE = 16_383
QUALITIES = (95, 85, 70, 50)
"""Tried in turn where the sheet is too large without loss."""

UInt8Array = NDArray[np.uint8]


@dataclass(frozen=True)
class Sheet:
    """A picture file of all tiles.

    Attributes:
        content: the file.
        kind: `webp` or `png`.
        columns: tiles in a row.
        count: tiles.
        lossless: whether every tile is exactly what was given.
    """

    content: bytes
    kind: str
    columns: int
    count: int
    lossless: bool

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON, the file as a data URI."""
        text = base64.b64encode(self.content).decode("ascii")
        return {
            "src": f"data:image/{self.kind};base64,{text}",
            "columns": self.columns,
            "count": self.count,
            "lossless": self.lossless,
        }


def pack(tiles: UInt8Array, *, budget: int = BUDGET) -> Sheet:
    """One sheet of all tiles.

    Args:
        tiles: [M, C, H, W] uint8, C 1 or 3.
        budget: bytes above which quality is given up for size.

    Raises:
        ShapeError: not such tiles, or too many for one picture.
    """
    if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[1] not in (1, 3):
        got = f"{tiles.dtype} {list(tiles.shape)}"
        raise ShapeError("tiles", got=got, expected="uint8 [M, C, H, W], one channel or three")
    count, _, height, width = tiles.shape
    columns = max(1, math.ceil(math.sqrt(count * height / width)))
    rows = math.ceil(count / columns)
    if max(columns * width, rows * height) > LARGEST_SIDE:
        got = f"{count} tiles of {height}x{width}"
        raise ShapeError("tiles", got=got, expected="fewer", hint="lower the amounts")
    picture = _picture(tiles, rows, columns)
    if not features.check("webp"):
        return Sheet(_saved(picture, "png", optimize=True), "png", columns, count, True)
    exact = _saved(picture, "webp", lossless=True, quality=80, method=4)
    if len(exact) <= budget:
        return Sheet(exact, "webp", columns, count, True)
    for quality in QUALITIES:
        content = _saved(picture, "webp", quality=quality, method=4)
        if len(content) <= budget:
            break
    return Sheet(content, "webp", columns, count, False)


def _picture(tiles: UInt8Array, rows: int, columns: int) -> Image.Image:
    count, channels, height, width = tiles.shape
    padded = np.zeros((rows * columns, channels, height, width), np.uint8)
    padded[:count] = tiles
    grid = padded.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    pixels = grid.reshape(rows * height, columns * width, channels)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def _saved(picture: Image.Image, kind: str, **how: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **how)
    return stream.getvalue()
