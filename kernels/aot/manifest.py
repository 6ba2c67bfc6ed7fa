"""The list of what was built: `BuiltKernel` for each variant, `BuiltFile` for each of its files.

    manifest.json       format, version of Triton, kernels with their arguments and files
    NAME.sm_90.cubin    machine code of one architecture
    NAME.sm_80.ptx      assembly that drivers compile for every GPU since sm_80

Reading checks every file's hash and executes nothing. The standard library alone.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from ...errors import BundleFormatError, BundleIntegrityError, BundleVersionError
from ...files import write_json

FORMAT = 1
MANIFEST = "manifest.json"
PORTABLE = 80  # the architecture whose PTX is kept

Form = Literal["cubin", "ptx"]


class CType(NamedTuple):
    """A scalar of a launch: its C type, its size, and the integers it holds, none for floats."""

    make: type[Any]
    bytes: int
    lowest: int | None
    highest: int | None


def _integer(make: type[Any], *, signed: bool) -> CType:
    size = ctypes.sizeof(make)
    half = 1 << (8 * size - 1)
    return CType(make, size, *((-half, half - 1) if signed else (0, 2 * half - 1)))


C_TYPES: Mapping[str, CType] = {
    "i8": _integer(ctypes.c_int8, signed=True),
    "i16": _integer(ctypes.c_int16, signed=True),
    "i32": _integer(ctypes.c_int32, signed=True),
    "i64": _integer(ctypes.c_int64, signed=True),
    "u8": _integer(ctypes.c_uint8, signed=False),
    "u16": _integer(ctypes.c_uint16, signed=False),
    "u32": _integer(ctypes.c_uint32, signed=False),
    "u64": _integer(ctypes.c_uint64, signed=False),
    "fp32": CType(ctypes.c_float, 4, None, None),
    "fp64": CType(ctypes.c_double, 8, None, None),
}
POINTER = _integer(ctypes.c_uint64, signed=False)


def is_pointer(type_: str) -> bool:
    """Whether Triton writes a pointer so."""
    return type_.startswith("*")


@dataclass(frozen=True)
class Argument:
    """An argument of a launch.

    Attributes:
        name: as in the kernel's source.
        type: as Triton writes it; pointers begin with a star.
        aligned: whether it must be a multiple of 16.
    """

    name: str
    type: str
    aligned: bool


@dataclass(frozen=True)
class BuiltFile:
    """One file of a kernel.

    Attributes:
        file: its name.
        form: cubin or ptx.
        arch: the compute capability it was compiled for, 90 for 9.0.
        sha256: of its bytes.
        entry: the function in it.
        num_warps: of a program; a block has 32 times as many threads.
        shared: bytes of dynamic shared memory of a program.
        hidden: null pointers to append to the arguments.
        registers: of a thread.
    """

    file: str
    form: Form
    arch: int
    sha256: str
    entry: str
    num_warps: int
    shared: int
    hidden: int
    registers: int


@dataclass(frozen=True)
class BuiltKernel:
    """A variant and its files.

    Attributes:
        name: of the variant.
        grid: the rule by which the number of programs follows from the sizes: the name of the
            kernel's function, beside whose launch it is written.
        arguments: in the order of the launch, constants left out.
        constants: what was compiled in.
        files: one for each architecture, and the portable one.
    """

    name: str
    grid: str
    arguments: tuple[Argument, ...]
    constants: Mapping[str, Any]
    files: tuple[BuiltFile, ...]


def write_manifest(folder: Path, kernels: Iterable[BuiltKernel], *, triton: str) -> None:
    """Writes the manifest of files that are in place."""
    rows = [asdict(kernel) for kernel in kernels]
    write_json(folder / MANIFEST, {"format": FORMAT, "triton": triton, "kernels": rows})


def read_manifest(folder: Path) -> dict[str, BuiltKernel]:
    """Reads a manifest, and checks that its files are those that were built.

    Returns:
        The kernels by name.

    Raises:
        BundleFormatError: the manifest or a file is missing, or a part cannot be understood.
        BundleVersionError: the manifest is of a newer version.
        BundleIntegrityError: a file is not the one that was built.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format"]
        if type(version) is int and version > FORMAT:
            hint = "update treediffusion, or build the kernels again"
            raise BundleVersionError(str(path), got=version, expected=f"<= {FORMAT}", hint=hint)
        kernels = [_kernel(row) for row in content["kernels"]]
    except BundleVersionError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        got = f"{type(error).__name__}: {error}"
        expected = "a manifest of built kernels"
        raise BundleFormatError(str(path), got=got, expected=expected, hint=_AGAIN) from error
    for kernel in kernels:
        for built in kernel.files:
            read_checked(folder, built)
    return {kernel.name: kernel for kernel in kernels}


def read_checked(folder: Path, built: BuiltFile) -> bytes:
    """The bytes of a file, if they are those that were built.

    Raises:
        BundleFormatError: it cannot be read.
        BundleIntegrityError: it is another.
    """
    path = folder / built.file
    try:
        content = path.read_bytes()
    except OSError as error:
        got = error.strerror or type(error).__name__
        raise BundleFormatError(str(path), got=got, expected="a file", hint=_AGAIN) from error
    if hashlib.sha256(content).hexdigest() != built.sha256:
        got = f"{len(content)} other bytes"
        expected = f"the file with SHA-256 {built.sha256}"
        raise BundleIntegrityError(str(path), got=got, expected=expected, hint=_AGAIN)
    return content


_AGAIN = "build the kernels again"


def _kernel(row: Mapping[str, Any]) -> BuiltKernel:
    arguments = tuple(Argument(**argument) for argument in row["arguments"])
    files = tuple(BuiltFile(**file) for file in row["files"])
    kernel = BuiltKernel(**{**row, "arguments": arguments, "files": files})
    for argument in arguments:
        if not is_pointer(argument.type) and argument.type not in C_TYPES:
            raise ValueError(f"{kernel.name} has an argument of type {argument.type}")
    for built in files:
        numbers = (built.arch, built.num_warps, built.shared, built.hidden)
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError(f"{kernel.name} has a file with the figures {numbers}")
        if built.form not in ("cubin", "ptx") or not _is_plain(built.file):
            raise ValueError(f"{kernel.name} has the file {built.file!r} of form {built.form!r}")
    return kernel


def _is_plain(name: object) -> bool:
    """Only files of the folder itself."""
    return re.fullmatch(r"\w[\w.]*", cast("str", name)) is not None
