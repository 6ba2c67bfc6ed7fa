"""The device through NVIDIA's own Python bindings of the driver, in the primary context.

The primary context is the one that CUDA's runtime, TensorRT and PyTorch use by themselves, so that
this shares it with whatever else of these is in the process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ...errors import BackendUnavailableError
from ...optional import require
from .protocol import Argument, Array, Buffer, fits


class BindingsDevice:
    """See `Device`.

    Args:
        number: which of the visible devices.
        driver: the module `cuda.bindings.driver`, or what stands for it in a test.

    Raises:
        DependencyError: cuda-bindings is not installed.
        BackendUnavailableError: there is no driver, or no such device.
    """

    def __init__(self, number: int = 0, *, driver: Any = None) -> None:
        if driver is None:
            driver = require("cuda.bindings.driver", extra="tensorrt")
        self._driver = driver
        self._release: list[Callable[[], Any]] = []
        self._init()
        device = self._call("cuDeviceGet", number)
        self.name = self._call("cuDeviceGetName", 128, device).split(b"\0")[0].decode()
        kinds = self._driver.CUdevice_attribute
        major, minor = (
            self._call("cuDeviceGetAttribute", kind, device)
            for kind in (
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        self.capability: tuple[int, int] = (major, minor)
        self._context = self._call("cuDevicePrimaryCtxRetain", device)
        self._device = device
        with self.current():
            # Non-blocking: the default stream, which others use, would wait for it and it for them.
            apart = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
            self._stream = self._call("cuStreamCreate", int(apart))
        self._release.append(lambda: self._call("cuStreamDestroy", self._stream))
        self.stream = int(self._stream)

    def _init(self) -> None:
        try:
            self._call("cuInit", 0)
        except BackendUnavailableError:
            raise
        except RuntimeError as fault:  # the bindings' own, where they find no library of the driver
            raise BackendUnavailableError(
                "device", got=str(fault), expected="a driver",
                hint="install the driver of an NVIDIA GPU",
            ) from fault  # fmt: skip

    def _call(self, name: str, *arguments: Any) -> Any:
        """The result of a driver function, without its code.

        Raises:
            BackendUnavailableError: the code is not zero.
        """
        code, *results = getattr(self._driver, name)(*arguments)
        if int(code) != 0:
            raise BackendUnavailableError(
                name, got=f"{getattr(code, 'name', 'error')} ({int(code)})", expected="CUDA_SUCCESS"
            )
        return results[0] if results else None

    @contextmanager
    def current(self) -> Iterator[None]:
        """See `Device`."""
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def allocate(self, nbytes: int) -> Buffer:
        """See `Device`."""
        pointer = self._call("cuMemAlloc", max(nbytes, 1))
        self._release.append(lambda: self._call("cuMemFree", pointer))
        return Buffer(int(pointer), nbytes)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """See `Device`."""
        kind = np.dtype(dtype)
        nbytes = int(np.prod(shape)) * kind.itemsize
        address = int(self._call("cuMemHostAlloc", max(nbytes, 1), 0))
        self._release.append(lambda: self._call("cuMemFreeHost", address))
        memory = (ctypes.c_char * nbytes).from_address(address)
        array: Array = np.ndarray(shape, kind, buffer=memory)  # type: ignore[arg-type]
        array[...] = 0
        return array

    def upload(self, to: Buffer, host: Array) -> None:
        """See `Device`."""
        fits(to, host.nbytes)
        assert host.flags.c_contiguous
        self._call("cuMemcpyHtoDAsync", to.address, host.ctypes.data, host.nbytes, self._stream)

    def download(self, host: Array, source: Buffer) -> None:
        """See `Device`."""
        fits(source, host.nbytes)
        assert host.flags.c_contiguous
        self._call("cuMemcpyDtoHAsync", host.ctypes.data, source.address, host.nbytes, self._stream)

    def copy(self, to: Buffer, source: Buffer) -> None:
        """See `Device`."""
        fits(to, source.nbytes)
        self._call("cuMemcpyDtoDAsync", to.address, source.address, source.nbytes, self._stream)

    def clear(self, buffer: Buffer) -> None:
        """See `Device`."""
        self._call("cuMemsetD8Async", buffer.address, 0, buffer.nbytes, self._stream)

    def load(self, image: bytes, entry: str) -> Any:
        """See `Device`."""
        # PTX ends with a zero byte; machine code knows its own length.
        module = self._call("cuModuleLoadData", image + b"\0")
        self._release.append(lambda: self._call("cuModuleUnload", module))
        return self._call("cuModuleGetFunction", module, entry.encode("ascii"))

    def launch(
        self, kernel: Any, *, blocks: int, threads: int, arguments: Sequence[Argument]
    ) -> None:
        """See `Device`."""
        cells = [np.array(argument) for argument in arguments]
        pointers = np.array([cell.ctypes.data for cell in cells], np.uint64)
        sizes = (blocks, 1, 1, threads, 1, 1, 0)
        self._call("cuLaunchKernel", kernel, *sizes, self._stream, pointers.ctypes.data, 0)

    def capture(self, work: Callable[[], None]) -> Any:
        """See `Device`."""
        # Of this thread alone: what others do meanwhile is none of the graph's affair.
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            self._driver.cuStreamEndCapture(self._stream)  # its own error would hide this one
            raise
        recorded = self._call("cuStreamEndCapture", self._stream)
        graph = self._call("cuGraphInstantiate", recorded, 0)
        self._call("cuGraphDestroy", recorded)
        self._release.append(lambda: self._call("cuGraphExecDestroy", graph))
        return graph

    def replay(self, graph: Any) -> None:
        """See `Device`."""
        self._call("cuGraphLaunch", graph, self._stream)

    def wait(self) -> None:
        """See `Device`."""
        self._call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """See `Device`."""
        if not self._release:
            return
        with self.current():
            self.wait()
            while self._release:
                self._release.pop()()
        self._call("cuDevicePrimaryCtxRelease", self._device)
