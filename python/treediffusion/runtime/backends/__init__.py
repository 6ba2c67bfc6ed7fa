"""What runs the graphs of a bundle: a protocol, and the libraries behind it.

A back end says how many images one call takes, its `bucket`. The engine always fills exactly that
many, because matrix products of different heights add in different orders: only calls of one shape
give an image the same bits in any company. On a CPU the bucket is 1. Measured there on one core,
calls of 16 images need 30 % less time per image for 8x8 digits and 7 % less for 28x28, while a
bucket of 16 would make a single image wait for 15 empty places; and inside larger calls even the
place of an image in it can change its last bit. A GPU costs about the same for one image as for
many, so there the bucket is one of the numbers that the bundle was exported for.
"""

from .choose import BACKENDS, BackendOptions, open_any, open_backend
from .engine_cache import EngineCache
from .onnx_runtime import OnnxRuntimeBackend
from .open_vino import OpenVinoBackend
from .protocol import Array, Backend
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
