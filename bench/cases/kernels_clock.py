"""How long calls take on a GPU, without what the host takes to make them.

Calls are recorded in one CUDA graph and replayed between two events, ways in turn, so that what
warms or slows the device meets all of them. What fits the L2 cache is found there: inputs are the
same in every call. On a CPU nothing is measured; ways are called once, to see that they can be.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from interleave import Side

ROUNDS, WINDOW_S, MOST = 9, 1.5e-3, 64
WARM_UP = 3


class Rates(NamedTuple):
    """What a device can do, measured.

    Attributes:
        copy: bytes read and written per second, of a copy far larger than the L2 cache.
        tensor: FLOPs per second of a product of bfloat16 matrices, 8192 on each side.
        l2: bytes of the L2 cache.
    """

    copy: float
    tensor: float
    l2: int


class Times(NamedTuple):
    """What was measured, by the names of the sides.

    Attributes:
        seconds: of a call.
        faults: why a side has no time.
    """

    seconds: dict[str, float]
    faults: dict[str, str]


def measure_rates() -> Rates:
    """Of the current device."""
    source = torch.randn(2**29, device="cuda").to(torch.bfloat16)
    target = torch.empty_like(source)
    a, b = torch.randn(2, 8192, 8192, device="cuda").to(torch.bfloat16).unbind()
    sides = {"copy": lambda: target.copy_(source), "product": lambda: a @ b}
    took = median_seconds(sides).seconds
    l2 = torch.cuda.get_device_properties(source.device).L2_cache_size
    return Rates(2 * source.nbytes / took["copy"], 2 * 8192**3 / took["product"], l2)


def median_seconds(sides: Mapping[str, Side], *, graphs: bool = True) -> Times:
    """Seconds of a call of each side.

    Args:
        sides: by name.
        graphs: recorded; else called one by one, as a program does that knows no graphs.
    """
    made, faults = {}, {}
    for name, side in sides.items():
        try:
            made[name] = _repeated(side, graphs=graphs)
        except Exception as error:  # of whatever a library cannot do
            faults[name] = f"{type(error).__name__}: {error}"[:300]
    found: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(ROUNDS):
        for name, (run, calls) in made.items():
            found[name].append(_seconds(run) / calls)
    return Times({name: statistics.median(times) for name, times in found.items()}, faults)


def _repeated(side: Side, *, graphs: bool) -> tuple[Callable[[], object], int]:
    """What makes several calls, and how many."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # type: ignore[no-untyped-call]
        for _ in range(WARM_UP):
            side()  # compiles, allocates, chooses algorithms
    torch.cuda.current_stream().wait_stream(stream)
    calls = int(min(max(WINDOW_S / _seconds(side), 1), MOST))
    if not graphs:
        return lambda: [side() for _ in range(calls)], calls
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            side()
    graph.replay()
    return graph.replay, calls


def _seconds(run: Callable[[], object]) -> float:
    """From the device's start of it to its end."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) * 1e-3
