"""Images in and out of requests: files in base64, bytes as PNG."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

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
    """`decode_all` of one file."""
    image: Bytes = decode_all([text], shape, names=[name], max_pixels=max_pixels)[0]
    return image


def decode_all(
    texts: Sequence[str], shape: tuple[int, int, int], *, names: Sequence[str], max_pixels: int
) -> Bytes:
    """The middle squares of image files, scaled to a model's size.

    Args:
        texts: the files in base64, with or without a `data:` prefix.
        shape: (C, H, W).
        names: of the fields, for messages.
        max_pixels: of all files' images together; more are refused before any is decoded.

    Returns:
        [n, C, H, W] uint8.

    Raises:
        ShapeError: no image, one of another format, or one too large.
    """
    expected = f"a {', '.join(FORMATS)} file in base64; all together of at most {max_pixels} pixels"
    opened, left = [], max_pixels
    for text, name in zip(texts, names, strict=True):
        with _faults(name, expected):
            image = _opened(text)
            left -= image.width * image.height
            if left < 0:
                size = f"{image.width} x {image.height} pixels"
                raise ShapeError(name, got=size, expected=expected)
            opened.append(image)
    found = []
    for image, name in zip(opened, names, strict=True):
        with _faults(name, expected):
            found.append(_fitted(image, shape))
            image.close()  # with its decoded pixels, which are many more than those that are kept
    return np.stack(found)


@contextmanager
def _faults(name: str, expected: str) -> Iterator[None]:
    """Whatever a file does to a decoder is the file's mistake."""
    try:
        yield
    except ShapeError:
        raise
    except UnidentifiedImageError as fault:  # its own words are the address of a buffer
        raise ShapeError(name, got="something else", expected=expected) from fault
    except (
        binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError,
    ) as fault:  # fmt: skip
        raise ShapeError(name, got=f"something else ({fault})", expected=expected) from fault


def _opened(text: str) -> Any:
    data = base64.b64decode(
        text.partition(",")[2] if text.startswith("data:") else text, validate=True
    )
    return Image.open(io.BytesIO(data), formats=FORMATS)  # reads no more than the file's head


def _fitted(image: Any, shape: tuple[int, int, int]) -> Bytes:
    channels, height, width = shape
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.convert(MODES[channels]).crop((left, top, left + side, top + side))
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)  # as in training
    pixels = np.asarray(image, np.uint8).reshape(height, width, channels)
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
