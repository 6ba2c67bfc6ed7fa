"""Machine code of a `Variant` for an architecture, on a machine without a GPU, and its figures.

The same variant, architecture and version of Triton give the same bytes: code carries no line
numbers, hence no paths. sm_80 is compiled from PTX 8.0, which every driver since CUDA 12.0 takes
and newer GPUs run too. Not here: files. Needs Triton alone.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...optional import require
from ..variants import Variant
from .manifest import C_TYPES, PORTABLE, is_pointer

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
_PTX_TYPES = {".u64": 8, ".b64": 8, ".f64": 8, ".s64": 8, ".u32": 4, ".b32": 4, ".f32": 4}
_PTX_TYPES |= {".s32": 4, ".u16": 2, ".b16": 2, ".s16": 2, ".u8": 1, ".b8": 1, ".s8": 1}


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a variant.

    Attributes:
        variant: of which kernel, types and constants.
        arch: compute capability, 90 for 9.0.
        cubin: machine code.
        ptx: the assembly it was made from.
        entry: name of its function.
        num_warps: of a program.
        shared: bytes of dynamic shared memory of a program.
        registers: of a thread.
        spills: bytes of local memory of a thread.
        hidden: pointers that Triton appended to the arguments, null for our kernels.
    """

    variant: Variant
    arch: int
    cubin: bytes
    ptx: str
    entry: str
    num_warps: int
    shared: int
    registers: int
    spills: int
    hidden: int


def find_variants() -> list[Variant]:
    """Those of all folders with a ``kernel.py``, by folder, in the order listed.

    Raises:
        ConfigError: two have the same name, or a name is no identifier.
    """
    room = Path(__file__).resolve().parents[1]
    package = __name__.rsplit(".", 2)[0]
    found: list[Variant] = []
    for path in sorted(room.glob("*/kernel.py")):
        found += importlib.import_module(f"{package}.{path.parent.name}.kernel").VARIANTS
    check_names(found)
    return found


def check_names(variants: Iterable[Variant]) -> None:
    """Refuses names that cannot be those of files and rows."""
    seen: set[str] = set()
    for variant in variants:
        if variant.name in seen or re.fullmatch(r"[a-z][a-z0-9_]*", variant.name) is None:
            expected = "small letters, digits and _, and no name twice"
            raise ConfigError("name of a variant", got=repr(variant.name), expected=expected)
        seen.add(variant.name)


def with_ones(variant: Variant) -> Variant | None:
    """The variant with every integer that may be 1 constant, as Triton does.

    Returns:
        None if there is no such integer.
    """
    kept = {p.name for p in variant.kernel.params if p.do_not_specialize} | {*variant.aligned}
    integers = [name for name, type_ in variant.types.items() if re.fullmatch(r"[iu]\d+", type_)]
    ones = dict.fromkeys((name for name in integers if name not in kept), 1)
    if not ones:
        return None
    types = {name: "constexpr" if name in ones else t for name, t in variant.types.items()}
    constants = {**variant.constants, **ones}
    return replace(variant, name=f"{variant.name}_ones", types=types, constants=constants)


def compile_variant(variant: Variant, arch: int) -> Compiled:
    """Compiles a variant.

    Raises:
        ConfigError: its types do not fit its kernel, it does not compile, or it needs what a
            launch here does not give.
        DependencyError: Triton is not installed.
    """
    triton = require("triton", extra="train")
    sources = require("triton.compiler", extra="train")
    target = require("triton.backends.compiler", extra="train").GPUTarget("cuda", arch, 32)
    places = _places(variant)
    source = sources.ASTSource(
        variant.kernel,
        dict(variant.types),
        {(places[name],): value for name, value in variant.constants.items()},
        {(places[name],): [["tt.divisibility", 16]] for name in variant.aligned},
    )
    options = {
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
        "enable_fp_fusion": not variant.precise,
        **({"ptx_version": 80} if arch == PORTABLE else {}),
    }
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True
        try:
            made = sources.compile(source, target=target, options=options)
        except Exception as error:  # of many kinds: front end, passes, ptxas
            got, where = f"{type(error).__name__}: {error}", f"{variant.name} on sm_{arch}"
            raise ConfigError(where, got=got, expected="a kernel that compiles") from error
    _refuse_extras(variant, made.metadata)
    cubin, ptx = bytes(made.asm["cubin"]), str(made.asm["ptx"])
    registers, spills = _resources(cubin, Path(triton.knobs.nvidia.cuobjdump.path))
    return Compiled(
        variant,
        arch,
        cubin,
        ptx,
        entry=str(made.metadata.name),
        num_warps=int(made.metadata.num_warps),
        shared=int(made.metadata.shared),
        registers=registers,
        spills=spills,
        hidden=_hidden(variant, ptx),
    )


