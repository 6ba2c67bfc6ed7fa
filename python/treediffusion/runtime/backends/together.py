"""Images that share a call of a CPU's library, where that changes none of their bits.

A call of 8 images is faster than 8 calls, but no library promises that an image has the same bits
in both: products of different heights may add in different orders. So nobody is trusted. The first
call of each graph and size is made both ways, and only if every bit of every row agrees are later
ones made together; if not, images of such calls go on one by one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from ...bundle import GraphSpec
from .protocol import Array

SIZES = (1, 2, 4, 8)
"""Numbers of images in a call. Larger ones gain little more, and make others wait for longer."""

Arrays = Mapping[str, Array]
Call = Callable[[Arrays], dict[str, Array]]


class Together:
    """Which calls may be made together. Safe to use from many threads."""

    def __init__(self) -> None:
        self._agreed: dict[tuple[str, int], bool] = {}
        self._lock = threading.Lock()

    def run(self, spec: GraphSpec, role: str, feeds: Arrays, call: Call) -> dict[str, Array]:
        """The results of a call, which are those of its images alone.

        Args:
            spec: the graph's inputs; those with an axis B have a row for each image.
            role: the graph's.
            feeds: inputs by name.
            call: runs the graph.
        """
        rows = [tensor.name for tensor in spec.inputs if tensor.shape[0] == "B"]
        size = len(feeds[rows[0]])
        if size == 1:
            return call(feeds)
        agreed = self._agreed.get((role, size))
        if agreed:
            return call(feeds)
        alone = _joined([call(one) for one in _one_by_one(feeds, rows, size)])
        if agreed is None:
            same = _same(alone, call(feeds))
            with self._lock:
                self._agreed[role, size] = same
        return alone


def _one_by_one(feeds: Arrays, rows: list[str], size: int) -> Iterator[Arrays]:
    for i in range(size):
        yield {name: v[i : i + 1] if name in rows else v for name, v in feeds.items()}


def _joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _same(some: Arrays, others: Arrays) -> bool:
    """Whether all bits are equal; numbers that are none, too."""
    return all(some[name].tobytes() == others[name].tobytes() for name in some)
