"""The client asks again where that may help, and only there."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from treediffusion import client as module
from treediffusion.client import Client, ServerError

OURS = json.dumps({"error": {"type": "internal", "message": "an internal error", "name": None}})
TREE = json.dumps({"leaf_names": ["r0", "r1"]})


class Server(ThreadingHTTPServer):
    """Gives one answer after the other: a status and a text, or what breaks the connection."""

    answers: list[tuple[int, str] | str]
    asked: int = 0


class Answers(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        answer = self.server.answers[self.server.asked]
        self.server.asked += 1
        if answer == "close":
            return
        cut = answer == "cut"
        status, text = (200, TREE) if isinstance(answer, str) else answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text[:5].encode() if cut else text.encode())

    def log_message(self, *given: Any) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "PAUSE_S", 0.001)
    server = Server(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def of(server: Server, retries: int = 3) -> Client:
    return Client(f"http://127.0.0.1:{server.server_port}", retries=retries, timeout=10)


@pytest.mark.parametrize(
    "fault",
    ["close", "cut", (500, "Internal Server Error"), (502, ""), (503, OURS), (503, "no replica")],
    ids=str,
)
def test_a_passing_fault_is_not_the_callers(server: Server, fault: Any) -> None:
    server.answers = [fault, fault, (200, TREE)]
    assert of(server).tree()["leaf_names"] == ["r0", "r1"]
    assert server.asked == 3


@pytest.mark.parametrize("status", [401, 422, 500, 504])
def test_an_answer_of_the_server_itself_stands(server: Server, status: int) -> None:
    server.answers = [(status, OURS)]
    with pytest.raises(ServerError, match="an internal error") as refused:
        of(server).tree()
    assert refused.value.status == status
    assert server.asked == 1


def test_patience_ends(server: Server) -> None:
    server.answers = [(502, "bad gateway")] * 2 + ["close"] * 2
    with pytest.raises(ServerError, match="502"):
        of(server, retries=1).tree()
    with pytest.raises(ConnectionError):
        of(server, retries=1).tree()
    assert server.asked == 4


def test_nobody_there(server: Server) -> None:
    server.server_close()
    with pytest.raises(OSError, match="refused"):
        of(server, retries=1).tree()