def parameter_sizes(ptx: str) -> list[int]:
    """Bytes of each parameter of the entry of a PTX file.

    Raises:
        ConfigError: there is no entry, or a parameter of a type unknown here.
    """
    entry = re.search(r"\.entry\s+\w+\((.*?)\)", ptx, re.DOTALL)
    if entry is None:
        raise ConfigError("PTX", got="no .entry", expected="one")
    lines = [line for line in entry[1].splitlines() if ".param" in line]
    types = [word for line in lines for word in line.split()[1:] if word in _PTX_TYPES]
    if len(types) != len(lines):
        raise ConfigError("PTX", got=entry[1].strip(), expected="parameters of 1 to 8 bytes")
    return [_PTX_TYPES[word] for word in types]


def _places(variant: Variant) -> dict[str, int]:
    """Where each argument stands; checks the variant against its kernel on the way."""
    names = getattr(variant.kernel, "arg_names", None)
    if names is None or not hasattr(variant.kernel, "cache_key"):
        got, expected = type(variant.kernel).__name__, "a function of triton.jit"
        hint = "unset TRITON_INTERPRET: what is interpreted cannot be compiled in one process"
        raise ConfigError(f"kernel of {variant.name}", got=got, expected=expected, hint=hint)
    if list(variant.types) != list(names):
        raise ConfigError(
            f"types of {variant.name}", got=list(variant.types), expected=f"the arguments {names}"
        )
    constants = {name for name, type_ in variant.types.items() if type_ == "constexpr"}
    if constants != set(variant.constants) or not set(variant.aligned) <= set(names) - constants:
        got = f"{sorted(variant.constants)}, aligned {variant.aligned}"
        expected = f"values of {sorted(constants)}, and alignments of others"
        raise ConfigError(f"constants of {variant.name}", got=got, expected=expected)
    for name, type_ in variant.types.items():
        if type_ != "constexpr" and not is_pointer(type_) and type_ not in C_TYPES:
            expected = f"a pointer, constexpr or one of {', '.join(C_TYPES)}"
            raise ConfigError(f"{name} of {variant.name}", got=repr(type_), expected=expected)
    return {name: place for place, name in enumerate(names)}


def _refuse_extras(variant: Variant, metadata: Any) -> None:
    """A launch here gives no scratch memory and no clusters; none of our kernels wants them."""
    wanted = {
        "global_scratch_size": 0,
        "profile_scratch_size": 0,
        "num_ctas": 1,
        "launch_cooperative_grid": False,
        "launch_pdl": False,
    }
    got = {name: getattr(metadata, name, value) for name, value in wanted.items()}
    if got != wanted:
        faults = {name: value for name, value in got.items() if value != wanted[name]}
        raise ConfigError(variant.name, got=faults, expected="a kernel that needs none of these")


def _hidden(variant: Variant, ptx: str) -> int:
    """How many pointers follow the variant's own arguments."""
    declared = [t for t in variant.types.values() if t != "constexpr"]
    ours = [8 if is_pointer(type_) else C_TYPES[type_].bytes for type_ in declared]
    sizes = parameter_sizes(ptx)
    rest = sizes[len(ours) :]
    if sizes[: len(ours)] != ours or any(size != 8 for size in rest):
        expected = f"parameters of {ours} bytes, and pointers"
        raise ConfigError(f"PTX of {variant.name}", got=sizes, expected=expected)
    return len(rest)


def _resources(cubin: bytes, tool: Path) -> tuple[int, int]:
    """Registers and bytes of local memory of a thread, from the machine code itself."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", told)
    if found is None:
        expected = "REG, STACK and LOCAL of a function"
        raise ConfigError(str(tool), got=told.strip(), expected=expected)
    registers, stack, local = map(int, found.groups())
    return registers, max(stack, local)
