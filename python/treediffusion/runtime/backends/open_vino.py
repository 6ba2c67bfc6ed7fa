"""OpenVINO on the CPU, in float32 or bfloat16.

Only the denoiser's step is computed in bfloat16 where that is asked for: it is nearly all of the
work, while the tree's graphs decide which leaf an image is in, and that decision would change.
OpenVINO by itself takes bfloat16 wherever the processor has it; here the precision is always said.

A network is compiled for one number of images, in a third of a second and with weights of its own.
So each size is compiled when it is first used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ...bundle import GraphSpec
from ...errors import BackendUnavailableError, BundleFormatError, ConfigError
from ...optional import require
from .protocol import Array, Loaded, check_threads
from .together import SIZES, Together

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
HALF_ROLES = ("step",)


class OpenVinoBackend:
    """See `Backend`. A graph is compiled when a call first has its number of images.

    Args:
        graphs: by role, float32.
        threads: of a call; None leaves it to OpenVINO.
        precision: one of `PRECISIONS`; the denoiser's.

    Raises:
        DependencyError: OpenVINO is not installed.
        ConfigError: not a number of threads, or no such precision.
        BackendUnavailableError: the processor does not have the precision.
    """

    sizes: tuple[int, ...] = (*SIZES, 16)

    def __init__(
        self,
        graphs: Mapping[str, GraphSpec],
        *,
        threads: int | None = None,
        precision: str = "fp32",
    ) -> None:
        self._threads = check_threads(threads)
        if precision not in PRECISIONS:
            expected = f"one of {', '.join(PRECISIONS)}"
            raise ConfigError("precision", got=repr(precision), expected=expected)
        self._library = require("openvino", extra="openvino")
        self._core = self._library.Core()
        self._device = str(self._core.get_property("CPU", "FULL_DEVICE_NAME"))
        has = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and "BF16" not in has:
            got = f"{self._device} with {', '.join(has)}"
            raise BackendUnavailableError("precision", got=got, expected="a CPU with BF16")
        self._graphs, self._precision = graphs, precision
        self._requests, self._together = Loaded(), Together()

    def load(self, roles: Iterable[str]) -> None:
        """See `Backend`."""
        for role in roles:
            self._requests.get(_key(role, 1), self._open)

    def describe(self) -> dict[str, str | int]:
        """See `Backend`."""
        version = str(self._library.__version__).partition("-")[0]
        return {
            "backend": f"openvino {version}",
            "device": self._device,
            "precision": self._precision,
            "bucket": self.sizes[-1],
        }

    def run(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend`."""
        spec = self._graphs[graph]
        inputs = [tensor.name for tensor in spec.inputs if tensor.shape[0] == "B"]

        def call(feeds: Mapping[str, Array]) -> dict[str, Array]:
            request = self._requests.get(_key(graph, len(feeds[inputs[0]])), self._open)
            request.infer(dict(feeds), share_inputs=True)
            names = [output.name for output in spec.outputs]
            return {name: np.array(request.get_tensor(name).data) for name in names}

        with self._requests.lock:  # a request is one caller's at a time
            return self._together.run(spec, graph, feeds, call)

    def close(self) -> None:
        """See `Backend`."""
        self._requests.close()

    def _open(self, key: str) -> Any:
        graph, _, size = key.partition("/")
        spec = self._graphs[graph]
        half = self._precision if graph in HALF_ROLES else "fp32"
        settings: dict[str, str | int] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": PRECISIONS[half],
        }
        if self._threads is not None:
            settings["INFERENCE_NUM_THREADS"] = self._threads
        sizes: dict[int | str, int] = {"B": int(size), "S": -1}
        shapes = {
            tensor.name: [sizes.get(side, side) for side in tensor.shape] for tensor in spec.inputs
        }
        try:
            model = self._core.read_model(str(spec.file))
            model.reshape(shapes)
            compiled = self._core.compile_model(model, "CPU", settings)
        except RuntimeError as fault:
            raise BundleFormatError(
                str(spec.file), got=str(fault), expected="a graph that OpenVINO can load",
                hint="export the model again, or upgrade openvino",
            ) from fault  # fmt: skip
        used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if used != PRECISIONS[half]:
            raise BackendUnavailableError(
                "precision", got=f"{used} for {graph}", expected=PRECISIONS[half]
            )
        return compiled.create_infer_request()


def _key(graph: str, images: int) -> str:
    return f"{graph}/{images}"
