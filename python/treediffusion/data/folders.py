"""Where data sets lie that have no path of their own: originals, and what was packed of them."""

from __future__ import annotations

import os
from pathlib import Path


def originals_folder() -> Path:
    """Where recipes look for originals and download them to: `TREEDIFFUSION_DATA`, or the cache."""
    given = os.environ.get("TREEDIFFUSION_DATA")
    return Path(given).expanduser() if given else _cache()


def packed_folder() -> Path:
    """Where packed sets are kept: `TREEDIFFUSION_CACHE`, or `packed` in the cache."""
    given = os.environ.get("TREEDIFFUSION_CACHE")
    return Path(given).expanduser() if given else _cache() / "packed"


def _cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "treediffusion"
