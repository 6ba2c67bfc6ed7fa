"""CUDA graphs of a stream that is known by its handle alone, by ctypes.

pycuda has streams and no graphs. The driver does not mind who made a stream, so its own functions
record and replay one. Every argument is given with its C type.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

from ...errors import BackendUnavailableError

THREAD_LOCAL = 1  # CUstreamCaptureMode: what other threads do is none of the graph's affair


class GraphHandles:
    """Records and replays.

    Args:
        library: in the place of the driver's own, for tests.

    Raises:
        BackendUnavailableError: there is no driver.
    """

    def __init__(self, library: Any = None) -> None:
        self._library = _load() if library is None else library

    def capture(self, stream: int, work: Callable[[], None]) -> ctypes.c_void_p:
        """What a function puts into a stream, as an executable graph."""
        handle = ctypes.c_void_p(stream)
        recorded, graph = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", handle, ctypes.c_int(THREAD_LOCAL))
        try:
            work()
        except BaseException:
            self._library.cuStreamEndCapture(handle, ctypes.byref(recorded))
            raise
        self._call("cuStreamEndCapture", handle, ctypes.byref(recorded))
        flags = ctypes.c_ulonglong(0)
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(graph), recorded, flags)
        self._call("cuGraphDestroy", recorded)
        return graph

    def replay(self, graph: ctypes.c_void_p, stream: int) -> None:
        """Starts a graph in a stream."""
        self._call("cuGraphLaunch", graph, ctypes.c_void_p(stream))

    def free(self, graph: ctypes.c_void_p) -> None:
        """Gives a graph back."""
        self._call("cuGraphExecDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise BackendUnavailableError(name, got=f"CUDA error {code}", expected="CUDA_SUCCESS")


def _load() -> Any:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError as fault:
        got, hint = str(fault), "install the driver of an NVIDIA GPU"
        raise BackendUnavailableError(name, got=got, expected="a driver", hint=hint) from fault
