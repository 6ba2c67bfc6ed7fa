"""Sphinx: `make docs` builds these pages into build/docs, and fails on a warning."""

from treediffusion import __version__

project = "treediffusion"
author = "The treediffusion authors"
copyright = author
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "treediffusion"
exclude_patterns = ["_build"]
