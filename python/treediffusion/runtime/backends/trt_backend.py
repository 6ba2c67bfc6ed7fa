"""TensorRT or TensorRT-RTX as a back end.

An engine is for one number of images, the `bucket`, and one kind of GPU. It is taken from a folder
or built into it; see `engine_cache`. Rows of a call never mix, and every call has the same shape
and kernels, so an image does not depend on what the others in its call are.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...bundle import GraphSpec
from ...errors import BackendUnavailableError
from ...files import write_atomic
from ..device import Device, StepLoop, open_device
from .engine_cache import EngineCache, EngineKey, log
from .protocol import Array, Loaded
from .trt_build import BUILD, TABLE_ROWS, build_engine
from .trt_engine import LoadedEngine
from .trt_library import load_library


def default_folder() -> Path:
    """Where engines are kept: `treediffusion/engines` in the user's cache."""
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "treediffusion" / "engines"


class TensorRtBackend:
    """See `Backend`. An engine is loaded, and built if need be, when it is first run.

    Args:
        graphs: by role, exported for the library.
        library: 'tensorrt' or 'tensorrt-rtx'.
        bucket: images in a call.
        precision: of the graphs, to be told; they decide it.
        device: where, or through which package; it is closed with the back end.
        cache: of engines; one in `default_folder` if not given.

    Raises:
        DependencyError: the library or cuda-bindings is not installed.
        BackendUnavailableError: there is no driver, or no device.
    """

    def __init__(
        self,
        graphs: Mapping[str, GraphSpec],
        *,
        library: str = "tensorrt",
        bucket: int = 1,
        precision: str = "",
        device: Device | str = "bindings",
        cache: EngineCache | None = None,
    ) -> None:
        self._library = load_library(library)
        # First the driver: a runtime made without one takes the process down when it ends.
        self._device = open_device(device) if isinstance(device, str) else device
        self._cache = cache or EngineCache(default_folder())
        self._graphs, self.bucket, self._precision = graphs, bucket, precision
        self.sizes: tuple[int, ...] = (bucket,)
        with self._device.current():
            self._runtime = self._library.module.Runtime(self._library.logger)
        self._engines, self._loops = Loaded(), Loaded()

    def load(self, roles: Iterable[str]) -> None:
        """See `Backend`."""
        for role in roles:
            self._engines.get(role, self._open)

    def describe(self) -> dict[str, str | int]:
        """See `Backend`."""
        return {
            "backend": str(self._library),
            "device": _device_name(self._device),
            "precision": self._precision,
            "bucket": self.bucket,
        }

    def run(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend`."""
        with self._engines.lock:
            engine: LoadedEngine = self._engines.get(graph, self._open)
            with self._device.current():
                return engine.run(feeds)

    def step_loop(self) -> StepLoop:
        """The sampling loop on the device.

        Raises:
            BackendUnavailableError: the library cannot be captured in a graph.
        """
        loop: StepLoop = self._loops.get("step", self._make_loop)
        return loop

    def close(self) -> None:
        """See `Backend`."""
        with self._engines.lock:
            self._loops.close()
            if self._engines.close():  # the library's objects before the memory that they use
                self._runtime = None
                self._device.close()

    def _make_loop(self, role: str) -> StepLoop:
        with self._engines.lock:
            engine: LoadedEngine = self._engines.get(role, self._open)
            with self._device.current():
                engine.check_capturable()
            return StepLoop(engine, guard=self._engines.lock)

    def _open(self, role: str) -> LoadedEngine:
        with self._device.current():
            key = self._key(role)
            engine = self._deserialized(role, key)
            jit = self._folder_file(f"{role}-{key.digest}", "jit")
            before = jit.read_bytes() if self._library.portable and jit.is_file() else b""
            loaded = LoadedEngine(
                self._library, engine, self._graphs[role],
                bucket=self.bucket, device=self._device, jit=before,
            )  # fmt: skip
            after = loaded.jit
            if after and after != before and self._cache.build:
                write_atomic(jit, lambda stream: stream.write(after))
            return loaded

    def _deserialized(self, role: str, key: EngineKey) -> Any:
        """The library's engine; a file that it does not take is built again, once."""

        def make() -> bytes:
            return self._built(role)

        plan, is_new = self._cache.get(role, key, make)
        engine, reason = self._try(plan)
        if engine is None and not is_new:
            plan = self._cache.renew(role, key, make, reason=reason)
            engine, reason = self._try(plan)
        if engine is None:
            raise BackendUnavailableError(
                f"engine of {role}", got=reason,
                expected=f"one that {self._library} can run on {_device_name(self._device)}",
                hint=self._advice(),
            )  # fmt: skip
        return engine

    def _try(self, plan: bytes) -> tuple[Any, str]:
        """An engine, or None and the reason."""
        if self._library.portable:
            kinds = self._library.module.EngineValidity
            header = plan[: self._runtime.engine_header_size]
            validity, diagnostics = self._runtime.get_engine_validity(header)
            if validity == kinds.INVALID:
                why = self._library.complaint()
                return None, f"not for this GPU (diagnostics {diagnostics}; {why})"
            if validity == kinds.SUBOPTIMAL:
                log.warning("%s runs on %s, and not at its best", self._library, self._device.name)
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            return None, f"{self._library} does not load it: {self._library.complaint()}"
        return engine, ""

    def _advice(self) -> str:
        if self._library.portable:
            return "TensorRT-RTX is for RTX GPUs; take the back end 'tensorrt' on a data centre's"
        return "see treediffusion doctor for the versions in use"

    def _built(self, role: str) -> bytes:
        """Builds an engine, and keeps what the library learned by it."""
        major_minor = "".join(map(str, self._device.capability))
        name = f"{self._library.name}-{self._library.version}-{self._device.name}-sm{major_minor}"
        file = self._folder_file(name, "timing")
        timing = file.read_bytes() if not self._library.portable and file.is_file() else b""
        built = build_engine(self._library, self._graphs[role], bucket=self.bucket, timing=timing)
        if built.timing:
            write_atomic(file, lambda stream: stream.write(built.timing))
        return built.plan

    def _folder_file(self, name: str, suffix: str) -> Path:
        return self._cache.folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.{suffix}"

    def _key(self, role: str) -> EngineKey:
        return EngineKey(
            graph=hashlib.sha256(self._graphs[role].file.read_bytes()).hexdigest(),
            library=str(self._library),
            device="any" if self._library.portable else _device_name(self._device),
            bucket=self.bucket,
            table_rows=TABLE_ROWS,
            build=BUILD,
        )


def _device_name(device: Device) -> str:
    major, minor = device.capability
    return f"{device.name}, compute capability {major}.{minor}"
