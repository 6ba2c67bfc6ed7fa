"""Which back end runs is the one that was asked for; OpenVINO computes what ONNX Runtime does."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.models import tiny_bundle
from support.toy_graphs import toy_graphs
from treediffusion.bundle import ROLES, Bundle, GraphSet, GraphSpec
from treediffusion.errors import (
    BackendUnavailableError,
    BundleFormatError,
    ConfigError,
    DependencyError,
)
from treediffusion.runtime.backends import (
    BACKENDS,
    OnnxRuntimeBackend,
    OpenVinoBackend,
    open_backend,
)
from treediffusion.runtime.backends.protocol import choose_bucket

FP32_LIMIT, BF16_LIMIT = 1e-5, 0.05
"""Of the largest value, or of 1. Measured on the graphs of the MNIST preset: 2e-6 and 0.01."""


def bundle_of(folder: Path, *sets: tuple[str, str]) -> Any:
    """What the back ends need of a bundle with such sets; the first is the default one."""
    graphs = toy_graphs(folder)
    made = {
        f"{target}-{precision}": GraphSet(target, precision, 18, (1, 4, 16, 64), graphs)  # type: ignore[arg-type]
        for target, precision in sets or (("onnx-cpu", "fp32"),)
    }
    return SimpleNamespace(sets=made, graphs=graphs)


def feeds(spec: GraphSpec, rows: int = 1, *, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    given: dict[str, np.ndarray] = {}
    for tensor in spec.inputs:
        shape = [rows if isinstance(side, str) else side for side in tensor.shape]
        if tensor.dtype == "int64":
            given[tensor.name] = np.full(shape, -1 if tensor.name == "nodes" else 0)
        else:
            given[tensor.name] = generator.standard_normal(shape, np.float32)
    return given


def openvino(spec: dict[str, GraphSpec] | Any, **options: Any) -> OpenVinoBackend:
    pytest.importorskip("openvino", reason="openvino is not installed")
    return OpenVinoBackend(spec, **options)


def has_bf16() -> bool:
    core = pytest.importorskip("openvino", reason="openvino is not installed").Core()
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest, over the largest value or 1."""
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


# The choice


def test_a_back_end_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"abacus.*onnxruntime, onnxruntime-cuda"):
        open_backend("abacus", bundle_of(tmp_path))


@pytest.mark.parametrize("name", BACKENDS)
def test_an_option_of_another_back_end_is_refused(tmp_path: Path, name: str) -> None:
    wrong: Any = {"bucket": 4} if name in {"onnxruntime", "openvino"} else {"threads": 1}
    with pytest.raises(ConfigError, match=f"an option of {name}, "):
        open_backend(name, bundle_of(tmp_path), **wrong)


def test_options_that_are_none_are_left_to_the_back_end(tmp_path: Path) -> None:
    backend = open_backend("onnxruntime", bundle_of(tmp_path), threads=None, bucket=None)
    assert backend.sizes == (1, 2, 4, 8)
    assert backend.describe()["device"] == "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("onnxruntime-cuda", "onnx-gpu"),
        ("tensorrt", "tensorrt"),
        ("tensorrt-rtx", "tensorrt-rtx"),
    ],
)
def test_a_bundle_without_graphs_for_it(tmp_path: Path, name: str, target: str) -> None:
    """Whatever is installed: the graphs of another target are not taken in their place."""
    with pytest.raises(
        BackendUnavailableError, match=rf"onnx-cpu-fp32.*{target}-fp16.*--targets {target}"
    ):
        open_backend(name, bundle_of(tmp_path))
    with pytest.raises(BackendUnavailableError, match=rf"{target}-fp16.*{target}-bf16"):
        open_backend(name, bundle_of(tmp_path, (target, "fp16")), precision="bf16")


@pytest.mark.parametrize(
    ("batches", "asked", "expected"),
    [
        ((1, 4, 16, 64), None, 16),
        ((1, 4), None, 4),
        ((64, 32), None, 32),
        ((1, 4, 16, 64), 64, 64),
        ((1, 4, 16, 64), 1, 1),
    ],
)
def test_bucket_is_one_of_the_bundles(
    batches: tuple[int, ...], asked: int | None, expected: int
) -> None:
    assert choose_bucket(batches, asked) == expected


def test_a_bucket_that_the_bundle_does_not_have() -> None:
    with pytest.raises(ConfigError, match="one of 1, 4"):
        choose_bucket((1, 4), 5)


# ONNX Runtime


