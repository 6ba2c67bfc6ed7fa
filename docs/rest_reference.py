"""Sphinx: the tables of rest.md, written from the server's own OpenAPI schema as the page is built.

So what the page says of routes and fields is what the server checks, and cannot go stale.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from treediffusion.serve.app import make_app

PAGE = "rest"
REQUESTS, ANSWERS, STATUSES = "<!-- requests -->", "<!-- answers -->", "<!-- statuses -->"
"""What the page has in the place of the tables."""
MODELS = "#/components/schemas/"
LEAST = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}"}
SIZES = {"array": ("minItems", "maxItems"), "string": ("minLength", "maxLength")}
ITEMS = {"array": "items", "string": "characters"}

Schema = dict[str, Any]


def setup(app: Any) -> dict[str, Any]:
    """What Sphinx calls."""
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True}


def server_schema() -> Schema:
    """The OpenAPI schema of a server with nothing to draw with, which it does not need for that."""
    engine: Any = SimpleNamespace(info=dict, close=lambda: None)
    app = make_app(engine)
    app.state.service.scheduler.drain(0)
    schema: Schema = app.openapi()
    return schema


def filled(page: str, schema: Schema) -> str:
    """The page with its tables.

    Args:
        page: MyST, with the three marks.
        schema: of `server_schema`.
    """
    for mark, lines in (
        (REQUESTS, requests(schema)), (ANSWERS, answers(schema)), (STATUSES, statuses(schema)),
    ):  # fmt: skip
        assert page.count(mark) == 1, f"{mark} is to be in the page once"
        page = page.replace(mark, "\n".join(lines))
    return page


def requests(schema: Schema) -> Iterator[str]:
    """A heading and a table of fields for each route."""
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            yield f"### `{method.upper()} {path}`\n"
            yield f"{route['description']}\n"
            body = route.get("requestBody")
            if body is not None:
                yield from _fields(schema, _name(_json(body["content"])), asked=True)
            good = route["responses"]["200"]["content"]
            others = [f"`{kind}`" for kind in good if kind != "application/json"]
            answer = f"Gives {_link(_name(_json(good)))}"
            yield f"{answer}, or {' or '.join(others)}.\n" if others else f"{answer}.\n"


def answers(schema: Schema) -> Iterator[str]:
    """A heading and a table of fields for each kind of answer."""
    models = schema["components"]["schemas"]
    for name, model in models.items():
        if not name.endswith("Request"):
            yield f"### `{name}`\n"
            yield f"{model['description']}\n"
            yield from _fields(schema, name, asked=False)


def statuses(schema: Schema) -> Iterator[str]:
    """A table of what is not 200, on any route."""
    found = {
        status: answer["description"]
        for methods in schema["paths"].values()
        for route in methods.values()
        for status, answer in route["responses"].items()
        if status != "200"
    }
    yield from ("| Status | when |", "|---|---|")
    for status, text in sorted(found.items()):
        yield f"| {status} | {text} |"


def _fill(app: Any, name: str, source: list[str]) -> None:
    if name == PAGE:
        source[0] = filled(source[0], server_schema())


def _fields(schema: Schema, name: str, *, asked: bool) -> Iterator[str]:
    model = schema["components"]["schemas"][name]
    yield "| Field | Type | Default | What |" if asked else "| Field | Type | What |"
    yield "|---|---|---|---|" if asked else "|---|---|---|"
    for field, facts in model["properties"].items():
        default = "required" if field in model.get("required", ()) else "none"
        if "default" in facts:
            default = f"`{json.dumps(facts['default'])}`"
        cells = [f"`{field}`", _type(facts), *[default] * asked, facts.get("description", "")]
        yield f"| {' | '.join(' '.join(cell.split()) for cell in cells)} |"
    yield ""


def _type(facts: Schema) -> str:
    """A type in words, with its bounds."""
    if "$ref" in facts:
        return _link(_name(facts))
    if "anyOf" in facts:
        return " or ".join(_type(each) for each in facts["anyOf"] if each.get("type") != "null")
    if "enum" in facts:
        return "one of " + ", ".join(f"`{value}`" for value in facts["enum"])
    kind = facts["type"]
    words = f"array of {_type(facts['items'])}" if kind == "array" else kind
    bounds = [text.format(_number(facts[key])) for key, text in LEAST.items() if key in facts]
    sizes = [facts.get(key) for key in SIZES.get(kind, ())]
    if any(size is not None for size in sizes):
        least, most = sizes
        between = f"{least} to {most}" if least is not None else f"at most {most}"
        bounds.append(f"{between} {ITEMS[kind]}")
    if "pattern" in facts:
        bounds.append(f"`{facts['pattern']}`")
    return f"{words} ({', '.join(bounds)})" if bounds else words


def _json(content: Schema) -> Schema:
    schema: Schema = content["application/json"]["schema"]
    return schema


def _name(facts: Schema) -> str:
    """Of the model that is referred to."""
    name: str = facts["$ref"].removeprefix(MODELS)
    return name


def _link(name: str) -> str:
    return f"[`{name}`](#{name.lower()})"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)
