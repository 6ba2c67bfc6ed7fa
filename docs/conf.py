"""Sphinx: `make docs` builds these pages into build/docs, and fails on a warning."""

import re
import sys
from pathlib import Path
from typing import Any

from treediffusion import __version__, config

sys.path.insert(0, str(Path(__file__).parent))  # for rest_reference

project = "treediffusion"
author = "The treediffusion authors"
copyright = author
version = release = __version__
extensions = [
    "myst_parser",
    "rest_reference",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {
    name: name
    for name in (
        "ArrayLike",
        "Bytes",
        "Float64",
        "FloatArray",
        "Floats",
        "Int64",
        "IntArray",
        "Words",
    )
}
default_role = "literal"  # what a docstring has in backticks is code
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # a field has no entry of its own besides the class's list of them
napoleon_attr_annotations = False
smartquotes = False  # a name in quotes can be copied
html_theme = "furo"
html_title = "treediffusion"
exclude_patterns = ["_build"]

SECTION = re.compile(r"[A-Z][a-z]+:$")
ARRAY = re.compile(r"~numpy\.ndarray\[~?tuple\[.*?\], ~numpy\.dtype\[~numpy\.(\w+)\]\]")


def setup(app: Any) -> None:
    """What Sphinx calls; docstrings become its markup before napoleon reads their sections."""
    app.connect("autodoc-process-docstring", _as_markup, priority=400)
    app.connect("autodoc-process-signature", _shorten)


def _as_markup(app: Any, what: str, name: str, it: Any, options: Any, lines: list[str]) -> None:
    """A docstring's indented blocks are shown as they are, and its letters are letters."""
    if what == "data" and it.__doc__ == type(it).__doc__:
        lines.clear()  # what is said of every tuple
    # In the first line of a property, napoleon takes what is before a colon for its type; an empty
    # comment has no colon.
    found = ["..", ""] if what in ("attribute", "property") else []
    in_section = in_block = False
    for line in lines:
        if line.strip() and not line.startswith(" "):
            in_section, in_block = bool(SECTION.match(line)), False
        elif line.strip() and not in_section and not in_block:
            in_block = True
            found += ["::", ""]
        found.append(line if in_block else _escaped(line))
    lines[:] = [*found, *_default(name)]


def _default(name: str) -> list[str]:
    """Of a setting, which its docstring need not say again."""
    owner, _, field = name.rpartition(".")
    of = getattr(config, owner.removeprefix(f"{config.__name__}."), None)
    facts = getattr(of, "model_fields", {}).get(field)
    if facts is None or facts.is_required() or facts.default_factory is not None:
        return []
    return ["", f"Default: ``{facts.default!r}``"]


def _escaped(line: str) -> str:
    """Outside of backticks: `*` is no emphasis, `tree_` no link, and `N.` no item of a list."""
    parts = line.split("`")
    parts[::2] = [re.sub(r"\*|(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
    return re.sub(r"(^|: )(\w)\.$", r"\1\2\.", "`".join(parts))


def _shorten(
    app: Any,
    what: str,
    name: str,
    it: Any,
    options: Any,
    signature: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    """Arrays by their element's type, as in the code."""
    return _arrays(signature), _arrays(returned)


def _arrays(text: str | None) -> str | None:
    return None if text is None else ARRAY.sub(r"NDArray[\1]", text)
