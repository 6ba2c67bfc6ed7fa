"""The page behind a server: drawing with previews, assigning, and what goes wrong on the way."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from support.atlases import LEAVES, bars, small_atlas
from support.browser import Visit
from support.models import tiny_bundle
from treediffusion.explore import Amounts, RealImages, collect, write_page
from treediffusion.runtime import Engine


class StandIn(BaseHTTPRequestHandler):
    """The requests of explore/README.md, answered without a model."""

    page: ClassVar[bytes] = b""
    asked: ClassVar[list[tuple[str, Any]]] = []
    key: ClassVar[str | None] = None
    leaf_names: ClassVar[tuple[str, ...]] = LEAVES
    fault: ClassVar[str | None] = None
    hold: ClassVar[threading.Event] = threading.Event()

    def log_message(self, *parts: Any) -> None: ...

    def _send(self, kind: str, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send("application/json", json.dumps(value).encode(), status)

    def do_GET(self) -> None:
        if self.path == "/explore":
            return self._send("text/html; charset=utf-8", self.page)
        if self.key and self.headers.get("Authorization") != f"Bearer {self.key}":
            return self._json({"error": {"message": "a key is needed"}}, 401)
        return self._json({"leaf_names": list(self.leaf_names)})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, body))
        if self.path == "/v1/assign":
            return self._json({"leaf_prob": [[0.1, 0.1, 0.7, 0.1]]})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        path = ["r", "r0", "r01"]
        for k in range(body["n"]):
            preview = {"index": k, "step": 1, "steps": 4, "image": png(90)}
            self._event("preview", preview)
        self.hold.wait(5)
        if self.fault:
            return self._event("error", {"message": self.fault})
        for k in range(body["n"]):
            facts = {"index": k, "image": png(200 + k), "seed": body["seed"], "offset": k}
            facts |= {"leaf": "r01", "leaf_prob": 0.8, "path": path}
            self._event("image", facts)
        return self._event("done", {})

    def _event(self, name: str, data: Any) -> None:
        self.wfile.write(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()


def png(level: int) -> str:
    stream = io.BytesIO()
    Image.new("L", (8, 8), level).save(stream, "png")
    return base64.b64encode(stream.getvalue()).decode()


@contextmanager
def serving(file: Path, **settings: Any) -> Iterator[tuple[str, type[StandIn]]]:
    hold = threading.Event()
    hold.set()
    fresh = {"page": file.read_bytes(), "asked": [], "hold": hold}
    handler = type("Handler", (StandIn,), fresh | settings)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        hold.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def test_a_served_page_draws_with_previews(visit: Visit, file: Path) -> None:
    hold = threading.Event()
    with serving(file, hold=hold) as (origin, server):
        page = visit.open(f"{origin}/explore#node=r01")
        page.wait_for_selector("#live:not([hidden])")
        page.fill("#many", "3")
        page.fill("#seed", "12")
        page.press("#seed", "Tab")
        page.click("#generate")
        page.wait_for_selector("#previews .coming >> nth=2")
        hold.set()
        page.wait_for_selector("#samples .sample >> nth=2")
        page.wait_for_selector("#generate")
        steps = small_atlas().steps
        asked = {"node": "r01", "n": 3, "seed": 12, "num_inference_steps": steps, "stream": True}
        assert server.asked == [("/v1/generate", asked)]
        assert page.evaluate("location.hash") == "#node=r01&seed=12"
        assert "seed 12" in page.inner_text("#panel-node")
        page.click("#samples .sample >> nth=1")
        assert "seed 12, image 1" in page.inner_text(".inspector")
        assert "80 %" in page.inner_text(".inspector")
        assert visit.outside(origin) == []


def test_a_served_permalink_draws_its_seed_at_once(visit: Visit, file: Path) -> None:
    with serving(file) as (origin, server):
        visit.open(f"{origin}/explore#node=r1&seed=9")
        visit.wait_to_hear("drawn")
        assert [body["seed"] for _, body in server.asked] == [9]
        assert server.asked[0][1]["node"] == "r1"


def test_a_server_that_fails_says_why(visit: Visit, file: Path) -> None:
    with serving(file, fault="the queue is full") as (origin, _):
        page = visit.open(f"{origin}/explore")
        page.click("#generate")
        visit.wait_to_hear("queue is full")
        assert page.locator("#samples .sample").count() > 0


def test_a_served_page_asks_the_model_where_an_image_goes(visit: Visit, file: Path) -> None:
    with serving(file) as (origin, server):
        page = visit.open(f"{origin}/explore")
        page.wait_for_selector("#live:not([hidden])")
        page.click("#tab-find")
        page.click(".examples .sample >> nth=0")
        page.wait_for_selector("#answer:not([hidden])")
        assert "The model's answer" in page.inner_text("#answer")
        assert visit.selected() == LEAVES[2]
        ((path, body),) = server.asked
        assert path == "/v1/assign"
        with Image.open(io.BytesIO(base64.b64decode(body["images"][0]))) as sent:
            assert sent.size == (8, 8)


def test_a_server_with_another_tree_is_not_asked(visit: Visit, file: Path) -> None:
    with serving(file, leaf_names=("r0", "r1")) as (origin, server):
        page = visit.open(f"{origin}/explore")
        page.wait_for_load_state("networkidle")
        assert page.locator("#live").is_hidden()
        assert not server.asked


def test_a_key_is_asked_for_and_used(visit: Visit, file: Path) -> None:
    with serving(file, key="open sesame") as (origin, _):
        page = visit.open(f"{origin}/explore")
        page.fill(".key input", "open sesame")
        page.press(".key input", "Enter")
        page.wait_for_selector("#live:not([hidden])")
    # The browser itself reports the refusal that made the page ask.
    assert all("401" in fault for fault in visit.faults)
    visit.faults.clear()


# ---- the server itself ------------------------------------------------------------------------


@contextmanager
def really_serving(engine: Engine, page: Path) -> Iterator[str]:
    uvicorn = pytest.importorskip("uvicorn", reason="the server's packages are not installed")
    make_app = pytest.importorskip("treediffusion.serve.app").make_app
    config = uvicorn.Config(make_app(engine, explorer=page), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    origin = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    while json.loads(urlopen_quietly(f"{origin}/health/ready")) != {"ready": True}:
        time.sleep(0.1)
    try:
        yield origin
    finally:
        server.should_exit = True
        thread.join(20)


def urlopen_quietly(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as fault:
        return bytes(fault.read())


def test_with_the_server_itself(visit: Visit, tmp_path: Path) -> None:
    """What the page shows is what the engine draws and says, to the pixel and the leaf."""
    small = Amounts(leaf=2, inner=2, roots=1, members=4)
    with Engine.load(tiny_bundle(), threads=1) as engine:
        atlas = collect(engine, RealImages(bars(40)[0]), amounts=small)
        made = engine.generate(3, node="r00", seed=5, num_inference_steps=4)
        image = bars(40)[0][7:8]
        leaf = engine.assign(image).argmax()
    file = write_page(atlas, tmp_path / "explorer.html")
    with really_serving(Engine.load(tiny_bundle(), threads=1), file) as origin:
        page = visit.open(f"{origin}/explore#node=r00")
        page.wait_for_selector("#live:not([hidden])")
        for field, value in (("many", 3), ("seed", 5), ("steps", 4)):
            page.fill(f"#{field}", str(value))
            page.press(f"#{field}", "Tab")
        page.click("#generate")
        visit.wait_to_hear("3 images of r00 drawn")
        shown = page.locator("#samples .sample img:first-child").all()
        for picture, pixels, number in zip(shown, made.images, made.leaf, strict=True):
            content = picture.get_attribute("src").partition(",")[2]
            with Image.open(io.BytesIO(base64.b64decode(content))) as found:
                assert np.array_equal(np.asarray(found), pixels[0])
            assert made.leaf_names[number] in picture.get_attribute("alt")
        page.click("#tab-find")
        page.set_input_files("#file", saved(image[0, 0], tmp_path))
        page.wait_for_selector("#answer:not([hidden])")
        assert "The model's answer" in page.inner_text("#answer")
        assert visit.selected() == atlas.leaves[int(leaf)]
        assert visit.outside(origin) == []


def saved(pixels: np.ndarray, folder: Path) -> str:
    Image.fromarray(pixels).save(folder / "image.png")
    return str(folder / "image.png")
