"""NVIDIA's driver in host memory, as `cuda.bindings.driver` shows it, recording every call.

Nothing that is put into a stream happens before somebody waits for the stream: a host array that
is changed too early, or a copy that is read too early, shows as wrong values. Memory is filled with
NaN when it is allocated.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

from support.ptx import run_kernel

GUARD = 64


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_ILLEGAL_ADDRESS = 700


class FakeCuda:
    """The functions of a driver with one device, an 'NVIDIA Abacus' of capability 9.0.

    Attributes:
        calls: [(name, arguments)] in order.
        fails: by name, what a function answers in place of doing its work.
        contexts: the stack of the thread.
    """

    CUresult = CUresult
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76,
    )
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.fails: dict[str, CUresult] = {}
        self.contexts: list[Any] = []
        self.memory: dict[int, Any] = {}
        self._queue: list[Callable[[], None]] = []
        self._capturing: list[Callable[[], None]] | None = None
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._modules: dict[int, str] = {}
        self._next = 1

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        if not name.startswith("cu"):
            raise AttributeError(name)
        work = getattr(type(self), f"_{name}")

        def called(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, arguments))
            if name in self.fails:
                return (self.fails[name], None)
            free = {"cuInit", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"}
            if name not in free and "Ctx" not in name:
                assert self.contexts, f"{name} with no context"
            result = work(self, *arguments)
            return (CUresult.CUDA_SUCCESS,) if result is None else (CUresult.CUDA_SUCCESS, result)

        return called

    def names(self) -> list[str]:
        """Of all calls."""
        return [name for name, _ in self.calls]

    def put(self, stream: int, work: Callable[[], None]) -> None:
        """Into the stream, or into the graph that is being recorded from it."""
        assert int(stream) == 77
        (self._queue if self._capturing is None else self._capturing).append(work)

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _cuInit(self, flags: int) -> None:
        assert flags == 0

    def _cuDeviceGet(self, number: int) -> int:
        return 40 + number

    def _cuDeviceGetName(self, length: int, device: int) -> bytes:
        assert device == 40
        return b"NVIDIA Abacus".ljust(length, b"\0")

    def _cuDeviceGetAttribute(self, kind: int, device: int) -> int:
        return {75: 9, 76: 0}[kind]

    def _cuDevicePrimaryCtxRetain(self, device: int) -> str:
        return "primary"

    def _cuDevicePrimaryCtxRelease(self, device: int) -> None:
        assert not self.contexts
        assert not self.memory, "memory that was not freed"

    def _cuCtxPushCurrent(self, context: Any) -> None:
        self.contexts.append(context)

    def _cuCtxPopCurrent(self) -> Any:
        return self.contexts.pop()

    def _cuStreamCreate(self, flags: int) -> int:
        assert flags == 1
        return 77

    def _cuStreamDestroy(self, stream: int) -> None:
        assert not self._queue

    def _cuMemAlloc(self, nbytes: int) -> int:
        return self._memory(nbytes)

    def _cuMemHostAlloc(self, nbytes: int, flags: int) -> int:
        return self._memory(nbytes)

    def _memory(self, nbytes: int) -> int:
        """NaN in every float, and a guard behind it."""
        assert nbytes > 0
        memory = np.full(nbytes + GUARD, 0xFF, np.uint8)
        address = memory.ctypes.data
        self.memory[address] = memory
        return address

    def _cuMemFree(self, address: int) -> None:
        memory = self.memory.pop(int(address))
        assert (memory[-GUARD:] == 0xFF).all(), "something was written behind a buffer"

    _cuMemFreeHost = _cuMemFree

    def _cuMemcpyHtoDAsync(self, to: int, source: int, nbytes: int, stream: int) -> None:
        self.put(stream, lambda: ctypes.memmove(to, source, nbytes))  # type: ignore[arg-type,return-value]

    _cuMemcpyDtoHAsync = _cuMemcpyHtoDAsync
    _cuMemcpyDtoDAsync = _cuMemcpyHtoDAsync

    def _cuMemsetD8Async(self, to: int, value: int, nbytes: int, stream: int) -> None:
        self.put(stream, lambda: ctypes.memset(to, value, nbytes))  # type: ignore[arg-type,return-value]

    def _cuModuleLoadData(self, image: bytes) -> int:
        assert image.endswith(b"\0")
        number = self._number()
        self._modules[number] = image[:-1].decode("ascii")
        return number

    def _cuModuleUnload(self, module: int) -> None:
        del self._modules[module]

    def _cuModuleGetFunction(self, module: int, name: bytes) -> tuple[str, str]:
        return self._modules[module], name.decode()

    def _cuLaunchKernel(self, kernel: tuple[str, str], *arguments: Any) -> None:
        *sizes, shared, stream, pointers, extra = arguments
        assert (sizes[1:3], sizes[4:], shared, extra) == ([1, 1], [1, 1], 0, 0)
        text, entry = kernel
        # A driver copies the arguments during the call, so do we: each as wide as it is declared.
        widths = [ctypes.c_uint64 if ".u64" in part else ctypes.c_uint32 for part in _params(text)]
        cells = (ctypes.c_uint64 * len(widths)).from_address(pointers)
        values = [make.from_address(cell).value for make, cell in zip(widths, cells, strict=True)]
        blocks, threads = sizes[0], min(sizes[3], 3)
        self.put(
            stream,
            lambda: run_kernel(text, entry, blocks=blocks, threads=threads, cells=values),
        )

    def _cuStreamBeginCapture(self, stream: int, mode: int) -> None:
        assert mode == 1
        assert self._capturing is None
        self._capturing = []

    def _cuStreamEndCapture(self, stream: int) -> int:
        number = self._number()
        assert self._capturing is not None
        self._graphs[number], self._capturing = self._capturing, None
        return number

    def _cuGraphInstantiate(self, graph: int, flags: int) -> int:
        number = self._number()
        self._graphs[number] = self._graphs[graph]
        return number

    def _cuGraphDestroy(self, graph: int) -> None:
        del self._graphs[graph]

    _cuGraphExecDestroy = _cuGraphDestroy

    def _cuGraphLaunch(self, graph: int, stream: int) -> None:
        work = self._graphs[graph]
        self.put(stream, lambda: [each() for each in work])  # type: ignore[func-returns-value,return-value]

    def _cuStreamSynchronize(self, stream: int) -> None:
        assert self._capturing is None, "waited while a graph was recorded"
        queue, self._queue = self._queue, []
        for work in queue:
            work()


def _params(text: str) -> list[str]:
    return text.partition("(")[2].partition(")")[0].split(",")
