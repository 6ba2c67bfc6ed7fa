"""Launches kernels that were compiled ahead of time: neither PyTorch nor Triton is needed.

    kernels = BuiltKernels()
    kernel = kernels.load("scale_fp32")
    kernel.launch((blocks, 1, 1), {"x": address, "factor": 2.0, "rows": 5, "y": address})

A device runs the cubin of its own architecture, or, if it is an 8.x, of an earlier 8.x: from 9.0 on
Triton's machine code is for one architecture only. All others compile the PTX once. Addresses are
the device's, and whoever gives them keeps the memory.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import BackendUnavailableError, ConfigError, ShapeError
from .driver import Driver
from .manifest import (
    C_TYPES,
    MANIFEST,
    POINTER,
    Argument,
    BuiltFile,
    BuiltKernel,
    CType,
    is_pointer,
    read_checked,
    read_manifest,
)

PACKAGED = Path(__file__).resolve().parents[1] / "built"
_BUILD = "python -m treediffusion.kernels.aot.build --arch 90 --out FOLDER"


class BuiltKernels:
    """A folder of built kernels, every file checked.

    Args:
        folder: with a manifest; the one that was installed with the package if not given.

    Attributes:
        kernels: by name.

    Raises:
        BackendUnavailableError: nothing was built.
        BundleError: a file is damaged, missing or of a newer version.
    """

    def __init__(self, folder: Path = PACKAGED) -> None:
        if not (folder / MANIFEST).exists():
            expected = "kernels built ahead of time"
            got = f"no {MANIFEST} in it"
            raise BackendUnavailableError(str(folder), got=got, expected=expected, hint=_BUILD)
        self.folder = folder
        self.kernels: Mapping[str, BuiltKernel] = read_manifest(folder)

    def load(self, name: str, *, driver: Driver | None = None) -> LoadedKernel:
        """Loads a kernel into the context that is current.

        Args:
            name: of the variant.
            driver: shared by several kernels; one of its own if not given.

        Raises:
            ConfigError: no such kernel.
            BackendUnavailableError: there is no driver, or no file for the device.
            BundleError: its file has changed.
        """
        if name not in self.kernels:
            expected = f"one of {', '.join(sorted(self.kernels)) or 'none'}"
            raise ConfigError("kernel", got=repr(name), expected=expected)
        driver = driver or Driver()
        kernel = self.kernels[name]
        built = choose_file(kernel, driver.capability())
        image = read_checked(self.folder, built)
        module, function = driver.load(image, built.entry, shared=built.shared)
        return LoadedKernel(kernel, built, driver, module, function)


@dataclass(frozen=True, eq=False)
class LoadedKernel:
    """A kernel on a device.

    Attributes:
        kernel: what was built.
        built: the file that was chosen.
        driver: with the context it was loaded into.
        module: the driver's handle.
        function: the driver's handle.
    """

    kernel: BuiltKernel
    built: BuiltFile
    driver: Driver
    module: Any
    function: Any

    def launch(
        self, grid: tuple[int, int, int], values: Mapping[str, int | float], *, stream: int = 0
    ) -> None:
        """Starts the kernel and does not wait; an empty grid starts nothing.

        Args:
            grid: programs along three axes.
            values: of the arguments by name; addresses for pointers.
            stream: handle; 0 is the default stream.

        Raises:
            ConfigError: an argument is missing, or not the kernel's.
            ShapeError: a value does not fit its type, or is not a multiple of 16 and must be.
            BackendUnavailableError: the driver refused.
        """
        packed = pack(self.kernel, self.built, values)
        if 0 in grid:
            return
        self.driver.launch(
            self.function,
            grid,
            threads=32 * self.built.num_warps,
            shared=self.built.shared,
            stream=stream,
            arguments=packed.pointers,
        )

    def unload(self) -> None:
        """Frees it; no launch may follow."""
        self.driver.unload(self.module)


@dataclass(frozen=True, eq=False)
class Packed:
    """Arguments as cuLaunchKernel reads them: an array of pointers to cells.

    Attributes:
        cells: the values, which must outlive the call.
        pointers: to the cells.
    """

    cells: tuple[Any, ...]
    pointers: Any


def choose_file(kernel: BuiltKernel, capability: tuple[int, int]) -> BuiltFile:
    """The file that a device runs best.

    Raises:
        BackendUnavailableError: there is none.
    """
    device = 10 * capability[0] + capability[1]
    runs = [
        built
        for built in kernel.files
        if built.arch == device
        or (built.arch < device and (built.form == "ptx" or built.arch // 10 == capability[0] == 8))
    ]
    if not runs:
        expected = ", ".join(f"{built.form} for sm_{built.arch}" for built in kernel.files)
        raise BackendUnavailableError(
            f"device for {kernel.name}",
            got=f"compute capability {capability[0]}.{capability[1]}",
            expected=f"one that runs {expected or 'nothing: no file was built'}",
            hint=_BUILD,
        )
    return max(runs, key=lambda built: (built.form == "cubin", built.arch))


def pack(kernel: BuiltKernel, built: BuiltFile, values: Mapping[str, int | float]) -> Packed:
    """Arguments in the order of the launch, and null for each of Triton's hidden pointers.

    Raises:
        ConfigError: an argument is missing, or not the kernel's.
        ShapeError: a value does not fit its type, or is not a multiple of 16 and must be.
    """
    names = [argument.name for argument in kernel.arguments]
    if set(values) != set(names):
        got, expected = ", ".join(values) or "none", ", ".join(names)
        raise ConfigError(f"arguments of {kernel.name}", got=got, expected=expected)
    cells = [_cell(kernel, argument, values[argument.name]) for argument in kernel.arguments]
    cells += [POINTER.make(0) for _ in range(built.hidden)]
    pointers = (ctypes.c_void_p * len(cells))(*map(ctypes.addressof, cells))
    return Packed(tuple(cells), pointers)


def _cell(kernel: BuiltKernel, argument: Argument, value: float) -> Any:
    name = f"{argument.name} of {kernel.name}"
    type_ = POINTER if is_pointer(argument.type) else C_TYPES[argument.type]
    if type_.lowest is None or type_.highest is None:
        return _float(name, argument, type_, value)
    try:
        whole = operator.index(value)  # type: ignore[arg-type]  # a float is what it refuses
    except TypeError as error:
        got = f"{value!r} of type {type(value).__name__}"
        raise ShapeError(name, got=got, expected=f"an integer, {argument.type}") from error
    if not type_.lowest <= whole <= type_.highest:
        raise ShapeError(name, got=whole, expected=f"{argument.type}")
    if argument.aligned and whole % 16:
        raise ShapeError(name, got=whole, expected="a multiple of 16, as it was compiled for")
    return type_.make(whole)


def _float(name: str, argument: Argument, type_: CType, value: float) -> Any:
    try:
        return type_.make(float(value))
    except (TypeError, ValueError, OverflowError) as error:
        raise ShapeError(name, got=repr(value), expected=f"a number, {argument.type}") from error
