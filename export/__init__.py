"""From a checkpoint to a bundle: ONNX graphs, and the proof that they agree.

Reached as ``treediffusion.export``. Modules here import with leading dots only, so that a stray
``import export`` from the checkout fails instead of loading a second copy. Names are loaded when
they are first used, because exporting needs torch and importing this package does not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .. import __version__ as __version__

if TYPE_CHECKING:
    from .write_bundle import EXPORT_STEPS, export_bundle, export_steps

__all__ = ["EXPORT_STEPS", "export_bundle", "export_steps"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".write_bundle", __name__), name)
