"""The table of registers, spills and shared memory: what is refused, and what is recorded."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from treediffusion.kernels.aot.compile import ARCHITECTURES, find_variants
from treediffusion.kernels.aot.table import faults, is_fused, read_table, rows_for, with_rows


def test_the_record_is_of_all_variants_and_none_spills() -> None:
    """What was compiled for each version of Triton, for every architecture."""
    names = {variant.name for variant in find_variants()}
    for version, rows in read_table().items():
        assert set(rows) == names, version
        for name, row in rows.items():
            assert set(row) == {str(arch) for arch in ARCHITECTURES}, name
            assert not any(spills for _, spills, _ in row.values()), name


def test_noise_and_updates_are_precise() -> None:
    """Those whose bits are promised; the table refuses a fused operation in them."""
    precise = {v.name.partition("_fp")[0].partition("_bf")[0] for v in find_variants() if v.precise}
    assert precise == {"philox_normal", "ddim_update"}


def test_fused_operations_are_seen() -> None:
    assert is_fused("\tfma.rn.f32 %f1, %f2, %f3, %f4;")
    assert is_fused("\tfma.rn.ftz.f32 \t%f1, %f2, %f3, %f4;")
    assert is_fused("\tmad.rn.f64 %d1, %d2, %d3, %d4;")
    assert not is_fused("\tmad.lo.s32 %r1, %r2, %r3, %r4;\n\tmul.rn.f32 %f1, %f2, %f3;")


def test_faults_are_spills_and_a_tenth_more_registers() -> None:
    recorded = {"a": {"80": [40, 0, 0]}}
    assert not faults({"a": {"80": [44, 0, 999]}}, recorded)
    assert "takes 45 registers, recorded are 40" in faults({"a": {"80": [45, 0, 0]}}, recorded)[0]
    assert "spills 8 bytes" in faults({"a": {"80": [40, 8, 0]}}, recorded)[0]
    assert "is in the table, and no kernel" in faults({}, recorded)[0]


def test_a_version_has_rows_only_if_they_differ() -> None:
    rows, others = {"a": {"80": [1, 0, 0]}}, {"a": {"80": [2, 0, 0]}}
    table = with_rows({}, "3.9", rows)
    assert with_rows(table, "3.10", rows) == table
    assert list(with_rows(table, "3.10", others)) == ["3.9", "3.10"]
    assert rows_for({"3.9": rows, "3.10": others}, "3.11") == others
    assert rows_for({"3.9": rows, "3.10": others}, "3.6") == rows
