"""What runs the graphs of a bundle: a protocol, and ONNX Runtime behind it.

A back end says how many images one call takes, its `bucket`. The engine always fills exactly that
many, because matrix products of different heights add in different orders: only calls of one shape
give an image the same bits in any company. On a CPU the bucket is 1. Measured there on one core,
calls of 16 images need 30 % less time per image for 8x8 digits and 7 % less for 28x28, while a
bucket of 16 would make a single image wait for 15 empty places; and inside larger calls even the
place of an image in it can change its last bit.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import BackendUnavailableError, BundleFormatError, ConfigError
from ..optional import require

Array = NDArray[Any]
BACKENDS = ("onnxruntime",)


class Backend(Protocol):
    """Runs graphs by role. Safe to call from many threads."""

    bucket: int
    """Images in a call."""

    def run(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, in new arrays, for inputs by name."""
        ...

    def close(self) -> None:
        """Gives everything back; a later `run` is an error."""
        ...


def open_backend(name: str, bundle: Bundle, *, threads: int | None) -> Backend:
    """A back end by name.

    Raises:
        BackendUnavailableError: no such back end, or it cannot run here.
        DependencyError: its package is not installed.
        ConfigError: not a number of threads.
    """
    if name not in BACKENDS:
        raise BackendUnavailableError(
            "backend", got=repr(name), expected=f"one of {', '.join(BACKENDS)}"
        )
    return OnnxRuntimeBackend(bundle, threads=threads)


class OnnxRuntimeBackend:
    """ONNX Runtime on the CPU, in float32. A graph is loaded when it is first run.

    Args:
        bundle: whose graphs.
        threads: inside an operator; None leaves it to ONNX Runtime. No result depends on it.
        provider: the execution provider, which must be the one that runs.
    """

    bucket = 1

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        provider: str = "CPUExecutionProvider",
    ) -> None:
        if threads is not None and (
            isinstance(threads, bool) or not isinstance(threads, int) or threads < 1
        ):
            raise ConfigError("threads", got=repr(threads), expected="None, or at least 1")
        self._runtime = require("onnxruntime", extra="cpu")
        known = self._runtime.get_available_providers()
        if provider not in known:
            raise BackendUnavailableError(
                "provider", got=provider, expected=f"one of {', '.join(known)}",
                hint='"treediffusion[gpu]" has the CUDA provider, "treediffusion[cpu]" has not',
            )  # fmt: skip
        self._bundle, self._threads, self._provider = bundle, threads, provider
        self._sessions: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._closed = False

    def run(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend`."""
        names = [spec.name for spec in self._bundle.graphs[graph].outputs]
        results = self._session(graph).run(names, dict(feeds))
        return {name: np.asarray(result) for name, result in zip(names, results, strict=True)}

    def close(self) -> None:
        """See `Backend`."""
        with self._lock:
            self._closed = True
            self._sessions.clear()

    def _session(self, graph: str) -> Any:
        with self._lock:
            if self._closed:
                raise BackendUnavailableError(
                    "engine", got="a call after close()", expected="an open engine"
                )
            if graph not in self._sessions:
                self._sessions[graph] = self._load(graph)
            return self._sessions[graph]

    def _load(self, graph: str) -> Any:
        file = self._bundle.graphs[graph].file
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        try:
            session = self._runtime.InferenceSession(str(file), options, providers=[self._provider])
        except Exception as fault:  # ONNX Runtime's own classes share no base but this one
            raise BundleFormatError(
                str(file), got=str(fault), expected="a graph that ONNX Runtime can load",
                hint="export the model again, or upgrade onnxruntime",
            ) from fault  # fmt: skip
        used = session.get_providers()[0]
        if used != self._provider:
            raise BackendUnavailableError(
                "provider", got=f"{used} in place of {self._provider}", expected=self._provider,
                hint="its libraries may be missing; onnxruntime's own log tells which",
            )  # fmt: skip
        return session
