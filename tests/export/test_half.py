"""Half precision: the network alone, float32 at the edges, and proved without its kernels."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from support.models import tiny_model
from treediffusion.bundle import PRECISIONS, TARGETS, Bundle, Precision
from treediffusion.errors import ParityError
from treediffusion.export import export_bundle, parity
from treediffusion.export.graphs import Graph, make_graphs, on_cpu
from treediffusion.export.half import at_precision, rounded
from treediffusion.export.sets import PlannedFile
from treediffusion.export.to_onnx import to_onnx
from treediffusion.export.widen import widen
from treediffusion.runtime import Engine
from treediffusion.runtime.backends import OnnxRuntimeBackend

HALVES: dict[Precision, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
OPSETS = {"fp16": 18, "bf16": 22}


@cache
def step() -> Graph:
    return make_graphs(on_cpu(tiny_model()))["step"]


@cache
def exported(precision: Precision) -> bytes:
    return to_onnx(at_precision(step(), precision), opset=OPSETS[precision])


@cache
def feed() -> dict[str, np.ndarray]:
    """Three images whose rows let the network's output through."""
    generator = np.random.default_rng(3)
    made = {
        "timesteps": np.array([150, 80, 3]),
        "coef": np.tile(np.float32([0, 0, 0, 1, 0]), (3, 1)),
        "step": np.array([2, 0, 1]),
    }
    for spec in step().inputs:
        shape = [3 if isinstance(side, str) else side for side in spec.shape]
        made.setdefault(spec.name, generator.standard_normal(shape, np.float32))
    return made


def run(content: bytes) -> np.ndarray:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(["x_next"], {s.name: feed()[s.name] for s in step().inputs})[0]
    return found


def result(graph: Graph) -> np.ndarray:
    return graph.run({k: torch.from_numpy(v) for k, v in feed().items()})["x_next"].numpy()


def off(found: np.ndarray) -> float:
    """Root mean square of the difference from float32, as a share of its own."""
    exact = result(step()).astype(np.float64)
    return float(np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)))


@pytest.mark.parametrize("precision", HALVES)
def test_only_the_network_is_half(precision: Precision) -> None:
    """Its weights all are; what goes in and comes out, and the table of times, is float32."""
    model = onnx.load_model_from_string(exported(precision))
    edges = [*model.graph.input, *model.graph.output]
    floats = {v.type.tensor_type.elem_type for v in edges} - {TensorProto.INT64}
    assert floats == {TensorProto.FLOAT}
    sizes = {HALVES[precision]: 0, TensorProto.FLOAT: 0}
    for tensor in model.graph.initializer:
        if tensor.data_type in sizes:
            sizes[tensor.data_type] += int(np.prod(tensor.dims))
    module = step().module
    weights = sum(weight.numel() for weight in module.denoiser.unet.parameters())
    assert sizes[HALVES[precision]] == pytest.approx(weights, rel=0.01)
    assert sizes[TensorProto.FLOAT] == pytest.approx(module.time_table.numel(), rel=0.01)


@pytest.mark.parametrize("precision", HALVES)
def test_no_norm_is_wrapped_in_casts(precision: Precision) -> None:
    """Such casts keep compilers from fusing: there are those at the three edges, and no more."""
    model = onnx.load_model_from_string(exported(precision))
    assert sum(node.op_type == "Cast" for node in model.graph.node) == 3


def test_float16_runs_and_is_as_far_off_as_it_must_be() -> None:
    assert 1e-5 < off(run(exported("fp16"))) < 5e-3


@pytest.mark.parametrize("precision", HALVES)
def test_a_widened_graph_computes_with_the_rounded_weights(precision: Precision) -> None:
    """To float32's own rounding, although no kernel of the type took part."""
    found, expected = run(widen(exported(precision))), result(rounded(step(), precision))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert off(found) > 1e-5


def test_bfloat16_is_coarser_than_float16() -> None:
    fine, coarse = (off(result(at_precision(step(), precision))) for precision in HALVES)
    assert 4 * fine < coarse < 0.05


def test_the_module_itself_stays_float32() -> None:
    at_precision(step(), "bf16")
    rounded(step(), "fp16")
    assert {weight.dtype for weight in step().module.parameters()} == {torch.float32}
    assert at_precision(step(), "fp32") is step()


def test_numbers_beyond_float16_are_found_by_the_proof(tmp_path: Path) -> None:
    """Weights of 10^5 are infinite there; the message says which precision has them."""
    model = on_cpu(tiny_model())
    with torch.no_grad():
        model.denoiser.unet.stem.weight.mul_(1e6)
    graph = make_graphs(model)["step"]
    (tmp_path / "step.onnx").write_bytes(to_onnx(at_precision(graph, "fp16"), opset=18))
    file = PlannedFile("step.onnx", "step", "fp16", 18)
    with pytest.raises(ParityError, match="bf16 or fp32"):
        parity._file(tmp_path, file, graph, [feed()])


@pytest.mark.parametrize("precision", HALVES)
def test_a_network_that_rounds_too_much_is_refused(precision: Precision) -> None:
    file = PlannedFile("step.onnx", "step", precision, 18)
    exact = np.ones((2, 3), np.float32)
    assert parity._rounding(file, exact * 1.005, exact)["rms_value"] == 1.0
    for found in (exact * 1.2, exact * np.inf, exact * np.nan):
        with pytest.raises(ParityError, match="bf16 or fp32"):
            parity._rounding(file, found, exact)


@pytest.mark.slow
def test_every_target_at_every_precision(tmp_path: Path) -> None:
    """One bundle of eleven sets: proved, and those that a CPU has kernels for draw alike."""
    out = export_bundle(tiny_model(), tmp_path / "b", targets=TARGETS, precisions=PRECISIONS)
    bundle = Bundle.open(out)
    assert len(bundle.sets) == 11
    stored = list((out / "graphs").rglob("*.onnx"))
    assert len(stored) == len(
        {g.file for each in bundle.sets.values() for g in each.graphs.values()}
    )
    for name, precision in (("onnx-cpu-fp16", "fp16"), ("onnx-gpu-bf16", "bf16")):
        again = bundle.sets[name].graphs["step"].file.read_bytes()
        assert again == exported(precision), "a second export gives other bytes"  # type: ignore[arg-type]
    report = json.loads((out / "parity.json").read_text())
    assert {str(out / name) for name in report["graphs"]} == {str(file) for file in stored}
    for facts in report["graphs"].values():
        assert ("not_run" in facts) == (facts["precision"] == "bf16")
        assert ("rounding" in facts) == (facts["precision"] != "fp32")
    with Engine.load(out, threads=1) as engine:
        expected = engine.generate(2, num_inference_steps=4).images.astype(int)
    assert expected.shape == (2, 1, 8, 8)
    ran = {}
    for name in ("onnx-cpu-fp16", "tensorrt-fp32", "tensorrt-fp16"):
        backend = OnnxRuntimeBackend(bundle.only(name), threads=1)
        ran[name] = backend.run("step", feed() | {"step": np.arange(3)})["x_next"]
    assert np.abs(ran["onnx-cpu-fp16"] - ran["tensorrt-fp16"]).max() < 0.02
    assert np.abs(ran["tensorrt-fp32"] - ran["tensorrt-fp16"]).max() < 0.05
