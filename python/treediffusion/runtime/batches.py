"""A call's images, cut into batches, and the results of the batches, joined."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..noise import WORD_RANGE

if TYPE_CHECKING:
    from ..progress import Progress


def collect(
    one: Callable[[range], tuple[Any, ...]], batches: Iterator[range], progress: Progress | None
) -> tuple[NDArray[Any], ...]:
    """Results of every batch, joined."""
    parts = []
    for images in batches:
        parts.append(one(images))
        if progress is not None:
            progress.advance(len(images), "images")
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def cut(total: int, seed: int, offset: int, size: int) -> Iterator[range]:
    """Checks a call's numbers, then cuts its image indices into batches."""
    total, size = integer("num_images", total, 1), integer("batch_size", size, 1)
    integer("seed", seed, 0)
    first = integer("offset", offset, 0)
    if first + total > WORD_RANGE:
        raise ConfigError("offset", got=offset, expected=f"at most 2^64 - {total}")
    last = first + total
    return (range(start, min(start + size, last)) for start in range(first, last, size))


def integer(name: str, value: object, least: int) -> int:
    """A whole number that is at least `least` and fits a counter's word.

    Raises:
        ConfigError: it is none.
    """
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if not least <= number < WORD_RANGE:
        raise ConfigError(name, got=repr(value), expected=f"an integer from {least}, below 2^64")
    return number
