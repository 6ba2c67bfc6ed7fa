"""Figures as files: the same figure is the same bytes, whatever the day and the settings.

A PNG carries no date, an SVG neither date nor random names, and its letters are outlines. Images
lie in an SVG as they are, one by one, and are enlarged without smoothing by whoever shows it.
"""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import BinaryIO

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ...errors import ConfigError
from ...files import write_atomic

KINDS = (".png", ".svg")
SVG = {
    "svg.hashsalt": "treediffusion",
    "svg.fonttype": "path",
    "svg.image_inline": True,
    "svg.id": None,
    "image.composite_image": False,
    "path.simplify": False,
}
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_SETTINGS = threading.Lock()


def save(figure: Figure, path: str | Path) -> tuple[Path, ...]:
    """Writes a figure; each file is either complete or not there.

    Args:
        figure: any of this package's.
        path: a name that ends in .png or .svg, or without an ending, for both.

    Returns:
        The files.

    Raises:
        ConfigError: another ending.
        CheckpointError: a file cannot be written.
    """
    path = Path(path)
    if path.suffix and path.suffix not in KINDS:
        # A dot in a name without an ending would make a file of no known kind.
        raise ConfigError("path", got=str(path), expected="a name that ends in .png or .svg")
    paths = (path,) if path.suffix else tuple(path.with_name(path.name + kind) for kind in KINDS)
    for file in paths:
        write_atomic(file, partial(_write, figure, file.suffix))
    return paths


def _write(figure: Figure, kind: str, stream: BinaryIO) -> None:
    dpi = figure.dpi
    try:
        if kind == ".png":
            # Unlike savefig, this asks no global setting about margins or resolution.
            FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})  # type: ignore[no-untyped-call]
        else:
            # The SVG writer has no arguments for these, so they are global for as long as it takes.
            with _SETTINGS, mpl.rc_context(SVG):  # type: ignore[arg-type]
                FigureCanvasSVG(figure).print_svg(stream, metadata=NO_METADATA)  # type: ignore[no-untyped-call]
    finally:
        # The SVG writer leaves its own resolution behind.
        figure.set_dpi(dpi)
        FigureCanvasAgg(figure)
