"""An hour's requests to one server, as fast as it takes them: does it keep anything of them?

    python bench/soak.py BUNDLE --json bench/results/soak.json

14,400 requests, four for each second of an hour, of every route: images, sheets, assignments,
redrawings, ways, streams; by clients that leave, ask for nonsense, or send half a request. Watched
are the server's memory, open files and threads. It fails, with status 1, where the line through
memory over requests, but for the first third, climbs by more than 16 MiB in an hour's requests, or
where in the end more than 4 files or threads are open above what the first third had. Needs /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from load import Server
from machine import describe
from treediffusion.client import Client, ServerError
from treediffusion.files import write_json

HOUR = 14_400
"""Requests: four a second."""
SAMPLES = 120
CLIENTS = 4
MOST_MIB = 16.0
MOST_HANDLES = 4


@dataclass(frozen=True)
class Sample:
    """The server after so many requests."""

    requests: int
    seconds: float
    rss_mib: float
    files: int
    threads: int


@dataclass(frozen=True)
class Soaked:
    """What was seen.

    Attributes:
        samples: in order.
        kinds: how many requests of each kind were made.
        climb_mib: of memory, in an hour's requests.
        files: more than at the end of the first third.
        threads: likewise.
    """

    samples: list[Sample]
    kinds: dict[str, int]
    climb_mib: float
    files: int
    threads: int

    @property
    def kept(self) -> bool:
        """Whether the server keeps what it should not."""
        return self.climb_mib > MOST_MIB or max(self.files, self.threads) > MOST_HANDLES


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=HOUR)
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    found = soak(told.bundle, told.requests)
    for sample in found.samples[:: max(1, len(found.samples) // 12)]:
        print(
            f"{sample.requests:6} requests {sample.seconds:7.1f} s {sample.rss_mib:8.1f} MiB"
            f" {sample.files:4} files {sample.threads:4} threads"
        )
    print(", ".join(f"{count} {kind}" for kind, count in sorted(found.kinds.items())))
    print(
        f"in an hour's requests: {found.climb_mib:+.2f} MiB, at most {MOST_MIB:g};"
        f" {found.files:+} files and {found.threads:+} threads, at most {MOST_HANDLES}"
    )
    if told.json is not None:
        limits = {"climb_mib": MOST_MIB, "handles": MOST_HANDLES}
        write_json(
            told.json, {"machine": describe(threads=1), "limits": limits, "found": asdict(found)}
        )
    return int(found.kept)


def soak(bundle: Path, requests: int) -> Soaked:
    """Asks, and watches.

    Args:
        bundle: what is served.
        requests: how many; at least a few times `SAMPLES`, for a line through the samples.
    """
    samples: list[Sample] = []
    kinds: Counter[str] = Counter()
    with Server(bundle) as server, ThreadPoolExecutor(CLIENTS) as pool:
        asker = Asker(server)
        began, done = time.perf_counter(), 0
        samples.append(_sample(server.process.pid, done, began))
        for end in np.linspace(0, requests, SAMPLES + 1)[1:].astype(int):
            kinds.update(pool.map(asker.ask, range(done, end)))
            done = int(end)
            samples.append(_sample(server.process.pid, done, began))
        # What clients left behind is dropped at the next step; then nothing may be open.
        time.sleep(1.0)
        samples.append(_sample(server.process.pid, done, began))
    first = len(samples) // 3
    counts, memory = (
        np.array([getattr(sample, name) for sample in samples[first:]])
        for name in ("requests", "rss_mib")
    )
    return Soaked(
        samples,
        dict(kinds),
        float(np.polyfit(counts, memory, 1)[0] * HOUR),
        *(
            getattr(samples[-1], name) - max(getattr(s, name) for s in samples[: first + 1])
            for name in ("files", "threads")
        ),
    )


class Asker:
    """Makes requests of every kind; the same numbers make the same ones.

    Args:
        server: who is asked.
    """

    def __init__(self, server: Server) -> None:
        self._port = server.port
        self._client = Client(f"http://127.0.0.1:{server.port}", retries=100)
        self._leaves: list[str] = self._client.tree()["leaf_names"]
        self._picture = self._client.generate(n=1, num_inference_steps=1)[0].png
        self._kinds: list[Callable[[random.Random], None]] = [
            self._generate, self._generate, self._generate, self._stream, self._sheet,
            self._assign, self._reconstruct, self._interpolate, self._leave, self._leave_stream,
            self._half, self._mistake, self._large,
        ]  # fmt: skip

    def ask(self, number: int) -> str:
        """Makes one request, and gives its kind.

        Raises:
            AssertionError: the answer is not the one that such a request has.
        """
        draw = random.Random(number)
        kind = draw.choice(self._kinds)
        kind(draw)
        return kind.__name__.strip("_")

    def _generate(self, draw: random.Random) -> None:
        solver = draw.choice(["ddim", "ddpm", "heun", "unipc"])
        count, steps = draw.randint(1, 6), draw.randint(1, 8)
        images = self._client.generate(n=count, num_inference_steps=steps, solver=solver)
        assert len(images) == count

    def _stream(self, draw: random.Random) -> None:
        told = list(self._client.stream(n=2, num_inference_steps=4, preview_every=1))
        assert told[-1][0] == "done"

    def _sheet(self, draw: random.Random) -> None:
        assert len(self._client.sheet(n=1, num_inference_steps=2)) == len(self._leaves)

    def _assign(self, draw: random.Random) -> None:
        count = draw.randint(1, 8)
        assert len(self._client.assign([self._picture] * count)) == count

    def _reconstruct(self, draw: random.Random) -> None:
        leaf = draw.choice(["most_probable", "sampled", "sibling", "all", *self._leaves])
        assert self._client.reconstruct(self._picture, leaf=leaf, num_inference_steps=2)

    def _interpolate(self, draw: random.Random) -> None:
        way = draw.choices(self._leaves, k=2)
        assert len(self._client.interpolate(*way, frames=3, num_inference_steps=2)) == 3

    def _leave(self, draw: random.Random) -> None:
        with self._begun({"n": 8, "num_inference_steps": 200}):
            time.sleep(0.02)

    def _leave_stream(self, draw: random.Random) -> None:
        with self._begun({"n": 8, "num_inference_steps": 200, "stream": True}) as asking:
            asking.recv(1000)

    def _half(self, draw: random.Random) -> None:
        with socket.create_connection(("127.0.0.1", self._port)) as asking:
            asking.sendall(b"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")

    def _mistake(self, draw: random.Random) -> None:
        wrong: dict[str, Any] = draw.choice([{"n": 0}, {"node": "r2"}, {"m": 1}, {"n": "many"}])
        status = 0
        try:
            self._client.generate(**wrong)
        except ServerError as refused:
            status = refused.status
        assert status == 422, (status, wrong)

    def _large(self, draw: random.Random) -> None:
        with socket.create_connection(("127.0.0.1", self._port)) as asking:
            asking.sendall(
                b"POST /v1/assign HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n"
            )
            assert b" 413 " in asking.recv(100)

    def _begun(self, request: dict[str, Any]) -> contextlib.closing[socket.socket]:
        """A connection on which something was asked for, that is closed before it is done."""
        body = json.dumps(request)
        head = f"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        asking = socket.create_connection(("127.0.0.1", self._port))
        asking.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
        return contextlib.closing(asking)


def _sample(process: int, requests: int, began: float) -> Sample:
    folder = Path(f"/proc/{process}")
    status = dict(
        line.split(":", 1) for line in (folder / "status").read_text("utf-8").splitlines()
    )
    return Sample(
        requests,
        round(time.perf_counter() - began, 3),
        int(status["VmRSS"].split()[0]) / 1024,
        len(list((folder / "fd").iterdir())),
        int(status["Threads"]),
    )


if __name__ == "__main__":
    sys.exit(main())
