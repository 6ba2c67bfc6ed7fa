"""`pycuda.driver` and the driver's graph functions, as far as they are used, on the fake driver.

As in pycuda 2026.1: its wrapper's source says what each function takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from treediffusion.runtime.device.graph_handles import GraphHandles
from treediffusion.runtime.device.with_pycuda import PycudaDevice

from support.fake_cuda import FakeCuda


def with_pycuda(*, current: bool = False) -> tuple[PycudaDevice, FakePycuda, FakeLibrary]:
    """A device on them; with or without a context that its host made."""
    driver = FakePycuda(current=current)
    library = FakeLibrary(driver.cuda)
    return PycudaDevice(driver=driver, graphs=GraphHandles(library)), driver, library


class FakePycuda:
    """The module: contexts, memory, streams and kernels; it has no graphs."""

    class Error(Exception):
        pass

    def __init__(self, *, current: bool) -> None:
        self.cuda = cuda = FakeCuda()
        self.log: list[str] = []
        driver = self

        class Context:
            def push(self) -> None:
                cuda.contexts.append(self)

            @staticmethod
            def pop() -> None:
                cuda.contexts.pop()

            @staticmethod
            def get_current() -> Any:
                return cuda.contexts[-1] if cuda.contexts else None

            @staticmethod
            def get_device() -> Any:
                return SimpleNamespace(
                    name=lambda: "NVIDIA Abacus", compute_capability=lambda: (9, 0)
                )

        class Device:
            def __init__(self, number: int) -> None:
                assert number == 0

            def retain_primary_context(self) -> Context:
                driver.log.append("primary")
                return Context()

        class Stream:
            handle = 77

            def __init__(self, flags: int) -> None:
                assert flags == 1

            def synchronize(self) -> None:
                cuda.cuStreamSynchronize(77)

        self.Context, self.Device, self.Stream = Context, Device, Stream
        if current:
            Context().push()

    def init(self) -> None:
        self.log.append("init")

    def mem_alloc(self, nbytes: int) -> Any:
        if nbytes > 2**40:
            raise self.Error("cuMemAlloc failed: out of memory")
        address, driver = self.cuda.cuMemAlloc(nbytes)[1], self

        class Allocation:
            def __int__(self) -> int:
                return int(address)

            def free(self) -> None:
                driver.cuda.cuMemFree(address)

        return Allocation()

    def pagelocked_empty(self, shape: Any, dtype: Any) -> np.ndarray:
        return np.empty(shape, dtype)

    def memcpy_htod_async(self, dest: int, src: np.ndarray, stream: Any) -> None:
        self.cuda.cuMemcpyHtoDAsync(dest, src.ctypes.data, src.nbytes, stream.handle)

    def memcpy_dtoh_async(self, dest: np.ndarray, src: int, stream: Any) -> None:
        self.cuda.cuMemcpyDtoHAsync(dest.ctypes.data, src, dest.nbytes, stream.handle)

    def memcpy_dtod_async(self, dest: int, src: int, size: int, stream: Any) -> None:
        self.cuda.cuMemcpyDtoDAsync(dest, src, size, stream.handle)

    def memset_d8_async(self, dest: int, data: int, size: int, stream: Any) -> None:
        self.cuda.cuMemsetD8Async(dest, data, size, stream.handle)

    def module_from_buffer(self, buffer: bytes) -> Any:
        module = self.cuda.cuModuleLoadData(buffer)[1]

        def get_function(name: str) -> Callable[..., None]:
            kernel = self.cuda.cuModuleGetFunction(module, name.encode())[1]

            def call(*arguments: Any, grid: Any, block: Any, stream: Any) -> None:
                assert all(isinstance(each, np.number) for each in arguments)
                cells = [np.array(each) for each in arguments]
                at = np.array([cell.ctypes.data for cell in cells], np.uint64)
                sizes = (*grid, *block, 0, stream.handle, at.ctypes.data, 0)
                self.cuda.cuLaunchKernel(kernel, *sizes)

            return call

        return SimpleNamespace(get_function=get_function)


class FakeLibrary:
    """libcuda's graph functions for ctypes, on top of the fake driver."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda, self.types = cuda, {}

    def __getattr__(self, name: str) -> Callable[..., int]:
        def called(*arguments: Any) -> int:
            self.types[name] = [type(each).__name__ for each in arguments]
            plain = [getattr(each, "value", each) for each in arguments]
            known: Mapping[str, Callable[[], Any]] = {
                "cuStreamBeginCapture_v2": lambda: self._cuda.cuStreamBeginCapture(*plain),
                "cuStreamEndCapture": lambda: self._cuda.cuStreamEndCapture(plain[0]),
                "cuGraphInstantiateWithFlags": lambda: self._cuda.cuGraphInstantiate(*plain[1:]),
            }
            result = known.get(name, lambda: getattr(self._cuda, name)(*plain))()
            out = {"cuStreamEndCapture": 1, "cuGraphInstantiateWithFlags": 0}.get(name)
            if out is not None:
                arguments[out]._obj.value = result[1]
            return int(result[0])

        return called
