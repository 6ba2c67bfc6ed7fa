"""What every back end can do: five verbs, `open_backend` being the first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

from ...errors import BackendUnavailableError, ConfigError

Array: TypeAlias = NDArray[Any]
USUAL_BUCKET = 16
"""Up to about this many images, a denoising step on a large GPU costs what one image costs."""


class Backend(Protocol):
    """Runs graphs by role. Safe to call from many threads."""

    sizes: tuple[int, ...]
    """How many images calls may have, ascending; in all of them an image has the same bits."""

    def load(self, roles: Iterable[str]) -> None:
        """Makes graphs ready, which otherwise happens when they are first run."""
        ...

    def describe(self) -> dict[str, str | int]:
        """What really runs: back end, version, device, precision, sizes of calls."""
        ...

    def run(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, in new arrays, for inputs by name."""
        ...

    def close(self) -> None:
        """Gives everything back; a later `run` is an error."""
        ...


class Loaded:
    """Things by role, each made once, when it is first asked for, until they are closed.

    Attributes:
        lock: held while one is made; whoever may use only one at a time takes it, too.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._made: dict[str, Any] | None = {}

    def get(self, role: str, make: Callable[[str], Any]) -> Any:
        """What `make(role)` gave.

        Raises:
            BackendUnavailableError: it is closed.
        """
        with self.lock:
            if self._made is None:
                raise BackendUnavailableError(
                    "engine", got="a call after close()", expected="an open engine"
                )
            if role not in self._made:
                self._made[role] = make(role)
            return self._made[role]

    def close(self) -> bool:
        """Drops them all; whether there was anything to drop."""
        with self.lock:
            was_open, self._made = self._made is not None, None
            return was_open


def check_threads(threads: int | None) -> int | None:
    """A number of threads, or None for the library's own choice.

    Raises:
        ConfigError: it is none.
    """
    if threads is not None and (
        isinstance(threads, bool) or not isinstance(threads, int) or threads < 1
    ):
        raise ConfigError("threads", got=repr(threads), expected="None, or at least 1")
    return threads


def choose_bucket(batches: Sequence[int], bucket: int | None) -> int:
    """How many images a call takes, on a device that works on many at once.

    Args:
        batches: sizes that the graphs were exported for.
        bucket: one of them; None for the largest up to `USUAL_BUCKET`, or the smallest.

    Raises:
        ConfigError: not one of them.
    """
    if bucket is None:
        return max((size for size in batches if size <= USUAL_BUCKET), default=min(batches))
    if bucket not in batches:
        expected = f"one of {', '.join(map(str, batches))}"
        raise ConfigError("bucket", got=repr(bucket), expected=expected)
    return bucket
