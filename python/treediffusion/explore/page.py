"""From an atlas to one HTML file: style, scripts, pictures and numbers inside, nothing outside.

The file's policy (`Content-Security-Policy`) allows the one style and the one script by their
hashes, pictures from within, and requests to its own origin alone; from a file share there is none.
What is text in the atlas is data in the page: a title or a class name is never read as HTML.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from importlib.resources import files
from pathlib import Path

import numpy as np

from ..files import write_text
from ..topology import TreeTopology
from ..tree_text import tree_text
from .atlas import Atlas
from .sprites import pack

SCRIPTS = ("base", "layout", "tree", "card", "compare", "find", "live", "save", "main")
"""Parts of the one script, in this order."""


def render(atlas: Atlas) -> str:
    """The page's HTML."""
    style = _part("style.css")
    script = "\n".join(_part(f"{name}.js") for name in SCRIPTS)
    content = {
        "policy": _policy(style, script),
        "title": html.escape(atlas.title or "a tree of images"),
        "style": style,
        "text": html.escape(_as_text(atlas)),
        "atlas": _json(atlas.to_dict() | {"sprite": pack(atlas.tiles).to_dict()}),
        "script": script,
    }
    # One pass: what is put in is not searched for further places.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: content[place[1]], _part("index.html"))


def write_page(atlas: Atlas, path: str | Path) -> Path:
    """Writes the page; the file is either complete or not there.

    Args:
        atlas: what to show.
        path: the HTML file.

    Raises:
        CheckpointError: the system refused.
    """
    path = Path(path)
    write_text(path, render(atlas))
    return path


def _part(name: str) -> str:
    return (files(__package__) / "page" / name).read_text("utf-8")


def _policy(style: str, script: str) -> str:
    rules = {
        "default-src": "'none'",
        "style-src": _hash(style),
        "script-src": _hash(script),
        "img-src": "data: blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _json(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _as_text(atlas: Atlas) -> str:
    """The tree for readers without scripts; nodes left out have no line."""
    share = {node.name: node.share for node in atlas.nodes}
    names = {name[:k] for name in share for k in range(1, len(name) + 1)}
    tree = TreeTopology.of(names)
    lines = tree_text(tree, np.array([share.get(name, 0.0) for name in tree.names])).splitlines()
    order = sorted(names)
    return "\n".join(line for name, line in zip(order, lines, strict=True) if name in share)
