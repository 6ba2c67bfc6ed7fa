"""Many pictures at once: decoded by threads, in order, with a bar if it takes more than a moment.

A file that cannot be used does not stop the others: all of them are named at the end, and left out
if that was asked for.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..progress import Progress
from .content import Pixels
from .pictures import Entry, Fit, decode

THREADS = 8
PATIENCE_S = 2.0
CHUNK = 1024  # files in the threads' queue, so that few decoded ones ever wait
IN_LINE = 3

Item = TypeVar("Item")
Result = TypeVar("Result")


class Decoded(NamedTuple):
    """Images of files.

    Attributes:
        images: [n, C, H, W] uint8, colour if any of them is.
        kept: [n] int64, which of the files they are.
        refused: what is wrong with each of the others.
    """

    images: NDArray[np.uint8]
    kept: NDArray[np.int64]
    refused: tuple[DataError, ...]


def decode_all(entries: Sequence[Entry], fit: Fit, *, title: str) -> Decoded:
    """Every picture that can be used, at one size.

    Raises:
        DataError: pictures of several sizes that the fit leaves as they are.
    """
    # Reserved whole: a list of images, stacked in the end, would need twice the memory.
    images = np.empty((0, 1, 0, 0), np.uint8)
    kept: list[int] = []
    refused: list[DataError] = []
    for row, found in enumerate(in_threads(partial(_attempt, fit=fit), entries, title=title)):
        if isinstance(found, DataError):
            refused.append(found)
            continue
        channels, *sides = found.shape
        if not kept:
            images = np.empty((len(entries), *found.shape), np.uint8)
        elif tuple(sides) != images.shape[2:]:
            raise _two_sizes(entries[kept[0]], images[0], entries[row], found)
        elif channels > images.shape[1]:
            # A colour set with a few grey files is common; grey written three times is the same.
            images = np.repeat(images, channels, axis=1)
        images[len(kept)] = found
        kept.append(row)
    return Decoded(images[: len(kept)], np.array(kept, np.int64), tuple(refused))


def refuse(refused: Sequence[DataError], count: int, source: str) -> None:
    """Says what is wrong with the files of a source that cannot be used, if there are any.

    Raises:
        DataError: there are.
    """
    if not refused:
        return
    first = refused[0]
    if count == 1:
        raise first
    got = str(first.got)
    if len(refused) > 1:
        names = ", ".join(one.name for one in refused[1 : IN_LINE + 1])
        more = f" and {len(refused) - 1 - IN_LINE} more" if len(refused) > IN_LINE + 1 else ""
        got += f"; as bad are {names}{more}, {len(refused)} files of {count}"
    hint = f"{first.hint}; or list all with `treediffusion data {source}`, or --skip-corrupt"
    raise DataError(first.name, got=got, expected=first.expected, hint=hint.removeprefix("; "))


def resized(images: Pixels, size: int, *, title: str) -> Pixels:
    """[n, C, size, size], scaled like pictures; of oblong images the middle square is taken."""
    side = min(images.shape[2:])
    top, left = ((whole - side) // 2 for whole in images.shape[2:])
    square = images[:, :, top : top + side, left : left + side]
    if side == size:
        return square
    scaled = np.empty((*images.shape[:2], size, size), images.dtype)
    for row, image in enumerate(in_threads(partial(_scaled, size=size), list(square), title=title)):
        scaled[row] = image
    return scaled


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], *, title: str
) -> Iterator[Result]:
    """The results in order; the bar comes when the wait has become one."""
    start, bar = time.monotonic(), None
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)))
        for first in range(0, len(items), CHUNK):
            results = pool.map(work, items[first : first + CHUNK])
            for number, result in enumerate(results, start=first):
                yield result
                if bar is not None:
                    bar.advance(1, f"{number + 1}/{len(items)}")
                elif time.monotonic() - start > PATIENCE_S:
                    bar = stack.enter_context(Progress(len(items), title))
                    bar.skip(number + 1)


def _attempt(entry: Entry, fit: Fit) -> NDArray[np.uint8] | DataError:
    try:
        return decode(entry, fit).pixels
    except DataError as fault:
        return fault


def _scaled(image: Pixels, size: int) -> Pixels:
    """[C, size, size] of [C, H, W], each channel for itself, whatever its type."""
    from PIL import Image

    planes = [
        np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR))
        for plane in np.ascontiguousarray(image)
    ]
    return np.stack(planes)


def _two_sizes(one: Entry, first: Pixels, two: Entry, second: Pixels) -> DataError:
    described = [
        f"{entry.name} of {image.shape[2]}x{image.shape[1]}"
        for entry, image in ((one, first), (two, second))
    ]
    return DataError(
        "data",
        got=" and ".join(described),
        expected="images of one size",
        hint="give the size to make of them, such as --image-size 64",
    )
