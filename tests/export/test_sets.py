"""Which graphs an export makes for which targets and precisions."""

from __future__ import annotations

from pathlib import Path

import pytest
from treediffusion.bundle import PRECISIONS, ROLES, TARGETS
from treediffusion.cli import export_main
from treediffusion.errors import ConfigError
from treediffusion.export import EXPORT_STEPS, export_steps
from treediffusion.export.sets import BATCHES, opset_of, plan_sets


def test_by_default_one_set_of_six_graphs() -> None:
    (only,), files = plan_sets(["onnx-cpu"], ["fp32"], BATCHES)
    assert (only.name, only.opset, only.batches) == ("onnx-cpu-fp32", 18, (1, 4, 16, 64))
    assert only.files == {role: f"graphs/onnx-cpu-fp32/{role}.onnx" for role in ROLES}
    assert [file.name for file in files] == list(only.files.values())
    assert EXPORT_STEPS == export_steps() == len(ROLES) + 1


def test_operators_are_those_that_each_compiler_does_best() -> None:
    """18 has the norms that ONNX Runtime has kernels for, 22 those that TensorRT fuses."""
    table = {(t, p): opset_of(t, p) for t in TARGETS for p in PRECISIONS}
    assert {v for (t, p), v in table.items() if t.startswith("onnx") and p != "bf16"} == {18}
    assert {v for (t, _), v in table.items() if t.startswith("tensorrt")} == {22}
    assert table["onnx-gpu", "bf16"] == 22
    assert table["onnx-cpu", "bf16"] is None


def test_no_graph_is_made_twice() -> None:
    """Every set is whole, and two sets share what is the same graph at the same operators."""
    sets, files = plan_sets(TARGETS, PRECISIONS, BATCHES)
    assert len(sets) == len(TARGETS) * len(PRECISIONS) - 1
    kinds = [(file.role, file.precision, file.opset) for file in files]
    assert len(set(kinds)) == len(kinds)
    assert {name for each in sets for name in each.files.values()} == {f.name for f in files}
    by_name = {file.name: file for file in files}
    for each in sets:
        assert set(each.files) == set(ROLES)
        for role, name in each.files.items():
            file = by_name[name]
            assert (file.role, file.opset) == (role, each.opset)
            assert file.precision == (each.precision if role == "step" else "fp32")


def test_a_set_alone_has_its_files_in_its_own_folder() -> None:
    (only,), files = plan_sets(["tensorrt"], ["fp16"], [8, 1])
    assert only.batches == (1, 8)
    assert {file.name for file in files} == {f"graphs/tensorrt-fp16/{role}.onnx" for role in ROLES}


@pytest.mark.parametrize(
    ("targets", "precisions", "batches", "named"),
    [
        ([], ["fp32"], [1], "targets"),
        (["tpu"], ["fp32"], [1], r"targets.*tpu.*tensorrt-rtx"),
        (["onnx-cpu", "onnx-cpu"], ["fp32"], [1], "targets"),
        (["onnx-cpu"], ["int8"], [1], "precision.*int8.*bf16"),
        (["onnx-cpu"], [], [1], "precision.*nothing"),
        (["onnx-cpu"], ["fp32", "bf16"], [1], "bf16 for onnx-cpu.*bfloat16"),
        (["onnx-cpu"], ["fp32"], [], "batch"),
        (["onnx-cpu"], ["fp32"], [0], "batch.*0"),
        (["onnx-cpu"], ["fp32"], [True], "batch"),
        (["onnx-cpu"], ["fp32"], [4, 4], "batch"),
        (["onnx-cpu"], ["fp32"], [10**12], "batch"),
    ],
)
def test_what_there_is_not_is_named(
    targets: list[str], precisions: list[str], batches: list[int], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        plan_sets(targets, precisions, batches)


def test_a_precision_is_left_out_where_a_target_has_it_not() -> None:
    sets, _ = plan_sets(["onnx-cpu", "onnx-gpu"], ["fp32", "bf16"], [1])
    assert [each.name for each in sets] == ["onnx-cpu-fp32", "onnx-gpu-fp32", "onnx-gpu-bf16"]


@pytest.mark.parametrize(
    "flags",
    [["--targets", "tpu"], ["--precision", "fp32,half"], ["--batch", "1,many"], ["--batch", ""]],
)
def test_the_command_names_them_before_it_reads_a_checkpoint(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(tmp_path / "none"), "--out", str(tmp_path / "b"), *flags]
    assert export_main(arguments) == 2
    assert f"{flags[0].removeprefix('--')}: got" in capsys.readouterr().err
