"""The pages of docs/ keep what they promise: snippets run, commands parse, links lead somewhere.

No snippet escapes: a block of an unknown kind, or a command of an unknown program, is a failure.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.models import tiny_bundle
from treediffusion import cli
from treediffusion.runtime import Engine
from treediffusion.serve import schemas
from treediffusion.serve.app import make_app

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"^```(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OURS = ("treediffusion", "treediffusion-export")
FOREIGN = {"tritonserver"}
"""Programs whose commands nobody here can check."""


def blocks(kind: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for found, text in BLOCK.findall(page.read_text("utf-8")):
            if found == kind:
                yield page.name, text


def lines() -> Iterator[tuple[str, str]]:
    """Commands, without their comments."""
    for page, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield page, line.partition("  #")[0]


def commands() -> Iterator[tuple[str, str]]:
    """Ours: of blocks, and in the text where they have arguments."""
    yield from (pair for pair in lines() if pair[1].split()[0] in OURS)
    for page in PAGES:
        for line in re.findall(r"`(treediffusion(?:-export)? [^`\n]+)`", page.read_text("utf-8")):
            if len(line.split()) > 2:
                yield page.name, line


def others(program: str) -> list[tuple[str, str]]:
    return [pair for pair in lines() if pair[1].split()[0] == program]


def test_blocks_are_of_kinds_that_are_checked() -> None:
    kinds = {kind for page in PAGES for kind, _ in BLOCK.findall(page.read_text("utf-8"))}
    assert kinds <= {"bash", "python", "{toctree}", "{eval-rst}"}
    fences = sum(len(re.findall(r"^ *(```|~~~)", p.read_text("utf-8"), re.M)) for p in PAGES)
    assert fences == 2 * sum(len(BLOCK.findall(p.read_text("utf-8"))) for p in PAGES)


def test_programs_are_known() -> None:
    unknown = {line for _, line in lines()} - {
        line for program in (*OURS, "pip", "curl", *FOREIGN) for _, line in others(program)
    }
    assert not unknown


@pytest.mark.parametrize(("page", "line"), list(commands()), ids=str)
def test_commands_parse(page: str, line: str) -> None:
    """With their flags, whatever the files they name."""
    program, *words = shlex.split(line)
    name = "export" if program == "treediffusion-export" else words.pop(0)
    if words == ["--help"]:
        assert name in cli.COMMANDS
        return
    cli._parse(cli.COMMANDS[name], words, prog=program)


@pytest.mark.parametrize(("page", "line"), others("pip"), ids=str)
def test_installed_extras_exist(page: str, line: str) -> None:
    *command, package = shlex.split(line)
    found = re.fullmatch(r"treediffusion\[([\w,-]+)\]", package)
    assert command == ["pip", "install"]
    assert found is not None
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(found[1].split(",")) <= set(project["optional-dependencies"])


@pytest.mark.parametrize(("page", "line"), others("curl"), ids=str)
def test_requests_are_of_the_schema(page: str, line: str, rest: Any) -> None:
    words = shlex.split(line)
    (url,) = [word for word in words if word.startswith("localhost:8000/")]
    route = rest.server_schema()["paths"][url.removeprefix("localhost:8000")]
    if "-d" not in words:
        assert "get" in route
        return
    asked = route["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    body = json.loads(words[words.index("-d") + 1])
    getattr(schemas, asked.rpartition("/")[2]).model_validate(body)


@pytest.fixture
def rest(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What fills the tables of rest.md."""
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("rest_reference")


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


def test_rest_reference_has_every_route_and_field(rest: Any) -> None:
    schema = rest.server_schema()
    page = rest.filled((DOCS / "rest.md").read_text("utf-8"), schema)
    parts = dict(
        part.partition("`\n")[::2] for part in re.split(r"^#+ `?", page, flags=re.MULTILINE)
    )
    models = schema["components"]["schemas"]
    described = set()
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            part = parts[f"{method.upper()} {path}"]
            if "requestBody" in route:
                content = route["requestBody"]["content"]["application/json"]
                name = content["schema"]["$ref"].rpartition("/")[2]
                described.add(name)
                check_fields(part, models[name])
            assert all(f"| {status} |" in page for status in set(route["responses"]) - {"200"})
    for name in set(models) - described:
        check_fields(parts[name], models[name])


def check_fields(part: str, model: dict[str, Any]) -> None:
    """Rows of fields: all of them, with what they are and, of a request, what they begin as."""
    rows = {row.split("`")[1]: row for row in part.splitlines() if row.startswith("| `")}
    assert list(rows) == list(model["properties"])
    for field, facts in model["properties"].items():
        assert " ".join(facts.get("description", "").split()) in rows[field]
        for bound in ("minimum", "maximum", "minItems", "maxItems", "maxLength", "pattern"):
            if bound in facts:
                assert str(facts[bound]).removesuffix(".0") in rows[field]
        for choice in facts.get("enum", ()):
            assert f"`{choice}`" in rows[field]
        if "default" in facts and "| Default |" in part:
            assert f"`{json.dumps(facts['default'])}`" in rows[field]


def test_rest_reference_has_the_errors_and_the_state(rest: Any, tmp_path: Path) -> None:
    """What is written by hand, because the schema does not say it."""
    page = (DOCS / "rest.md").read_text("utf-8")
    kinds = re.findall(r"^\| `(\w+)` \| [\d, ]+ \|", page, re.MULTILINE)
    fault = rest.server_schema()["components"]["schemas"]["Fault"]
    assert kinds == fault["properties"]["type"]["enum"]
    with Engine.load(tiny_bundle(), threads=1) as engine:
        app = make_app(engine, explorer=tmp_path / "explorer.html")
        routes = {route.path for route in app.routes} - set(rest.server_schema()["paths"])
        app.state.service.scheduler.drain(5)
    assert set(re.findall(r"`GET (/[\w./]+)`", page)) == routes


def test_python_reference_has_the_public_names() -> None:
    """Each with its module, from which it can be had."""
    page = (DOCS / "python.md").read_text("utf-8")
    listed = set(re.findall(r"^\.\. auto(?:class|function|data):: ([\w.]+)", page, re.MULTILINE))
    modules = re.findall(r"^\.\. automodule:: ([\w.]+)\n   :members: (.+)", page, re.MULTILINE)
    listed |= {f"{module}.{name}" for module, names in modules for name in names.split(", ")}
    for name in listed:
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last), name
    assert {name.rpartition(".")[2] for name in listed} >= {
        "TreeVAEClusterer", "TreeVAE", "TreeTopology", "export_bundle", "DiffusionSchedule",
        "Client", "CallOptions", "SamplingOptions", "BackendOptions",
    }  # fmt: skip
    for module in ("treediffusion", "treediffusion.runtime"):
        for name in set(importlib.import_module(module).__all__) - {"__version__"}:
            assert re.search(rf"\.{name}\b", page), f"{module}.{name}"


@pytest.mark.slow
def test_pages_build_without_warnings(tmp_path: Path) -> None:
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason="comes with the extra docs: make docs")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    ended = subprocess.run(
        [*command, str(DOCS), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
