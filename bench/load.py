"""What the server makes of an engine, on loopback: throughput, waiting, and its own share.

    python bench/load.py BUNDLE --json bench/results/load.json

Saturation: clients that ask again at once, against the same engine called in a loop without a
server. Waiting: requests that arrive at random (Poisson), at 70 % of what saturation gave. Own
share: a request of one step, in the process of the server, against the same call of the engine.
Bounded in requests and in time.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from machine import describe
from treediffusion.client import Client
from treediffusion.runtime import Engine

STEPS = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each part")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    with Engine.load(told.bundle, threads=1) as engine:
        engine.warmup()
        offline = _rate(
            lambda i: engine.generate(1, seed=i, num_inference_steps=STEPS), told.seconds
        )
        direct = [_timed(lambda: engine.generate(1, num_inference_steps=1)) for _ in range(300)]
    with _Server(told.bundle) as client:
        served = _saturated(client, told.clients, told.seconds)
        waits = _arriving(client, 0.7 * served, told.seconds)
        alone = [_timed(lambda: client.generate(n=1, num_inference_steps=1)) for _ in range(300)]
    rows = {
        "offline images/s": offline,
        "served images/s": served,
        "served / offline": served / offline,
        "at 70 %: p50 ms": 1e3 * _quantile(waits, 0.5),
        "at 70 %: p99 ms": 1e3 * _quantile(waits, 0.99),
        "p99 / p50": _quantile(waits, 0.99) / _quantile(waits, 0.5),
        "server and client beside the engine: p50 ms": 1e3
        * (_quantile(alone, 0.5) - _quantile(direct, 0.5)),
        "the same: p99 ms": 1e3 * (_quantile(alone, 0.99) - _quantile(direct, 0.5)),
    }
    for name, value in rows.items():
        print(f"{name:48} {value:9.3f}")
    if told.json is not None:
        facts = {"machine": describe(threads=1), "requests": len(waits), "rows": rows}
        told.json.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


class _Server:
    """`treediffusion serve` in a process of its own."""

    def __init__(self, bundle: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        words = ["serve", str(bundle), "--port", str(port), "--threads", "1"]
        self._process = subprocess.Popen([sys.executable, "-m", "treediffusion", *words])
        self._client = Client(f"http://127.0.0.1:{port}")

    def __enter__(self) -> Client:
        for _ in range(300):
            try:
                self._client.generate(n=1, num_inference_steps=1)
            except Exception:  # not yet there, in whichever way
                time.sleep(0.1)
            else:
                return self._client
        raise RuntimeError("the server does not start")

    def __exit__(self, *given: object) -> None:
        self._process.terminate()
        self._process.wait(60)


def _rate(draw: Callable[[int], object], seconds: float) -> float:
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        draw(count)
        count += 1
    return count / (time.perf_counter() - began)


def _saturated(client: Client, clients: int, seconds: float) -> float:
    """Images a second that all clients get together."""
    counts = [0] * clients
    end = time.perf_counter() + seconds

    def ask(me: int) -> None:
        while time.perf_counter() < end:
            client.generate(n=1, seed=me, num_inference_steps=STEPS)
            counts[me] += 1

    threads = [threading.Thread(target=ask, args=(me,)) for me in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def _arriving(client: Client, rate: float, seconds: float) -> list[float]:
    """Seconds from each arrival to its answer, at a rate."""
    draw = random.Random(0)
    found: list[float] = []

    def ask(due: float) -> None:
        client.generate(n=1, num_inference_steps=STEPS)
        found.append(time.perf_counter() - due)

    with ThreadPoolExecutor(64) as pool:
        due, end = time.perf_counter(), time.perf_counter() + seconds
        while due < end:
            time.sleep(max(0.0, due - time.perf_counter()))
            pool.submit(ask, due)
            due += draw.expovariate(rate)
    return found


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _quantile(times: list[float], share: float) -> float:
    return statistics.quantiles(times, n=1000)[round(1000 * share) - 1]


if __name__ == "__main__":
    main()
