"""Writes cubins, portable PTX and their manifest: ``build --arch 80 90 --out FOLDER``.

From the installed package as ``python -m treediffusion.kernels.aot.build``; CMake runs it in a
checkout through `standalone`. Needs Triton alone, and no GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...files import replace_directory
from ...optional import require
from ..variants import Variant
from .compile import Compiled, check_names, compile_variant, find_variants
from .manifest import PORTABLE, Argument, BuiltFile, BuiltKernel, Form, write_manifest


def build(variants: Iterable[Variant], archs: Sequence[int], folder: Path) -> list[BuiltKernel]:
    """Compiles variants and puts a complete folder in place, or none.

    Args:
        variants: what to build.
        archs: compute capabilities of the cubins; the portable PTX comes in any case.
        folder: replaced if it holds what was built before.

    Returns:
        What the manifest lists.

    Raises:
        ConfigError: a variant cannot be built, or spills registers.
        CheckpointError: the folder cannot be written, or holds other files.
        DependencyError: Triton is not installed.
    """
    triton = require("triton", extra="train")
    variants = list(variants)
    check_names(variants)
    with replace_directory(folder) as temporary:
        kernels = [_build(variant, archs, temporary) for variant in variants]
        write_manifest(temporary, kernels, triton=triton.__version__)
    return kernels


def _build(variant: Variant, archs: Sequence[int], folder: Path) -> BuiltKernel:
    files = []
    for arch in sorted({*archs, PORTABLE}):
        compiled = compile_variant(variant, arch)
        if compiled.spills:
            got = f"{compiled.spills} bytes of local memory"
            raise ConfigError(f"{variant.name} on sm_{arch}", got=got, expected="no spills")
        if arch in archs:
            files.append(_file(compiled, "cubin", compiled.cubin, folder))
        if arch == PORTABLE:
            files.append(_file(compiled, "ptx", compiled.ptx.encode("ascii"), folder))
    arguments = tuple(
        Argument(name, type_, name in variant.aligned)
        for name, type_ in variant.types.items()
        if type_ != "constexpr"
    )
    constants = {name: _plain(value) for name, value in variant.constants.items()}
    return BuiltKernel(variant.name, files[0].entry, arguments, constants, tuple(files))


def _file(compiled: Compiled, form: Form, content: bytes, folder: Path) -> BuiltFile:
    name = f"{compiled.variant.name}.sm_{compiled.arch}.{form}"
    (folder / name).write_bytes(content)
    return BuiltFile(
        file=name,
        form=form,
        arch=compiled.arch,
        sha256=hashlib.sha256(content).hexdigest(),
        entry=compiled.entry,
        num_warps=compiled.num_warps,
        shared=compiled.shared,
        hidden=compiled.hidden,
        registers=compiled.registers,
    )


def _plain(value: Any) -> Any:
    """A constant as JSON has it; Triton's own types become their names."""
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def architecture(text: str) -> int:
    """``90``, ``9.0``, ``sm_90`` or ``90a``, for argparse."""
    found = re.fullmatch(r"(?:sm_)?(\d{2,3}|\d{1,2}\.\d)a?", text.strip())
    arch = int(found[1].replace(".", "")) if found else 0
    if arch < PORTABLE:
        expected = f"expected one from {PORTABLE} on, such as 90"
        raise argparse.ArgumentTypeError(f"got {text!r}, {expected}")
    return arch


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="build", description="Compile all kernels to files.")
    parser.add_argument("--arch", nargs="+", type=architecture, required=True, help="80 90 ...")
    parser.add_argument("--out", type=Path, required=True, help="the folder")
    given = parser.parse_args(arguments)
    kernels = build(find_variants(), given.arch, given.out)
    print(f"{len(kernels)} kernels, {sum(len(k.files) for k in kernels)} files in {given.out}")


if __name__ == "__main__":
    main()
