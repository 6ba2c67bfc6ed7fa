"""One bar for a whole plan, however many phases it has.

The remaining time is ``(total - done) / rate``. The rate is a mean whose memory fades as
``exp(-age / 60 s)``, weighted by time: steady, and unbiased from the first moments on.

On a terminal the bar is rich's; elsewhere it is a plain line every ten seconds, fit for a log.
``NO_COLOR`` and ``TQDM_DISABLE`` are honoured. Nothing is written to standard output.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

LINE_INTERVAL_S = 10.0
MEMORY_S = 60.0


class Progress:
    """Progress of a plan, in any unit whose parts take comparable time.

    Use it as a context manager; ``advance`` does nothing visible outside of it.

    Args:
        total: size of the plan.
        title: what is running, the same for the whole plan.
        stream: where to write; standard error if absent.
        done: what an earlier run already did, left out of the rate.
        quiet: write nothing.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        total: float,
        title: str,
        *,
        stream: TextIO | None = None,
        done: float = 0.0,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._done, self._title = total, done, title
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._description = ""
        self._rate = _Rate(clock())
        self._display = _display(self._stream, silent=quiet or _disabled(), clock=clock)

    def __enter__(self) -> Self:
        self._rate = _Rate(self._clock())
        self._display.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._display.stop()

    @property
    def done(self) -> float:
        """Work done so far, in the unit of the total."""
        return self._done

    @property
    def fraction(self) -> float:
        """Done part of the plan, from 0 to 1."""
        return min(1.0, self._done / self._total) if self._total > 0 else 1.0

    @property
    def eta(self) -> float | None:
        """Seconds to go, or None while there is nothing to judge by."""
        remaining = max(0.0, self._total - self._done)
        if remaining == 0:
            return 0.0
        return remaining / self._rate.value if self._rate.value > 0 else None

    def advance(self, amount: float, description: str) -> None:
        """Count work as done.

        Args:
            amount: in the unit of the total.
            description: the phase it belonged to, such as ``grow 4/10``.
        """
        self._done += amount
        self._description = description
        self._rate.add(amount, self._clock())
        self._show()

    def skip(self, amount: float) -> None:
        """Count work as done that an earlier run did; it says nothing about the rate.

        Args:
            amount: in the unit of the total.
        """
        self._done += amount

    def extend(self, total: float) -> None:
        """Replace the size of the plan by a better estimate.

        Args:
            total: the size of the whole plan, what is done included.
        """
        self._total = total
        self._show()

    def _show(self) -> None:
        label = f"{self._title}: {self._description}" if self._description else self._title
        self._display.show(label, self.fraction, self.eta)


def format_seconds(seconds: float | None) -> str:
    """Write a duration as a clock does, from a hundred hours on in days.

    >>> format_seconds(42.4), format_seconds(3725), format_seconds(1e6), format_seconds(None)
    ('0:42', '1:02:05', '12 days', '-:--')
    """
    if seconds is None or not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 100:
        return f"{round(hours / 24)} days"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Rate:
    """Work per second, the past fading: sum of faded work over sum of faded time."""

    def __init__(self, start: float) -> None:
        self._last, self._work, self._time = start, 0.0, 0.0

    def add(self, amount: float, moment: float) -> None:
        elapsed = max(0.0, moment - self._last)
        keep = math.exp(-elapsed / MEMORY_S)
        self._work = self._work * keep + amount
        self._time = self._time * keep + elapsed
        self._last = moment

    @property
    def value(self) -> float:
        return self._work / self._time if self._time > 0 else 0.0


class _Silent:
    """No output."""

    def start(self) -> None: ...

    def show(self, label: str, fraction: float, eta: float | None) -> None: ...

    def stop(self) -> None: ...


class _Lines(_Silent):
    """A line when it is due, and the last state whatever the time."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream, self._clock = stream, clock
        self._due = -math.inf
        self._pending: str | None = None

    def show(self, label: str, fraction: float, eta: float | None) -> None:
        # Rounded down: 100 % is said of nothing but the whole.
        self._pending = f"{label}, {math.floor(100 * fraction)} %, ETA {format_seconds(eta)}"
        if self._clock() >= self._due:
            self._write()

    def stop(self) -> None:
        self._write()

    def _write(self) -> None:
        if self._pending is not None:
            print(self._pending, file=self._stream, flush=True)
            self._pending = None
            self._due = self._clock() + LINE_INTERVAL_S


class _Bar(_Silent):
    """A bar that redraws in place."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: RichProgress | None = None

    def start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        # markup=False: a description may hold brackets of its own.
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[percent]} % · ETA {task.fields[eta]}", markup=False),
            console=Console(file=self._stream, no_color=bool(os.environ.get("NO_COLOR"))),
        )
        self._task = self._bar.add_task("", total=1.0, percent=0, eta=format_seconds(None))
        self._bar.start()

    def show(self, label: str, fraction: float, eta: float | None) -> None:
        if self._bar is not None:
            self._bar.update(
                self._task,
                description=label,
                completed=fraction,
                percent=math.floor(100 * fraction),
                eta=format_seconds(eta),
            )

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _display(stream: TextIO, *, silent: bool, clock: Callable[[], float]) -> _Silent:
    if silent:
        return _Silent()
    if stream.isatty() and os.environ.get("TERM") != "dumb":
        return _Bar(stream)
    return _Lines(stream, clock)


def _disabled() -> bool:
    return os.environ.get("TQDM_DISABLE", "0").lower() not in {"", "0", "false"}