def test_cuda_that_is_not_there_is_refused(tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(BackendUnavailableError, match=r"CUDAExecutionProvider.*\[gpu\]"):
        open_backend("onnxruntime-cuda", bundle_of(tmp_path, ("onnx-gpu", "fp16")))


def test_cuda_computes_float32_and_the_same_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No TF32, no algorithms chosen by the clock, and half precision where the bundle has it."""
    import onnxruntime

    seen: list[Any] = []
    said = ["CUDAExecutionProvider", "CPUExecutionProvider"]

    class Session:
        def __init__(self, file: str, options: Any, providers: list[Any]) -> None:
            seen.append((Path(file), options.use_deterministic_compute, providers))

        def get_providers(self) -> list[str]:
            return said

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: said[:1])
    monkeypatch.setattr(
        onnxruntime, "preload_dlls", lambda: seen.append("libraries"), raising=False
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    sets = [("onnx-cpu", "fp32"), ("onnx-gpu", "fp32"), ("onnx-gpu", "fp16")]
    backend = open_backend("onnxruntime-cuda", bundle_of(tmp_path, *sets))
    backend.load(["assign"])
    assert backend.sizes == (16,)
    (first, (file, deterministic, providers)) = seen
    assert (first, file.name, deterministic) == ("libraries", "assign.onnx", True)
    ((name, options),) = providers
    assert name == "CUDAExecutionProvider"
    assert options == {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    said.reverse()
    with pytest.raises(BackendUnavailableError, match="CPUExecutionProvider in place of CUDA"):
        backend.load(["step"])


def test_onnx_runtime_of_other_graphs(tmp_path: Path) -> None:
    """A set that is given takes the place of the bundle's own."""
    bundle = bundle_of(tmp_path)
    only_step = {"step": bundle.graphs["step"]}
    backend = OnnxRuntimeBackend(bundle, graphs=only_step, threads=1)
    backend.load(["step"])
    with pytest.raises(KeyError):
        backend.run("assign", {})


# OpenVINO


@pytest.mark.parametrize("role", ROLES)
def test_openvino_in_float32_agrees_with_onnx_runtime(role: str) -> None:
    bundle = Bundle.open(tiny_bundle())
    backend, reference = openvino(bundle.graphs, threads=1), OnnxRuntimeBackend(bundle, threads=1)
    for seed in range(3):
        given = feeds(bundle.graphs[role], seed=seed)
        found, expected = backend.run(role, given), reference.run(role, given)
        assert list(found) == list(expected)
        for name, values in expected.items():
            assert found[name].dtype == values.dtype
            assert found[name].shape == values.shape
            assert difference(found[name], values) < FP32_LIMIT


def test_openvino_in_bfloat16_rounds_the_step_and_nothing_else() -> None:
    if not has_bf16():
        pytest.skip("this processor has no bfloat16")
    graphs = Bundle.open(tiny_bundle()).graphs
    half, full = openvino(graphs, threads=1, precision="bf16"), openvino(graphs, threads=1)
    for role in ROLES:
        given = feeds(graphs[role])
        for name, values in full.run(role, given).items():
            apart = difference(half.run(role, given)[name], values)
            assert (0 < apart < BF16_LIMIT) if role == "step" else apart == 0, (role, name, apart)


def test_openvino_gives_new_arrays_and_the_same_numbers_to_all_threads(tmp_path: Path) -> None:
    graphs = toy_graphs(tmp_path)
    backend = openvino(graphs, threads=1)
    given = [feeds(graphs["assign"], seed=k) for k in range(8)]
    expected = [backend.run("assign", each)["leaf_prob"] for each in given]
    found: dict[int, np.ndarray] = {}

    def work(k: int) -> None:
        found[k] = backend.run("assign", given[k])["leaf_prob"]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({values.tobytes() for values in expected}) == 8
    assert all(np.array_equal(found[k], expected[k]) for k in range(8))


def test_openvino_says_what_runs(tmp_path: Path) -> None:
    described = openvino(toy_graphs(tmp_path)).describe()
    assert str(described["backend"]).startswith("openvino 20")
    assert (described["precision"], described["bucket"]) == ("fp32", 16)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"threads": 0}, ConfigError, "at least 1"),
        ({"threads": True}, ConfigError, "at least 1"),
        ({"precision": "fp16"}, ConfigError, "fp32, bf16"),
    ],
)
def test_openvino_refuses(tmp_path: Path, options: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        openvino(toy_graphs(tmp_path), **options)


def test_openvino_without_bfloat16_or_with_another_precision_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would compute in float32 without a word."""
    library = pytest.importorskip("openvino", reason="openvino is not installed")

    class Core:
        def get_property(self, device: str, name: str) -> Any:
            return "a 486" if name == "FULL_DEVICE_NAME" else ["FP32"]

    graphs = toy_graphs(tmp_path)
    monkeypatch.setattr(library, "Core", Core)
    with pytest.raises(BackendUnavailableError, match=r"a 486 with FP32.*BF16"):
        openvino(graphs, precision="bf16")
    monkeypatch.undo()

    class Other(type(library.Core())):  # type: ignore[misc]
        def compile_model(self, *arguments: Any) -> Any:
            compiled = super().compile_model(*arguments)
            used = SimpleNamespace(to_string=lambda: "f16")
            return SimpleNamespace(get_property=lambda name: used, of=compiled)

    monkeypatch.setattr(library, "Core", Other)
    with pytest.raises(BackendUnavailableError, match=r"f16 for assign.*f32"):
        openvino(graphs).load(["assign"])


def test_a_graph_that_openvino_cannot_read(tmp_path: Path) -> None:
    graphs = toy_graphs(tmp_path)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    spec = replace(graphs["assign"], file=broken)
    with pytest.raises(BundleFormatError, match=r"broken\.onnx"):
        openvino({"assign": spec}).load(["assign"])


@pytest.mark.parametrize(
    "make", [lambda bundle: OnnxRuntimeBackend(bundle), lambda bundle: openvino(bundle.graphs)]
)
def test_a_closed_back_end_says_so(tmp_path: Path, make: Callable[[Any], Any]) -> None:
    bundle = bundle_of(tmp_path)
    backend = make(bundle)
    backend.load(["assign"])
    backend.close()
    backend.close()
    with pytest.raises(BackendUnavailableError, match=r"close\(\)"):
        backend.run("assign", feeds(bundle.graphs["assign"]))


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("onnxruntime", "onnxruntime", "cpu"), ("openvino", "openvino", "openvino")],
)
def test_a_missing_package_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str
) -> None:
    bundle = bundle_of(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError, match=rf"treediffusion\[{extra}\]"):
        open_backend(name, bundle)
