"""The TensorRT back end on a simulated library and device: results, engines on disk, refusals."""

from __future__ import annotations

import atexit
import gc
import logging
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from support.fake_cuda import CUresult, FakeCuda
from support.fake_tensorrt import FakeTensorRt
from support.tables import table_of
from support.toy_graphs import toy_graphs
from treediffusion.bundle import CLIP_RANGE, GraphSpec, TensorSpec
from treediffusion.errors import (
    BackendUnavailableError,
    BundleFormatError,
    DependencyError,
    ShapeError,
)
from treediffusion.runtime.backends import EngineCache, TensorRtBackend
from treediffusion.runtime.backends.trt_library import load_library
from treediffusion.runtime.device.bindings import BindingsDevice
from treediffusion.schedule import DiffusionSchedule
from treediffusion.solvers import follow

Machine = tuple[FakeTensorRt, FakeCuda]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A GPU and TensorRT."""
    cuda = FakeCuda()
    fake = FakeTensorRt(cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    load_library.cache_clear()
    yield fake, cuda
    load_library.cache_clear()


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A GPU and TensorRT-RTX."""
    cuda = FakeCuda()
    fake = FakeTensorRt(cuda, portable=True, version="1.7.1")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    load_library.cache_clear()
    yield fake, cuda
    load_library.cache_clear()


@cache
def graphs() -> Mapping[str, GraphSpec]:
    folder = Path(tempfile.mkdtemp(prefix="treediffusion-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return toy_graphs(folder)


def opened(
    machine: Machine,
    folder: Path,
    *,
    bucket: int = 3,
    build: bool = True,
    library: str = "tensorrt",
    given: Mapping[str, GraphSpec] | None = None,
) -> TensorRtBackend:
    return TensorRtBackend(
        given or graphs(),
        library=library,
        bucket=bucket,
        precision="fp32",
        device=BindingsDevice(driver=machine[1]),
        cache=EngineCache(folder, build=build),
    )


def feeds(role: str, rows: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    given: dict[str, np.ndarray] = {}
    for tensor in graphs()[role].inputs:
        shape = [rows if isinstance(side, str) else side for side in tensor.shape]
        if tensor.dtype == "float32":
            given[tensor.name] = generator.standard_normal(shape, np.float32)
        else:
            given[tensor.name] = np.arange(rows)
    return given


@pytest.mark.parametrize("role", ["assign", "step"])
def test_a_graph_gives_what_onnx_runtime_gives(machine: Machine, tmp_path: Path, role: str) -> None:
    """Here the engine is ONNX Runtime: what is proved is that each value is where it belongs."""
    backend = opened(machine, tmp_path)
    session = onnxruntime.InferenceSession(str(graphs()[role].file))
    names = [tensor.name for tensor in graphs()[role].outputs]
    for seed in (0, 1):
        given = feeds(role, 3, seed=seed)
        found = backend.run(role, given)
        assert list(found) == names
        for name, values in zip(names, session.run(names, given), strict=True):
            assert found[name].dtype == values.dtype
            assert np.array_equal(found[name], values)
    backend.close()
    assert not machine[1].memory


def test_results_stay_when_the_next_call_is_made(machine: Machine, tmp_path: Path) -> None:
    backend = opened(machine, tmp_path)
    first = backend.run("assign", feeds("assign", 3))["leaf_prob"]
    kept = first.copy()
    backend.run("assign", feeds("assign", 3, seed=9))
    assert np.array_equal(first, kept)


def test_a_call_of_another_size_is_refused(machine: Machine, tmp_path: Path) -> None:
    backend = opened(machine, tmp_path)
    with pytest.raises(ShapeError, match=r"images.*\[2, 1, 8, 8\].*\[3, 1, 8, 8\]"):
        backend.run("assign", feeds("assign", 2))


def test_threads_share_it(machine: Machine, tmp_path: Path) -> None:
    backend = opened(machine, tmp_path)
    backend.load(["assign"])
    expected = [backend.run("assign", feeds("assign", 3, seed=k))["leaf_prob"] for k in range(8)]
    found: dict[int, np.ndarray] = {}

    def work(k: int) -> None:
        found[k] = backend.run("assign", feeds("assign", 3, seed=k))["leaf_prob"]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[k], expected[k]) for k in range(8))


@pytest.mark.parametrize("solver", ["ddim", "unipc"])
def test_the_sampling_loop_gives_what_single_calls_give(
    machine: Machine, tmp_path: Path, solver: str
) -> None:
    """One graph replayed, against a call per evaluation and NumPy between them: the same bits."""
    backend = opened(machine, tmp_path, bucket=2)
    schedule = DiffusionSchedule(timesteps=200, beta_start=1e-4, beta_end=0.04)
    table = table_of(schedule, [150, 90, 40, 0], solver)
    given = feeds("step", 2, seed=5)
    coef = table.network.astype(np.float32)

    def evaluate(x: np.ndarray, k: int, drawn: np.ndarray | None) -> np.ndarray:
        rows = {"timesteps": table.timestep, "coef": coef, "step": np.full(2, k)}
        added = np.zeros_like(x) if drawn is None else drawn
        return backend.run("step", given | rows | {"x": x, "noise": added})["x_next"]

    expected = follow(table, given["x"], evaluate, None)
    loop = backend.step_loop()
    assert loop is backend.step_loop()
    assert loop.takes(table, (1.0,))
    assert table.clip_range == CLIP_RANGE
    found = loop.run(table, {name: given[name] for name in ("x", "cond")})
    assert np.array_equal(found, expected)
    assert np.array_equal(follow(table, given["x"], evaluate, None), expected)


def test_an_engine_is_built_once(machine: Machine, tmp_path: Path) -> None:
    fake, _ = machine
    for _ in range(2):
        backend = opened(machine, tmp_path)
        backend.load(["assign", "step"])
        backend.close()
    assert (len(fake.builds), len(fake.loads)) == (2, 4)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".engine", ".engine", ".timing"]
    assert fake.timings == [b"", b"t"], "the second build knows the first one's times"


