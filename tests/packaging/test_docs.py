"""The pages of docs/ keep what they promise: snippets run, commands parse, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.models import tiny_bundle
from treediffusion import cli

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(kind: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for found, text in BLOCK.findall(page.read_text("utf-8")):
            if found == kind:
                yield page.name, text


def commands() -> Iterator[tuple[str, str]]:
    for page, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith(("treediffusion ", "treediffusion-export ")):
                yield page, line.partition("  #")[0]


@pytest.mark.parametrize(("page", "line"), list(commands()), ids=str)
def test_commands_parse(page: str, line: str) -> None:
    """With their flags, whatever the files they name."""
    program, *words = shlex.split(line)
    name = "export" if program == "treediffusion-export" else words.pop(0)
    if words == ["--help"]:
        assert name in cli.COMMANDS
        return
    cli._parse(cli.COMMANDS[name], words, prog=program)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the pages' bundles lie."""
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    for place in ("bundle", "runs/demo/bundle"):
        (tmp_path / place).symlink_to(tiny_bundle(), target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Answers(BaseHTTPRequestHandler):
    """A server for the client's snippet: one image, whatever is asked."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        image = (
            '{"index":0,"image":"iVBO","leaf":"r0","leaf_prob":1,"path":["r"],"seed":7,"offset":0}'
        )
        body = f'{{"data": [{image}]}}'.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *given: Any) -> None: ...


@pytest.mark.parametrize("page", sorted({page for page, _ in blocks("python")}))
def test_snippets_run(page: str, folder: Path) -> None:
    """In the order of the page, where a later one may use what an earlier one made."""
    text = "".join(text for name, text in blocks("python") if name == page)
    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    names: dict[str, Any] = {"__name__": "snippet"}
    try:
        exec(compile(text.replace(":8000", f":{server.server_port}"), page, "exec"), names)
    finally:
        server.shutdown()
    if "app" in names:
        from starlette.testclient import TestClient

        with TestClient(names["app"]) as client:
            answer = client.get("/image/r0")
            assert answer.headers["content-type"] == "image/png"
            assert client.get("/image/nowhere").status_code == 422


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_pages(page: Path) -> None:
    text = page.read_text("utf-8")
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert all((DOCS / link).is_file() for link in links), links


def test_every_page_is_in_the_contents() -> None:
    listed = (DOCS / "index.md").read_text("utf-8").split("```")[1].split()
    assert {page.stem for page in PAGES} - {"index"} <= set(listed)
