"""One picture file: what is in it, and the image that becomes of it.

Grey stays grey and everything else becomes RGB; transparency is left out, and a photograph is
turned as its camera says. What would have to be guessed is refused: more than 8 bits, printers'
inks (CMYK), and several pictures in one file. Pixels are scaled with Pillow's bilinear filter,
which averages what it makes smaller, as torchvision's `Resize` does.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..optional import require

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
GREY = frozenset({"1", "L", "LA", "La"})
COLOUR = frozenset({"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr"})
LARGEST = 2**28  # bytes of a file; no picture that becomes a small image has more
BITS_PER_SAMPLE = 258  # the number of this tag in a TIFF

Cut: TypeAlias = Literal["centre", "whole"] | tuple[int, int, int, int]
"""What is taken of a picture: the largest square in its middle, all of it however it is squeezed,
or the box (left, top, right, bottom)."""


class Fit(NamedTuple):
    """How a picture becomes an image.

    Attributes:
        size: side of the image; None leaves the picture as it is.
        cut: what is taken of it first.
    """

    size: int | None = None
    cut: Cut = "centre"


class Entry(NamedTuple):
    """A picture file, in a folder or in an archive.

    Attributes:
        name: what messages call it.
        place: where it lies in its source, with slashes.
        stamp: numbers that change with its content, such as size and time.
        read: its bytes.
    """

    name: str
    place: str
    stamp: tuple[int, ...]
    read: Callable[[], bytes]


class Picture(NamedTuple):
    """A decoded file.

    Attributes:
        pixels: [1 or 3, H, W] uint8, after the fit.
        size: width and height before it.
        mode: Pillow's name of how the file keeps its pixels.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    mode: str


def decode(entry: Entry, fit: Fit) -> Picture:
    """The picture of a file.

    Raises:
        DataError: it cannot be read or decoded, or would have to be guessed at.
    """
    pillow, ops = require("PIL.Image", extra="train"), require("PIL.ImageOps", extra="train")
    try:
        content = entry.read()
        with pillow.open(io.BytesIO(content)) as opened:
            _refuse_guesses(opened, entry.name)
            mode = opened.mode
            upright = ops.exif_transpose(opened).convert("L" if mode in GREY else "RGB")
            pixels = np.asarray(_fitted(upright, fit, entry.name), np.uint8)
    except DataError:
        raise
    # Pillow reports damage as whatever its decoder stumbled over, from OSError to struct.error.
    except Exception as fault:
        # Its message about a file of another kind names the buffer and says no more.
        foreign = isinstance(fault, pillow.UnidentifiedImageError)
        reason = "no picture that is known" if foreign else fault or type(fault).__name__
        raise DataError(
            entry.name,
            got=f"a file that cannot be decoded ({reason})",
            expected="a picture, whole",
            hint="replace or remove it",
        ) from fault
    shaped = pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return Picture(shaped, upright.size, mode)


def _refuse_guesses(picture: Any, name: str) -> None:
    # Telephones add a second, smaller view to a JPEG; the first is the photograph.
    if getattr(picture, "is_animated", False) and picture.format != "MPO":
        raise DataError(
            name,
            got=f"{picture.n_frames} pictures in one {picture.format}",
            expected="one picture",
            hint="keep one of them in a file of its own",
        )
    if _is_deep(picture):
        raise DataError(
            name,
            got=f"more than 8 bits a channel (mode {picture.mode})",
            expected="8 bits",
            hint="scale it to 0..255 first, with the range you choose",
        )
    if picture.mode in GREY | COLOUR:
        return
    raise DataError(
        name,
        got=f"colours in mode {picture.mode}",
        expected="grey or RGB",
        hint="convert it first, with its colour profile",
    )


def _is_deep(picture: Any) -> bool:
    """Whether a channel has more than 8 bits, of which Pillow keeps the upper ones in silence."""
    if picture.mode.startswith(("I", "F")):
        return True
    if picture.format == "TIFF":
        bits: tuple[int, ...] = picture.tag_v2.get(BITS_PER_SAMPLE, (1,))
        return max(bits) > 8
    # Colours of 16 bits in a PNG have a mode of 8; only what the decoder is told, "RGB;16B", tells.
    return any(str(tile[3]).endswith(";16B") for tile in picture.tile)


def _fitted(picture: Any, fit: Fit, name: str) -> Any:
    if fit.size is None:
        return picture
    width, height = picture.size
    if fit.cut == "centre":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    elif fit.cut != "whole":
        if width < fit.cut[2] or height < fit.cut[3]:
            raise DataError(
                name,
                got=f"{width}x{height} pixels",
                expected=f"at least {fit.cut[2]}x{fit.cut[3]}, of which a part is cut out",
            )
        picture = picture.crop(fit.cut)
    bilinear = require("PIL.Image", extra="train").Resampling.BILINEAR
    return picture.resize((fit.size, fit.size), bilinear)
