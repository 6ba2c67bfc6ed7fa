"""Runs the few PTX instructions that our one PTX kernel has, one thread after the other, in NumPy.

A block's threads run up to a barrier before one of them passes it. Every float operation rounds as
the instruction says; an unknown instruction is an error.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

_C = {"u64": ctypes.c_uint64, "u32": ctypes.c_uint32, "f32": ctypes.c_float}


def run_kernel(text: str, entry: str, *, blocks: int, threads: int, cells: Sequence[int]) -> None:
    """Runs a kernel.

    Args:
        text: the PTX.
        entry: its name.
        blocks: along one axis.
        threads: of a block.
        cells: [arguments] their values, as the bits of unsigned numbers.
    """
    head, _, body = text.partition("{")
    assert f".entry {entry}(" in head
    names = re.findall(r"\.param \.\w+ (\w+)", head)
    parameters = dict(zip(names, cells, strict=True))
    lines = [line.strip() for line in body.splitlines()]
    code = [line for line in lines if line and line != "}" and not line.startswith(".reg")]
    labels = {line[:-1]: i for i, line in enumerate(code) if line.endswith(":")}
    for block in range(blocks):
        special = [{"%tid.x": i, "%ntid.x": threads, "%ctaid.x": block} for i in range(threads)]
        alive = [_thread(code, labels, parameters, given) for given in special]
        while alive:
            alive = [thread for thread in alive if next(thread, None) is not None]


def _thread(
    code: Sequence[str], labels: Mapping[str, int], parameters: Mapping[str, int], special: Any
) -> Iterator[bool]:
    """Yields at barriers."""
    registers: dict[str, Any] = dict(special)
    at = 0
    while at < len(code):
        line = code[at].rstrip(";")
        at += 1
        if line.endswith(":"):
            continue
        if line.startswith("@"):
            guard, line = line.split(maxsplit=1)
            if not registers[guard[1:]]:
                continue
        name, _, rest = line.partition(" ")
        arguments = [part.strip() for part in rest.split(",")]
        if name == "ret":
            return
        if name == "bra":
            at = labels[arguments[0]]
        elif name == "bar.sync":
            yield True
        else:
            _step(name, arguments, registers, parameters)


def _step(
    name: str, arguments: list[str], r: dict[str, Any], parameters: Mapping[str, int]
) -> None:
    kind = name.rpartition(".")[2]
    to, given = arguments[0], arguments[1:]
    if name.startswith("ld.param."):
        r[to] = parameters[given[0].strip("[]")]
    elif name.startswith("ld.global."):
        value = _C[kind].from_address(_place(given[0], r)).value
        r[to] = np.float32(value) if kind == "f32" else value
    elif name.startswith("st.global."):
        _C[kind].from_address(_place(to, r)).value = _value(given[0], r)
    else:
        a, b, c = (*(_value(text, r) for text in given), None, None)[:3]
        with np.errstate(all="ignore"):  # what is computed and not taken may be anything
            r[to] = _result(name, a, b, c)


def _result(name: str, a: Any, b: Any, c: Any) -> Any:
    wide = 2**64 if name.endswith(("64",)) or ".wide." in name else 2**32
    integer = {
        "add": lambda: (a + b) % wide,
        "mul": lambda: (a * b) % wide,
        "shl": lambda: (a << b) % wide,
    }
    operations = {
        "mov.u32": lambda: a,
        "mov.f32": lambda: a,
        "cvt.u64.u32": lambda: a,
        "cvta.to.global.u64": lambda: a,
        "mul.rn.f32": lambda: np.float32(a * b),
        "add.rn.f32": lambda: np.float32(a + b),
        "setp.eq.f32": lambda: bool(a == b),
        "setp.ne.u32": lambda: a != b,
        "setp.ge.u32": lambda: a >= b,
        "selp.f32": lambda: a if c else b,
        **{f"add.u{bits}": integer["add"] for bits in (32, 64)},
        "mul.wide.u32": integer["mul"],
        "mul.lo.u64": integer["mul"],
        "shl.b64": integer["shl"],
    }
    return operations[name]()


def _place(text: str, registers: Mapping[str, Any]) -> int:
    register, _, offset = text.strip("[]").partition("+")
    return int(registers[register]) + int(offset or 0)


def _value(text: str, registers: Mapping[str, Any]) -> Any:
    if text.startswith("%"):
        return registers[text]
    if text.startswith("0f"):
        return np.uint32(int(text[2:], 16)).view(np.float32)
    return int(text)
