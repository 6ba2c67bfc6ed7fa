"""The kernel between two evaluations: a row of a solver's table, and the counter of rows.

    x' = mix[k, 0] . (y, x, s, h1, h2, h3) + noise[k] drawn,   s' = mix[k, 1] . (the same)
    h3, h2, h1 = h2, h1, y;   k = k + 1

It is `solvers.walk`'s arithmetic in float32, operation by operation: products and sums are rounded
one by one, and a weight of 0 leaves its term out, whatever that holds. k is read from the device's
memory, so that the same launch, in a graph that is replayed, serves every evaluation. A block takes
an image; each image has a k of its own.

PTX, because a device compiles it without a toolkit: for every GPU since compute capability 7.5.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...solvers import SolverTable

ENTRY = "advance"
THREADS = 512
WEIGHTS = 13
POINTERS = ("y", "x", "s", "h1", "h2", "h3", "drawn", "step", "rows")
"""Arguments, in order: seven float [B, n], int64 [B], float [K, 13]; after them uint32 n."""
_SOURCES = POINTERS[:6]


def table_rows(table: SolverTable) -> NDArray[np.float32]:
    """[K, 13] float32: weights of the next x, those of the next s, and the noise's deviation."""
    both = table.mix.reshape(len(table.mix), -1)
    return np.concatenate([both, table.noise[:, None]], axis=1).astype(np.float32)


def ptx() -> bytes:
    """The kernel's text."""
    pointers = [f".param .u64 {name}_param" for name in POINTERS]
    lines = [
        ".version 7.0",
        ".target sm_75",
        ".address_size 64",
        f".visible .entry {ENTRY}({', '.join(pointers)}, .param .u32 n_param)",
        "{",
        ".reg .pred %over, %absent;",
        ".reg .b32 %thread, %threads, %image, %i, %n;",
        ".reg .b64 %at, %first, %k, %next, %eight;",
        *(f".reg .b64 %{name};" for name in POINTERS),
        ".reg .f32 %part, %sum, %new_x, %new_s, %noise;",
        *(f".reg .f32 %value_{name};" for name in _SOURCES),
        *(f".reg .f32 %weight_{column};" for column in range(WEIGHTS)),
        *_setup(),
        *_count(),
        *_weights(),
        "loop:",
        "setp.ge.u32 %over, %i, %n;",
        "@%over bra end;",
        *_element(),
        "add.u32 %i, %i, %threads;",
        "bra loop;",
        "end:",
        "ret;",
        "}",
    ]
    return "\n".join(lines).encode("ascii")


def _setup() -> list[str]:
    """Registers of the arguments and of where this thread is; pointers as the device knows them."""
    lines = []
    for name in POINTERS:
        lines += [f"ld.param.u64 %{name}, [{name}_param];", f"cvta.to.global.u64 %{name}, %{name};"]
    return [
        *lines,
        "ld.param.u32 %n, [n_param];",
        "mov.u32 %thread, %tid.x;",
        "mov.u32 %threads, %ntid.x;",
        "mov.u32 %image, %ctaid.x;",
        "mov.u32 %i, %thread;",
        "mul.wide.u32 %first, %image, %n;",  # elements before this image
    ]


def _count() -> list[str]:
    """Reads k in every thread before one of them moves it on."""
    return [
        "mul.wide.u32 %eight, %image, 8;",
        "add.u64 %step, %step, %eight;",
        "ld.global.u64 %k, [%step];",
        "bar.sync 0;",
        "add.u64 %next, %k, 1;",
        "setp.ne.u32 %absent, %thread, 0;",
        "@%absent bra counted;",
        "st.global.u64 [%step], %next;",
        "counted:",
    ]


def _weights() -> list[str]:
    """The table's row k."""
    lines = [f"mul.lo.u64 %at, %k, {4 * WEIGHTS};", "add.u64 %at, %rows, %at;"]
    return lines + [
        f"ld.global.f32 %weight_{column}, [%at+{4 * column}];" for column in range(WEIGHTS)
    ]


def _element() -> list[str]:
    """Everything about one pixel."""
    lines = []
    for name in (*_SOURCES, "drawn"):
        to = "%noise" if name == "drawn" else f"%value_{name}"
        lines += [*_address(name), f"ld.global.f32 {to}, [%at];"]
    lines += _combined("%new_x", range(6)) + _combined("%new_s", range(6, 12))
    lines += _added("%new_x", "%weight_12", "%noise")
    results = {"x": "%new_x", "s": "%new_s", "h3": "%value_h2", "h2": "%value_h1", "h1": "%value_y"}
    for name, value in results.items():
        lines += [*_address(name), f"st.global.f32 [%at], {value};"]
    return lines


def _address(name: str) -> list[str]:
    return [
        "cvt.u64.u32 %at, %i;",
        "add.u64 %at, %at, %first;",
        "shl.b64 %at, %at, 2;",
        f"add.u64 %at, %at, %{name};",
    ]


def _combined(to: str, columns: range) -> list[str]:
    """Starts from -0, which is what leaves every first term as it is."""
    lines = [f"mov.f32 {to}, 0f80000000;"]
    for column, name in zip(columns, _SOURCES, strict=True):
        lines += _added(to, f"%weight_{column}", f"%value_{name}")
    return lines


def _added(to: str, weight: str, value: str) -> list[str]:
    """to += weight * value, unless the weight is 0; `.rn` keeps the two roundings apart."""
    return [
        f"setp.eq.f32 %absent, {weight}, 0f00000000;",
        f"mul.rn.f32 %part, {weight}, {value};",
        f"add.rn.f32 %sum, {to}, %part;",
        f"selp.f32 {to}, {to}, %sum, %absent;",
    ]