def test_another_bucket_version_or_device_is_another_engine(
    machine: Machine, tmp_path: Path
) -> None:
    fake, _ = machine
    opened(machine, tmp_path).load(["assign"])
    opened(machine, tmp_path, bucket=4).load(["assign"])
    assert len(fake.builds) == 2
    load_library.cache_clear()
    fake.__version__ = "11.5.0"
    opened(machine, tmp_path).load(["assign"])
    assert len(fake.builds) == 3
    backend = opened(machine, tmp_path)
    backend._device.name = "NVIDIA Slide Rule"  # type: ignore[misc]
    backend.load(["assign"])
    assert len(fake.builds) == 4


def test_a_refusal_names_the_engines_that_there_are(machine: Machine, tmp_path: Path) -> None:
    fake, _ = machine
    opened(machine, tmp_path).load(["assign"])
    opened(machine, tmp_path, build=False).load(["assign"])
    with pytest.raises(BackendUnavailableError) as refusal:
        opened(machine, tmp_path, bucket=4, build=False).load(["assign"])
    text = str(refusal.value)
    assert "no such file; there are engines for tensorrt 11.4.0 on NVIDIA Abacus" in text
    assert "3 images" in text
    assert "expected an engine for tensorrt 11.4.0" in text
    assert len(fake.builds) == 1


def test_a_damaged_engine_is_built_again_with_a_warning_or_refused(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake, _ = machine
    opened(machine, tmp_path).load(["assign"])
    (file,) = tmp_path.glob("*.engine")
    whole = file.read_bytes()
    for damage, says in (
        (whole[:-1] + b"?", "a damaged file"),
        (whole[:-9], "a damaged file: "),
        (b"", "a file that is no engine"),
        (b"{}\n", "a file that is no engine"),
        (b"\xff" * 100_000, "a file that is no engine"),
        (whole.replace(b'engine": 1', b'engine": 2'), "a file of format 2"),
        (whole.replace(b"Abacus", b"Pascal"), "an engine for tensorrt 11.4.0 on NVIDIA Pascal"),
    ):
        file.write_bytes(damage)
        with pytest.raises(BackendUnavailableError, match=says):
            opened(machine, tmp_path, build=False).load(["assign"])
        builds = len(fake.builds)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "treediffusion.runtime"):
            opened(machine, tmp_path).load(["assign"])
        assert len(fake.builds) == builds + 1
        assert says in caplog.text
        assert "building it again" in caplog.text
        assert file.read_bytes() == whole


