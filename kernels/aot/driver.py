"""The few functions of NVIDIA's driver that a launch takes, by ctypes.

Works in the context that is current, PyTorch's or a runtime's, else in the device's primary one.
Every argument is given with its C type. Not here: memory and streams, which are the caller's.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any

from ...errors import BackendUnavailableError

_MAJOR, _MINOR, _SHARED_LIMIT = 75, 76, 97  # CUdevice_attribute
_DYNAMIC_SHARED = 8  # CUfunction_attribute
_UNREQUESTED_SHARED = 48 * 1024  # what a block may have without asking


class Driver:
    """The driver, with a context.

    Args:
        library: in the place of the driver's own, for tests.
        device: whose primary context is taken if none is current.

    Raises:
        BackendUnavailableError: there is no driver, or no such device.
    """

    def __init__(self, library: Any = None, *, device: int = 0) -> None:
        self._library = _load() if library is None else library
        self.call("cuInit", ctypes.c_uint(0))
        context, number = ctypes.c_void_p(), ctypes.c_int()
        self.call("cuCtxGetCurrent", ctypes.byref(context))
        if not context.value:
            self.call("cuDeviceGet", ctypes.byref(number), ctypes.c_int(device))
            self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), number)
            self.call("cuCtxSetCurrent", context)
        self.call("cuCtxGetDevice", ctypes.byref(number))
        self._device = number

    def call(self, name: str, *arguments: Any) -> None:
        """Calls a function that returns a CUresult.

        Raises:
            BackendUnavailableError: it is not zero.
        """
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            told = ctypes.c_char_p()
            self._library.cuGetErrorName(ctypes.c_int(code), ctypes.byref(told))
            got = (told.value or b"an unknown error").decode("ascii", "replace")
            raise BackendUnavailableError(name, got=f"{got} ({code})", expected="CUDA_SUCCESS")

    def capability(self) -> tuple[int, int]:
        """The device's compute capability, (9, 0)."""
        return self._attribute(_MAJOR), self._attribute(_MINOR)

    def load(self, image: bytes, entry: str, *, shared: int) -> tuple[Any, Any]:
        """Loads a cubin or PTX.

        Args:
            image: the file.
            entry: the function in it.
            shared: bytes of dynamic shared memory it will be launched with.

        Returns:
            The module and the function.

        Raises:
            BackendUnavailableError: the device cannot run it, or has too little shared memory.
        """
        if shared > (limit := self._attribute(_SHARED_LIMIT)):
            got, expected = f"{limit} bytes of shared memory", f"{shared}"
            raise BackendUnavailableError(f"device for {entry}", got=got, expected=expected)
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        # PTX ends with a zero byte; machine code knows its own length.
        self.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(image + b"\0"))
        name = ctypes.c_char_p(entry.encode("ascii"))
        self.call("cuModuleGetFunction", ctypes.byref(function), module, name)
        if shared > _UNREQUESTED_SHARED:
            attribute, value = ctypes.c_int(_DYNAMIC_SHARED), ctypes.c_int(shared)
            self.call("cuFuncSetAttribute", function, attribute, value)
        return module, function

    def unload(self, module: Any) -> None:
        """Frees a module."""
        self.call("cuModuleUnload", module)

    def launch(
        self,
        function: Any,
        grid: Sequence[int],
        *,
        threads: int,
        shared: int,
        stream: int,
        arguments: Any,
    ) -> None:
        """Starts a function.

        Args:
            function: from `load`.
            grid: programs along three axes.
            threads: of a program.
            shared: bytes of a program.
            stream: handle; 0 is the default stream.
            arguments: an array of pointers to them.
        """
        sizes = [ctypes.c_uint(size) for size in (*grid, threads, 1, 1, shared)]
        self.call("cuLaunchKernel", function, *sizes, ctypes.c_void_p(stream), arguments, None)

    def _attribute(self, which: int) -> int:
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(which), self._device)
        return value.value


def _load() -> Any:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        got, hint = f"{error}", "install the driver of an NVIDIA GPU"
        raise BackendUnavailableError(name, got=got, expected="a driver", hint=hint) from error
