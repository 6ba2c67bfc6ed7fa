"""What a back end needs of a GPU: memory, copies, kernels, and graphs that are replayed.

Everything goes into one stream, in the order of the calls, and no call waits but `wait`. Memory is
the device's own and lives until `close`: a program's buffers are few, and made before its loops.
Calls are made inside `current`, by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array: TypeAlias = NDArray[Any]
# An argument of a kernel: its NumPy type is the type that the kernel declares.
Argument: TypeAlias = np.uint64 | np.uint32 | np.int64 | np.int32 | np.float32 | np.float64


@dataclass(frozen=True)
class Buffer:
    """Memory of a device, aligned to 256 bytes.

    Attributes:
        address: on the device.
        nbytes: its size.
    """

    address: int
    nbytes: int


class Device(Protocol):
    """A GPU, a context on it and a stream of its own."""

    @property
    def name(self) -> str:
        """As the driver has it, 'NVIDIA H200'."""
        ...

    @property
    def capability(self) -> tuple[int, int]:
        """Its compute capability, (9, 0)."""
        ...

    @property
    def stream(self) -> int:
        """The stream's handle."""
        ...

    def current(self) -> AbstractContextManager[None]:
        """Makes the context this thread's for a block; the one before it comes back."""
        ...

    def allocate(self, nbytes: int) -> Buffer:
        """Memory with whatever it held before."""
        ...

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """A host array that copies need not stage; zeros."""
        ...

    def upload(self, to: Buffer, host: Array) -> None:
        """Starts a copy of a whole pinned array to the beginning of a buffer."""
        ...

    def download(self, host: Array, source: Buffer) -> None:
        """Starts a copy of the beginning of a buffer that fills a pinned array."""
        ...

    def copy(self, to: Buffer, source: Buffer) -> None:
        """Starts a copy of a whole buffer."""
        ...

    def clear(self, buffer: Buffer) -> None:
        """Starts filling a buffer with zero bytes."""
        ...

    def load(self, image: bytes, entry: str) -> Any:
        """A kernel of a cubin, or of PTX text."""
        ...

    def launch(
        self, kernel: Any, *, blocks: int, threads: int, arguments: Sequence[Argument]
    ) -> None:
        """Starts a kernel along one axis."""
        ...

    def capture(self, work: Callable[[], None]) -> Any:
        """What a function puts into the stream, as a graph; none of it is done."""
        ...

    def replay(self, graph: Any) -> None:
        """Starts everything in a graph."""
        ...

    def wait(self) -> None:
        """Until all that was started is done."""
        ...

    def close(self) -> None:
        """Gives everything back; arrays from `pinned` may not be touched any more."""
        ...


def fits(buffer: Buffer, nbytes: int) -> None:
    """Our own mistakes, caught before the driver writes beside a buffer."""
    assert nbytes <= buffer.nbytes, f"{nbytes} bytes for a buffer of {buffer.nbytes}"
