"""What runs the graphs of a bundle: a protocol, and the libraries behind it.

A back end says how many images its calls may have, its `sizes`, and the engine fills exactly one of
these, because matrix products of different heights may add in different orders. A GPU costs about
the same for one image as for many, so there the size is one, of those that the bundle was exported
for, and what fills the empty places changes no row. On a CPU it would be a waste: there back ends
have several sizes, and `together` makes sure that an image has the same bits in all of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .choose import BACKENDS, BackendOptions, open_any, open_backend
from .onnx_runtime import OnnxRuntimeBackend
from .protocol import Array, Backend

if TYPE_CHECKING:
    from .engine_cache import EngineCache
    from .open_vino import OpenVinoBackend
    from .trt_backend import TensorRtBackend

__all__ = [
    "BACKENDS",
    "Array",
    "Backend",
    "BackendOptions",
    "EngineCache",
    "OnnxRuntimeBackend",
    "OpenVinoBackend",
    "TensorRtBackend",
    "open_any",
    "open_backend",
]

_LATER = {
    "EngineCache": "engine_cache",
    "OpenVinoBackend": "open_vino",
    "TensorRtBackend": "trt_backend",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
