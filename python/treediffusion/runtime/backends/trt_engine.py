"""An engine on a device: its memory, its bound tensors, and one call of it.

All memory is allocated when the engine is loaded. A call copies its inputs into pinned arrays,
starts everything in the device's stream, waits once, and copies the outputs out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...bundle import GraphSpec
from ...errors import BackendUnavailableError, ShapeError
from ..device import Buffer, Device
from .protocol import Array
from .trt_build import fixed_shape
from .trt_library import Library


class LoadedEngine:
    """See the module. Used by one thread at a time, inside `device.current()`.

    Args:
        library: that built it.
        engine: of the library.
        spec: of the graph.
        bucket: images in a call.
        device: where it runs.
        jit: an older runtime cache, where the library has one.

    Attributes:
        buffers: of inputs and outputs, by name.
        staging: pinned arrays of the same.
        jit: the runtime cache after loading.
    """

    def __init__(
        self,
        library: Library,
        engine: Any,
        spec: GraphSpec,
        *,
        bucket: int,
        device: Device,
        jit: bytes = b"",
    ) -> None:
        self.device, self._library, self._spec, self._engine = device, library, spec, engine
        self._context, self._runtime_cache = self._make_context(jit)
        if self._context is None:
            raise self._refused("no execution context")
        workspace = device.allocate(engine.device_memory_size_v2)
        self._context.set_device_memory(workspace.address, workspace.nbytes)
        tensors = (*spec.inputs, *spec.outputs)
        self.staging: Mapping[str, Array] = {
            tensor.name: device.pinned(fixed_shape(tensor, bucket), tensor.dtype)
            for tensor in tensors
        }
        self.buffers: Mapping[str, Buffer] = {
            name: device.allocate(array.nbytes) for name, array in self.staging.items()
        }
        for tensor in spec.inputs:
            shape = fixed_shape(tensor, bucket)
            if not self._context.set_input_shape(tensor.name, shape):
                raise self._refused(f"{tensor.name} of shape {shape}")
        for name, buffer in self.buffers.items():
            if not self._context.set_tensor_address(name, buffer.address):
                raise self._refused(f"the memory of {name}")

    @property
    def jit(self) -> bytes:
        """What the next process would otherwise compile again; empty where there is no such."""
        if self._runtime_cache is None:
            return b""
        return bytes(memoryview(self._runtime_cache.serialize()))

    def enqueue(self) -> None:
        """Starts one evaluation of what the buffers hold.

        Raises:
            BackendUnavailableError: the library refused.
        """
        if not self._context.execute_async_v3(self.device.stream):
            raise self._refused("a call")

    def check_capturable(self) -> None:
        """Whether a call can be part of a graph.

        Raises:
            BackendUnavailableError: it cannot.
        """
        if not self._library.portable:
            return
        if not self._context.is_stream_capturable(self.device.stream):
            raise self._refused("a call within a captured stream")

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, for inputs by name; tables may be shorter than the engine's.

        Raises:
            ShapeError: an input of another size.
        """
        for tensor in self._spec.inputs:
            given, staging = feeds[tensor.name], self.staging[tensor.name]
            rows = len(given)
            whole = tensor.shape[0] == "S" and rows <= len(staging)
            if given.shape[1:] != staging.shape[1:] or not (whole or rows == len(staging)):
                expected = str(list(staging.shape))
                raise ShapeError(tensor.name, got=list(given.shape), expected=expected)
            staging[:rows] = given
            self.device.upload(self.buffers[tensor.name], staging[:rows])
        try:
            self.enqueue()
            for tensor in self._spec.outputs:
                self.device.download(self.staging[tensor.name], self.buffers[tensor.name])
        finally:
            self.device.wait()
        return {tensor.name: self.staging[tensor.name].copy() for tensor in self._spec.outputs}

    def _make_context(self, jit: bytes) -> tuple[Any, Any]:
        """A context that takes its memory from us, and its runtime cache."""
        trt, engine = self._library.module, self._engine
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        cache = None
        if self._library.portable:
            # All at once, so that nothing compiles behind a captured stream or a measured call.
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = eager
            config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
            cache = config.create_runtime_cache()
            if jit:
                cache.deserialize(jit)  # says no to one that does not fit, and is then empty
            config.set_runtime_cache(cache)
        return engine.create_execution_context(config), cache

    def _refused(self, what: str) -> BackendUnavailableError:
        return BackendUnavailableError(
            f"{self._spec.file.name} on {self.device.name}",
            got=f"{self._library} refuses {what}: {self._library.complaint()}",
            expected="an engine that runs",
        )