def test_an_engine_that_the_library_does_not_take_is_built_again_once(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake, _ = machine
    opened(machine, tmp_path).load(["assign"])
    fake.misfits = ["driver too old"]
    opened(machine, tmp_path).load(["assign"])
    assert len(fake.builds) == 2
    assert "driver too old; building it again" in caplog.text
    fake.misfits = ["still"] * 2
    with pytest.raises(BackendUnavailableError, match=r"does not load it: still.*Abacus"):
        opened(machine, tmp_path).load(["assign"])
    fake.misfits = ["driver too old"]
    with pytest.raises(BackendUnavailableError, match=r"driver too old.*let engines be built"):
        opened(machine, tmp_path, build=False).load(["assign"])


def test_a_graph_that_cannot_be_read_or_built(machine: Machine, tmp_path: Path) -> None:
    fake, _ = machine
    broken = tmp_path / "assign.onnx"
    broken.write_bytes(b"no graph")
    spec = graphs()["assign"]
    backend = opened(machine, tmp_path, given={"assign": replace(spec, file=broken)})
    with pytest.raises(BundleFormatError, match=r"assign\.onnx.*not ONNX.*tensorrt 11\.4\.0"):
        backend.load(["assign"])
    other = replace(spec, outputs=(TensorSpec("leaf_prob", "int64", ("B", 4)),))
    with pytest.raises(BundleFormatError, match=r"leaf_prob.*float32.*leaf_prob.*int64"):
        opened(machine, tmp_path, given={"assign": other}).load(["assign"])
    fake.misfits = ["build"]
    with pytest.raises(BackendUnavailableError, match="cannot build"):
        opened(machine, tmp_path).load(["assign"])


def test_a_call_that_the_library_refuses(machine: Machine, tmp_path: Path) -> None:
    backend = opened(machine, tmp_path)
    backend.load(["assign"])
    machine[0].misfits = ["always"]
    with pytest.raises(BackendUnavailableError, match="refuses a call"):
        backend.run("assign", feeds("assign", 3))


def test_memory_that_runs_out_is_named(machine: Machine, tmp_path: Path) -> None:
    backend = opened(machine, tmp_path)
    machine[1].fails["cuMemAlloc"] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(BackendUnavailableError, match="OUT_OF_MEMORY"):
        backend.load(["assign"])


def test_a_closed_back_end_says_so(machine: Machine, tmp_path: Path) -> None:
    backend = opened(machine, tmp_path)
    backend.load(["assign"])
    backend.close()
    backend.close()
    with pytest.raises(BackendUnavailableError, match=r"close\(\)"):
        backend.run("assign", feeds("assign", 3))
    with pytest.raises(BackendUnavailableError, match=r"close\(\)"):
        backend.step_loop()


def test_it_says_what_runs(machine: Machine, tmp_path: Path) -> None:
    assert opened(machine, tmp_path).describe() == {
        "backend": "tensorrt 11.4.0",
        "device": "NVIDIA Abacus, compute capability 9.0",
        "precision": "fp32",
        "bucket": 3,
    }


def test_rtx_keeps_what_it_compiled_and_no_times(rtx: Machine, tmp_path: Path) -> None:
    fake, _ = rtx
    for _ in range(2):
        backend = opened(rtx, tmp_path, library="tensorrt-rtx")
        backend.load(["assign"])
        backend.close()
    assert fake.jits == [b"compiled"], "the second process gets what the first one left"
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".engine", ".jit"]
    assert fake.timings == []
    header = next(tmp_path.glob("*.engine")).read_bytes().split(b"\n")[0]
    assert b'"device": "any"' in header


def test_rtx_says_which_gpu_it_is_not_for(rtx: Machine, tmp_path: Path) -> None:
    rtx[0].misfits = ["validity"]
    with pytest.raises(BackendUnavailableError, match=r"not for this GPU.*back end 'tensorrt'"):
        opened(rtx, tmp_path, library="tensorrt-rtx").load(["assign"])


def test_rtx_that_cannot_be_captured_has_no_loop(rtx: Machine, tmp_path: Path) -> None:
    backend = opened(rtx, tmp_path, library="tensorrt-rtx")
    backend.step_loop()
    rtx[0].capturable = False
    with pytest.raises(BackendUnavailableError, match="captured stream"):
        opened(rtx, tmp_path, library="tensorrt-rtx").step_loop()


def test_old_and_missing_libraries(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, _ = machine
    del fake.ICudaEngine.create_runtime_config
    with pytest.raises(BackendUnavailableError, match=r"version 11\.4\.0.*11\.0 or later.*pip"):
        load_library("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DependencyError, match=r"treediffusion\[tensorrt\]"):
        load_library("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(DependencyError, match=r"treediffusion\[tensorrt-rtx\]"):
        load_library("tensorrt-rtx")


def test_the_driver_comes_before_the_library_is_used(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime that is made where there is no driver takes the process down when it ends."""
    fake, cuda = machine
    made: list[Any] = []
    monkeypatch.setattr(fake, "Runtime", made.append)
    cuda.fails["cuInit"] = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(BackendUnavailableError, match="cuInit"):
        opened(machine, tmp_path)
    assert made == []
    gc.collect()
