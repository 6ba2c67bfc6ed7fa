"""What the server makes of an engine, on loopback: throughput, waiting, its own share, refusals.

    python bench/load.py BUNDLE --json bench/results/load.json

Saturation: clients that ask for one image and again at once, against the same engine without a
server, in whichever of its calls is fastest. Waiting: requests that arrive at 70 % of what
saturation gave, evenly or at random (Poisson); for the latter also how long a queue in front of a
server without any share of its own would make them wait, one after the other. Own share: a request
of one step over networks that answer zeros at once, on a connection that stays open, from its first
byte sent to the answer's last byte read, less the same call of the engine without a server; the
client's part is sending and reading bytes. Refusal: the same clock, for a request that finds the
queue full while the engine works. Bounded in requests and in time, with one thread for the
networks.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import random
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from machine import describe
from numpy.typing import NDArray
from treediffusion.bundle import Bundle
from treediffusion.client import Client
from treediffusion.files import write_json
from treediffusion.runtime import Engine

STEPS = 10
ROUNDS = 4
"""Of turns with and without the server, so that a load that comes and goes weighs on both."""
REQUESTS = 2000
"""Of each measurement of single requests."""
ONE = {"n": 1, "seed": 0, "num_inference_steps": 1}
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each part")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    rows = (
        _throughput(told.bundle, told.clients, told.seconds)
        | _own_share(told.bundle)
        | _refusals(told.bundle)
    )
    for name, value in rows.items():
        print(f"{name:48} {value:9.3f}")
    if told.json is not None:
        bundle = Bundle.open(told.bundle)
        measured = {
            "images": list(bundle.image_shape), "steps": STEPS, "clients": told.clients,
            "seconds": told.seconds, "requests": REQUESTS,
        }  # fmt: skip
        write_json(told.json, {"machine": describe(threads=1), "measured": measured, "rows": rows})


class Server:
    """`treediffusion serve` in a process of its own, from when it is ready.

    Args:
        bundle: what it serves.
        *options: of the command.
    """

    def __init__(self, bundle: Path, *options: str) -> None:
        self.port = free_port()
        words = ["serve", str(bundle), "--port", str(self.port), "--threads", "1", *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "treediffusion", *words], stdout=subprocess.DEVNULL
        )
        self.client = Client(f"http://127.0.0.1:{self.port}", retries=100)

    def __enter__(self) -> Server:
        wait_until_ready(self.port)
        return self

    def __exit__(self, *given: object) -> None:
        self.process.terminate()
        self.process.wait(60)


class Connection:
    """One that stays open, and its last answer; it reads bytes, and nothing of a head but its size.

    Args:
        port: of the server.
    """

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.status, self.text = 0, b""

    def seconds(self, path: str, request: Mapping[str, object]) -> float:
        """From the request's first byte to the answer's last."""
        asked = post(path, request)
        began = time.perf_counter()
        self._socket.sendall(asked)
        got = b""
        while b"\r\n\r\n" not in got:
            got += self._read()
        head, _, body = got.partition(b"\r\n\r\n")
        found = LENGTH.search(head)
        assert found is not None, head
        while len(body) < int(found[1]):
            body += self._read()
        took = time.perf_counter() - began
        self.status, self.text = int(head.split(maxsplit=2)[1]), body
        return took

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> bytes:
        data = self._socket.recv(2**16)
        assert data, "the server has closed the connection"
        return data


def post(path: str, request: Mapping[str, object]) -> bytes:
    """The bytes of a request."""
    body = json.dumps(request)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(port: int) -> None:
    """Returns when the server takes requests; within a minute."""
    for _ in range(600):
        asking = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            asking.request("GET", "/health/ready")
            if asking.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass  # not yet there
        finally:
            asking.close()
        time.sleep(0.1)
    raise RuntimeError("the server does not start")


def _throughput(bundle: Path, clients: int, seconds: float) -> dict[str, float]:
    rounds: list[tuple[float, float]] = []
    with Engine.load(bundle, threads=1) as engine, Server(bundle) as server:
        engine.warmup()
        _saturated(server.client, clients, 1.0)
        for _ in range(ROUNDS):
            # One by one, or in calls that are full: the faster is what a server has to match.
            sizes = (1, engine.bucket)
            offline = max(_offline(engine, size, seconds / 2 / ROUNDS) for size in sizes)
            rounds.append((offline, _saturated(server.client, clients, seconds / ROUNDS)))
        served = statistics.median(served for _, served in rounds)
        rate = 0.7 * served
        evenly = _arriving(server.client, [1 / rate] * round(rate * seconds))
        draw = random.Random(0)
        gaps = [draw.expovariate(rate) for _ in range(round(rate * seconds))]
        at_random = _arriving(server.client, gaps)
    queued = _queued(gaps, 1 / served)
    return {
        "offline images/s": statistics.median(offline for offline, _ in rounds),
        "served images/s": served,
        "served / offline": statistics.median(served / offline for offline, served in rounds),
        "at 70 %: requests": float(len(gaps)),
        "at 70 %, evenly: p50 ms": 1e3 * quantile(evenly, 0.5),
        "at 70 %, evenly: p99 / p50": _spread(evenly),
        "at 70 %, at random: p50 ms": 1e3 * quantile(at_random, 0.5),
        "at 70 %, at random: p99 / p50": _spread(at_random),
        "at 70 %, at random, by a queue: p99 / p50": _spread(queued),
    }


def _offline(engine: Engine, count: int, seconds: float) -> float:
    """Images a second, `count` in a call."""
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        engine.generate(count, seed=calls, num_inference_steps=STEPS)
        calls += 1
    return calls * count / (time.perf_counter() - began)


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


def _arriving(client: Client, gaps: Sequence[float]) -> list[float]:
    """Seconds from each arrival to its answer; `gaps` are the seconds between arrivals."""
    found: list[float] = []

    def ask(due: float) -> None:
        client.generate(n=1, num_inference_steps=STEPS)
        found.append(time.perf_counter() - due)

    with ThreadPoolExecutor(64) as pool:
        due = time.perf_counter()
        for gap in gaps:
            due += gap
            time.sleep(max(0.0, due - time.perf_counter()))
            pool.submit(ask, due)
    return found


def _queued(gaps: Sequence[float], service: float) -> list[float]:
    """The same of a queue whose every request takes `service` seconds, one after the other."""
    found, left = [], 0.0
    for gap in gaps:
        left = max(0.0, left - gap) + service
        found.append(left)
    return found


def _spread(seconds: list[float]) -> float:
    return quantile(seconds, 0.99) / quantile(seconds, 0.5)


def _own_share(bundle: Path) -> dict[str, float]:
    engine, port = _null_engine(bundle), free_port()
    direct, served = list[float](), list[float]()
    process = multiprocessing.get_context("spawn").Process(target=serve_null, args=(bundle, port))
    process.start()
    try:
        wait_until_ready(port)
        connection = Connection(port)
        for _ in range(REQUESTS // 10):
            connection.seconds("/v1/generate", ONE)
        for _ in range(REQUESTS):
            direct.append(_timed(lambda: engine.generate(1, num_inference_steps=1)))
            served.append(connection.seconds("/v1/generate", ONE))
        assert connection.status == 200, connection.text
        connection.close()
    finally:
        process.terminate()
        process.join(60)
    own = quantile(direct, 0.5)
    return {
        "null engine alone: p50 ms": 1e3 * own,
        "server over it: p50 ms": 1e3 * (quantile(served, 0.5) - own),
        "server over it: p99 ms": 1e3 * (quantile(served, 0.99) - own),
    }


def _refusals(bundle: Path) -> dict[str, float]:
    with Server(bundle, "--max-queue", "1", "--max-images", "4096") as server:
        # A job that finds the queue empty is always taken; this one takes longer than the rest.
        stop = threading.Event()
        work = threading.Thread(target=_begin_and_leave, args=(server.port, stop))
        work.start()
        time.sleep(1.0)  # it has to be the first, and asking whether it is would be a job, too
        connection = Connection(server.port)
        refused = []
        for _ in range(REQUESTS):
            refused.append(connection.seconds("/v1/generate", ONE))
            assert connection.status == 429, connection.text
        connection.close()
        stop.set()
        work.join()
    return {
        "refused by a full queue: p50 ms": 1e3 * quantile(refused, 0.5),
        "refused by a full queue: p99 ms": 1e3 * quantile(refused, 0.99),
    }


def _begin_and_leave(port: int, stop: threading.Event) -> None:
    with socket.create_connection(("127.0.0.1", port)) as asking:
        asking.sendall(post("/v1/generate", {"n": 4096}))
        stop.wait(60)


def serve_null(bundle: Path, port: int) -> None:
    """A server over networks that answer zeros; the body of a process."""
    from treediffusion.serve.app import make_app
    from treediffusion.serve.listen import listen

    listen(make_app(_null_engine(bundle)), host="127.0.0.1", port=port, drain=1.0)


class _NullBackend:
    """Zeros of the shapes that a bundle's graphs have; everything around the networks is real."""

    sizes = (1, 2, 4, 8)

    def __init__(self, bundle: Bundle) -> None:
        self._graphs = bundle.graphs

    def load(self, roles: Iterable[str]) -> None:
        pass

    def describe(self) -> dict[str, str | int]:
        return {"backend": "null"}

    def run(self, graph: str, feeds: Mapping[str, NDArray]) -> dict[str, NDArray]:
        spec = self._graphs[graph]
        sizes = {
            name: size
            for tensor in spec.inputs
            for name, size in zip(tensor.shape, feeds[tensor.name].shape, strict=True)
        }
        return {
            tensor.name: np.zeros([sizes.get(size, size) for size in tensor.shape], np.float32)
            for tensor in spec.outputs
        }

    def close(self) -> None:
        pass


def _null_engine(bundle: Path) -> Engine:
    opened = Bundle.open(bundle)
    return Engine(opened, _NullBackend(opened))


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def quantile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=1000)[round(1000 * share) - 1]


if __name__ == "__main__":
    main()
