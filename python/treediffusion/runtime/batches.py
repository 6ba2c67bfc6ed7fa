"""A call's images: what each is called, and how they are cut into batches."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from ..noise import WORD_RANGE, naturals


@dataclass(frozen=True)
class Names:
    """What images are called: image `index[i]` of seed `seed[i]`.

    Everything random of an image follows from these two numbers, whoever draws it and when.

    Attributes:
        seed: [B] of each image.
        index: [B] of each image among those of its seed.
    """

    seed: Sequence[int]
    index: Sequence[int]

    def __len__(self) -> int:
        return len(self.index)

    def repeated(self, times: int) -> Names:
        """[B x times] every name `times` times in a row."""
        rows = np.repeat(np.arange(len(self)), times).tolist()
        return Names([self.seed[i] for i in rows], [self.index[i] for i in rows])


def name_images(
    total: object, seed: object = 0, *, seeds: Sequence[int] | None = None, offset: object = 0
) -> Names:
    """The names of a call's images.

    Args:
        total: how many.
        seed: of all of them, which then have the indices from `offset`.
        seeds: one of each; all have the index `offset`.
        offset: see above.

    Raises:
        ConfigError: a number out of its range, or not one seed for each image.
    """
    count, first = integer("num_images", total, 1), integer("offset", offset, 0)
    if seeds is not None:
        own = naturals("seeds", seeds)
        if len(own) != count:
            raise ConfigError("seeds", got=f"{len(own)} seeds", expected=f"one for each of {count}")
        return Names(own, [first] * count)
    if first + count > WORD_RANGE:
        raise ConfigError("offset", got=offset, expected=f"at most 2^64 - {count}")
    return Names([integer("seed", seed, 0)] * count, range(first, first + count))


def cut(names: Names, size: object) -> Iterator[tuple[slice, Names]]:
    """Where each batch lies in the call, and what its images are called.

    Raises:
        ConfigError: not a size.
    """
    step = integer("batch_size", size, 1)
    for start in range(0, len(names), step):
        rows = slice(start, min(start + step, len(names)))
        yield rows, Names(names.seed[rows], names.index[rows])


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
