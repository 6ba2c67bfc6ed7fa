"""What a client, or a dying thread, may do to a server: typed errors, and nothing kept."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import struct
import threading
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient
from support.models import tiny_bundle
from treediffusion.runtime import Engine
from treediffusion.serve import listen, work
from treediffusion.serve.app import make_app
from treediffusion.serve.limits import Limits
from treediffusion.serve.schemas import GenerateRequest
from treediffusion.serve.service import HELD_PREVIEWS

LONG = {"n": 64, "num_inference_steps": 200, "solver": "heun"}
MIB = 2**20


@asynccontextmanager
async def running(**limits: Any) -> AsyncIterator[Any]:
    """An application on this event loop, warm."""
    app = make_app(Engine.load(tiny_bundle(), threads=1), limits=Limits(**limits), drain=5)
    async with app.router.lifespan_context(app):
        while not app.state.service.ready:
            await asyncio.sleep(0.01)
        yield app


async def ask(
    app: Any, body: Any, path: str = "/v1/generate", *, reads: bool = True, ends: bool = True
) -> list[Any]:
    """What an application sends to a client: one that may stop reading, or sending."""
    parts = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": not ends}]
    sent: list[Any] = []

    async def receive() -> Any:
        if parts:
            return parts.pop()
        return await asyncio.Future()

    async def send(message: Any) -> None:
        sent.append(message)
        if not reads:
            await asyncio.Future()

    headers = [(b"content-type", b"application/json")]
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(),
        "headers": headers, "query_string": b"", "http_version": "1.1", "scheme": "http",
        "root_path": "",
    }  # fmt: skip
    await app(scope, receive, send)
    return sent


def png(width: int, height: int, *chunks: tuple[bytes, bytes], colour: int = 0) -> str:
    """A file that says it is so large, with little behind it."""
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    pixels = zlib.compress(bytes(min(height, 8) * (min(width, 8) + 1)))
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", head), *chunks, (b"IDAT", pixels), (b"IEND", b"")):
        crc = struct.pack(">I", binascii.crc32(kind + data))
        file += struct.pack(">I", len(data)) + kind + data + crc
    return base64.b64encode(file).decode()


def bomb(mib: int) -> bytes:
    """Zeros that are a thousandth of themselves."""
    return zlib.compress(bytes(mib * MIB), 9)


BOMBS = {
    "pixels": lambda: png(50_000, 50_000),
    "a side": lambda: png(2**31 - 1, 1),
    "text": lambda: png(8, 8, (b"zTXt", b"a\0\0" + bomb(64))),
    "texts": lambda: png(8, 8, *[(b"zTXt", b"a\0\0" + bomb(1)[:-4])] * 80),
    "profile": lambda: png(8, 8, (b"iCCP", b"a\0\0" + bomb(64))),
    "foreign text": lambda: png(8, 8, (b"iTXt", b"a\0\1\0\0\0" + bomb(64))),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_image_bombs_stay_small(client: TestClient, kind: str) -> None:
    """Refused; or taken, where what is packed so tightly was not unpacked."""
    file = BOMBS[kind]()
    tracemalloc.start()
    try:
        answer = client.post("/v1/assign", json={"images": [file]})
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.status_code in (200, 422)
    assert answer.status_code == 422 or kind not in ("pixels", "a side")
    assert most < 16 * MIB


def test_pixels_are_counted_over_a_request(serving: Callable[..., TestClient]) -> None:
    """A hundred images that may be sent alone are a bomb together."""
    few = serving(limits=Limits(max_pixels=3 * 64))
    assert few.post("/v1/assign", json={"images": [png(8, 8)] * 3}).status_code == 200
    answer = few.post("/v1/assign", json={"images": [png(8, 8)] * 4})
    assert answer.status_code == 422
    assert answer.json()["error"]["name"] == "images: 3"


@pytest.mark.parametrize(
    "body",
    ["[" * 100_000, '{"n":' * 100_000, '{"guidance_scale": ' + "[" * 50_000 + "]" * 50_000 + "}"],
)
def test_deep_json_is_refused(client: TestClient, body: str) -> None:
    headers = {"content-type": "application/json"}
    answer = client.post("/v1/generate", content=body, headers=headers)
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["type"] == "invalid_request"
    assert len(answer.content) < 1000


def test_unknown_fields_are_named(client: TestClient) -> None:
    for path, body in (("generate", {"backend": "/tmp/x.so"}), ("sheet", {"__class__": "x"})):
        answer = client.post(f"/v1/{path}", json=body)
        assert answer.status_code == 422
        assert answer.json()["error"]["name"] in body


def test_every_key_is_compared_in_constant_time(
    serving: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("a-key-of-the-tests", "another-key-of-the-tests")
    locked, compared = serving(keys=keys), []

    def compare(given: bytes, key: bytes) -> bool:
        compared.append(key.decode())
        return given == key

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for given in (keys[0], "wrong", "a-key-of-the-test"):
        locked.get("/v1/tree", headers={"authorization": f"Bearer {given}"})
        assert tuple(compared) == keys
        compared.clear()


def test_a_full_queue_has_a_status_for_every_route() -> None:
    """Streams and assignments, too: their answers have not begun."""

    async def main() -> None:
        async with running(max_queue=100) as app:
            service = app.state.service
            long = asyncio.create_task(ask(app, LONG))
            while service.scheduler.waiting < 100:
                await asyncio.sleep(0)
            images = {"images": [png(8, 8)]}
            for body, path in (
                ({}, "/v1/generate"), ({"stream": True}, "/v1/generate"), ({}, "/v1/sheet"),
                (images, "/v1/assign"),
            ):  # fmt: skip
                start = (await ask(app, body, path))[0]
                assert start["status"] == 429, path
                assert int(dict(start["headers"])[b"retry-after"]) >= 1
            long.cancel()

    asyncio.run(main())


def test_a_body_that_stops_is_answered() -> None:
    async def main() -> None:
        async with running(body_timeout=0.05) as app:
            start, end = await ask(app, {}, ends=False)
            assert start["status"] == 408
            assert json.loads(end["body"])["error"]["type"] == "timeout"

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_a_reader_that_stops_is_let_go(stream: bool) -> None:
    """And what was drawn for it is dropped."""

    async def main() -> None:
        async with running(write_timeout=0.05) as app:
            wanted = LONG if stream else {"n": 1, "num_inference_steps": 1}
            sent = await asyncio.wait_for(ask(app, wanted | {"stream": stream}, reads=False), 20)
            assert [message["type"] for message in sent] == ["http.response.start"]
            async with asyncio.timeout(2):
                while app.state.service.scheduler.waiting:
                    await asyncio.sleep(0.01)
            assert 'rejected_total{reason="slow"} 1.0' in app.state.service.metrics.text().decode()

    asyncio.run(main())


def test_a_slow_reader_misses_previews_and_no_image() -> None:
    async def main() -> None:
        async with running() as app:
            service = app.state.service
            body = GenerateRequest(n=2, num_inference_steps=200)
            wanted = work.generate(service.scheduler.engine, body, service.limits)
            request: Any = type("Request", (), {"headers": {}, "url": type("", (), {"path": "/"})})
            events = service.streamed(request, wanted, None, 1)
            await anext(events)
            while service.scheduler.waiting:
                await asyncio.sleep(0.01)
            told = [event.split(b"\n")[0].decode() async for event in events]
            assert told.count("event: preview") <= 2 * HELD_PREVIEWS
            assert told[-3:] == ["event: image", "event: image", "event: done"]

    asyncio.run(main())


@pytest.fixture
def dying() -> Iterator[tuple[TestClient, Any]]:
    """A server whose engine thread ends in the middle of a step, when it is told to."""
    app = make_app(Engine.load(tiny_bundle(), threads=1), drain=5)
    with TestClient(app, raise_server_exceptions=False) as client:
        while client.get("/health/ready").status_code != 200:
            pass
        yield client, app.state.service.scheduler


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_dead_engine_thread(dying: tuple[TestClient, Any]) -> None:
    """Whoever is underway, whoever waits for a turn between steps, and whoever comes later."""
    client, scheduler = dying
    held, ending = threading.Event(), threading.Event()

    def die() -> None:
        held.set()
        ending.wait(30)
        raise SystemExit  # which no `except Exception` catches, and no hook reports

    scheduler.call(die)
    assert held.wait(30)
    with ThreadPoolExecutor(3) as pool:
        image = pool.submit(client.post, "/v1/generate", json={})
        stream = pool.submit(client.post, "/v1/generate", json={"stream": True})
        assign = pool.submit(client.post, "/v1/assign", json={"images": [png(8, 8)]})
        while len(scheduler._inbox) < 2 or not scheduler._calls:
            assert not image.done()
        ending.set()
        for answer in (image.result(30), assign.result(30)):
            assert answer.status_code == 503
            assert answer.json()["error"]["type"] == "unavailable"
        assert stream.result(30).text.startswith("event: error")
    scheduler._thread.join(30)
    assert scheduler.waiting == 0
    assert client.post("/v1/generate", json={}).status_code == 503
    assert client.get("/health/live").status_code == 503
    assert client.get("/health/ready").status_code == 503


async def hello(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})


@pytest.mark.parametrize("head", [b"", b"GET /health", b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /"])
def test_half_a_head_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    """Nor is the rest of a second one, on a connection that has been answered."""
    monkeypatch.setattr(listen, "HEAD_S", 0.05)

    async def main() -> bytes:
        config = uvicorn.Config(hello, http=listen.Impatient, lifespan="off", log_level="error")
        config.load()
        state = uvicorn.server.ServerState()
        made = await asyncio.get_running_loop().create_server(
            lambda: listen.Impatient(config=config, server_state=state, app_state={}),
            "127.0.0.1", 0,
        )  # fmt: skip
        async with made:
            reader, writer = await asyncio.open_connection(*made.sockets[0].getsockname())
            writer.write(head)
            try:
                return await asyncio.wait_for(reader.read(), 10)
            except ConnectionResetError:
                return b""
            finally:
                writer.close()

    assert asyncio.run(main()).startswith(b"HTTP/1.1 204" if b"Host" in head else b"")
