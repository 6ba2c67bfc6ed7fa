"""ONNX Runtime, on the CPU or with its CUDA provider."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ...bundle import Bundle, GraphSpec
from ...errors import BackendUnavailableError, BundleFormatError
from ...optional import require
from .protocol import Array, Loaded, check_threads
from .together import SIZES, Together

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# float32 means float32, and what is chosen by measuring times could differ from run to run.
OPTIONS = {CUDA: {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}}


class OnnxRuntimeBackend:
    """See `Backend`. A graph is loaded when it is first run.

    Args:
        bundle: whose graphs.
        threads: inside an operator; None leaves it to ONNX Runtime. No result depends on it.
        provider: the execution provider, which must be the one that runs.
        graphs: by role, in place of the bundle's for the CPU.
        sizes: numbers of images that a call may have.
        precision: of the graphs, to be told; they decide it.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        provider: str = CPU,
        graphs: Mapping[str, GraphSpec] | None = None,
        sizes: tuple[int, ...] = SIZES,
        precision: str = "fp32",
    ) -> None:
        self._threads = check_threads(threads)
        self._runtime = require("onnxruntime", extra="gpu" if provider == CUDA else "cpu")
        known = self._runtime.get_available_providers()
        if provider not in known:
            raise BackendUnavailableError(
                "provider", got=provider, expected=f"one of {', '.join(known)}",
                hint='"treediffusion[gpu]" has the CUDA provider, "treediffusion[cpu]" has not',
            )  # fmt: skip
        self._graphs = bundle.graphs if graphs is None else graphs
        self._provider, self.sizes, self._precision = provider, sizes, precision
        self._sessions, self._together = Loaded(), Together()

    def load(self, roles: Iterable[str]) -> None:
        """See `Backend`."""
        for role in roles:
            self._sessions.get(role, self._open)

    def describe(self) -> dict[str, str | int]:
        """See `Backend`."""
        version = self._runtime.__version__
        return {
            "backend": f"onnxruntime {version}",
            "device": self._provider,
            "precision": self._precision,
            "bucket": self.sizes[-1],
        }

    def run(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend`."""
        spec, session = self._graphs[graph], self._sessions.get(graph, self._open)
        names = [output.name for output in spec.outputs]

        def call(feeds: Mapping[str, Array]) -> dict[str, Array]:
            results = session.run(names, dict(feeds))
            return {name: np.asarray(result) for name, result in zip(names, results, strict=True)}

        # A fixed size needs no proof: an image never sees another one.
        return call(feeds) if len(self.sizes) == 1 else self._together.run(spec, graph, feeds, call)

    def close(self) -> None:
        """See `Backend`."""
        self._sessions.close()

    def _open(self, graph: str) -> Any:
        file = self._graphs[graph].file
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        provider: Any = self._provider
        if self._provider in OPTIONS:
            options.use_deterministic_compute = True
            provider = (self._provider, OPTIONS[self._provider])
            if hasattr(self._runtime, "preload_dlls"):
                self._runtime.preload_dlls()  # CUDA's libraries, where pip has put them
        try:
            session = self._runtime.InferenceSession(str(file), options, providers=[provider])
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
