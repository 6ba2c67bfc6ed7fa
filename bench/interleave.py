"""Two ways of doing one thing, timed against each other in one process.

A round runs ours, baseline, baseline, ours, and gives one ratio: baseline's seconds per call over
ours. A load that grows or fades evenly weighs on both sides of a round alike, and what a burst does
to one round the median over rounds forgets. So ratios hold on a busy machine, where milliseconds
do not.

It knows neither PyTorch nor a device: what is still running when a call returns is not counted, so
a side that hands work to a GPU waits for it itself.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Side = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Comparison:
    """What the rounds gave; above 1 ours is faster.

    Attributes:
        ratio: median of the rounds' ratios.
        p20: a fifth of the rounds gave less.
        p80: a fifth of the rounds gave more.
        ours_ms: median milliseconds of a call.
        baseline_ms: median milliseconds of a call.
    """

    ratio: float
    p20: float
    p80: float
    ours_ms: float
    baseline_ms: float


def compare(
    ours: Side,
    baseline: Side,
    *,
    rounds: int,
    min_time: float,
    clock: Clock = time.perf_counter,
) -> Comparison:
    """Times both sides.

    Args:
        ours: called without arguments; its result is dropped.
        baseline: the same work, done the other way.
        rounds: how many ratios to take the median of.
        min_time: seconds that each of a round's four turns lasts at least; a turn repeats its call
            as often as that takes, and at least once.
        clock: seconds, monotonic.
    """
    assert rounds >= 1
    with _without_gc():
        our_calls, baseline_calls = (_calls(side, min_time, clock) for side in (ours, baseline))
        seconds = []
        for _ in range(rounds):
            first = _turn(ours, our_calls, clock)
            middle = [_turn(baseline, baseline_calls, clock) for _ in range(2)]
            last = _turn(ours, our_calls, clock)
            seconds.append(((first + last) / 2, sum(middle) / 2))
            # Between turns only: a collection inside one would be charged to whoever triggers it.
            gc.collect()
    ratios = [slow / fast for fast, slow in seconds]
    p20, p80 = np.quantile(ratios, [0.2, 0.8]).tolist()
    our_ms, baseline_ms = (1e3 * statistics.median(times) for times in zip(*seconds, strict=True))
    return Comparison(statistics.median(ratios), p20, p80, our_ms, baseline_ms)


def _calls(side: Side, min_time: float, clock: Clock) -> int:
    """How often a turn calls this side; finding out is its warm-up."""
    side()  # allocates, compiles, reads files: never part of a time
    start, calls = clock(), 0
    while calls == 0 or clock() - start < min_time:
        side()
        calls += 1
    return calls


def _turn(side: Side, calls: int, clock: Clock) -> float:
    """Seconds per call."""
    start = clock()
    for _ in range(calls):
        side()
    return (clock() - start) / calls


@contextlib.contextmanager
def _without_gc() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
