"""How a call is run: in which batches, and when it ends early."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import CallCancelledError, CallTimeoutError, ConfigError
from .plan import SamplingOptions
from .results import Preview

if TYPE_CHECKING:
    from ..progress import Progress

BATCH_SIZE = 32


class CallOptions(SamplingOptions, total=False):
    """How a call draws its images, and how it is run.

    Attributes:
        seeds: one of each image, in place of `seed`; every image then has the index `offset`.
        offset: index of the first image, so that a long run can be cut into calls.
        batch_size: images held at once; it changes memory, never an image.
        progress: advanced by 1 per image.
        callback: told what a batch looks like after each evaluation of the network; what it
            raises ends the call.
        timeout: seconds that the call may take.
        cancel: ends the call at its next evaluation once it is set, from any thread.
    """

    seeds: Sequence[int] | None
    offset: int
    batch_size: int
    progress: Progress | None
    callback: Callable[[Preview], None] | None
    timeout: float | None
    cancel: threading.Event | None


@dataclass(frozen=True)
class Control:
    """What of `CallOptions` is not about the images themselves.

    Raises:
        ConfigError: a timeout that is no time.
    """

    seeds: Sequence[int] | None = None
    offset: int = 0
    batch_size: int = BATCH_SIZE
    progress: Progress | None = None
    callback: Callable[[Preview], None] | None = None
    timeout: float | None = None
    cancel: threading.Event | None = None
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        limit = self.timeout
        if limit is not None and not (
            isinstance(limit, int | float) and not isinstance(limit, bool) and 0 < limit <= math.inf
        ):
            raise ConfigError("timeout", got=repr(limit), expected="seconds above 0, or None")

    @property
    def watched(self) -> bool:
        """Whether anything may happen between two evaluations."""
        return not (self.callback is None and self.timeout is None and self.cancel is None)

    def check(self) -> None:
        """Whether the call may go on.

        Raises:
            CallCancelledError: it was cancelled.
            CallTimeoutError: its time is over.
        """
        if self.cancel is not None and self.cancel.is_set():
            raise CallCancelledError("call", got="its cancellation", expected="its end")
        if self.timeout is None:
            return
        took = time.monotonic() - self.started
        if took > self.timeout:
            raise CallTimeoutError(
                "call", got=f"no end after {took:.2f} s", expected=f"one within {self.timeout:g} s",
                hint="take fewer images or steps, or more time",
            )  # fmt: skip
