"""Images in and out of requests: files in base64, bytes as PNG."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ShapeError

FORMATS = ("PNG", "JPEG", "WEBP")
MODES = {1: "L", 3: "RGB"}

Bytes = NDArray[np.uint8]


def encode_png(pixels: Bytes) -> bytes:
    """A PNG of [C, H, W]; the fastest compression, as small images gain nothing from more."""
    file = io.BytesIO()
    channels = np.moveaxis(pixels, 0, -1)
    Image.fromarray(channels[..., 0] if channels.shape[-1] == 1 else channels).save(
        file, "PNG", compress_level=1
    )
    return file.getvalue()


def decode(text: str, shape: tuple[int, int, int], *, name: str, max_pixels: int) -> Bytes:
    """The middle square of an image file, scaled to a model's size.

    Args:
        text: the file in base64, with or without a `data:` prefix.
        shape: (C, H, W).
        name: of the field, for messages.
        max_pixels: of the file's image; more are refused before any is decoded.

    Returns:
        [C, H, W] uint8.

    Raises:
        ShapeError: no image, one of another format, or one too large.
    """
    expected = f"a {', '.join(FORMATS)} file in base64, of at most {max_pixels} pixels"
    try:
        data = base64.b64decode(
            text.partition(",")[2] if text.startswith("data:") else text, validate=True
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Any = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise ShapeError(name, got=f"{image.width} x {image.height} pixels", expected=expected)
        return _fitted(image, shape)
    except ShapeError:
        raise
    except (
        binascii.Error,
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
        Warning,
    ) as fault:
        raise ShapeError(name, got=f"something else ({fault})", expected=expected) from fault


def _fitted(image: Any, shape: tuple[int, int, int]) -> Bytes:
    channels, height, width = shape
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.convert(MODES[channels]).crop((left, top, left + side, top + side))
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)  # as in training
    pixels = np.asarray(image, np.uint8).reshape(height, width, channels)
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
