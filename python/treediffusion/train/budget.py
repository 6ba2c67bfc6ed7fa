"""Progress of a training call, which may end before the training does.

Training tells its progress after every step. When the call's minutes are over the progress answers
with `OutOfTime`; a checkpoint of the stage at work is saved, and the error goes on to the caller.
No stage knows of clocks, and a call makes at least one step, however short its time.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

from ..errors import ConfigError
from ..progress import Progress, format_seconds


class OutOfTime(Exception):
    """The call's time is over, and everything that was done is saved.

    Attributes:
        where: the step that was the last.
        fraction: done part of the plan, from 0 to 1.
        left: seconds that the rest will take, None if nobody knows.
    """

    def __init__(self, where: str, fraction: float, left: float | None) -> None:
        super().__init__(where, fraction, left)
        self.where, self.fraction, self.left = where, fraction, left

    def __str__(self) -> str:
        percent = math.floor(100 * self.fraction)
        return f"{percent} % done ({self.where}), about {format_seconds(self.left)} left"


class TrainingProgress(Progress):
    """A plan's progress that watches the call's time, and has a word for whoever looks on.

    Args:
        total: size of the plan.
        minutes: time of this call; None for as long as it takes.
        quiet: write nothing.
        clock: seconds, monotonic.

    Raises:
        ConfigError: no time at all.
    """

    def __init__(
        self,
        total: float = 1.0,
        *,
        minutes: float | None = None,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if minutes is not None and not minutes > 0:
            raise ConfigError("--max-minutes", got=minutes, expected="more than 0")
        super().__init__(total, "training", quiet=quiet, clock=clock)
        self._quiet, self._now = quiet, clock
        self._deadline = math.inf if minutes is None else clock() + 60 * minutes

    def advance(self, amount: float, description: str) -> None:
        """Counts work as done.

        Raises:
            OutOfTime: it was the last of this call.
        """
        super().advance(amount, description)
        if self._now() >= self._deadline:
            raise OutOfTime(description, self.fraction, self.eta)

    def say(self, line: str) -> None:
        """Writes a line that stays, unlike the bar."""
        if not self._quiet:
            print(line, file=sys.stderr, flush=True)
