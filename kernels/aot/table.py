"""Registers, local and shared memory of every variant, compared with a recorded table.

    python -m treediffusion.kernels.aot.table            compile all, compare, list what is worse
    python -m treediffusion.kernels.aot.table --quick    compare one variant of each kernel
    python -m treediffusion.kernels.aot.table --write    compile all, record

A variant may not spill, nor take over a tenth more registers than recorded; with integers that are
1 it may not spill either; and one that is precise has no fused operation. ``table.json`` has rows
``variant: {arch: [registers, spills, shared]}`` for each minor version of Triton with figures of
its own; others are held against the closest one before them. Needs Triton alone, and no GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ...errors import ConfigError
from ...files import write_text
from ...optional import require
from ..variants import Variant
from .build import architecture
from .compile import ARCHITECTURES, compile_variant, find_variants, with_ones

TABLE = Path(__file__).with_name("table.json")
RECORD = "python -m treediffusion.kernels.aot.table --write"
ALLOWED = 1.1

Rows = Mapping[str, Mapping[str, Sequence[int]]]  # variant, architecture: registers, spills, shared
Table = Mapping[str, Rows]  # by Triton's minor version


def measure(variants: Iterable[Variant], archs: Sequence[int]) -> tuple[Rows, list[str]]:
    """Compiles variants and takes their figures.

    Returns:
        The rows, and the reasons why others have none.
    """
    rows: dict[str, dict[str, list[int]]] = {}
    broken = []
    for variant in variants:
        rows[variant.name] = {}
        for arch in archs:
            try:
                made = compile_variant(variant, arch)
            except ConfigError as error:
                broken.append(str(error))
                continue
            if variant.precise and is_fused(made.ptx):
                broken.append(f"{variant.name} on sm_{arch} fuses products and sums")
            rows[variant.name][str(arch)] = [made.registers, made.spills, made.shared]
    return rows, broken


def is_fused(ptx: str) -> bool:
    """Whether a product and a sum of floating-point numbers are rounded together anywhere."""
    return re.search(r"\b(fma|mad)\.[a-z0-9.]*(f16|bf16|f32|f64)", ptx) is not None


def faults(measured: Rows, recorded: Rows) -> list[str]:
    """What is wrong, one sentence each; empty if nothing is."""
    found = [
        f"{name} is in the table, and no kernel; run: {RECORD}"
        for name in recorded
        if name not in measured
    ]
    for name, row in measured.items():
        for arch, (registers, spills, _) in row.items():
            where = f"{name} on sm_{arch}"
            before = recorded.get(name, {}).get(arch)
            if spills:
                found.append(f"{where} spills {spills} bytes for each thread")
            if before is None:
                found.append(f"{where} is not in the table; run: {RECORD}")
            elif registers > ALLOWED * before[0]:
                found.append(f"{where} takes {registers} registers, recorded are {before[0]}")
    return found


def ones_faults(variants: Iterable[Variant], archs: Sequence[int]) -> list[str]:
    """As `faults`, of the variants with integers that are 1: they must compile, and not spill."""
    ones = [one for variant in variants if (one := with_ones(variant)) is not None]
    measured, broken = measure(ones, archs)
    return broken + faults(measured, measured)


def one_of_each(variants: Iterable[Variant]) -> list[Variant]:
    """The first variant of each function."""
    firsts: dict[int, Variant] = {}
    for variant in variants:
        firsts.setdefault(id(variant.kernel), variant)
    return list(firsts.values())


def rows_for(table: Table, version: str) -> Rows:
    """What a version of Triton is held against: its rows, else those before it, else the first."""
    known = sorted(table, key=_numbers)
    before = [name for name in known if _numbers(name) <= _numbers(version)]
    return table[(before or known)[-1 if before else 0]] if known else {}


def with_rows(table: Table, version: str, rows: Rows) -> Table:
    """The table with a version's rows, which are left out if an earlier version's are the same."""
    others = {name: kept for name, kept in table.items() if name != version}
    before = any(_numbers(name) < _numbers(version) for name in others)
    if before and rows_for(others, version) == rows:
        return others
    return dict(sorted({**others, version: rows}.items(), key=lambda item: _numbers(item[0])))


def read_table() -> Table:
    """The recorded table."""
    table: Table = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


def minor_version() -> str:
    """Triton's, such as 3.9."""
    return ".".join(require("triton", extra="train").__version__.split(".")[:2])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="table", description="Figures of all compiled kernels.")
    parser.add_argument("--arch", nargs="+", type=architecture, default=list(ARCHITECTURES))
    parser.add_argument("--write", action="store_true", help="record the figures, of all")
    parser.add_argument("--quick", action="store_true", help="one variant of each kernel")
    given = parser.parse_args(arguments)
    if given.quick and given.write:
        parser.error("--write records all variants, not those of --quick")
    everything = find_variants()
    variants = one_of_each(everything) if given.quick else everything
    archs = ARCHITECTURES if given.write else given.arch
    measured, wrong = measure(variants, archs)
    wrong += ones_faults(variants, archs)
    if given.write and not wrong:
        write_text(TABLE, _format(with_rows(read_table(), minor_version(), measured)))
    recorded = rows_for(read_table(), minor_version())
    if given.quick:
        left_out = {v.name for v in everything} - set(measured)
        recorded = {name: row for name, row in recorded.items() if name not in left_out}
    wrong += faults(measured, recorded)
    print("\n".join([*wrong, f"{len(measured)} variants, {len(wrong)} faults"]))
    sys.exit(bool(wrong))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _format(table: Table) -> str:
    """JSON with a line for each variant, so that a change shows as the lines of its variants."""
    versions = []
    for version, rows in table.items():
        lines = [f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
        versions.append(f"  {json.dumps(version)}: {{\n" + ",\n".join(lines) + "\n  }")
    return "{\n" + ",\n".join(versions) + "\n}\n" if versions else "{}\n"


if __name__ == "__main__":
    main()
