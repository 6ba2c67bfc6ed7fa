"""Trees of clusters from unlabelled images, and a diffusion model that draws each of them.

Names are loaded when they are first used: importing this package imports no third-party package,
so that ``treediffusion --help`` answers at once and the runtime never meets torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import Config, load_config, load_preset, preset_names
    from .errors import TreeDiffusionError
    from .estimator import TreeVAEClusterer
    from .topology import TreeTopology

__version__ = "0.1.0"

__all__ = [
    "Config",
    "TreeDiffusionError",
    "TreeTopology",
    "TreeVAEClusterer",
    "__version__",
    "load_config",
    "load_preset",
    "preset_names",
]

_HOME = {
    "Config": "config",
    "TreeDiffusionError": "errors",
    "TreeTopology": "topology",
    "TreeVAEClusterer": "estimator",
    "load_config": "config",
    "load_preset": "config",
    "preset_names": "config",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
