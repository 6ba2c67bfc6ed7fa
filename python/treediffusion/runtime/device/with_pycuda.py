"""The device through pycuda, in the context that its host already lives in.

For programs that have their own pycuda context and want the engine's work in it. Where no context
is current, the primary one of a device is taken. Graphs, which pycuda does not have, are recorded
and replayed through the stream's handle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from numpy.typing import DTypeLike

from ...errors import BackendUnavailableError
from ...optional import require
from .graph_handles import GraphHandles
from .protocol import Argument, Array, Buffer, fits

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


class PycudaDevice:
    """See `Device`.

    Args:
        number: which of the visible devices, where no context is current.
        driver: the module `pycuda.driver`, or what stands for it in a test.
        graphs: records and replays; the driver's own functions if not given.

    Raises:
        DependencyError: pycuda is not installed, or finds no driver.
        BackendUnavailableError: there is no such device, or no driver for graphs.
    """

    def __init__(
        self, number: int = 0, *, driver: Any = None, graphs: GraphHandles | None = None
    ) -> None:
        self._driver = require("pycuda.driver", extra="pycuda") if driver is None else driver
        self._graphs = GraphHandles() if graphs is None else graphs
        self._kept: list[Any] = []  # pycuda frees what nothing refers to
        self._recorded: list[Any] = []
        with self._refusing():
            self._driver.init()
            found = self._driver.Context.get_current()
            self._context = found or self._driver.Device(number).retain_primary_context()
        with self.current():
            device = self._driver.Context.get_device()
            self.name: str = device.name()
            major, minor = device.compute_capability()
            self.capability: tuple[int, int] = (major, minor)
            self._stream = self._driver.Stream(NON_BLOCKING)
            self.stream: int = self._stream.handle

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turns pycuda's errors into ours."""
        try:
            yield
        except self._driver.Error as fault:
            raise BackendUnavailableError("pycuda", got=str(fault), expected="success") from fault

    @contextmanager
    def current(self) -> Iterator[None]:
        """See `Device`; pycuda's errors in the block become ours."""
        with self._refusing():
            self._context.push()
            try:
                yield
            finally:
                self._driver.Context.pop()

    def allocate(self, nbytes: int) -> Buffer:
        """See `Device`."""
        allocation = self._driver.mem_alloc(max(nbytes, 1))
        self._kept.append(allocation)
        return Buffer(int(allocation), nbytes)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """See `Device`."""
        array: Array = self._driver.pagelocked_empty(shape, dtype)
        array[...] = 0
        return array

    def upload(self, to: Buffer, host: Array) -> None:
        """See `Device`."""
        fits(to, host.nbytes)
        self._driver.memcpy_htod_async(to.address, host, self._stream)

    def download(self, host: Array, source: Buffer) -> None:
        """See `Device`."""
        fits(source, host.nbytes)
        self._driver.memcpy_dtoh_async(host, source.address, self._stream)

    def copy(self, to: Buffer, source: Buffer) -> None:
        """See `Device`."""
        fits(to, source.nbytes)
        self._driver.memcpy_dtod_async(to.address, source.address, source.nbytes, self._stream)

    def clear(self, buffer: Buffer) -> None:
        """See `Device`."""
        self._driver.memset_d8_async(buffer.address, 0, buffer.nbytes, self._stream)

    def load(self, image: bytes, entry: str) -> Any:
        """See `Device`."""
        # PTX ends with a zero byte; machine code knows its own length.
        return self._driver.module_from_buffer(image + b"\0").get_function(entry)

    def launch(
        self, kernel: Any, *, blocks: int, threads: int, arguments: Sequence[Argument]
    ) -> None:
        """See `Device`."""
        kernel(*arguments, grid=(blocks, 1, 1), block=(threads, 1, 1), stream=self._stream)

    def capture(self, work: Callable[[], None]) -> Any:
        """See `Device`."""
        graph = self._graphs.capture(self.stream, work)
        self._recorded.append(graph)
        return graph

    def replay(self, graph: Any) -> None:
        """See `Device`."""
        self._graphs.replay(graph, self.stream)

    def wait(self) -> None:
        """See `Device`."""
        self._stream.synchronize()

    def close(self) -> None:
        """See `Device`; the context itself is its host's."""
        with self.current():
            self.wait()
            while self._recorded:
                self._graphs.free(self._recorded.pop())
            while self._kept:
                self._kept.pop().free()
